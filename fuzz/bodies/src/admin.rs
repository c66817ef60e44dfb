//! The admin API: any bytes as each of its messages, and any sequence of an operator's requests to
//! a node, held against a list of the volumes that must be there.

use crate::store::{config, Device, OPERATIONS_MAX, SEGMENT_BYTES, WALL};
use arbitrary::{Arbitrary, Unstructured};
use esker_api::v1;
use esker_base::Moment;
use esker_engine::format::SEGMENTS_OFFSET;
use esker_node::admin::{AdminError, AdminReply, AdminRequest};
use esker_node::{AdminToken, Effect, Event, Machine, Node, NodeConfig};
use prost::Message;
use std::collections::{BTreeMap, VecDeque};
use std::sync::OnceLock;

const REQUESTS_MAX: usize = 40;

/// Decodes as `M`; what comes out survives a round trip.
fn message<M: Message + Default + PartialEq>(data: &[u8]) -> Option<M> {
    let message = M::decode(data).ok()?;
    let again = message.encode_to_vec();
    assert!(M::decode(&again[..]).as_ref() == Ok(&message));
    Some(message)
}

#[derive(Arbitrary, Debug)]
enum Name<'a> {
    /// One of a few, so that requests meet.
    Known(u8),
    Any(&'a str),
}

impl Name<'_> {
    fn text(&self) -> String {
        match self {
            Self::Known(n) => format!("v{}", n % 4),
            Self::Any(text) => (*text).into(),
        }
    }
}

/// A snapshot's name.
#[derive(Arbitrary, Debug)]
enum Tag<'a> {
    Known(u8),
    Any(&'a str),
}

impl Tag<'_> {
    fn text(&self) -> String {
        match self {
            Self::Known(n) => format!("s{}", n % 4),
            Self::Any(text) => (*text).into(),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Size {
    Blocks(u16),
    Bytes(u64),
}

impl Size {
    fn bytes(&self) -> u64 {
        match self {
            Self::Blocks(blocks) => u64::from(*blocks) * 4096,
            Self::Bytes(bytes) => *bytes,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Asked<'a> {
    Create(Name<'a>, Size, Vec<(&'a str, &'a str)>),
    Show(Name<'a>),
    Resize(Name<'a>, Size),
    Rename(Name<'a>, Name<'a>),
    Delete(Name<'a>),
    AcceptLoss(Name<'a>),
    Space(Option<Name<'a>>),
    Checkpoint,
    /// Any bytes as the message of a request that changes something.
    Create2(&'a [u8]),
    Restart,
    Snapshot(Name<'a>, Tag<'a>),
    DeleteSnapshot(Name<'a>, Tag<'a>),
    Clone(Name<'a>, Tag<'a>, Name<'a>),
    /// What is left is kept under a name of the node's choice, under this one, or not.
    Rollback(Name<'a>, Tag<'a>, Option<Option<Tag<'a>>>),
    Diff(Name<'a>, Option<Name<'a>>, Tag<'a>, Option<Tag<'a>>, Size),
    Scrub(Option<Name<'a>>),
}

struct World {
    node: Node,
    device: Device,
    now: u64,
    operations: usize,
    replies: VecDeque<Result<AdminReply, AdminError>>,
    /// What must be there: sizes in bytes, by name.
    volumes: BTreeMap<String, u64>,
    /// The snapshots that must be there: sizes in bytes, by volume and name.
    snapshots: BTreeMap<(String, String), u64>,
    starts: u8,
    next_token: u64,
}

/// The bytes as messages, then as requests.
pub(crate) fn run(data: &[u8]) {
    _ = message::<v1::CreateVolumeRequest>(data);
    _ = message::<v1::ListVolumesResponse>(data);
    _ = message::<v1::RenameVolumeRequest>(data);
    _ = message::<v1::AttachVolumeRequest>(data);
    _ = message::<v1::CreateSnapshotsRequest>(data);
    _ = message::<v1::HoldVolumeRequest>(data);
    _ = message::<v1::CutVolumeRequest>(data);
    _ = message::<v1::DetachVolumeRequest>(data);
    _ = message::<v1::SpaceRequest>(data);
    _ = message::<v1::SpaceResponse>(data);
    _ = message::<v1::StatusResponse>(data);
    _ = message::<v1::ListSnapshotsResponse>(data);
    _ = message::<v1::DiffSnapshotsRequest>(data);
    _ = message::<v1::DiffSnapshotsResponse>(data);
    _ = message::<v1::RollbackSnapshotRequest>(data);
    let mut u = Unstructured::new(data);
    if u.is_empty() {
        return;
    }
    let mut device = blank().clone();
    let (node, queue) = start(&mut device, 1);
    let mut world = World {
        node,
        device,
        now: 1_000_000,
        operations: 0,
        replies: VecDeque::new(),
        volumes: BTreeMap::new(),
        snapshots: BTreeMap::new(),
        starts: 1,
        next_token: 0,
    };
    world.settle(queue);
    for _ in 0..REQUESTS_MAX {
        if u.is_empty() {
            break;
        }
        let Ok(asked) = Asked::arbitrary(&mut u) else {
            break;
        };
        world.take(&asked);
    }
}

/// A store without volumes. To format one takes much longer than to open it.
fn blank() -> &'static Device {
    static BLANK: OnceLock<Device> = OnceLock::new();
    BLANK.get_or_init(|| {
        let mut device = Device {
            size_bytes: SEGMENTS_OFFSET + 16 * SEGMENT_BYTES,
            ..Device::default()
        };
        let (node, queue) = start(&mut device, 0);
        let mut world = World {
            node,
            device,
            now: 1_000_000,
            operations: 0,
            replies: VecDeque::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            starts: 0,
            next_token: 0,
        };
        world.settle(queue);
        world.device
    })
}

fn start(device: &mut Device, starts: u8) -> (Node, VecDeque<Effect>) {
    let config = NodeConfig {
        engine: config(device.size_bytes),
        seed: [starts; 32],
        ..NodeConfig::default()
    };
    let mut effects = Vec::new();
    let node = Node::new(config, Moment(1), WALL, &mut effects);
    (node, effects.into())
}

impl World {
    fn take(&mut self, asked: &Asked<'_>) {
        match asked {
            Asked::Create(name, size, labels) => {
                let labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
                self.create(name.text(), size.bytes(), labels.collect());
            }
            Asked::Create2(bytes) => {
                if let Some(m) = message::<v1::CreateVolumeRequest>(bytes) {
                    self.create(m.name, m.size_bytes, m.labels.into_iter().collect());
                }
            }
            Asked::Show(name) => {
                let name = name.text();
                let shown = self.ask(AdminRequest::VolumeShow { name: name.clone() });
                assert_eq!(shown.is_ok(), self.volumes.contains_key(&name));
            }
            Asked::Resize(name, size) => {
                let (name, size_bytes) = (name.text(), size.bytes());
                let request = AdminRequest::VolumeResize {
                    name: name.clone(),
                    size_bytes,
                };
                if self.ask(request).is_ok() {
                    let size = self
                        .volumes
                        .get_mut(&name)
                        .expect("resized, so it is there");
                    assert!(size_bytes >= *size, "a volume shrank");
                    *size = size_bytes;
                }
            }
            Asked::Rename(name, new_name) => {
                let (name, new_name) = (name.text(), new_name.text());
                let request = AdminRequest::VolumeRename {
                    name: name.clone(),
                    new_name: new_name.clone(),
                };
                if self.ask(request).is_ok() {
                    let size = self.volumes.remove(&name).expect("renamed, so it is there");
                    check_name(&new_name);
                    for ((volume, tag), size) in std::mem::take(&mut self.snapshots) {
                        let volume = if volume == name {
                            new_name.clone()
                        } else {
                            volume
                        };
                        self.snapshots.insert((volume, tag), size);
                    }
                    assert_eq!(self.volumes.insert(new_name, size), None);
                }
            }
            Asked::Delete(name) => {
                let name = name.text();
                let done = self
                    .ask(AdminRequest::VolumeDelete {
                        name: name.clone(),
                        with_snapshots: true,
                    })
                    .is_ok();
                assert_eq!(done, self.volumes.remove(&name).is_some(), "delete {name}");
                self.snapshots.retain(|(volume, _), _| *volume != name);
            }
            Asked::AcceptLoss(name) => {
                let name = name.text();
                let accepted = self.ask(AdminRequest::VolumeAcceptLoss { name });
                assert!(accepted.is_err(), "nothing was lost");
            }
            Asked::Space(name) => {
                let volume = name.as_ref().map(Name::text);
                let known = volume.as_ref().is_none_or(|v| self.volumes.contains_key(v));
                assert_eq!(self.ask(AdminRequest::Space { volume }).is_ok(), known);
            }
            Asked::Checkpoint => assert!(self.ask(AdminRequest::Checkpoint).is_ok()),
            Asked::Restart => self.restart(),
            Asked::Snapshot(name, tag) => self.snapshot(name.text(), tag.text()),
            Asked::DeleteSnapshot(name, tag) => {
                let (volume, name) = (name.text(), tag.text());
                let key = (volume.clone(), name.clone());
                let done = self.ask(AdminRequest::SnapshotDelete { volume, name });
                assert_eq!(done.is_ok(), self.snapshots.remove(&key).is_some());
            }
            Asked::Clone(name, tag, clone) => {
                let (volume, snapshot, name) = (name.text(), tag.text(), clone.text());
                let size = self.snapshots.get(&(volume.clone(), snapshot.clone()));
                let size = size.copied();
                let request = AdminRequest::VolumeClone {
                    volume,
                    snapshot,
                    name: name.clone(),
                    labels: BTreeMap::new(),
                    born: None,
                };
                if self.ask(request).is_ok() {
                    let size = size.expect("cloned, so its snapshot is there");
                    assert_eq!(self.volumes.insert(name, size), None, "cloned twice");
                }
            }
            Asked::Rollback(name, tag, keep) => {
                let keep = keep.as_ref().map(|keep| keep.as_ref().map(Tag::text));
                self.rollback(name.text(), tag.text(), keep);
            }
            Asked::Diff(name, of, from, to, offset) => {
                let request = AdminRequest::SnapshotDiff {
                    volume: name.text(),
                    of: of.as_ref().map(Name::text),
                    from: from.text(),
                    to: to.as_ref().map(Tag::text),
                    offset: offset.bytes(),
                };
                match self.ask(request) {
                    Ok(AdminReply::Diff(page)) => assert!(page.extents.is_empty(), "{page:?}"),
                    Ok(other) => panic!("a comparison gave {other:?}"),
                    Err(_) => {}
                }
            }
            Asked::Scrub(name) => {
                let volume = name.as_ref().map(Name::text);
                if let Ok(AdminReply::Scrub(page)) = self.ask(AdminRequest::Scrub {
                    volume,
                    place: None,
                }) {
                    assert!(page.damaged.is_empty(), "{page:?}");
                }
            }
        }
        self.compare();
    }

    fn snapshot(&mut self, volume: String, name: String) {
        let request = AdminRequest::SnapshotCreate {
            volume: volume.clone(),
            name: name.clone(),
            labels: BTreeMap::new(),
        };
        if self.ask(request).is_ok() {
            check_name(&name);
            let size = *self.volumes.get(&volume).expect("it has a snapshot");
            assert_eq!(self.snapshots.insert((volume, name), size), None);
        }
    }

    fn rollback(&mut self, volume: String, name: String, keep: Option<Option<String>>) {
        let there = self.snapshots.contains_key(&(volume.clone(), name.clone()));
        let wanted = keep.clone().flatten();
        let request = AdminRequest::SnapshotRollback {
            volume: volume.clone(),
            name,
            keep: keep.clone(),
            force: false,
        };
        let Ok(reply) = self.ask(request) else {
            return;
        };
        let AdminReply::RolledBack(done) = reply else {
            panic!("a rollback gave {reply:?}");
        };
        assert!(there, "rolled back to nothing");
        let kept = done.kept.map(|kept| kept.name);
        assert_eq!(kept.is_some(), keep != Some(None));
        assert!(wanted.is_none() || kept == wanted, "{kept:?}");
        if let Some(kept) = kept {
            let size = *self.volumes.get(&volume).expect("it was rolled back");
            assert_eq!(self.snapshots.insert((volume, kept), size), None);
        }
    }

    fn create(&mut self, name: String, size_bytes: u64, labels: BTreeMap<String, String>) {
        let request = AdminRequest::VolumeCreate {
            name: name.clone(),
            size_bytes,
            labels,
            encrypted: false,
        };
        if self.ask(request).is_ok() {
            check_name(&name);
            assert!(size_bytes > 0 && size_bytes.is_multiple_of(4096) && size_bytes <= 64 << 40);
            assert_eq!(self.volumes.insert(name, size_bytes), None, "created twice");
        }
    }

    /// What is listed is what must be there.
    fn compare(&mut self) {
        let Ok(AdminReply::Volumes(reports)) = self.ask(AdminRequest::VolumeList) else {
            panic!("the volumes cannot be listed");
        };
        let listed: BTreeMap<String, u64> = reports
            .into_iter()
            .map(|r| (r.name, r.size_bytes))
            .collect();
        assert_eq!(listed, self.volumes);
        let mut listed = BTreeMap::new();
        let mut after = None;
        loop {
            let volume = None;
            let Ok(AdminReply::Snapshots(page)) =
                self.ask(AdminRequest::SnapshotList { volume, after })
            else {
                panic!("the snapshots cannot be listed");
            };
            let all = page.snapshots.into_iter();
            listed.extend(all.map(|s| ((s.volume, s.name), s.size_bytes)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(listed, self.snapshots);
    }

    fn ask(&mut self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        self.next_token += 1;
        let token = AdminToken(self.next_token);
        let queue = self.step(Event::Admin { token, request });
        self.settle(queue);
        for _ in 0..1000 {
            if let Some(reply) = self.replies.pop_front() {
                assert!(self.replies.is_empty(), "answered twice");
                if let Err(error) = &reply {
                    let text = error.to_string();
                    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
                }
                return reply;
            }
            let queue = self.step(Event::Timer);
            self.settle(queue);
        }
        panic!("an operator waits for ever");
    }

    fn restart(&mut self) {
        self.starts += 1;
        let (node, queue) = start(&mut self.device, self.starts);
        self.node = node;
        self.settle(queue);
        for _ in 0..20 {
            let queue = self.step(Event::Timer);
            self.settle(queue);
        }
    }

    fn step(&mut self, event: Event) -> VecDeque<Effect> {
        let mut effects = Vec::new();
        self.now += 50_000_000; // in nanoseconds
        let now = Moment(self.now);
        self.node.step(now, WALL, event, &mut effects);
        self.node.settle(now, WALL, &mut effects);
        effects.into()
    }

    fn settle(&mut self, mut queue: VecDeque<Effect>) {
        while let Some(effect) = queue.pop_front() {
            match effect {
                Effect::Disk { io, op } => {
                    self.operations += 1;
                    assert!(
                        self.operations < 10 * OPERATIONS_MAX,
                        "the node works without end"
                    );
                    let result = self.device.perform(op);
                    queue.extend(self.step(Event::Disk { io, result }));
                }
                Effect::AdminReply { result, .. } => self.replies.push_back(result),
                Effect::Fenced { message } | Effect::OpenFailed { message } => {
                    panic!("without a fault: {message}")
                }
                _ => {}
            }
        }
    }
}

fn check_name(name: &str) {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    assert!(
        (1..=128).contains(&name.len()) && name.bytes().all(allowed),
        "{name:?}"
    );
    assert!(!name.starts_with(['-', '.']), "{name:?}");
}
