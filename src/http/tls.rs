//! TLS of a listener: certificate, private key and, for mutual TLS, the authority of its clients.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject as _},
};

/// Files of a listener and what was last read from them; new connections use the latest.
pub struct Tls {
    certificate: PathBuf,
    private_key: PathBuf,
    client_ca: Option<PathBuf>,
    config: ArcSwap<ServerConfig>,
}

/// Why files make no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has not what it should have.
    #[error("{} holds no {wanted} in PEM form: {source}", path.display())]
    NotPem {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
        /// Why it does not.
        source: pem::Error,
    },
    /// Certificate and private key are no pair, or of a kind that is not supported.
    #[error("{} and {} cannot be used together: {source}", certificate.display(), private_key.display())]
    NoPair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The private key's file.
        private_key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authority of clients cannot be used.
    #[error("{} cannot be used to check clients: {reason}", path.display())]
    ClientAuthority {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Tls {
    /// Reads the files. With `client_ca` only clients with a certificate of that authority are let in.
    ///
    /// # Errors
    /// [`TlsError`], naming the file.
    pub fn load(certificate: &Path, private_key: &Path, client_ca: Option<&Path>) -> Result<Arc<Self>, TlsError> {
        let config = read(certificate, private_key, client_ca)?;
        Ok(Arc::new(Self {
            certificate: certificate.into(),
            private_key: private_key.into(),
            client_ca: client_ca.map(Into::into),
            config: ArcSwap::from_pointee(config),
        }))
    }

    /// Reads the files again, for new connections.
    ///
    /// # Errors
    /// [`TlsError`]; what was read before stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.config.store(Arc::new(read(&self.certificate, &self.private_key, self.client_ca.as_deref())?));
        Ok(())
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

fn read(certificate: &Path, private_key: &Path, client_ca: Option<&Path>) -> Result<ServerConfig, TlsError> {
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(|error| not_pem(private_key, "private key", error))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has a cipher suite for every protocol version");
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(client_verifier(path)?),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|source| TlsError::NoPair {
        certificate: certificate.into(),
        private_key: private_key.into(),
        source,
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |error| not_pem(path, "certificate", error);
    let chain =
        CertificateDer::pem_file_iter(path).map_err(refused)?.collect::<Result<Vec<_>, _>>().map_err(refused)?;
    if chain.is_empty() { Err(refused(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn client_verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let refused = |reason: String| TlsError::ClientAuthority { path: path.into(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| refused(error.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(ring::default_provider()))
        .build()
        .map_err(|error| refused(error.to_string()))
}

fn not_pem(path: &Path, wanted: &'static str, error: pem::Error) -> TlsError {
    match error {
        pem::Error::Io(source) => TlsError::Unreadable { path: path.into(), source },
        source => TlsError::NotPem { path: path.into(), wanted, source },
    }
}

#[cfg(test)]
mod tests;
