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
use rustls::client::Resumption;
use rustls::crypto::{verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerMisbehaved, RootCertStore, ServerConfig, SignatureScheme,
};
use std::sync::Arc;

/// What a node needs for TLS with the others.
#[derive(Clone, Debug)]
pub struct NodeTls {
    node: NodeId,
    identity: Arc<Identity>,
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    server: Arc<ServerConfig>,
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
        let identity = Arc::new(Identity::read(
            "tls.cert",
            &files.cert,
            "tls.key",
            &files.key,
        )?);
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
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| KeyError::config(format!("TLS: {e}")))?
            .with_client_cert_verifier(Arc::new(NodesAsClients(inner)));
        let server = builder.with_single_cert(identity.chain.clone(), identity.key.clone_key());
        let mut server = server.map_err(|e| KeyError::config(format!("tls.cert: {shown}: {e}")))?;
        // Each connection shows its certificate, so that new files count at once.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            node,
            identity,
            roots,
            provider,
            server: Arc::new(server),
        })
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
    /// When the certificate and its key do not fit together.
    pub fn client(&self, expected: Option<NodeId>) -> Result<Arc<ClientConfig>, KeyError> {
        let odd = |e: Error| KeyError::config(format!("TLS: {e}"));
        let verifier = NodesAsServers {
            expected,
            roots: Arc::clone(&self.roots),
            provider: Arc::clone(&self.provider),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(odd)?
            .dangerous() // it looks at the node that the certificate is for, rather than at a host
            .with_custom_certificate_verifier(Arc::new(verifier));
        let identity = &self.identity;
        let config =
            builder.with_client_auth_cert(identity.chain.clone(), identity.key.clone_key());
        let mut config = config.map_err(odd)?;
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
struct NodesAsClients(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for NodesAsClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        check(end_entity, None)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Nodes that this one connects to: the authority, the time and the purpose as for any server, and the node
/// in the place of the host's name.
#[derive(Debug)]
struct NodesAsServers {
    expected: Option<NodeId>,
    roots: Arc<RootCertStore>,
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
            &self.roots,
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
