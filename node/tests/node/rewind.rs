//! Rewind windows: every second of them can be had, they slide, they outlive the node, and they give way before a
//! write is refused.

use crate::harness::{option, request, World, MIB, READ, VOLUME_BYTES, WRITE};
use esker_base::ConnId;
use esker_node::admin::{AdminError, AdminReply, AdminRequest, StatusReport, VolumeReport};
use esker_node::rewind::REWIND_LABEL;
use std::collections::BTreeMap;

const SECOND: u64 = 1_000_000_000;

fn set_window(world: &mut World, seconds: Option<u64>) {
    let seconds = seconds.map(|seconds| seconds.to_string());
    let labels = [(REWIND_LABEL.into(), seconds)].into();
    let name = "v".into();
    world
        .ask(AdminRequest::VolumeRelabel {
            name,
            labels,
            expects: None,
        })
        .unwrap();
}

fn now_us(world: &World) -> u64 {
    world.now / 1000
}

/// To a moment within a second of the wall clock, a tenth at a time.
fn pass_to(world: &mut World, us: u64) {
    while now_us(world) < us {
        world.now = (world.now + SECOND / 10).min(us * 1000);
        world.rest_a_little();
    }
}

fn write(world: &mut World, conn: ConnId, byte: u8) {
    world.replies.remove(&conn);
    world.give(conn, request(WRITE, 0, 4096, byte));
    world.rest_a_little();
    assert!(world.replied(conn) > 0);
}

fn clone_at(world: &mut World, at_us: u64, name: &str) -> Result<VolumeReport, AdminError> {
    let clone = AdminRequest::VolumeCloneAt {
        volume: "v".into(),
        at_us,
        name: name.into(),
        labels: BTreeMap::new(),
        born: None,
    };
    match world.ask(clone)? {
        AdminReply::Volume(report) => Ok(report),
        other => panic!("{other:?}"),
    }
}

/// The first byte of a volume.
fn first_byte(world: &mut World, name: &str, number: u64) -> u8 {
    let conn = world.connect(number);
    world.give(conn, option(1, name.as_bytes()));
    world.rest_a_little();
    world.replies.remove(&conn);
    world.give(conn, request(READ, 0, 4096, 0));
    world.rest_a_little();
    world.replies[&conn][16]
}

fn report(world: &mut World) -> VolumeReport {
    match world.ask(AdminRequest::VolumeShow { name: "v".into() }) {
        Ok(AdminReply::Volume(report)) => report,
        other => panic!("{other:?}"),
    }
}

fn status(world: &mut World) -> StatusReport {
    match world.ask(AdminRequest::Status) {
        Ok(AdminReply::Status(report)) => report,
        other => panic!("{other:?}"),
    }
}

/// One write in the middle of each of so many seconds; what the volume holds from when on.
fn lived(world: &mut World, conn: ConnId, seconds: u8) -> Vec<(u64, u8)> {
    let begin = (now_us(world) / 1_000_000 + 1) * 1_000_000;
    let mut history = Vec::new();
    for second in 0..seconds {
        pass_to(world, begin + u64::from(second) * 1_000_000 + 500_000);
        write(world, conn, second + 1);
        history.push((now_us(world), second + 1));
    }
    pass_to(world, begin + u64::from(seconds) * 1_000_000 + 200_000);
    history
}

#[test]
fn every_second_of_the_window_can_be_had() {
    let mut world = World::new();
    set_window(&mut world, Some(60));
    let conn = world.attach(1);
    let history = lived(&mut world, conn, 20);
    for (number, (written_us, byte)) in (10..).zip(&history) {
        // A second after it was written, and just before the next write.
        let name = format!("c{number}");
        clone_at(&mut world, written_us + 900_000, &name).unwrap();
        assert_eq!(first_byte(&mut world, &name, number), *byte);
        // Never anything younger than the moment.
        let name = format!("d{number}");
        let before = clone_at(&mut world, written_us - 10_000, &name);
        before.unwrap();
        assert!(first_byte(&mut world, &name, number + 100) < *byte);
    }
    // Nobody sees the points.
    let shown = report(&mut world);
    assert_eq!((shown.snapshots, shown.rewind_seconds), (0, 60));
    let list = AdminRequest::SnapshotList {
        volume: None,
        after: None,
    };
    let Ok(AdminReply::Snapshots(page)) = world.ask(list) else {
        panic!("no list")
    };
    assert_eq!(page.snapshots, []);
    let name = format!(
        "v@@{}",
        world
            .node
            .engine()
            .snapshots(world.node.group_of("v").unwrap())[0]
            .cut
            .0
    );
    let told = world.go(500, &name, &[]);
    assert!(
        told.last().is_some_and(|(kind, _)| kind >> 31 == 1),
        "no export: {told:?}"
    );
    // Nor is there any reason to take more while nothing is written.
    let count = world
        .node
        .engine()
        .rewind_points(world.node.group_of("v").unwrap())
        .count;
    world.pass(5);
    let after = world
        .node
        .engine()
        .rewind_points(world.node.group_of("v").unwrap())
        .count;
    assert_eq!(count, after);
}

#[test]
fn a_window_slides_and_ends() {
    let mut world = World::new();
    set_window(&mut world, Some(30));
    let conn = world.attach(1);
    let id = world.node.group_of("v").unwrap();
    for _ in 0..3 {
        lived(&mut world, conn, 40);
        let points = world.node.engine().rewind_points(id);
        assert!((30..=45).contains(&points.count), "{points:?}");
        let reaches = now_us(&world) - points.oldest_us;
        assert!((30_000_000..45_000_000).contains(&reaches), "{reaches}");
    }
    let refused = clone_at(&mut world, 3_000_000, "old")
        .unwrap_err()
        .to_string();
    assert!(refused.contains("can be rewound by"), "{refused}");
    let late = now_us(&world) + 1_000_000_000;
    let refused = clone_at(&mut world, late, "late").unwrap_err().to_string();
    assert!(refused.contains("to come"), "{refused}");
    // A volume that is not written to keeps the one point that tells how it is, however old that becomes.
    world.pass(60);
    world.ask(AdminRequest::Settle).unwrap();
    assert_eq!(world.node.engine().rewind_points(id).count, 1);
    let at = now_us(&world) - 20_000_000;
    clone_at(&mut world, at, "idle").unwrap();
    assert_eq!(first_byte(&mut world, "idle", 7), 40);
    // Without a window no point is left, and nothing of what they held.
    set_window(&mut world, None);
    world.pass(5);
    world.ask(AdminRequest::Settle).unwrap();
    assert_eq!(world.node.engine().rewind_points(id).count, 0);
    let shown = report(&mut world);
    assert_eq!((shown.rewind_seconds, shown.rewind_bytes), (0, Some(0)));
    let refused = clone_at(&mut world, at, "none").unwrap_err().to_string();
    assert!(refused.contains("--rewind"), "{refused}");
}

/// What points hold, beside snapshots and without.
#[test]
fn sums_tell_what_only_points_hold() {
    let mut world = World::new();
    set_window(&mut world, Some(3600));
    let conn = world.attach(1);
    lived(&mut world, conn, 10);
    world.ask(AdminRequest::Settle).unwrap();
    // Ten versions of one block, of which the volume has one.
    let shown = report(&mut world);
    assert_eq!(
        (shown.rewind_bytes, shown.used_bytes),
        (Some(9 * 4096), 4096)
    );
    assert_eq!(shown.snapshot_bytes, 9 * 4096);
    // The one that a snapshot has is not the points' alone.
    world.snapshot("s").unwrap();
    lived(&mut world, conn, 10);
    world.ask(AdminRequest::Settle).unwrap();
    let shown = report(&mut world);
    assert_eq!((shown.rewind_bytes, shown.snapshots), (Some(18 * 4096), 1));
    assert_eq!(shown.snapshot_bytes, 19 * 4096);
    world.delete_snapshot("s").unwrap();
    world.ask(AdminRequest::Settle).unwrap();
    assert_eq!(
        report(&mut world).snapshot_bytes,
        19 * 4096,
        "points go back beyond it"
    );
}

/// A crash takes nothing of the window: neither the points nor the last second before it.
#[test]
fn a_window_outlives_a_crash() {
    let mut world = World::new();
    set_window(&mut world, Some(600));
    let conn = world.attach(1);
    let history = lived(&mut world, conn, 12);
    let at = now_us(&world) / 1_000_000 * 1_000_000 + 1_300_000;
    pass_to(&mut world, at);
    write(&mut world, conn, 99); // and no second ends after it
    let written_us = now_us(&world);
    world.reopen();
    world.now += 100 * SECOND;
    world.rest();
    let conn = world.attach(2);
    write(&mut world, conn, 100);
    world.pass(3);
    for (number, (us, byte)) in (10..).zip(&history) {
        let name = format!("c{number}");
        clone_at(&mut world, us + 900_000, &name).unwrap();
        assert_eq!(first_byte(&mut world, &name, number), *byte);
    }
    clone_at(&mut world, written_us + 50 * 1_000_000, "away").unwrap();
    assert_eq!(first_byte(&mut world, "away", 50), 99, "as it was left");
}

/// A window takes no room from writes: the oldest points go, that is told, and not one write is refused.
#[test]
fn a_window_gives_way_to_writes_when_the_store_is_full() {
    let mut world = World::new();
    set_window(&mut world, Some(3600));
    let conn = world.attach(1);
    let blocks = usize::try_from(VOLUME_BYTES).unwrap() / (8 * MIB);
    for n in 0..6 * blocks {
        world.replies.remove(&conn);
        world.give(conn, request(WRITE, n % blocks * 8 * MIB, 8 * MIB, 7));
        for _ in 0..200 {
            world.rest_a_little();
            if world.replied(conn) > 0 {
                break;
            }
            world.now += SECOND / 10;
        }
        let reply = &world.replies[&conn];
        assert_eq!(reply[4..8], [0; 4], "write {n} is refused");
        world.now += SECOND / 4;
    }
    world.pass(3);
    let told = status(&mut world);
    assert!(!told.healthy && told.problems.len() == 1, "{told:?}");
    assert!(told.problems[0].contains("can be rewound by"), "{told:?}");
    let id = world.node.group_of("v").unwrap();
    let points = world.node.engine().rewind_points(id);
    assert!(points.count > 0, "what there is room for is kept");
    let at = points.newest_us;
    clone_at(&mut world, at, "c").unwrap();
    assert_eq!(first_byte(&mut world, "c", 5), 7);
}
