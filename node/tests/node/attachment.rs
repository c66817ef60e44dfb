//! One holder at a time: what a session asks for after a change of hands was put into the log is not carried out.

use crate::harness::{option, request, World, READ, WRITE};
use esker_base::ConnId;
use esker_node::admin::{AdminError, AdminReply, AdminRequest};

fn change(holder: Option<&str>, fence: bool) -> AdminRequest {
    AdminRequest::VolumeAttach {
        name: "v".into(),
        holder: holder.map(str::to_owned),
        only: None,
        fence,
    }
}

fn number(answer: Result<AdminReply, AdminError>) -> u64 {
    match answer {
        Ok(AdminReply::Volume(report)) => report.attachment.number,
        other => panic!("{other:?}"),
    }
}

/// A session of an attachment.
fn attach(world: &mut World, conn: u64, export: &str) -> ConnId {
    let conn = world.connect(conn);
    world.give(conn, option(1, export.as_bytes()));
    world.rest_a_little();
    world.replies.remove(&conn);
    conn
}

fn first_byte(world: &mut World, conn: ConnId, offset: usize) -> u8 {
    world.replies.remove(&conn);
    world.give(conn, request(READ, offset, 4096, 0));
    world.rest_a_little();
    world.replies[&conn][16]
}

/// Behind the change in the log there would be the write, and it would be in force after the answer.
#[test]
fn nothing_is_put_behind_a_change_of_hands_that_is_on_its_way() {
    let mut world = World::new();
    let plain = world.attach(1);
    world.give(plain, request(WRITE, 0, 4096, 1));
    // One whose edges have to be read before it can be put into the log.
    world.give(plain, request(WRITE, 8192, 4096, 1));
    world.rest_a_little();
    let asked = world.begin(change(Some("a"), true));
    world.turn();
    assert!(world.answer(asked).is_none(), "its entry is not durable");
    world.give(plain, request(WRITE, 0, 4096, 9));
    world.give(plain, request(WRITE, 8192 + 100, 512, 9));
    world.turn();
    world.rest_a_little();
    assert_eq!(number(world.answer(asked).unwrap()), 1);
    let why = &world.closed[&plain];
    assert!(
        why.contains("fenced: a holds volume v since, as attachment 1"),
        "{why}"
    );
    let a = attach(&mut world, 2, "v:1");
    assert_eq!(first_byte(&mut world, a, 0), 1);
    assert_eq!(first_byte(&mut world, a, 8192 + 100), 1);
    // Its own come through, those that wait for the change to be given up as well.
    world.give(a, request(WRITE, 0, 4096, 2));
    world.rest_a_little();
    assert_eq!(first_byte(&mut world, a, 0), 2);
    let asked = world.begin(change(None, false));
    world.turn();
    world.give(a, request(WRITE, 0, 4096, 3));
    world.rest_a_little();
    assert_eq!(number(world.answer(asked).unwrap()), 2);
    assert!(world.closed[&a].contains("nobody holds volume v"));
    let after = attach(&mut world, 3, "v");
    assert_eq!(first_byte(&mut world, after, 0), 2);
}

#[test]
fn who_holds_a_volume_is_known_after_a_restart() {
    let mut world = World::new();
    assert_eq!(number(world.ask(change(Some("a"), false))), 1);
    assert_eq!(number(world.ask(change(Some("a"), false))), 1);
    assert_eq!(number(world.ask(change(Some("a"), true))), 2);
    assert!(matches!(
        world.ask(change(Some("b"), false)),
        Err(AdminError::Refused(_))
    ));
    world.reopen();
    world.rest();
    assert_eq!(number(world.ask(change(Some("a"), false))), 2);
    let told = world.go(1, "v", &[]);
    assert!(
        told.iter()
            .any(|(_, text)| String::from_utf8_lossy(text).contains("a holds volume v alone")),
        "{told:?}"
    );
    let told = world.go(2, "v:2", &[]);
    assert_eq!(told.last().unwrap().0, 1, "{told:?}");
}

/// What a client selects of an export counts for the export that it attaches to, under the name that it uses.
#[test]
fn contexts_are_selected_of_an_attachment() {
    let mut world = World::new();
    assert_eq!(number(world.ask(change(Some("a"), false))), 1);
    let told = world.go(1, "v:1", &["base:allocation"]);
    assert_eq!(told.last().unwrap().0, 1, "{told:?}");
    let conn = ConnId(1);
    let extents = world.status(conn, 1 << 20);
    assert_eq!(extents, [[(1 << 20, 3)]]);
}
