//! Any node is a door for operators: what is asked about a volume with several copies is carried out by the node that
//! leads it, or by one that has a copy, whichever is asked ([`Door`]).
//!
//! Who may ask is decided before ([`crate::guard`]). What came from another node is carried out or refused here, never
//! passed on again: it does not come through the door.

use crate::admin::AdminService;
use crate::cluster::Cluster;
use esker_api::raw::{Bytes, Message, OfVolume, RawCodec};
use esker_api::v1::admin_server::AdminServer;
use esker_api::MESSAGE_BYTES_MAX;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::codegen::{http, BoxFuture, Service, StdError};
use tonic::server::{NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};

/// Who can carry out a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The node that leads the volume.
    Leader,
    /// A node with a copy of it.
    Holder,
}

/// How a request is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its method.
    pub method: &'static str,
    /// Who can carry it out.
    pub who: Who,
    /// Asked a second time it changes nothing more, so that it can be repeated when an answer is lost.
    pub repeats: bool,
    /// How an operator finds out whether it took effect.
    pub look: &'static str,
}

/// How long a leader is asked how far it is.
const LOOK_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// A clone is another volume than the one that a request names.
const CLONES: &str = "esker volume list";

/// What is passed on. All that is not here is about the node that is asked, or about volumes that are there alone.
pub const RULES: [Rule; 20] = [
    leader("ResizeVolume", true, "esker volume show"),
    leader("RenameVolume", false, "esker volume show"),
    leader("SetVolume", false, "esker volume show"),
    leader("AttachVolume", true, "esker volume show"),
    leader("DetachVolume", true, "esker volume show"),
    leader("CreateSnapshot", false, "esker snapshot list"),
    leader("HoldVolume", true, "esker snapshot list"),
    leader("CutVolume", false, "esker snapshot list"),
    leader("DeleteSnapshot", false, "esker snapshot list"),
    leader("RollbackSnapshot", false, "esker snapshot list"),
    leader("PruneSnapshots", false, "esker snapshot list"),
    leader("DiffSnapshots", true, "esker snapshot list"),
    leader("CloneVolume", false, CLONES),
    leader("RotateKeys", false, "esker key show"),
    holder("DeleteVolume", false, "esker volume show"),
    holder("AddReplica", false, "esker replica list"),
    holder("RemoveReplica", false, "esker replica list"),
    holder("ShowVolume", true, "esker volume show"),
    holder("ListSnapshots", true, "esker snapshot list"),
    holder("Space", true, "esker space"),
];

impl Rule {
    /// The command that tells whether it took effect.
    fn looks_at(&self, volume: &str) -> String {
        match self.look {
            CLONES => CLONES.into(),
            look => format!("{look} {volume}"),
        }
    }
}

const fn leader(method: &'static str, repeats: bool, look: &'static str) -> Rule {
    Rule {
        method,
        who: Who::Leader,
        repeats,
        look,
    }
}

const fn holder(method: &'static str, repeats: bool, look: &'static str) -> Rule {
    Rule {
        method,
        who: Who::Holder,
        repeats,
        look,
    }
}

/// The rule of a method; none when it is not passed on.
#[must_use]
pub fn rule(method: &str) -> Option<Rule> {
    RULES.into_iter().find(|rule| rule.method == method)
}

/// What became of a request at one node.
#[derive(Clone, Debug)]
pub enum Said {
    /// It was carried out.
    Done(Bytes),
    /// The node refused, or has no answer of its own store.
    Refused(Status),
    /// The node was not reached, or does not take such requests: it has certainly not carried it out.
    Unreached(String),
    /// The node was asked, and the answer was lost.
    Lost(String),
}

/// What to do then.
#[derive(Clone, Debug)]
pub enum Next {
    /// This is the answer.
    Answer(Result<Bytes, Status>),
    /// Nothing was done there: the next node is asked, and told at last why none did it.
    Elsewhere(String),
}

/// Decides by what one node said.
#[must_use]
pub fn next(rule: Rule, volume: &str, node: u64, said: Said) -> Next {
    match said {
        Said::Done(answer) => Next::Answer(Ok(answer)),
        Said::Refused(status) if status.code() == Code::Aborted => {
            Next::Elsewhere(format!("node {node}: {}", status.message()))
        }
        Said::Refused(status) => Next::Answer(Err(status)),
        Said::Unreached(why) => Next::Elsewhere(format!("node {node}: {why}")),
        Said::Lost(why) if rule.repeats => Next::Elsewhere(format!("node {node}: {why}")),
        Said::Lost(why) => Next::Answer(Err(Status::unavailable(format!(
            "node {node} was asked to do this and its answer is lost ({why}): whether it took effect is not known; look \
             with `{}` before you try again",
            rule.looks_at(volume)
        )))),
    }
}

/// The end of a search for somebody who does it.
#[must_use]
pub fn nobody(rule: Rule, volume: &str, waited_seconds: u64, reasons: &[String]) -> Status {
    let why = reasons.join("; ");
    Status::aborted(match rule.who {
        Who::Leader => format!(
            "no leader of volume {volume} is known after {waited_seconds} s, and nothing was done ({why}); \
             `esker status --why` on its nodes tells more"
        ),
        Who::Holder => format!("no node with a copy of volume {volume} answers, and nothing was done ({why})"),
    })
}

/// The admin API as callers reach it.
#[derive(Clone)]
pub struct Door {
    here: AdminServer<AdminService>,
    cluster: Option<Arc<Cluster>>,
}

impl From<AdminServer<AdminService>> for Door {
    /// Of a node that is alone.
    fn from(here: AdminServer<AdminService>) -> Self {
        let cluster = None;
        Self { here, cluster }
    }
}

impl Door {
    /// With the other nodes of its cluster.
    #[must_use]
    pub fn with_cluster(mut self, cluster: Arc<Cluster>) -> Self {
        self.cluster = Some(cluster);
        self
    }
}

impl NamedService for Door {
    const NAME: &'static str = <AdminServer<AdminService> as NamedService>::NAME;
}

impl<B> Service<http::Request<B>> for Door
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next();
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.is_member());
        match (method.and_then(rule), cluster) {
            (Some(rule), Some(cluster)) => {
                let (cluster, here) = (Arc::clone(cluster), self.here.clone());
                let passing = Passing {
                    rule,
                    cluster,
                    here,
                };
                Box::pin(async move {
                    let mut server = tonic::server::Grpc::new(RawCodec)
                        .max_encoding_message_size(MESSAGE_BYTES_MAX);
                    Ok(server.unary(passing, request).await)
                })
            }
            _ => self.here.call(request),
        }
    }
}

/// One request on its way.
struct Passing {
    rule: Rule,
    cluster: Arc<Cluster>,
    here: AdminServer<AdminService>,
}

impl UnaryService<Bytes> for Passing {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (rule, cluster, here) = (self.rule, Arc::clone(&self.cluster), self.here.clone());
        Box::pin(async move {
            let request = request.into_inner();
            let named = OfVolume::decode(request.clone());
            let volume = named
                .map_err(|e| Status::invalid_argument(e.to_string()))?
                .volume;
            let done = match volume.is_empty() || is_of_this_node(rule.method, &request)? {
                true => carry_out(&here, rule.method, request).await,
                false => {
                    let done = cluster.pass(&here, rule, &volume, request.clone()).await?;
                    Ok(as_led(&cluster, &here, (rule, &volume), request, done).await)
                }
            };
            done.map(Response::new)
        })
    }
}

/// A holder's answer about a volume, with how far the leader is that seals it anew: nobody else knows.
async fn as_led(
    cluster: &Cluster,
    here: &AdminServer<AdminService>,
    (rule, volume): (Rule, &str),
    request: Bytes,
    done: Bytes,
) -> Bytes {
    if rule.method != "ShowVolume" {
        return done;
    }
    let shown = |answer: Bytes| {
        esker_api::v1::ShowVolumeResponse::decode(answer)
            .ok()?
            .volume
    };
    let Some(mut own) = shown(done.clone()).filter(|v| v.reseal.is_some() && v.replicas > 1) else {
        return done;
    };
    let rule = leader("ShowVolume", true, rule.look);
    let led = tokio::time::timeout(LOOK_WAIT_MAX, cluster.pass(here, rule, volume, request));
    let led = led.await.ok().and_then(Result::ok).and_then(shown);
    let Some(reseal) = led.and_then(|volume| volume.reseal) else {
        return done;
    };
    own.reseal = Some(reseal);
    let volume = Some(own);
    esker_api::v1::ShowVolumeResponse { volume }
        .encode_to_vec()
        .into()
}

/// Whether a request is about the node that is asked after all: each one wraps its own copies of the keys.
fn is_of_this_node(method: &str, request: &Bytes) -> Result<bool, Status> {
    if method != "RotateKeys" {
        return Ok(false);
    }
    let asked = esker_api::v1::RotateKeysRequest::decode(request.clone());
    let asked = asked.map_err(|e| Status::invalid_argument(e.to_string()))?;
    Ok(!asked.data_key)
}

/// Carries a request out on this node.
///
/// # Errors
/// When this node refuses.
pub async fn carry_out(
    here: &AdminServer<AdminService>,
    method: &str,
    request: Bytes,
) -> Result<Bytes, Status> {
    let path = format!("/{}/{method}", <Door as NamedService>::NAME);
    let path = http::uri::PathAndQuery::try_from(path);
    let path = path.map_err(|e| Status::invalid_argument(e.to_string()))?;
    let mut client = tonic::client::Grpc::new(here.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let answer = client.unary(Request::new(request), path, RawCodec).await;
    // What belongs to the way here says nothing to whoever asks.
    answer
        .map(Response::into_inner)
        .map_err(|status| Status::new(status.code(), status.message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proto() -> String {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../api/proto/esker/admin/v1/admin.proto"
        );
        std::fs::read_to_string(path).unwrap()
    }

    /// Who adds a method to the rules learns here when its request does not begin with a volume's name.
    #[test]
    fn every_request_that_is_passed_on_begins_with_the_name_of_its_volume() {
        let proto = proto();
        for rule in RULES {
            let message = format!("message {}Request {{", rule.method);
            let (_, rest) = proto.split_once(&message).expect(rule.method);
            let fields = rest.split('}').next().unwrap().lines().map(str::trim);
            let first = fields.clone().find(|line| line.ends_with(" = 1;")).unwrap();
            let first = first.trim_start_matches("optional ");
            assert!(
                ["string name = 1;", "string volume = 1;"].contains(&first),
                "{}: {first}",
                rule.method
            );
            assert!(crate::guard::LEAST_ROLES
                .iter()
                .any(|(m, _)| *m == rule.method));
        }
    }

    fn refused(code: Code) -> Said {
        Said::Refused(Status::new(code, "no: this is why"))
    }

    #[test]
    fn an_answer_and_a_refusal_are_given_back_word_for_word() {
        let create = rule("CreateSnapshot").unwrap();
        let done = next(create, "v", 2, Said::Done(Bytes::from_static(b"x")));
        assert!(matches!(done, Next::Answer(Ok(answer)) if answer == b"x"[..]));
        for code in [
            Code::NotFound,
            Code::AlreadyExists,
            Code::FailedPrecondition,
            Code::Unavailable,
        ] {
            let Next::Answer(Err(status)) = next(create, "v", 2, refused(code)) else {
                panic!("{code}");
            };
            assert_eq!((status.code(), status.message()), (code, "no: this is why"));
        }
    }

    #[test]
    fn another_node_is_asked_only_when_nothing_was_done() {
        let nothing = [
            refused(Code::Aborted),
            Said::Unreached("connection refused".into()),
        ];
        for rule in RULES {
            for said in nothing.clone() {
                assert!(matches!(next(rule, "v", 2, said), Next::Elsewhere(_)));
            }
            let lost = next(rule, "v", 2, Said::Lost("the connection broke".into()));
            match (rule.repeats, lost) {
                (true, Next::Elsewhere(_)) => {}
                (false, Next::Answer(Err(status))) => {
                    assert_eq!(status.code(), Code::Unavailable);
                    let text = status.message();
                    for part in ["node 2", "not known", &rule.looks_at("v")] {
                        assert!(text.contains(part), "{text}");
                    }
                }
                (_, other) => panic!("{rule:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_changes_a_volume_is_repeated_only_when_that_changes_nothing_more() {
        let repeated: Vec<_> = RULES.iter().filter(|rule| rule.repeats).collect();
        let names: Vec<_> = repeated.iter().map(|rule| rule.method).collect();
        assert_eq!(
            names,
            [
                "ResizeVolume",
                "AttachVolume",
                "DetachVolume",
                "HoldVolume",
                "DiffSnapshots",
                "ShowVolume",
                "ListSnapshots",
                "Space"
            ]
        );
    }

    #[test]
    fn when_nobody_leads_the_volume_is_named_and_where_to_look() {
        let rule = rule("CreateSnapshot").unwrap();
        let status = nobody(rule, "v", 10, &["node 2: silence".into()]);
        assert_eq!(status.code(), Code::Aborted);
        for part in [
            "volume v",
            "no leader",
            "nothing was done",
            "esker status --why",
            "silence",
        ] {
            assert!(status.message().contains(part), "{status}");
        }
    }
}
