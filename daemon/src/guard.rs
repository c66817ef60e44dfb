//! Who may ask what of the admin API over TCP: each client by the role in its certificate, each request by the
//! least role it needs. On the unix socket, whose file says who may connect, none of this is asked.

use esker_base::NodeId;
use esker_keys::ca::Certificate;
use esker_keys::{AdminRole, KeyError};
use esker_node::admin::one_line;
use rustls::pki_types::CertificateDer;
use std::convert::Infallible;
use std::fmt;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::body::Body;
use tonic::codegen::{http, BoxFuture, Service};
use tonic::server::NamedService;
use tonic::Status;

/// The least role that each request needs. One that is not here needs `admin`.
pub const LEAST_ROLES: [(&str, AdminRole); 35] = [
    ("ListVolumes", AdminRole::Viewer),
    ("ShowVolume", AdminRole::Viewer),
    ("ListSnapshots", AdminRole::Viewer),
    ("ListVersions", AdminRole::Viewer),
    ("DiffSnapshots", AdminRole::Viewer),
    ("ShowKeys", AdminRole::Viewer),
    ("Space", AdminRole::Viewer),
    ("Status", AdminRole::Viewer),
    ("CreateVolume", AdminRole::Operator),
    ("ResizeVolume", AdminRole::Operator),
    ("SetVolume", AdminRole::Operator),
    ("AttachVolume", AdminRole::Operator),
    ("DetachVolume", AdminRole::Operator),
    ("RenameVolume", AdminRole::Operator),
    ("CreateSnapshot", AdminRole::Operator),
    ("CreateSnapshots", AdminRole::Operator),
    ("HoldVolume", AdminRole::Operator),
    ("CutVolume", AdminRole::Operator),
    ("DeleteSnapshot", AdminRole::Operator),
    ("PruneSnapshots", AdminRole::Operator),
    ("RollbackSnapshot", AdminRole::Operator),
    ("CloneVolume", AdminRole::Operator),
    ("ScrubVolume", AdminRole::Operator),
    ("RotateKeys", AdminRole::Operator),
    ("Checkpoint", AdminRole::Operator),
    ("ShowCluster", AdminRole::Viewer),
    ("ShowNode", AdminRole::Viewer),
    ("AddReplica", AdminRole::Operator),
    ("InitCluster", AdminRole::Admin),
    ("AddNode", AdminRole::Admin),
    ("RemoveNode", AdminRole::Admin),
    ("DrainNode", AdminRole::Admin),
    ("RemoveReplica", AdminRole::Admin),
    ("DeleteVolume", AdminRole::Admin),
    ("AcceptLoss", AdminRole::Admin),
];

fn least_role(method: &str) -> AdminRole {
    let found = LEAST_ROLES.iter().find(|(name, _)| *name == method);
    found.map_or(AdminRole::Admin, |(_, role)| *role)
}

/// Who is at the other end of a connection, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The certificate's common name, in one line.
    pub name: String,
    /// Where it connects from.
    pub address: SocketAddr,
    /// What it may do; nothing when none.
    pub role: Option<AdminRole>,
    /// The node that it is.
    pub node: Option<NodeId>,
    /// Last second of the certificate, since the Unix epoch.
    pub until_unix: i64,
}

impl Caller {
    /// By what the client has shown, which the handshake has checked.
    ///
    /// # Errors
    /// When it has shown nothing, or names rights that there are not.
    pub fn of(shown: Option<&[CertificateDer<'_>]>, address: SocketAddr) -> Result<Self, KeyError> {
        let own = shown.and_then(<[_]>::first);
        let none = || KeyError::new(esker_keys::KeyErrorKind::Denied, "no certificate");
        let certificate = Certificate::of(own.ok_or_else(none)?)?;
        Ok(Self {
            name: one_line(&certificate.name),
            address,
            role: certificate.rights.role,
            node: certificate.rights.node,
            until_unix: certificate.not_after_unix,
        })
    }

    /// Whether it may do now what needs this role.
    ///
    /// # Errors
    /// One line that says what it lacks.
    pub fn check(&self, method: &str, least: AdminRole, now_unix: i64) -> Result<(), Status> {
        if now_unix > self.until_unix {
            return Err(Status::unauthenticated(format!(
                "the certificate of {self} has ended since it connected; renew it"
            )));
        }
        let has = match self.role {
            Some(role) if role >= least => return Ok(()),
            Some(role) => format!("the role {role}"),
            None => "no role for administration".into(),
        };
        Err(Status::permission_denied(format!(
            "the certificate of {self} gives {has}, and {method} needs {least}: `esker cert client --role {least}` \
             makes one that does"
        )))
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.is_empty() {
            true => self.address.fmt(f),
            false => self.name.fmt(f),
        }
    }
}

/// A service that serves each caller what its role allows.
#[derive(Clone, Debug)]
pub struct Guarded<S>(pub S);

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match admit(request.uri().path(), request.extensions().get()) {
            Ok(()) => Box::pin(self.0.call(request)),
            Err(refused) => Box::pin(ready(Ok(refused.into_http()))),
        }
    }
}

fn admit(path: &str, caller: Option<&Arc<Caller>>) -> Result<(), Status> {
    // All behind the service's name, so that nothing can be put around the name of a method.
    let mut parts = path.splitn(3, '/').skip(2);
    let method = parts.next().unwrap_or_default();
    let unknown = || Status::unauthenticated("nobody knows who asks");
    let caller = caller.ok_or_else(unknown)?;
    let (least, address) = (least_role(method), caller.address);
    let admitted = caller.check(method, least, now_unix());
    match &admitted {
        Err(refused) => tracing::warn!(method, %address, "admin: {}", refused.message()),
        // Who looks again and again would fill the log, and a scrub is asked for in many parts.
        Ok(()) if least == AdminRole::Viewer || method == "ScrubVolume" => {
            tracing::debug!(method, %caller, %address, "admin: asked over TCP");
        }
        Ok(()) => tracing::info!(method, %caller, %address, "admin: asked over TCP"),
    }
    admitted
}

/// Seconds since the Unix epoch.
pub(crate) fn now_unix() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn caller(role: Option<AdminRole>) -> Caller {
        Caller {
            name: "eve".into(),
            address: ([127, 0, 0, 1], 7).into(),
            role,
            node: None,
            until_unix: now_unix() + 60,
        }
    }

    /// Who adds a request decides who may ask it.
    #[test]
    fn every_request_of_the_protocol_has_a_least_role() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../api/proto/esker/admin/v1/admin.proto"
        );
        let proto = std::fs::read_to_string(path).unwrap();
        let rpcs = proto.lines().filter_map(|line| {
            let rest = line.trim().strip_prefix("rpc ")?;
            rest.split('(').next()
        });
        let mut asked: Vec<&str> = rpcs.collect();
        let mut named: Vec<&str> = LEAST_ROLES.iter().map(|(name, _)| *name).collect();
        asked.sort_unstable();
        named.sort_unstable();
        assert_eq!(named, asked);
    }

    #[test]
    fn each_role_may_what_those_below_may() {
        let roles = [AdminRole::Viewer, AdminRole::Operator, AdminRole::Admin];
        for (has, role) in roles.into_iter().enumerate() {
            for (needs, method) in ["Status", "CreateVolume", "DeleteVolume"]
                .iter()
                .enumerate()
            {
                let path = format!("/esker.admin.v1.Admin/{method}");
                let admitted = admit(&path, Some(&Arc::new(caller(Some(role)))));
                assert_eq!(admitted.is_ok(), has >= needs, "{role} {method}");
            }
        }
        let may = |path, caller: Option<Caller>| {
            let refused = admit(path, caller.map(Arc::new).as_ref());
            refused.map_err(|status| status.code())
        };
        let unknown = "/esker.admin.v1.Admin/NotThereYet";
        assert_eq!(
            may(unknown, Some(caller(Some(AdminRole::Operator)))),
            Err(Code::PermissionDenied)
        );
        let around = "/esker.admin.v1.Admin/DeleteVolume/Status";
        let viewer = Some(caller(Some(AdminRole::Viewer)));
        assert_eq!(may(around, viewer), Err(Code::PermissionDenied));
        assert_eq!(
            may("/x/Status", Some(caller(None))),
            Err(Code::PermissionDenied)
        );
        assert_eq!(may("/x/Status", None), Err(Code::Unauthenticated));
        let node = Caller {
            node: Some(NodeId(3)),
            ..caller(None)
        };
        assert_eq!(may("/x/Status", Some(node)), Err(Code::PermissionDenied));
    }

    #[test]
    fn a_certificate_that_ends_ends_what_it_gave() {
        let mut late = caller(Some(AdminRole::Admin));
        let check = |caller: &Caller| caller.check("Status", AdminRole::Viewer, now_unix());
        check(&late).unwrap();
        late.until_unix = now_unix() - 1;
        let refused = check(&late).unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("eve") && refused.message().contains("renew"));
    }
}
