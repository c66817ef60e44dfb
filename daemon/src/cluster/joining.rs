//! A new node becomes a member: it waits, without an id, a store or a client, until a cluster says what it is.
//!
//! What a node waits on is where it answers other members later. Who may tell it is who may speak to members at all: nodes
//! with a certificate, or, without TLS, whoever is on this machine (or anybody, when the configuration says `insecure`).

use super::agreed::{Agreed, Note};
use super::config::ClusterConfig;
use super::{control, stream};
use crate::error::DaemonError;
use crate::identity::{Given, Identity};
use crate::report::VERSION;
use esker_api::cluster as v1;
use esker_api::cluster::joining_server::{Joining, JoiningServer};
use esker_base::{ClusterId, NodeId};
use esker_keys::NodeTls;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// How long the answer to whoever added this node may take to leave it.
const ANSWER_TIME: Duration = Duration::from_millis(200);

/// What a node says of itself to whoever wants to add it.
#[derive(Clone, Debug)]
pub(super) enum Introduced {
    /// It waits.
    Waits {
        /// The node that its certificate or its configuration names.
        named: Option<NodeId>,
        /// The cluster that its configuration names.
        cluster: Option<ClusterId>,
    },
    /// It is a node already.
    Is(Identity),
}

/// Answers for a node.
pub(super) struct Service {
    pub introduced: Introduced,
    /// Where the configuration says that it takes links.
    pub address: String,
    /// Who waits for the node to be told; none when it does not wait.
    pub waiting: Option<Waiting>,
}

/// A node that waits.
pub(super) struct Waiting {
    data: PathBuf,
    named: Option<NodeId>,
    /// The cluster that its configuration names.
    cluster: Option<ClusterId>,
    told: Mutex<Told>,
}

/// What a node that waits was told.
struct Told {
    /// Ends the waiting.
    joined: Option<oneshot::Sender<()>>,
    /// What it is since.
    is: Option<(NodeId, ClusterId)>,
}

impl Waiting {
    /// Keeps what this node is from now on: the members first, since the id makes it a node.
    fn join(&self, request: &v1::JoinRequest) -> Result<(), Status> {
        let cluster = crate::identity::parse_cluster(&request.cluster);
        let cluster = cluster.map_err(Status::invalid_argument)?;
        let members = request.members.as_ref();
        let members = members.ok_or_else(|| Status::invalid_argument("no members"))?;
        let agreed = Agreed::of_told(members).map_err(Status::invalid_argument)?;
        let node = NodeId(request.node);
        if agreed.member(node).is_none() {
            return Err(Status::invalid_argument(format!(
                "node {node} is none of the members"
            )));
        }
        let refuse = |why: String| Err(Status::failed_precondition(why));
        if let Some(other) = self.named.filter(|other| *other != node) {
            return refuse(format!(
                "its certificate or configuration says that it is node {other}, not node {node}"
            ));
        }
        if let Some(other) = self.cluster.filter(|other| *other != cluster) {
            return refuse(format!(
                "its configuration says that it is of cluster {other}, not of {cluster}"
            ));
        }
        // One after the other: what it was told first, it is.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told.is {
            Some(is) if is == (node, cluster) => return Ok(()),
            Some((other, of)) => {
                return refuse(format!("it is node {other} of cluster {of} by now"))
            }
            None => {}
        }
        let failed = |error: DaemonError| Status::internal(error.to_string());
        Note::new(&self.data).save(&agreed).map_err(failed)?;
        let given = Given {
            node: Some(node),
            cluster: Some(cluster),
            certified: None,
        };
        Identity::load_or_create(&self.data, &given).map_err(failed)?;
        told.is = Some((node, cluster));
        if let Some(joined) = told.joined.take() {
            let _ = joined.send(()); // nobody waits when the daemon is stopping
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl Joining for Service {
    async fn introduce(
        &self,
        _: Request<v1::IntroduceRequest>,
    ) -> Result<Response<v1::IntroduceResponse>, Status> {
        let (waits, node, cluster) = match &self.introduced {
            Introduced::Waits { named, cluster } => (true, named.unwrap_or(NodeId(0)), *cluster),
            Introduced::Is(identity) => (false, identity.node, Some(identity.cluster)),
        };
        Ok(Response::new(v1::IntroduceResponse {
            waits,
            node: node.0,
            cluster: cluster.map(|id| id.to_string()).unwrap_or_default(),
            address: self.address.clone(),
            version: VERSION.into(),
        }))
    }

    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        match (&self.waiting, &self.introduced) {
            (Some(waiting), _) => waiting.join(&request)?,
            (None, Introduced::Is(identity))
                if identity.node.0 == request.node
                    && identity.cluster.to_string() == request.cluster => {}
            (None, _) => {
                return Err(Status::failed_precondition(
                    "it is a node already; only one that has never served can be added",
                ))
            }
        }
        Ok(Response::new(v1::JoinResponse {}))
    }
}

/// Waits until another node tells this one what it is; then `node.toml` and `members.json` say so.
///
/// # Errors
/// When the address cannot be listened on, or would be open to other machines without TLS.
pub async fn wait_to_be_added(
    config: &ClusterConfig,
    data: &Path,
    on: SocketAddr,
    (tls, certified): (Option<NodeTls>, Option<NodeId>),
) -> Result<(), DaemonError> {
    let named = config.node.or(certified);
    let listener: TcpListener = control::listen(config, on, tls.is_none()).await?;
    let (joined, told) = oneshot::channel();
    let service = Service {
        introduced: Introduced::Waits {
            named,
            cluster: config.id,
        },
        address: config.listen.to_string(),
        waiting: Some(Waiting {
            data: data.to_path_buf(),
            named,
            cluster: config.id,
            told: Mutex::new(Told {
                joined: Some(joined),
                is: None,
            }),
        }),
    };
    let (sender, incoming) = mpsc::channel(1);
    let serving = tonic::transport::Server::builder()
        .add_service(JoiningServer::new(service))
        .serve_with_incoming(ReceiverStream::new(incoming));
    tracing::info!(control = %config.control, "this node waits to be added to a cluster: `esker node add` at one of its nodes");
    let result = tokio::select! {
        result = serving => result,
        () = stream::accept(listener, tls, sender) => Ok(()),
        () = async {
            let _ = told.await; // its sender lives as long as the service
            tokio::time::sleep(ANSWER_TIME).await;
        } => Ok(()),
    };
    result.map_err(|e| DaemonError::System {
        operation: "wait for a cluster",
        source: std::io::Error::other(e),
    })
}

/// What a member answers.
pub(super) fn of_member(cluster: &Arc<super::Cluster>) -> JoiningServer<Service> {
    JoiningServer::new(Service {
        introduced: Introduced::Is(cluster.identity),
        address: cluster.config().listen.to_string(),
        waiting: None,
    })
}
