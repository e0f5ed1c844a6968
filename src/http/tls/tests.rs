use std::time::Duration;

use axum::{Router, routing::get};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::http::{Limits, serve};

/// An authority with its files.
struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
struct Leaf {
    certificate: String,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("ring has P-256");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a valid authority");
        Self { directory: tempfile::tempdir().expect("a temporary directory"), issuer }
    }

    fn leaf(&self) -> Leaf {
        let key = KeyPair::generate().expect("ring has P-256");
        let params = CertificateParams::new(vec!["harbor.test".to_owned()]).expect("a valid name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a valid leaf").pem();
        Leaf { certificate, key }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("the directory is ours");
        path
    }

    /// Writes a fresh pair to the files that the server reads.
    fn write_leaf(&self) -> (PathBuf, PathBuf, Leaf) {
        let leaf = self.leaf();
        (self.write("certificate.pem", &leaf.certificate), self.write("key.pem", &leaf.key.serialize_pem()), leaf)
    }

    fn client(&self, identity: Option<&Leaf>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("a valid authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has them")
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(leaf) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).expect("a certificate")],
                    PrivateKeyDer::from_pem_slice(leaf.key.serialize_pem().as_bytes()).expect("a key"),
                )
                .expect("a pair"),
        }
    }
}

/// What one request gets, and the certificate that was shown.
async fn request(address: std::net::SocketAddr, client: ClientConfig) -> io::Result<(String, CertificateDer<'static>)> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("harbor.test").expect("a valid name");
    let mut stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().expect("the server shows one")[0].clone().into_owned();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: harbor.test\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok((answer, shown))
}

async fn with_server<F: Future<Output = ()>>(tls: Arc<Tls>, test: impl FnOnce(std::net::SocketAddr) -> F) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    let shutdown = CancellationToken::new();
    let router = Router::new().route("/", get(|| async { "ok" }));
    let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
    let test = async {
        test(address).await;
        shutdown.cancel();
    };
    tokio::join!(serve(listener, Some(tls), router, limits, shutdown.clone()), test);
}

#[tokio::test]
async fn a_listener_serves_over_tls_and_takes_a_new_certificate_without_a_restart() {
    let authority = Authority::new();
    let (certificate, key, first) = authority.write_leaf();
    let tls = Tls::load(&certificate, &key, None).expect("a good pair");
    with_server(Arc::clone(&tls), async |address| {
        let (answer, shown) = request(address, authority.client(None)).await.expect("it serves");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"), "{answer}");
        assert_eq!(shown, CertificateDer::from_pem_slice(first.certificate.as_bytes()).expect("a certificate"));

        let (_, _, second) = authority.write_leaf();
        tls.reload().expect("a good pair");
        let (_, shown) = request(address, authority.client(None)).await.expect("it serves");
        assert_eq!(shown, CertificateDer::from_pem_slice(second.certificate.as_bytes()).expect("a certificate"));

        authority.write("key.pem", "no key");
        assert!(matches!(tls.reload(), Err(TlsError::NotPem { .. })));
        request(address, authority.client(None)).await.expect("the last good pair stays in use");
    })
    .await;
}

#[tokio::test]
async fn with_a_client_authority_only_its_clients_get_in() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key, _) = authority.write_leaf();
    let client_ca = authority.write("ca.pem", &authority.issuer.pem());
    let tls = Tls::load(&certificate, &key, Some(&client_ca)).expect("good files");
    with_server(tls, async |address| {
        request(address, authority.client(Some(&authority.leaf()))).await.expect("a client of that authority");
        request(address, authority.client(None)).await.expect_err("a client without a certificate");
        request(address, authority.client(Some(&other.leaf()))).await.expect_err("a client of another authority");
    })
    .await;
}

#[tokio::test]
async fn a_handshake_that_never_comes_ends_the_connection() {
    let authority = Authority::new();
    let (certificate, key, _) = authority.write_leaf();
    with_server(Tls::load(&certificate, &key, None).expect("a good pair"), async |address| {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        assert_eq!(stream.read(&mut [0]).await.expect("closed in order"), 0);
    })
    .await;
}

#[test]
fn errors_name_the_file() {
    let authority = Authority::new();
    let (certificate, key, _) = authority.write_leaf();
    let text = |result: Result<Arc<Tls>, TlsError>| {
        let error = result.expect_err("bad files").to_string();
        error.replace(authority.directory.path().to_str().expect("text"), "DIR")
    };
    let missing = authority.directory.path().join("missing.pem");
    assert_eq!(
        text(Tls::load(&missing, &key, None)),
        "cannot read DIR/missing.pem: No such file or directory (os error 2)"
    );
    assert_eq!(text(Tls::load(&key, &key, None)), "DIR/key.pem holds no certificate in PEM form: no items found");
    let stranger = authority.write("stranger.pem", &authority.leaf().key.serialize_pem());
    assert_eq!(
        text(Tls::load(&certificate, &stranger, None)),
        "DIR/certificate.pem and DIR/stranger.pem cannot be used together: keys may not be consistent: KeyMismatch"
    );
}
