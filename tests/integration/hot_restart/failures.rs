//! A new process that fails leaves everything as it was.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::json;
use tokio::task::block_in_place;

use super::stand_in::Program;
use crate::{
    end_to_end::{PLAN_BOTH, at, bind, provision, status, with_nats},
    support::{
        eventually::eventually_async,
        harbor::{Harbor, Site},
        nats::NatsServer,
        peer::{TcpPeer, UdpPeer, V4, ask, connect, ping, udp_client},
    },
};

/// A node with one port, a stream through it and a session.
struct Stage {
    site: Site,
    program: Program,
    harbor: Harbor,
    stream: TcpStream,
    session: UdpSocket,
    port: SocketAddr,
    tcp: TcpPeer,
    udp: UdpPeer,
    _nats: NatsServer,
}

impl Stage {
    async fn set(ports: &str) -> Self {
        let server = NatsServer::start();
        let site = Site::new(ports, &with_nats(&server));
        let program = Program::harbor(&site);
        let harbor = program.start(&site);
        harbor.ready().await;
        provision(&harbor, "first", PLAN_BOTH).await;
        let port = at(&bind(&harbor, "first", "binding", PLAN_BOTH).await);
        let (tcp, udp) = (TcpPeer::echo(V4), UdpPeer::echo(V4));
        let message = json!({
            "host": "127.0.0.1",
            "port": tcp.address.port(),
            "app": "app",
            "harbor": { "instance_id": "first", "udp_port": udp.address.port() },
        });
        let nats = async_nats::connect(server.url()).await.unwrap();
        eventually_async("the port has its backends", || async {
            nats.publish("harbor.register", message.to_string().into()).await.unwrap();
            nats.flush().await.unwrap();
            let backends = &status(&harbor).await["backends"];
            (backends["tcp"] == 1 && backends["udp"] == 1).then_some(())
        })
        .await;
        let (mut stream, session) = (connect(V4, port.port()), udp_client(V4, port.port()));
        block_in_place(|| {
            ping(&mut stream, b"before");
            assert_eq!(ask(&session, b"before"), b"before");
        });
        Self { site, program, harbor, stream, session, port, tcp, udp, _nats: server }
    }

    /// Asks for a restart as operators do, and returns what the command says.
    fn restart(&self) -> (Option<i32>, String) {
        let (url, token) = (format!("http://{}", self.harbor.address("admin")), self.site.data().join("admin.token"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_harbor"));
        let output = command.args(["restart", "--admin", &url, "--token-file"]).arg(token).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }

    /// Which process answers operators.
    async fn process(&self) -> u32 {
        let process = status(&self.harbor).await["process"].as_u64();
        process.and_then(|process| u32::try_from(process).ok()).expect("a status has it")
    }

    /// How many clients the backend for UDP has seen.
    fn sessions(&self) -> usize {
        self.udp.received().into_iter().map(|(source, _)| source).collect::<BTreeSet<_>>().len()
    }

    /// Everything is as it was, and new things can be had.
    async fn goes_on(&mut self, process: u32, what: &str) {
        assert_eq!(status(&self.harbor).await["process"], process, "{what}");
        provision(&self.harbor, what, PLAN_BOTH).await;
        block_in_place(|| {
            ping(&mut self.stream, what.as_bytes());
            assert_eq!(ask(&self.session, what.as_bytes()), what.as_bytes());
            ping(&mut connect(V4, self.port.port()), what.as_bytes());
        });
        assert_eq!(self.sessions(), 1, "{what}: the session moved");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_fails_at_any_step_leaves_the_old_one_serving() {
    let mut stage = Stage::set("18010-18039").await;
    let process = stage.harbor.pid();
    for (what, reason) in [
        ("cannot-be-run", "cannot be run"),
        ("ends-at-once", "exit status: 7"),
        ("dies-at-once", "SIGABRT"),
        ("speaks-another-protocol", "harbor 9.9.9 takes over by protocol 2"),
        ("talks-nonsense", "where it should greet"),
        ("refuses", "cannot go on: there is no room"),
        ("dies-with-the-lock", "SIGABRT"),
        ("dies-with-the-sessions", "SIGABRT"),
        ("hangs-with-the-sessions", "does not serve within 5s"),
    ] {
        match what {
            "cannot-be-run" => stage.program.becomes_unusable(),
            "ends-at-once" => stage.program.becomes("exit 7"),
            step => stage.program.becomes_one_that(step),
        }
        let (code, said) = block_in_place(|| stage.restart());
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains(reason), "{what}: {said}");
        stage.goes_on(process, what).await;
    }

    // A configuration that is wrong, as an operator leaves one behind.
    stage.program.becomes_harbor();
    let config = std::fs::read_to_string(stage.site.config()).unwrap();
    std::fs::write(stage.site.config(), config.replace("quarantine = \"0s\"", "quarantine = \"soon\"")).unwrap();
    let (code, said) = block_in_place(|| stage.restart());
    assert!(code == Some(1) && said.contains("quarantine"), "{said}");
    stage.goes_on(process, "a-wrong-configuration").await;

    // When it is right again a restart works, and nothing of all that is left.
    std::fs::write(stage.site.config(), config).unwrap();
    let (code, said) = block_in_place(|| stage.restart());
    assert_eq!(code, Some(0), "{said}");
    let new = stage.process().await;
    assert!(
        new != process && said.contains(&format!("Process {process} ")) && said.contains(&format!("process {new} "))
    );
    stage.harbor.serves_now(new);
    stage.goes_on(new, "after-a-restart").await;
    // The first process had the stream, and ends when that does.
    assert_eq!(stage.tcp.accepted(), 12);
    drop(stage.stream);
    block_in_place(|| stage.harbor.logged("every connection has finished"));
    stage.harbor.signal(Signal::TERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_that_hears_nothing_of_many_sessions_leaves_them_to_the_old_one() {
    let stage = Stage::set("18050-18059").await;
    let process = stage.harbor.pid();
    // Far more than the pair of sockets takes unread.
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }).unwrap();
    let sessions = (0..1200).map(|_| udp_client(V4, stage.port.port())).collect::<Vec<_>>();
    let all_answer = |what: &str| {
        for session in &sessions {
            assert_eq!(ask(session, what.as_bytes()), what.as_bytes());
        }
    };
    block_in_place(|| all_answer("before"));
    stage.program.becomes_one_that("hears-nothing-once-prepared");
    let (code, said) = block_in_place(|| stage.restart());
    assert!(code == Some(1) && said.contains("does not serve within 5s"), "{said}");
    block_in_place(|| all_answer("after"));
    assert_eq!(stage.sessions(), 1 + sessions.len(), "a session moved");

    // With one that hears, all of them go on in it.
    stage.program.becomes_harbor();
    let (code, said) = block_in_place(|| stage.restart());
    assert_eq!(code, Some(0), "{said}");
    block_in_place(|| all_answer("handed over"));
    let new = stage.process().await;
    stage.harbor.serves_now(new);
    assert_ne!(new, process);
    assert_eq!(stage.sessions(), 1 + sessions.len(), "a session moved");
    stage.harbor.signal(Signal::TERM);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_is_under_way_refuses_another_one_and_ends_with_the_node() {
    let mut stage = Stage::set("18040-18049").await;
    let process = stage.harbor.pid();
    stage.program.becomes_one_that("hangs-with-the-lock");
    stage.harbor.signal(Signal::USR2);
    block_in_place(|| stage.harbor.logged("hot restart: handing over"));
    stage.harbor.signal(Signal::USR2);
    block_in_place(|| stage.harbor.logged("a hot restart is under way: this one is refused"));
    let (code, said) = block_in_place(|| stage.restart());
    assert!(code == Some(1) && said.contains("a restart is under way"), "{said}");
    // Traffic notices nothing of a new process that hangs; the platform waits.
    block_in_place(|| {
        ping(&mut stage.stream, b"meanwhile");
        assert_eq!(ask(&stage.session, b"meanwhile"), b"meanwhile");
        ping(&mut connect(V4, stage.port.port()), b"meanwhile");
    });
    let mut waiting = TcpStream::connect(stage.harbor.address("broker")).unwrap();
    waiting.write_all(b"GET /v2/catalog HTTP/1.1\r\nhost: harbor\r\nconnection: close\r\n\r\n").unwrap();
    // Told to end, it gives up the restart and drains as ever.
    stage.harbor.signal(Signal::TERM);
    let line = block_in_place(|| stage.harbor.logged("the hot restart failed"));
    assert!(line.contains("this process was told to end"), "{line}");
    assert_eq!(stage.harbor.pid(), process);
    // Told again, it waits for nobody.
    stage.harbor.signal(Signal::TERM);
    let ended = block_in_place(|| stage.harbor.wait());
    assert!(ended.success(), "{ended}");
}
