//! Inputs to begin with: what real clients, nodes and operators send, and bytes of the golden store.
//! `cargo run -p esker-fuzz --bin write-seeds` writes them to `fuzz/corpus-seed`.

use crate::keys;
use crate::nbd_session::STREAM;
use crate::peer_link;
use crate::store::{golden, occupied};
use esker_api::v1;
use esker_base::{GroupId, RaftIndex, ReplicaId, Stamp};
use esker_engine::format::checkpoint::{Checkpoint, GroupEntry, GroupMeta, Jump};
use esker_engine::format::manifest::{Manifest, ManifestVersion};
use esker_engine::format::node::NodePage;
use esker_engine::format::operation::Operation;
use esker_engine::format::record::{ItemBody, RecordHeader};
use esker_engine::format::superblock::Superblock;
use esker_engine::format::versions::SnapshotMeta;
use esker_replication::{Frame, PayloadRef};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The first inputs of a target; none when there is no such target.
#[must_use]
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "nbd_session" => streams().into_iter().chain(noise(12)).collect(),
        "superblock" | "record" | "operation" | "node" | "checkpoint" => from_store(target),
        "manifest" => manifests(),
        "peer_frame" => vec![frame(0), frame(2)],
        "peer_link" => peer_link::seeds(),
        "admin" => admin().into_iter().chain(noise(12)).collect(),
        "config" => config(),
        "wrapped_key" => keys::wrapped_seeds(),
        "key_slots" => keys::slot_seeds(),
        "keyring" => keys::keyring_seeds(),
        "ttlv" => keys::ttlv_seeds(),
        "store_image" | "peer_messages" => noise(24),
        _ => Vec::new(),
    }
}

/// A volume with a snapshot, and one that was rolled back; and heads that no snapshot is.
fn manifests() -> Vec<Vec<u8>> {
    let version = |cut, parent| ManifestVersion {
        cut: Stamp(cut),
        parent: Stamp(parent),
        meta: Arc::new(SnapshotMeta {
            name: format!("s{cut}"),
            created_us: 1,
            size_bytes: 1 << 20,
            labels: BTreeMap::from([("by".into(), "hand".into())]),
        }),
    };
    let manifest = |versions: Vec<ManifestVersion>, jumps: Vec<Jump>, head: Option<Stamp>| {
        let state = GroupEntry {
            meta: GroupMeta {
                block_bytes: 4096,
                size_bytes: 1 << 20,
                name: "v".into(),
                ..GroupMeta::default()
            },
            max_stamp: match (head, versions.last()) {
                (None, Some(last)) => last.cut,
                _ => Stamp(90),
            },
            jumps,
            ..GroupEntry::default()
        };
        Manifest {
            state,
            versions,
            head,
        }
        .encode()
    };
    let jump = |at, to| Jump {
        at: Stamp(at),
        to: Stamp(to),
    };
    vec![
        manifest(vec![version(9, 0)], Vec::new(), None),
        manifest(
            vec![version(10, 0), version(20, 10), version(40, 10)],
            vec![jump(30, 10)],
            None,
        ),
        manifest(Vec::new(), Vec::new(), Some(Stamp(0))),
        manifest(
            vec![version(10, 0), version(20, 10)],
            vec![jump(30, 10)],
            Some(Stamp(10)),
        ),
    ]
}

/// Bytes without meaning, the same every time: each decodes as some sequence of steps.
fn noise(count: u64) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut byte = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state.to_be_bytes()[1]
    };
    (1..=count)
        .map(|n| (0..n * 24).map(|_| byte()).collect())
        .collect()
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("short");
    [
        b"IHAVEOPT",
        &code.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

fn request(flags: u16, command: u16, offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
    [
        &0x2560_9513u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &7u64.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// What clients send, from the greeting on.
fn streams() -> Vec<Vec<u8>> {
    let go = |code| option(code, b"\0\0\0\x01v\0\x02\0\x01\0\x03");
    let work = [
        request(0, 0, 4096, 8192, &[]),
        request(1, 1, 0, 4096, &[0x5a; 4096]),
        request(0, 1, 100, 700, &[1; 700]),
        request(0, 3, 0, 0, &[]),
        request(0, 4, 1 << 20, 1 << 20, &[]),
        request(2, 6, 0, 65536, &[]),
        request(0, 5, 0, 4096, &[]),
        request(4, 7, 0, 4096, &[]),
        request(0, 0, 1 << 30, 1, &[]),
        request(0, 2, 0, 0, &[]),
    ]
    .concat();
    let flags = 3u32.to_be_bytes().to_vec();
    let contexts = option(10, b"\0\0\0\x01v\0\0\0\x01\0\0\0\x0fbase:allocation");
    let compared = |code| {
        let query = b"qemu:dirty-bitmap:since=s";
        let some = [
            b"\0\0\0\x01v\0\0\0\x02\0\0\0\x19".as_slice(),
            query,
            b"\0\0\0\x05base:",
        ];
        option(code, &some.concat())
    };
    let all = [
        [
            flags.clone(),
            option(11, b""),
            compared(9),
            compared(10),
            go(7),
            work.clone(),
        ]
        .concat(),
        [flags.clone(), option(8, b""), go(7), work.clone()].concat(),
        [flags.clone(), go(7), work.clone()].concat(),
        [
            flags.clone(),
            option(11, b""),
            contexts.clone(),
            go(7),
            work.clone(),
        ]
        .concat(),
        [
            flags.clone(),
            option(8, b""),
            contexts,
            go(6),
            go(7),
            work.clone(),
        ]
        .concat(),
        [flags.clone(), option(1, b"v"), work].concat(),
        [flags.clone(), option(3, b""), go(6), option(2, b"")].concat(),
        [flags, option(5, b""), option(99, &[3; 300]), option(2, b"")].concat(),
    ];
    let framed = all.into_iter().zip([9u16, 1, 3, 17, 4096, 28, 100, 5]);
    framed
        .map(|(stream, split)| [&[STREAM][..], &split.to_be_bytes(), &stream].concat())
        .collect()
}

/// Pages and descriptors of the golden store, by what they are.
fn from_store(target: &str) -> Vec<Vec<u8>> {
    let device = &golden().device;
    let mut found = Vec::new();
    for number in occupied(device) {
        let page = device.page(number);
        let record = RecordHeader::decode(&page);
        let fits = match target {
            "superblock" => Superblock::decode(&page).is_ok(),
            "record" => record.is_ok(),
            "node" => NodePage::check(&page).is_ok(),
            "checkpoint" => page.starts_with(b"ESKERCKP") || page.starts_with(b"ESTB"),
            _ => false,
        };
        if fits && page.starts_with(b"ESKERCKP") {
            let decodes = |end: &usize| Checkpoint::decode(&page[..*end]).is_ok();
            found.extend(
                (32..=page.len())
                    .find(decodes)
                    .map(|end| page[..end].to_vec()),
            );
        } else if fits {
            found.push(page.to_vec());
        }
        for item in record.map_or(Vec::new(), |(_, items, _)| items) {
            match item.body {
                ItemBody::Entry { data, .. } if target == "operation" => {
                    assert!(Operation::decode(&data).is_ok());
                    found.push(data.to_vec());
                }
                ItemBody::GroupCreate(meta) if target == "checkpoint" => found.push(meta.to_vec()),
                _ => {}
            }
        }
    }
    found.truncate(24);
    found
}

fn frame(payloads: u64) -> Vec<u8> {
    let payload = |index| PayloadRef {
        index: RaftIndex(index),
        length: 4096,
        crc: 5,
    };
    let frame = Frame {
        group: GroupId(7),
        from: ReplicaId(2),
        to: ReplicaId(1),
        qos_class: 0,
        operation_version: 0,
        request_id: 0,
        trace_id: 0,
        payloads: (1..=payloads).map(payload).collect(),
        message: b"\x08\x03\x10\x01\x18\x02\x20\x01",
    };
    frame.encode().expect("within its limits").to_vec()
}

fn admin() -> Vec<Vec<u8>> {
    let create = v1::CreateVolumeRequest {
        name: "v1".into(),
        size_bytes: 1 << 30,
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        ..Default::default()
    };
    let rename = v1::RenameVolumeRequest {
        name: "v1".into(),
        new_name: "v2".into(),
    };
    let volume = v1::Volume {
        name: "v1".into(),
        uri: "nbd+unix:///v1?socket=/d/nbd.sock".into(),
        ..Default::default()
    };
    let list = v1::ListVolumesResponse {
        volumes: vec![volume.clone(), volume],
    };
    vec![
        create.encode_to_vec(),
        rename.encode_to_vec(),
        list.encode_to_vec(),
    ]
}

fn config() -> Vec<Vec<u8>> {
    let full =
        "data = \"/var/lib/esker\"\nstores = [\"/dev/nvme0n1\", \"two\"]\nstore_size = \"16GiB\"\n\
                cache_size = \"64MiB\"\nnbd = \"[::1]:10809\"\nmetrics = \"none\"\n";
    let texts = [
        full,
        "data = \"d\" # relative\n",
        "data = \"/d\"\nstore_size = \"1.5GiB\"\n",
        "data = \"/d\"\nnbd = \"host\"\n",
        "dat = 1\n",
        "data = [\n",
        "data = \"/d\"\nstore_size = \"1\\n2\"\n",
        "10GiB",
        "127.0.0.1:9809",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
