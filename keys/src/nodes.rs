//! TLS between the nodes of a cluster: each shows its certificate, which names the node it is for
//! (`urn:esker:node:ID`), and takes none but a node's. Host names play no part: a node is who its
//! certificate says, wherever it is reached.
//!
//! TLS 1.3 only. What is expired, of another authority, or names no node is refused within the handshake,
//! by whoever uses these configurations: tokio-rustls under gRPC, or rustls alone in a store's loop.

use crate::error::KeyError;
use crate::rights::Rights;
use crate::server::{roots, Identity, ServerFiles};
use esker_base::NodeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerMisbehaved, RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::{Arc, PoisonError, RwLock};

/// What a node needs for TLS with the others. Whoever has one, or a configuration of one, goes on with what
/// [`NodeTls::take_over`] brings: with the next handshake.
#[derive(Clone, Debug)]
pub struct NodeTls {
    node: NodeId,
    current: Current,
    provider: Arc<CryptoProvider>,
    server: Arc<ServerConfig>,
}

/// What handshakes look at, and what they show.
#[derive(Clone, Debug)]
struct Current(Arc<RwLock<Files>>);

#[derive(Clone, Debug)]
struct Files {
    shown: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Current {
    fn get(&self) -> Files {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().shown)
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get().shown)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl NodeTls {
    /// Reads a node's files.
    ///
    /// # Errors
    /// When one cannot be read or is not what it should be, there is no authority, or the certificate names
    /// no node.
    pub fn load(files: &ServerFiles) -> Result<Self, KeyError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let Some(ca) = &files.ca else {
            return Err(KeyError::config(
                "tls.ca: nodes know each other by their authority; name it",
            ));
        };
        let roots = Arc::new(roots("tls.ca", ca)?);
        let identity = Identity::read("tls.cert", &files.cert, "tls.key", &files.key)?;
        let shown = files.cert.display();
        let node = identity
            .chain
            .first()
            .map_or(Ok(None), |own| Rights::of(own).map(|rights| rights.node))?;
        let node = node.ok_or_else(|| {
            KeyError::config(format!(
                "tls.cert: {shown} names no node; `esker cert node` makes one that does"
            ))
        })?;
        let inner =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let inner = inner.build();
        let inner =
            inner.map_err(|e| KeyError::config(format!("tls.ca: {}: {e}", ca.display())))?;
        let certified = CertifiedKey::from_der(identity.chain, identity.key, &provider);
        let certified =
            certified.map_err(|e| KeyError::config(format!("tls.cert: {shown}: {e}")))?;
        let current = Current(Arc::new(RwLock::new(Files {
            shown: Arc::new(certified),
            roots: Arc::clone(&roots),
            clients: inner,
        })));
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| KeyError::config(format!("TLS: {e}")))?
            .with_client_cert_verifier(Arc::new(NodesAsClients {
                current: current.clone(),
                provider: Arc::clone(&provider),
            }));
        let mut server = builder.with_cert_resolver(Arc::new(current.clone()));
        // Each connection shows its certificate, so that new files count at once.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            node,
            current,
            provider,
            server: Arc::new(server),
        })
    }

    /// Everything that came of this goes on with the files of another one, of the same node.
    pub fn take_over(&self, newer: &Self) {
        let files = newer.current.get();
        *self
            .current
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner) = files;
    }

    /// The node that the certificate is for.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// For connections that other nodes begin. When the handshake is over, [`node_of`] says which one it is.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For connections to another node: to this one, or to any, and then [`node_of`] says to which one. The
    /// name of the server that rustls wants to be given is not looked at ([`NodeTls::server_name`] does).
    ///
    /// # Errors
    /// When TLS is not to be had.
    pub fn client(&self, expected: Option<NodeId>) -> Result<Arc<ClientConfig>, KeyError> {
        let odd = |e: Error| KeyError::config(format!("TLS: {e}"));
        let verifier = NodesAsServers {
            expected,
            current: self.current.clone(),
            provider: Arc::clone(&self.provider),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(odd)?
            .dangerous() // it looks at the node that the certificate is for, rather than at a host
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = builder.with_client_cert_resolver(Arc::new(self.current.clone()));
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }

    /// What can be given to rustls as the name of the server.
    #[must_use]
    pub fn server_name() -> ServerName<'static> {
        ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
    }
}

/// Which node the other side of a connection is, by what rustls calls `peer_certificates`.
///
/// # Errors
/// When there is no certificate or it names no node. Neither can be with the configurations of [`NodeTls`].
pub fn node_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<NodeId, KeyError> {
    let shown = certificates.and_then(<[_]>::first);
    let shown = shown.ok_or_else(|| KeyError::denied("the other side shows no certificate"))?;
    let rights = Rights::of(shown)?;
    rights.node.ok_or_else(|| {
        KeyError::denied(
            "the other side's certificate names no node (urn:esker:node:ID); `esker cert node` makes one",
        )
    })
}

/// Refuses a certificate that names no node, or another one than expected.
fn check(certificate: &CertificateDer<'_>, expected: Option<NodeId>) -> Result<(), Error> {
    let refuse = |why: KeyError| {
        let why = OtherError(Arc::new(why));
        Error::InvalidCertificate(CertificateError::Other(why))
    };
    let node = node_of(Some(std::slice::from_ref(certificate))).map_err(refuse)?;
    match expected.filter(|expected| *expected != node) {
        None => Ok(()),
        Some(expected) => Err(refuse(KeyError::denied(format!(
            "this is node {node}, not node {expected}; look at the addresses of the nodes"
        )))),
    }
}

/// Nodes that connect to this one.
#[derive(Debug)]
struct NodesAsClients {
    current: Current,
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for NodesAsClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // they change with the files, and nodes have one certificate to show
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let files = self.current.get();
        let verified = files
            .clients
            .verify_client_cert(end_entity, intermediates, now)?;
        check(end_entity, None)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Only TLS 1.3 is spoken.
        Err(PeerMisbehaved::SelectedUnofferedCipherSuite.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Nodes that this one connects to: the authority, the time and the purpose as for any server, and the node
/// in the place of the host's name.
#[derive(Debug)]
struct NodesAsServers {
    expected: Option<NodeId>,
    current: Current,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NodesAsServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.current.get().roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        check(end_entity, self.expected)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Only TLS 1.3 is spoken.
        Err(PeerMisbehaved::SelectedUnofferedCipherSuite.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
