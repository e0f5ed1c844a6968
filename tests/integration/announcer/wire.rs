//! What is on the wire, as the page on the sidecar shows it.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex},
};

use super::{ways::over_nats, *};
use crate::docs;

/// The page's blocks in a language.
fn shown(language: &str) -> Vec<String> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/sidecar.md")).unwrap();
    let begin = format!("```{language}\n");
    let blocks = page.split(&begin).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[track_caller]
fn check(shown: &str, sent: &str) {
    assert!(docs::matches(shown.trim_end(), sent.trim_end()), "the page shows:\n{shown}\nand this was sent:\n{sent}");
}

/// Passes connections on to a server, and keeps what is asked in each, before the server hears it.
fn tap(server: SocketAddr, asked: Arc<Mutex<Vec<String>>>) -> TcpPeer {
    TcpPeer::serving(V4, move |client| {
        let server = TcpStream::connect(server)?;
        let nth = {
            let mut asked = asked.lock().unwrap();
            asked.push(String::new());
            asked.len() - 1
        };
        std::thread::scope(|scope| {
            scope.spawn(|| -> io::Result<()> {
                let mut bytes = [0; 4096];
                loop {
                    let read = (&client).read(&mut bytes)?;
                    if read == 0 {
                        return Ok(());
                    }
                    asked.lock().unwrap()[nth] += &String::from_utf8_lossy(&bytes[..read]).replace('\r', "");
                    (&server).write_all(&bytes[..read])?;
                }
            });
            // Each connection carries one request, and ends with its answer.
            io::copy(&mut &server, &mut &client)?;
            client.shutdown(Shutdown::Both)
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_is_asked_over_http() {
    let bound = Bound::new(Site::new("29300-29309", ""), PLAN_BOTH, 4100).await;
    let asked = Arc::default();
    let tap = tap(bound.harbor.address("announce"), Arc::clone(&asked));
    let url = format!("http://{}/announce/v1/instances/game", tap.address);
    let said = ["announce", "--url", &url, "--binding", "game-binding", "--port", "7777", "--udp-port", "7777"];
    let mut command = bound.site.command(&[&said[..], &["--no-check"]].concat());
    command.env("HARBOR_ANNOUNCE_TOKEN", bound.token());
    let sidecar = bound.site.start_with(command);
    bound.has(&["tcp 127.0.0.1:7777 up", "udp 127.0.0.1:7777 up"]).await;
    assert!(sidecar.terminate().success());
    bound.has(&[]).await;
    let asked = asked.lock().unwrap();
    let [up, draining, gone] = &asked[..] else { panic!("{asked:?}") };
    let [announced, withdrawn] = &shown("http")[..] else { panic!("the page shows an announcement and its end") };
    check(announced, up);
    check(withdrawn, gone);
    assert_eq!(draining.lines().last(), up.lines().last().map(|body| body.replace("up\"", "draining\"")).as_deref());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_what_is_published_over_nats_and_all_of_it_has_one_beginning() {
    let server = NatsServer::start();
    let bound = Bound::new(Site::new("29310-29319", &with_nats(&server)), PLAN_BOTH, 4100).await;
    let mut bus = Bus::of(&server).await;
    let arguments = ["--port", "7777", "--udp-port", "7777", "--interval", "1s"];
    let sidecar = bound.site.start_with(over_nats(&bound, &server.url(), &arguments));
    let mut messages = vec![bus.message().await, bus.message().await, bus.message().await];
    sidecar.signal(Signal::TERM);
    while messages.last().is_none_or(|(registers, _)| *registers) {
        messages.push(bus.message().await);
    }
    assert!(sidecar.wait().success());
    let [shown] = &shown("json")[..] else { panic!("the page shows a message") };
    let shown = shown.replace('\n', "");
    check(&shown, &messages[0].1);
    check(&shown, &messages.last().expect("there are some").1);
    let own = |(_, message): &(bool, String)| serde_json::from_str::<Value>(message).expect("JSON")["harbor"].take();
    let messages = messages.iter().map(own).collect::<Vec<_>>();
    let since = messages[0]["since"].as_i64().expect("a time");
    assert_eq!(Some(since.div_euclid(1_000_000)), messages[0]["timestamp"].as_i64(), "it began with its first word");
    assert!(messages.iter().all(|message| message["since"] == since), "{messages:?}");
    assert_eq!(messages[messages.len() - 2]["state"], "draining");
    assert_eq!(bound.status().await.refusals, []);
}
