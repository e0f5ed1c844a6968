//! Configuration files.

use std::net::IpAddr;

use harbor::config::{self, PortsFile, Sources};

use crate::mutate;

const CORPUS: &[&[u8]] = &[
    include_bytes!("../../manifests/harbor.toml"),
    b"[broker]\npassword = \"p\"\n[pools.games]\nport_range = [\"50000-50999\", \"51000\"]\nhost = \"10.0.0.6\"\n",
    b"broker = { password = [\"a\", \"b\"], tls = { certificate = \"c\" } }\n[plans.big]\nidle_timeout = \"2h\"\n",
    b"broker.password = 'p'\n[[discovery.trusted]]\nnetworks = [\"10.0.0.0/8\"]\nservice_instances = [\"*\"]\n",
];

#[test]
fn a_damaged_file_is_refused_with_a_place_or_taken() {
    let sources =
        Sources { file: None, variables: Vec::new(), settings: Vec::new(), own_address: IpAddr::from([127, 0, 0, 1]) };
    mutate::run(CORPUS, |input| {
        let text = String::from_utf8_lossy(input);
        if let Err(error) = config::check(&text, Some("harbor.toml"), &sources) {
            for problem in &error.problems {
                assert!(problem.to_string().starts_with("harbor.toml:"), "{problem}");
            }
        }
    });
}

#[test]
fn a_damaged_registry_is_refused_with_a_place_or_taken() {
    let corpus: &[&[u8]] = &[
        include_bytes!("../../manifests/ports.toml"),
        b"[a]\nrange = \"2000-2009, 2020\"\n[a.ports]\nx = { count = 2, protocol = \"udp\" }\ny = \"2003-2005\"\nz = {}\n",
        b"[default.ports]\nmqtt = 35010\nldap = { port = \"35011\", protocol = \"tcp\" }\n",
    ];
    mutate::run(corpus, |input| {
        let text = String::from_utf8_lossy(input);
        let problems = match PortsFile::check(&text, "ports.toml") {
            Ok(file) => [None, Some(&[][..])].into_iter().flat_map(|pools| file.resolve(pools).problems).collect(),
            Err(error) => error.problems,
        };
        for problem in problems {
            assert!(problem.to_string().starts_with("ports.toml:"), "{problem}");
        }
    });
}

#[test]
fn a_damaged_variable_is_refused_by_its_name_or_taken() {
    let corpus: &[&[u8]] =
        &[b"35000-40000, 41000", b"10.0.0.0/8,::1", b"120s", b"[{ networks = [\"::/0\"] }]", b"true"];
    let names = config::keys().into_iter().map(|key| format!("HARBOR_{}", key.replace('.', "__").to_uppercase()));
    let names: Vec<_> = names.collect();
    let mut round = 0;
    mutate::run(corpus, |input| {
        round += 1;
        let name = &names[round % names.len()];
        let variables = vec![(name.clone(), String::from_utf8_lossy(input).into_owned())];
        let sources =
            Sources { file: None, variables, settings: Vec::new(), own_address: IpAddr::from([127, 0, 0, 1]) };
        if let Err(error) = config::check("broker.password = 'p'", Some("harbor.toml"), &sources) {
            for problem in &error.problems {
                let text = problem.to_string();
                assert!(text.starts_with("HARBOR_") || text.starts_with("harbor.toml:"), "{text}");
            }
        }
    });
}
