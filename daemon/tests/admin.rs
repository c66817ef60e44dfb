//! The admin API over a real unix socket, with stores in memory.

#![allow(clippy::unwrap_used)] // helpers of tests may panic, like tests

#[path = "support/fake.rs"]
mod fake;

use esker_api::v1;
use esker_daemon::metrics;
use esker_daemon::store::Ended;
use esker_node::admin::VolumeState;
use fake::{FakeNode, IDENTITY};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::Code;

type Client = v1::admin_client::AdminClient<Channel>;

/// Runs `test` against a node.
async fn against(node: FakeNode, test: impl AsyncFnOnce(Client, &FakeNode, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let client = async {
        for _ in 0..200 {
            if let Ok(client) = esker_api::client::connect(&socket).await {
                return test(client, &node, folder.path()).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the admin API does not come up");
    };
    tokio::select! {
        () = node.serve_admin(folder.path()) => panic!("the admin API has ended"),
        () = client => {}
    }
    assert!(!socket.exists(), "the socket goes with its server");
}

fn create(name: &str, size_bytes: u64) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        name: name.into(),
        size_bytes,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_volume_lives_and_goes() {
    against(FakeNode::new(&[1 << 30]), async |mut client, _, folder| {
        let mode = std::fs::metadata(folder.join("admin.sock"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut request = create("vm-1", 1 << 20);
        request.labels.insert("team".into(), "blue".into());
        let made = client
            .create_volume(request)
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap();
        assert_eq!(made.uri, "nbd+unix:///vm-1?socket=/data/nbd.sock");
        assert_eq!(made.tcp_uri, "nbd://127.0.0.1:10809/vm-1");
        assert_eq!(made.state(), v1::VolumeState::Ready);
        assert_eq!(made.labels["team"], "blue");

        let grow = v1::ResizeVolumeRequest {
            name: "vm-1".into(),
            size_bytes: 2 << 20,
        };
        let grown = client
            .resize_volume(grow)
            .await
            .unwrap()
            .into_inner()
            .volume
            .unwrap();
        assert_eq!(grown.size_bytes, 2 << 20);

        let rename = v1::RenameVolumeRequest {
            name: "vm-1".into(),
            new_name: "vm-2".into(),
        };
        client.rename_volume(rename).await.unwrap();
        let list = client
            .list_volumes(v1::ListVolumesRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(list.volumes.len(), 1);
        assert_eq!(list.volumes[0].name, "vm-2");
        assert_eq!(list.volumes[0].uuid, made.uuid);

        client.checkpoint(v1::CheckpointRequest {}).await.unwrap();
        client
            .delete_volume(v1::DeleteVolumeRequest {
                name: "vm-2".into(),
                with_snapshots: false,
            })
            .await
            .unwrap();
        let gone = client
            .show_volume(v1::ShowVolumeRequest {
                name: "vm-2".into(),
            })
            .await;
        assert_eq!(gone.unwrap_err().code(), Code::NotFound);
    })
    .await;
}

#[tokio::test]
async fn every_refusal_has_its_code_and_its_line() {
    against(FakeNode::new(&[1 << 30]), async |mut client, node, _| {
        client.create_volume(create("a", 4096)).await.unwrap();
        node.stores[0]
            .volumes
            .lock()
            .unwrap()
            .get_mut("a")
            .unwrap()
            .sessions = 2;
        let delete = v1::DeleteVolumeRequest {
            name: "a".into(),
            with_snapshots: false,
        };
        let attached = client.delete_volume(delete).await.unwrap_err();
        let two = v1::CreateVolumeRequest {
            replicas: 3,
            ..create("b", 4096)
        };
        let space = v1::SpaceRequest {
            volume: Some("none".into()),
        };
        let refusals = [
            (attached, Code::FailedPrecondition, "2 sessions"),
            (
                client.create_volume(create("a", 4096)).await.unwrap_err(),
                Code::AlreadyExists,
                "a",
            ),
            (
                client.create_volume(create("b", 5)).await.unwrap_err(),
                Code::InvalidArgument,
                "5",
            ),
            (
                client
                    .create_volume(create("b", 1 << 41))
                    .await
                    .unwrap_err(),
                Code::ResourceExhausted,
                "small",
            ),
            (
                client.create_volume(two).await.unwrap_err(),
                Code::FailedPrecondition,
                "needs a cluster",
            ),
            (
                client.space(space).await.unwrap_err(),
                Code::NotFound,
                "none",
            ),
        ];
        for (status, code, part) in refusals {
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(part), "{status}");
            assert!(!status.message().contains('\n'));
        }
    })
    .await;
}

#[tokio::test]
async fn names_are_unique_across_stores_and_the_roomiest_store_is_taken() {
    against(
        FakeNode::new(&[1 << 20, 1 << 30]),
        async |mut client, node, _| {
            let made = client
                .create_volume(create("b", 4096))
                .await
                .unwrap()
                .into_inner();
            assert_eq!(made.volume.unwrap().store, 1);
            node.states
                .send_modify(|states| states[1].fenced = Some("write failed".into()));
            let made = client
                .create_volume(create("a", 4096))
                .await
                .unwrap()
                .into_inner();
            assert_eq!(
                made.volume.unwrap().store,
                0,
                "a fenced store takes no volume"
            );

            let taken = client.create_volume(create("b", 4096)).await.unwrap_err();
            assert_eq!(taken.code(), Code::AlreadyExists);
            let rename = v1::RenameVolumeRequest {
                name: "a".into(),
                new_name: "b".into(),
            };
            assert_eq!(
                client.rename_volume(rename).await.unwrap_err().code(),
                Code::AlreadyExists
            );

            let list = client
                .list_volumes(v1::ListVolumesRequest {})
                .await
                .unwrap()
                .into_inner();
            let places: Vec<_> = list
                .volumes
                .iter()
                .map(|v| (v.name.as_str(), v.store))
                .collect();
            assert_eq!(places, [("a", 0), ("b", 1)]);

            let space = client
                .space(v1::SpaceRequest::default())
                .await
                .unwrap()
                .into_inner();
            assert_eq!(space.space.unwrap().free_bytes, (1 << 20) + (1 << 30));
            assert_eq!(space.stores.len(), 2);
        },
    )
    .await;
}

/// Two clients that create the same name at once: one volume, one refusal, though the stores differ.
#[tokio::test]
async fn a_name_cannot_be_taken_twice_at_once() {
    against(
        FakeNode::new(&[1 << 20, 1 << 30]),
        async |client, node, _| {
            let (mut one, mut two) = (client.clone(), client);
            let (a, b) = tokio::join!(
                one.create_volume(create("x", 4096)),
                two.create_volume(create("x", 4096))
            );
            assert_eq!(a.is_ok() as u8 + b.is_ok() as u8, 1);
            let volumes: usize = node
                .stores
                .iter()
                .map(|s| s.volumes.lock().unwrap().len())
                .sum();
            assert_eq!(volumes, 1);
        },
    )
    .await;
}

#[tokio::test]
async fn a_dead_store_is_told_and_never_taken_for_an_empty_one() {
    let node = FakeNode::new(&[1 << 20, 1 << 20]).with(0, |store| store.is_dead = true);
    against(node, async |mut client, node, _| {
        // Whether the dead store has the name cannot be known.
        let refused = client.create_volume(create("x", 4096)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().contains("/stores/0"), "{refused}");
        let list = client
            .list_volumes(v1::ListVolumesRequest {})
            .await
            .unwrap_err();
        assert_eq!(list.code(), Code::Unavailable);
        // A volume of the other store is found all the same.
        let report = esker_node::admin::VolumeReport {
            name: "y".into(),
            ..Default::default()
        };
        node.stores[1]
            .volumes
            .lock()
            .unwrap()
            .insert("y".into(), report);
        client
            .show_volume(v1::ShowVolumeRequest { name: "y".into() })
            .await
            .unwrap();

        node.states
            .send_modify(|states| states[0].ended = Some(Ended::Failed("broke".into())));
        let status = client
            .status(v1::StatusRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert!(!status.healthy);
        assert_eq!(status.problems, ["broke"]);
        assert_eq!(status.nodes[0].state, "degraded");
        assert_eq!(status.nodes[0].stores[0].state, "failed");
        assert_eq!(status.nodes[0].stores[1].state, "ready");
    })
    .await;
}

#[tokio::test]
async fn a_fenced_store_makes_the_node_unhealthy() {
    against(FakeNode::new(&[1 << 20]), async |mut client, node, _| {
        client.create_volume(create("x", 4096)).await.unwrap();
        let well = client
            .status(v1::StatusRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert!(well.healthy && well.problems.is_empty());
        assert_eq!(well.volumes[0].leader, "7");
        assert_eq!(well.volumes[0].replicas[0].node, "7");

        node.states
            .send_modify(|states| states[0].fenced = Some("EIO at 4096".into()));
        node.stores[0]
            .volumes
            .lock()
            .unwrap()
            .get_mut("x")
            .unwrap()
            .state = VolumeState::Fenced;
        let ill = client
            .status(v1::StatusRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert!(!ill.healthy);
        assert!(
            ill.problems[0].contains("EIO at 4096"),
            "{:?}",
            ill.problems
        );
        assert_eq!(ill.nodes[0].stores[0].state, "fenced");
        assert_eq!(ill.volumes[0].state(), v1::VolumeState::Fenced);
    })
    .await;
}

#[tokio::test]
async fn metrics_are_those_of_the_stores() {
    let node = FakeNode::new(&[1 << 20, 1 << 30]).with(1, |store| store.is_dead = true);
    let report = esker_node::admin::VolumeReport {
        sessions: 2,
        ..Default::default()
    };
    node.stores[0]
        .volumes
        .lock()
        .unwrap()
        .insert("x".into(), report);
    let text = metrics::text(&node.stores(), &IDENTITY, 0, Vec::new())
        .await
        .unwrap();
    for line in [
        "esker_up{store=\"0\"} 1",
        "esker_up{store=\"1\"} 0",
        "esker_volumes{store=\"0\"} 1",
        "esker_sessions{store=\"0\"} 2",
        "esker_damaged_blocks{store=\"0\"} 3",
        "esker_space_free_bytes{store=\"0\"} 1048576",
        "esker_device_written_bytes_total{store=\"0\"} 5242880",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in:\n{text}");
    }
    assert!(text.contains("esker_build_info{version=\""), "{text}");
    assert!(
        !text.contains("esker_volumes{store=\"1\"}"),
        "a dead store has no figures"
    );
}
