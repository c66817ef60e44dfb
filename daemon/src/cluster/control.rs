//! What members ask of each other: `esker.cluster.v1`, each request on a connection of its own.

use super::agreed::{self, Agreed, Change as MemberChange};
use super::key_places::{named_keys, NamedKey};
use super::replicas::Change;
use super::stream::{self, Once};
use super::{internal, require_safe, Cluster, NewVolume, Replicas, Result};
use crate::admin::AdminService;
use crate::cluster::config::Member;
use crate::config::ListenOn;
use crate::door::Said;
use crate::error::DaemonError;
use crate::store::RequestError;
use esker_api::cluster as v1;
use esker_api::cluster::joining_client::JoiningClient;
use esker_api::cluster::members_client::MembersClient;
use esker_api::cluster::members_server::{Members, MembersServer};
use esker_api::raw::Bytes;
use esker_api::v1::admin_server::AdminServer;
use esker_base::num::to_u64;
use esker_base::{GroupId, NodeId, Place, ReplicaId};
use esker_crypto::{DataKey, KEY_BYTES};
use esker_node::admin::{AdminError, VolumeReport};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// How long a member may take to accept a connection.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long it may take to answer; longer than it waits for a store.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(70);
/// How long it may take to say what it is.
pub(super) const DESCRIBE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest list of replicas, in bytes: 100,000 of them.
const LIST_BYTES_MAX: usize = 32 << 20;
/// Longest request and other answer, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longest request in bytes: one of an operator, and what is around it.
const REQUEST_BYTES_MAX: usize = (1 << 20) + MESSAGE_BYTES_MAX;
/// Requests in progress per connection; further ones wait.
const CONNECTION_REQUESTS_MAX: usize = 4;

/// Answers other members until it is dropped.
///
/// # Errors
/// When the address cannot be listened on, or would be open to other machines without TLS.
pub async fn serve(
    cluster: Arc<Cluster>,
    listener: TcpListener,
    admin: AdminServer<AdminService>,
) -> std::result::Result<(), DaemonError> {
    let tls = cluster.tls.clone();
    let joining = super::joining::of_member(&cluster);
    let service = MembersServer::new(Service(cluster, admin))
        .max_decoding_message_size(REQUEST_BYTES_MAX)
        .max_encoding_message_size(LIST_BYTES_MAX);
    let (sender, incoming) = mpsc::channel(1);
    let served = tonic::transport::Server::builder()
        .concurrency_limit_per_connection(CONNECTION_REQUESTS_MAX)
        .add_service(service)
        .add_service(joining)
        .serve_with_incoming(ReceiverStream::new(incoming));
    let result = tokio::select! {
        result = served => result,
        () = stream::accept(listener, tls, sender) => Ok(()),
    };
    result.map_err(|e| DaemonError::System {
        operation: "answer other members of the cluster",
        source: std::io::Error::other(e),
    })
}

/// Listens for other members.
///
/// # Errors
/// When the address cannot be listened on, or would be open to other machines.
pub async fn listen(
    config: &super::ClusterConfig,
    address: SocketAddr,
    is_plain: bool,
) -> std::result::Result<TcpListener, DaemonError> {
    require_safe(config, is_plain, address, "cluster.control")?;
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| DaemonError::Listen {
        address: address.to_string(),
        purpose: "members of the cluster",
        source,
        remedy: "give another address in cluster.control, and to this member on all others",
    })
}

/// Asks a member what it is and how full.
pub(super) async fn describe(cluster: &Cluster, member: &Member) -> Result<v1::DescribeResponse> {
    let request = v1::DescribeRequest {
        cluster: cluster.identity.cluster.to_string(),
    };
    let mut client = connect(cluster, member).await?;
    let answer = client.describe(request);
    let answer = tokio::time::timeout(DESCRIBE_WAIT_MAX, answer).await;
    let answer = answer.map_err(|_| {
        let control = &member.control;
        RequestError::Silent(format!(
            "no answer at {control}: silence; is its eskerd well?"
        ))
    })?;
    let answer = answer.map_err(refusal)?.into_inner();
    require_node(member, answer.node)?;
    Ok(answer)
}

/// Asks a member for the replicas that it holds: of the volume of a name, or all.
pub(super) async fn list_replicas(
    cluster: &Cluster,
    member: &Member,
    name: &str,
) -> Result<Vec<v1::HeldReplica>> {
    let request = v1::ListReplicasRequest {
        cluster: cluster.identity.cluster.to_string(),
        name: name.to_owned(),
    };
    let client = connect(cluster, member).await?;
    let mut client = client.max_decoding_message_size(LIST_BYTES_MAX);
    let answer = client.list_replicas(request).await.map_err(refusal)?;
    Ok(answer.into_inner().replicas)
}

/// Takes a member out of placement, or back into it.
pub(super) async fn set_drained(cluster: &Cluster, member: &Member, drained: bool) -> Result<()> {
    let request = v1::SetDrainedRequest {
        cluster: cluster.identity.cluster.to_string(),
        drained,
    };
    let mut client = connect(cluster, member).await?;
    client.set_drained(request).await.map_err(refusal)?;
    Ok(())
}

/// Has a member carry out what an operator asked of this one.
pub(super) async fn carry_out(
    cluster: &Cluster,
    member: &Member,
    method: &str,
    request: Bytes,
) -> Said {
    let request = v1::CarryOutRequest {
        cluster: cluster.identity.cluster.to_string(),
        method: method.to_owned(),
        request: request.to_vec(),
    };
    let client = match connect(cluster, member).await {
        Ok(client) => client,
        Err(error) => return Said::Unreached(error.to_string()),
    };
    let mut client = client.max_decoding_message_size(esker_api::MESSAGE_BYTES_MAX);
    match client.carry_out(request).await.map(Response::into_inner) {
        Ok(told) if told.code == i32::from(Code::Ok) => Said::Done(told.answer.into()),
        Ok(told) => Said::Refused(Status::new(Code::from(told.code), told.message)),
        Err(status) => match status.code() {
            Code::Unimplemented => Said::Unreached(
                "its eskerd is older and takes no requests of operators from other nodes: upgrade it, or ask it itself"
                    .into(),
            ),
            // Of another cluster.
            Code::FailedPrecondition => Said::Unreached(status.message().to_owned()),
            _ => Said::Lost(status.message().to_owned()),
        },
    }
}

/// Asks a node that may become a member what it is.
pub(super) async fn introduce(
    cluster: &Cluster,
    control: &ListenOn,
) -> Result<v1::IntroduceResponse> {
    let channel = open(cluster, control, None).await?;
    let mut client = JoiningClient::new(channel);
    let asked = client.introduce(v1::IntroduceRequest {}).await;
    Ok(asked.map_err(refusal)?.into_inner())
}

/// Makes a node that waits a member.
pub(super) async fn join(cluster: &Cluster, member: &Member, agreed: &Agreed) -> Result<()> {
    let request = v1::JoinRequest {
        cluster: cluster.identity.cluster.to_string(),
        node: member.id.0,
        members: Some(agreed.to_told()),
    };
    let channel = open(cluster, &member.control, Some(member.id)).await?;
    let mut client = JoiningClient::new(channel);
    client.join(request).await.map_err(refusal)?;
    Ok(())
}

/// Asks a member which members it knows.
pub(super) async fn list_members(cluster: &Cluster, member: &Member) -> Result<Agreed> {
    let request = v1::ListMembersRequest {
        cluster: cluster.identity.cluster.to_string(),
    };
    let mut client = connect(cluster, member).await?;
    let listed = client.list_members(request).await.map_err(refusal)?;
    agreed_of(listed.into_inner().members)
}

/// Has a member change who is one, if it leads the metadata volume.
pub(super) async fn change_members(
    cluster: &Cluster,
    member: &Member,
    change: &MemberChange,
) -> Result<Agreed> {
    let mut request = v1::ChangeMembersRequest {
        cluster: cluster.identity.cluster.to_string(),
        ..Default::default()
    };
    match change {
        MemberChange::Add(member) => request.add = Some(agreed::to_told(member)),
        MemberChange::Remove(node) => request.remove = node.0,
    }
    let mut client = connect(cluster, member).await?;
    let changed = client.change_members(request).await.map_err(refusal)?;
    agreed_of(changed.into_inner().members)
}

fn agreed_of(told: Option<v1::MemberList>) -> Result<Agreed> {
    let told = told.ok_or_else(|| RequestError::Silent("no list of members".into()))?;
    Agreed::of_told(&told).map_err(RequestError::Silent)
}

/// That who answers is who was meant.
fn require_node(member: &Member, node: u64) -> Result<()> {
    if node == member.id.0 {
        return Ok(());
    }
    let control = &member.control;
    let text = format!(
        "{control} answers as node {node}; look at the addresses of members (`esker node list`)"
    );
    Err(AdminError::Refused(text).into())
}

/// Asks a member what it could take: a store and its free space in bytes.
pub(super) async fn offer(
    cluster: &Cluster,
    member: &Member,
    name: &str,
    size_bytes: u64,
) -> Result<(usize, u64)> {
    let request = v1::OfferRequest {
        cluster: cluster.identity.cluster.to_string(),
        name: name.to_owned(),
        size_bytes,
    };
    let mut client = connect(cluster, member).await?;
    let answer = client.offer(request).await.map_err(refusal)?.into_inner();
    require_node(member, answer.node)?;
    Ok((
        usize::try_from(answer.store).unwrap_or(usize::MAX),
        answer.free_bytes,
    ))
}

/// Has a member create its replica.
pub(super) async fn create(
    cluster: &Cluster,
    member: &Member,
    volume: &NewVolume,
    replica: ReplicaId,
) -> Result<()> {
    let request = v1::CreateReplicaRequest {
        cluster: cluster.identity.cluster.to_string(),
        volume: volume.volume.to_string(),
        group: volume.group.0,
        name: volume.name.clone(),
        size_bytes: volume.size_bytes,
        replica: replica.0,
        replicas: volume.replicas.iter().map(replica_place).collect(),
        data_key: match &volume.key {
            Some(key) => {
                require_secret(cluster, member)?;
                key.expose().to_vec()
            }
            None => Vec::new(),
        },
        learns: volume.learns,
        labels: volume.labels.clone(),
        key_id: volume.key_id,
    };
    let mut client = connect(cluster, member).await?;
    let created = client.create_replica(request).await.map_err(refusal)?;
    let created = created.into_inner();
    // All copies of a volume have the same.
    let is_labelled = created.labels == to_u64(volume.labels.len());
    let is_keyed = volume.key_id <= 1 || created.key_id == volume.key_id;
    if is_labelled && is_keyed {
        return Ok(());
    }
    let uuid = volume.volume.to_string();
    remove(cluster, member, &volume.name, (&uuid, true, false)).await?;
    let text = match is_keyed {
        true => "its eskerd is older and gives copies no labels, snapshot schedule nor rewind window: upgrade it",
        false => "its eskerd is older and takes no volume whose data key was exchanged: upgrade it",
    };
    Err(AdminError::Refused(text.into()).into())
}

/// That a data key may go to a member: over TLS, or without leaving this machine.
fn require_secret(cluster: &Cluster, member: &Member) -> Result<()> {
    let address = member.control.resolve().ok().flatten();
    match cluster.tls.is_some() || address.is_some_and(|a| a.ip().is_loopback()) {
        true => Ok(()),
        false => Err(AdminError::Refused(format!(
            "the data key would go to {} in the clear: an encrypted volume with several copies needs nodes with \
             certificates (`esker cert node`)",
            member.control
        ))
        .into()),
    }
}

/// Has a member keep keys for a volume of which it has a copy.
pub(super) async fn place_keys(
    cluster: &Cluster,
    member: &Member,
    volume: &VolumeReport,
    keys: &[NamedKey],
    fresh: bool,
) -> Result<()> {
    require_secret(cluster, member)?;
    let placed = |(name, dek): &NamedKey| v1::PlacedKey {
        volume: name.volume.to_string(),
        key_id: name.key.get(),
        data_key: dek.expose().to_vec(),
    };
    let request = v1::PlaceKeysRequest {
        cluster: cluster.identity.cluster.to_string(),
        name: volume.name.clone(),
        volume: volume.uuid.clone(),
        keys: keys.iter().map(placed).collect(),
        fresh,
    };
    let mut client = connect(cluster, member).await?;
    let placed = client.place_keys(request).await.map_err(refusal)?;
    match placed.into_inner().fresh == fresh {
        true => Ok(()),
        false => {
            let text = "its eskerd is older and takes no other data key for a volume: upgrade it";
            Err(AdminError::Refused(text.into()).into())
        }
    }
}

/// Has a member delete its replica.
pub(super) async fn remove(
    cluster: &Cluster,
    member: &Member,
    name: &str,
    (volume, with_snapshots, only_outsider): (&str, bool, bool),
) -> Result<()> {
    let request = v1::RemoveReplicaRequest {
        cluster: cluster.identity.cluster.to_string(),
        volume: volume.to_owned(),
        name: name.to_owned(),
        with_snapshots,
        only_outsider,
    };
    let mut client = connect(cluster, member).await?;
    client.remove_replica(request).await.map_err(refusal)?;
    Ok(())
}

/// Has a member take a replica into a volume's group that it leads; or out of it, without places.
pub(super) async fn change(cluster: &Cluster, member: &Member, change: &Change) -> Result<()> {
    let request = v1::ChangeReplicaRequest {
        cluster: cluster.identity.cluster.to_string(),
        volume: change.uuid.clone(),
        name: change.name.clone(),
        replica: change.replica.0,
        replaces: change.replaces.unwrap_or_default().0,
        replicas: change.places.iter().map(replica_place).collect(),
        only_outsider: change.only_outsider,
    };
    let mut client = connect(cluster, member).await?;
    client.change_replica(request).await.map_err(refusal)?;
    Ok(())
}

fn replica_place((replica, place): (&ReplicaId, &Place)) -> v1::ReplicaPlace {
    v1::ReplicaPlace {
        replica: replica.0,
        node: place.node.0,
        store: u32::from(place.store),
    }
}

async fn connect(cluster: &Cluster, member: &Member) -> Result<MembersClient<Channel>> {
    let channel = open(cluster, &member.control, Some(member.id)).await?;
    Ok(MembersClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
}

/// Connects to whoever answers members there; to that node, if one is expected and there is TLS.
async fn open(cluster: &Cluster, control: &ListenOn, expected: Option<NodeId>) -> Result<Channel> {
    let silent = |why: String| {
        RequestError::Silent(format!(
            "no answer at {control}: {why}; is its eskerd running?"
        ))
    };
    let address = control.resolve().map_err(|e| silent(e.to_string()))?;
    let address = address.ok_or_else(|| silent("no address".into()))?;
    let is_plain = cluster.tls.is_none();
    require_safe(&cluster.config(), is_plain, address, "cluster.node.control").map_err(internal)?;
    let dialing = stream::dial(address, expected, cluster.tls.as_ref());
    let dialed = tokio::time::timeout(CONNECT_WAIT_MAX, dialing).await;
    let dialed = dialed.map_err(|_| silent("silence".into()))?;
    let once = Once(Some(dialed.map_err(silent)?));
    let endpoint = Endpoint::from_static("http://member").timeout(REQUEST_WAIT_MAX);
    let connected = endpoint.connect_with_connector(once).await;
    connected.map_err(|e| silent(innermost(&e)))
}

fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

/// The refusal that a status stands for.
fn refusal(status: Status) -> RequestError {
    let text = status.message().to_owned();
    RequestError::Refused(match status.code() {
        Code::NotFound => AdminError::NotFound(text),
        Code::AlreadyExists => AdminError::Exists(text),
        Code::InvalidArgument => AdminError::Invalid(text),
        Code::FailedPrecondition => AdminError::Refused(text),
        Code::ResourceExhausted => AdminError::NoSpace(text),
        Code::Aborted => AdminError::NotLeading(text),
        code if text.is_empty() => return RequestError::Silent(code.to_string()),
        _ => return RequestError::Silent(text),
    })
}

struct Service(Arc<Cluster>, AdminServer<AdminService>);

impl Service {
    fn require_cluster(&self, cluster: &str) -> std::result::Result<(), Status> {
        let own = self.0.identity.cluster.to_string();
        match cluster == own {
            true => Ok(()),
            false => Err(Status::failed_precondition(format!(
                "this node is of cluster {own}, not of the one that asks; look at cluster.id of both"
            ))),
        }
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl Members for Service {
    async fn offer(&self, request: Request<v1::OfferRequest>) -> Answer<v1::OfferResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        let offer = self.0.offer_here(&request.name).await;
        let (store, free_bytes) = offer.map_err(crate::admin::refusal)?;
        Ok(Response::new(v1::OfferResponse {
            node: self.0.identity.node.0,
            store: esker_base::num::to_u32_saturating(store),
            free_bytes,
        }))
    }

    async fn create_replica(
        &self,
        request: Request<v1::CreateReplicaRequest>,
    ) -> Answer<v1::CreateReplicaResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        tracing::info!(
            name = request.name,
            replica = request.replica,
            "create replica"
        );
        let (volume, replica) = volume_of(request).map_err(Status::invalid_argument)?;
        let created = self.0.create_here(&volume, replica).await;
        created.map_err(crate::admin::refusal)?;
        let (labels, key_id) = (to_u64(volume.labels.len()), volume.key_id);
        Ok(Response::new(v1::CreateReplicaResponse { labels, key_id }))
    }

    async fn remove_replica(
        &self,
        request: Request<v1::RemoveReplicaRequest>,
    ) -> Answer<v1::RemoveReplicaResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        tracing::info!(
            name = request.name,
            volume = request.volume,
            "remove replica"
        );
        let v1::RemoveReplicaRequest {
            name,
            volume,
            with_snapshots,
            only_outsider,
            ..
        } = request;
        let removed = self
            .0
            .remove_here(&name, &volume, with_snapshots, only_outsider);
        let removed = removed.await;
        removed.map_err(crate::admin::refusal)?;
        Ok(Response::new(v1::RemoveReplicaResponse {}))
    }

    async fn place_keys(
        &self,
        request: Request<v1::PlaceKeysRequest>,
    ) -> Answer<v1::PlaceKeysResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        let keys = named_keys(&request.keys).map_err(Status::invalid_argument)?;
        let placed = self
            .0
            .place_for(&request.name, &request.volume, &keys, request.fresh);
        placed.await.map_err(crate::admin::refusal)?;
        let fresh = request.fresh;
        Ok(Response::new(v1::PlaceKeysResponse { fresh }))
    }

    async fn change_replica(
        &self,
        request: Request<v1::ChangeReplicaRequest>,
    ) -> Answer<v1::ChangeReplicaResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        let replica = ReplicaId(request.replica);
        let places = replicas_of(&request.replicas, replica).map_err(Status::invalid_argument)?;
        let change = Change {
            name: request.name,
            uuid: request.volume,
            replica,
            replaces: Some(ReplicaId(request.replaces)).filter(|r| r.0 != 0),
            places,
            only_outsider: request.only_outsider,
        };
        let changed = self.0.change_here(&change).await;
        changed.map_err(crate::admin::refusal)?;
        Ok(Response::new(v1::ChangeReplicaResponse {}))
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Answer<v1::DescribeResponse> {
        self.require_cluster(&request.into_inner().cluster)?;
        Ok(Response::new(self.0.describe_here().await))
    }

    async fn list_replicas(
        &self,
        request: Request<v1::ListReplicasRequest>,
    ) -> Answer<v1::ListReplicasResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        let replicas = self.0.replicas_here(&request.name).await;
        let replicas = replicas.map_err(crate::admin::refusal)?;
        Ok(Response::new(v1::ListReplicasResponse { replicas }))
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Answer<v1::ListMembersResponse> {
        self.require_cluster(&request.into_inner().cluster)?;
        let members = self.0.agreed().map(|agreed| agreed.to_told());
        Ok(Response::new(v1::ListMembersResponse { members }))
    }

    async fn change_members(
        &self,
        request: Request<v1::ChangeMembersRequest>,
    ) -> Answer<v1::ChangeMembersResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        let change = match &request.add {
            Some(member) => agreed::told_new(member).map(MemberChange::Add),
            None => Ok(MemberChange::Remove(NodeId(request.remove))),
        };
        let change = change.map_err(Status::invalid_argument)?;
        let changed = self.0.change_members_here(&change).await;
        let members = changed.map_err(crate::admin::refusal)?.to_told();
        Ok(Response::new(v1::ChangeMembersResponse {
            members: Some(members),
        }))
    }

    async fn carry_out(
        &self,
        request: Request<v1::CarryOutRequest>,
    ) -> Answer<v1::CarryOutResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        let done = self
            .0
            .carry_out_here(&self.1, &request.method, request.request.into())
            .await;
        Ok(Response::new(match done {
            Ok(answer) => v1::CarryOutResponse {
                answer: answer.to_vec(),
                ..Default::default()
            },
            Err(status) => v1::CarryOutResponse {
                code: status.code().into(),
                message: status.message().to_owned(),
                answer: Vec::new(),
            },
        }))
    }

    async fn set_drained(
        &self,
        request: Request<v1::SetDrainedRequest>,
    ) -> Answer<v1::SetDrainedResponse> {
        let request = request.into_inner();
        self.require_cluster(&request.cluster)?;
        let set = self.0.drained.set(request.drained);
        set.map_err(|error| Status::internal(error.to_string()))?;
        self.0.stirred.notify_one();
        Ok(Response::new(v1::SetDrainedResponse {}))
    }
}

/// Where replicas live, as a member says. One that is made anew may be where the one is that it replaces.
fn replicas_of(told: &[v1::ReplicaPlace], new: ReplicaId) -> std::result::Result<Replicas, String> {
    // One more while a copy takes another one's place.
    if told.len() > super::REPLICAS_MAX + 1 {
        return Err(format!("{} replicas", told.len()));
    }
    let mut replicas = Replicas::new();
    for place in told {
        let store = u16::try_from(place.store).map_err(|_| "a store's index".to_string())?;
        let node = NodeId(place.node);
        let is_double = |(other, at): (&ReplicaId, &Place)| {
            at.node == node && *other != new && place.replica != new.0
        };
        if place.replica == 0 || replicas.iter().any(is_double) {
            return Err("replicas of one volume are on different nodes".into());
        }
        replicas.insert(ReplicaId(place.replica), Place { node, store });
    }
    Ok(replicas)
}

/// A volume as it is asked for, and the replica to create of it.
fn volume_of(
    request: v1::CreateReplicaRequest,
) -> std::result::Result<(NewVolume, ReplicaId), String> {
    let replicas = replicas_of(&request.replicas, ReplicaId(request.replica))?;
    let volume = super::volume_id(&request.volume)?;
    let key = match request.data_key.len() {
        0 => None,
        KEY_BYTES => Some(DataKey::filled(|key| {
            key.copy_from_slice(&request.data_key)
        })),
        other => return Err(format!("a data key of {other} bytes")),
    };
    let new = NewVolume {
        name: request.name,
        size_bytes: request.size_bytes,
        labels: request.labels,
        volume,
        group: GroupId(request.group),
        replicas,
        key,
        key_id: request.key_id,
        learns: request.learns,
    };
    Ok((new, ReplicaId(request.replica)))
}
