//! How a node shows a nats-server who it is.

use std::path::Path;

use harbor::{
    discovery::nats::{self, Login, Tls},
    model::observed::Link,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};

use super::{Node, nats_settings};
use crate::support::nats::NatsServer;

/// A user's key made of the bytes 0 to 31, for this test alone.
const NKEY_SEED: &str = "SUAAAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4MBSGQ3DQOR4H776Y";
const NKEY_PUBLIC: &str = "UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK";

async fn check(server: &NatsServer, login: Login, tls: Tls, expect: Result<(), &str>) {
    let mut node = Node::new();
    node.connect(nats::Settings { login, tls, ..nats_settings(server) });
    match expect {
        Ok(()) => node.up().await,
        Err(part) => {
            let says = |link: &Link| matches!(link, Link::Down(_, reason) if reason.contains(part));
            node.reaches(part, says).await;
            assert_eq!(node.metrics.discovery.nats_connects.get(), 0);
        }
    }
    node.stop().await;
}

fn password(password: &str) -> Login {
    Login::Password { user: "harbor".into(), password: password.into() }
}

#[tokio::test]
async fn by_user_and_password() {
    let server = NatsServer::start_with("authorization { user: harbor, password: secret }");
    check(&server, password("secret"), Tls::default(), Ok(())).await;
    check(&server, password("wrong"), Tls::default(), Err("authorization violation")).await;
    check(&server, Login::Anonymous, Tls::default(), Err("authorization violation")).await;
}

#[tokio::test]
async fn by_token() {
    let server = NatsServer::start_with("authorization { token: secret }");
    check(&server, Login::Token("secret".into()), Tls::default(), Ok(())).await;
    check(&server, Login::Token("wrong".into()), Tls::default(), Err("authorization violation")).await;
}

#[tokio::test]
async fn by_the_seed_of_a_key() {
    let server = NatsServer::start_with(&format!("authorization {{ users: [ {{ nkey: {NKEY_PUBLIC} }} ] }}"));
    let seed = super::file(&server, "seed", &format!("{NKEY_SEED}\n"));
    check(&server, Login::NkeySeedFile(seed), Tls::default(), Ok(())).await;
    let missing = server.directory().join("missing");
    check(&server, Login::NkeySeedFile(missing.clone()), Tls::default(), Err("cannot read")).await;
    check(&server, Login::CredentialsFile(missing), Tls::default(), Err("cannot read")).await;
}

#[tokio::test]
async fn by_a_certificate_over_tls() {
    let files = tempfile::tempdir().expect("a temporary directory");
    let authority = authority();
    let path = |name: &str| files.path().join(name);
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    issue(&authority, files.path(), "server");
    issue(&authority, files.path(), "node");
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem")
    ));
    let identity = Some((path("node.pem"), path("node.key")));
    check(&server, Login::Anonymous, Tls { ca: Some(path("ca.pem")), identity: identity.clone() }, Ok(())).await;
    check(&server, Login::Anonymous, Tls { ca: Some(path("ca.pem")), identity: None }, Err("")).await;
    check(&server, Login::Anonymous, Tls { ca: None, identity }, Err("cannot connect")).await;
}

#[test]
fn a_login_is_never_shown() {
    let shown = format!("{:?} {:?}", password("secret"), Login::Token("secret".into()));
    assert_eq!(shown, "Password(…) Token(…)");
}

pub fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

pub fn issue(authority: &CertifiedIssuer<'static, KeyPair>, folder: &Path, name: &str) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    // Not the authority's own name, which OpenSSL would take for a certificate that signs itself.
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, authority).unwrap();
    std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}
