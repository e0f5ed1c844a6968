//! Reading a request's body within a limit of size and time.

use std::time::Duration;

use axum::{body::Body, http::StatusCode, response::Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

use super::refusal;

/// How long a body may take to come in.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a body that is too large is read and thrown away: a client that is still sending when the connection
/// closes would see a reset instead of the refusal.
pub const MAX_DISCARDED_BYTES: usize = 4 * 1024 * 1024;

/// The whole body, of at most `limit` bytes.
///
/// # Errors
/// The refusal to answer with: 413 when it is larger, 408 when it takes longer than [`BODY_TIMEOUT`], 400 when it
/// breaks off.
pub async fn read_body(body: Body, limit: usize) -> Result<Bytes, Response> {
    read_within(body, limit, BODY_TIMEOUT).await
}

async fn read_within(body: Body, limit: usize, timeout: Duration) -> Result<Bytes, Response> {
    match tokio::time::timeout(timeout, collect(body, limit)).await {
        Ok(Ok(Some(bytes))) => Ok(bytes),
        Ok(Ok(None)) => Err(refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            None,
            format!("The body has more than {limit} bytes: send a smaller one."),
        )),
        Ok(Err(_)) => {
            Err(refusal(StatusCode::BAD_REQUEST, None, "The body broke off before its end: send the request again."))
        }
        Err(_) => Err(refusal(
            StatusCode::REQUEST_TIMEOUT,
            None,
            format!("The body took longer than {} seconds: send the request again.", timeout.as_secs()),
        )),
    }
}

/// `None` when the body is too large.
async fn collect(mut body: Body, limit: usize) -> Result<Option<Bytes>, axum::Error> {
    let mut collected = BytesMut::new();
    let mut length = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        length = length.saturating_add(data.len());
        if length <= limit {
            collected.extend_from_slice(&data);
        } else if length > limit.saturating_add(MAX_DISCARDED_BYTES) {
            break;
        }
    }
    Ok((length <= limit).then(|| collected.freeze()))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    async fn check(body: Body, limit: usize, expect: Result<&[u8], (u16, &str)>) {
        match (read_body(body, limit).await, expect) {
            (Ok(bytes), Ok(expected)) => assert_eq!(&bytes[..], expected),
            (Err(response), Err((status, text))) => {
                assert_eq!(response.status().as_u16(), status);
                let bytes = response.into_body().collect().await.expect("a refusal's body is in memory").to_bytes();
                assert_eq!(bytes, text.as_bytes());
            }
            (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }

    #[tokio::test]
    async fn a_body_is_taken_up_to_the_limit_and_refused_beyond() {
        let too_large = (413, r#"{"description":"The body has more than 4 bytes: send a smaller one."}"#);
        check(Body::empty(), 4, Ok(b"")).await;
        check(Body::from("1234"), 4, Ok(b"1234")).await;
        check(Body::from("12345"), 4, Err(too_large)).await;
        let pieces = stream::iter(["12", "34", "5"].map(Ok::<_, std::io::Error>));
        check(Body::from_stream(pieces), 4, Err(too_large)).await;
    }

    #[tokio::test]
    async fn a_body_that_never_ends_is_not_read_for_ever() {
        let endless = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 64 * 1024])));
        let too_large = (413, r#"{"description":"The body has more than 4 bytes: send a smaller one."}"#);
        check(Body::from_stream(endless), 4, Err(too_large)).await;
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_refused() {
        let broken = stream::iter([Ok("12"), Err(std::io::Error::other("gone"))]);
        let refused = r#"{"description":"The body broke off before its end: send the request again."}"#;
        check(Body::from_stream(broken), 4, Err((400, refused))).await;
    }

    #[tokio::test]
    async fn a_body_that_trickles_is_refused() {
        let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let refused = read_within(silent, 4, Duration::ZERO).await.expect_err("nothing comes");
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
    }
}
