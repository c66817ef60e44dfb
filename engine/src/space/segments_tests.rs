//! Tests of the segment table.

use super::*;
use crate::format::table::CONTENT_MAX;

fn blank(count: u32) -> Segments {
    let shape = TableShape {
        content_max: CONTENT_MAX,
        rewrite_min: 64,
        audit: false,
    };
    Segments::blank(count, 64, shape)
}

#[test]
fn a_slot_lives_once_and_dies_once() {
    let mut s = blank(4);
    let (number, generation) = s.open(SegmentKind::Log).expect("free");
    let at = VAddr::new(generation, 3);
    assert!(s.set_live(at, 2).is_ok() && s.is_live(at.plus(1)));
    assert_eq!(s.get(number).live_count(), 2);
    assert!(s.set_live(at, 1).is_err());
    assert!(s.kill(at, 2).is_ok() && s.kill(at, 1).is_err());
    assert!(s.kill(VAddr::new(99, 0), 1).is_err());
    assert!(s.set_live(VAddr::new(generation, 63), 2).is_err());
}

#[test]
fn a_segment_is_free_only_after_release_and_the_last_reader() {
    let mut s = blank(2);
    let (number, generation) = s.open(SegmentKind::Log).expect("free");
    s.seal(number);
    s.freeze();
    assert_eq!(s.emptied(generation + 1, &BTreeSet::new()), vec![number]);
    assert_eq!(s.emptied(generation, &BTreeSet::new()), Vec::<u32>::new());
    s.reader_begins(number);
    s.release(&[number]);
    assert_eq!(s.free_count(), 1);
    s.reader_ends(number);
    assert_eq!(s.free_count(), 2);
}

#[test]
fn a_segment_that_is_held_is_opened_after_the_others_or_not_at_all() {
    let mut s = blank(3);
    s.hold(Some(0));
    assert_eq!(s.free_count(), 3);
    assert_eq!(s.open(SegmentKind::Log).map(|(n, _)| n), Some(1));
    assert_eq!(s.open(SegmentKind::Map).map(|(n, _)| n), Some(2));
    assert_eq!(s.open(SegmentKind::Log), None);
    s.hold(None);
    assert_eq!(s.open(SegmentKind::Log).map(|(n, _)| n), Some(0));
}

#[test]
fn deaths_after_the_freeze_do_not_reach_the_snapshot() {
    let mut s = blank(2);
    let (number, generation) = s.open(SegmentKind::Log).expect("free");
    s.set_live(VAddr::new(generation, 0), 2)
        .expect("dead before");
    s.freeze();
    s.kill(VAddr::new(generation, 0), 1).expect("live");
    s.kill_in_checkpoint(VAddr::new(generation, 1), 1)
        .expect("live in both");
    let frozen = s.frozen.as_ref().expect("frozen");
    let piece = frozen.pieces.values().next().expect("one");
    assert_eq!(piece.live.words(), vec![1]);
    assert_eq!(s.get(number).live_count(), 0);
}

/// Segment 0 with live slots 3, 4 and 9, moved to segment 1 from slot 1 on.
fn moved() -> (Segments, VAddr) {
    let mut s = blank(4);
    let (from, generation) = s.open(SegmentKind::Log).expect("free");
    let at = VAddr::new(generation, 0);
    s.set_live(at.plus(3), 2).expect("dead before");
    s.set_live(at.plus(9), 1).expect("dead before");
    s.seal(from);
    let (to, _) = s.open(SegmentKind::Survivors).expect("free");
    let slots = vec![3, 4, 9];
    let moved = Moved {
        from: at,
        slots,
        segment: to,
        base: 1,
    };
    s.move_out(from, &[moved]).expect("all that lives is moved");
    (s, at)
}

#[test]
fn what_is_moved_keeps_its_address() {
    let (mut s, at) = moved();
    assert_eq!(s.locate(at.plus(3)), Some((1, 1)));
    assert_eq!(s.locate_run(at.plus(3), 2), Some(vec![(1, 1, 2)]));
    assert_eq!(s.locate(at.plus(9)), Some((1, 3)));
    assert_eq!(s.locate(at.plus(5)), None);
    assert_eq!((s.get(0).live_count(), s.get(1).live_count()), (0, 3));
    assert!(s.kill(at.plus(4), 1).is_ok() && s.kill(at.plus(4), 1).is_err());
    let alive = |piece: &&Piece| piece.live_count() > 0;
    let pieces: Vec<&Piece> = s.now.pieces.values().filter(alive).collect();
    assert_eq!(
        (pieces.len(), pieces[0].live.words().as_slice()),
        (1, &[0b101][..])
    );
}

/// A merge kills nodes of the old tree that reads still go through: once, a piece vanished with
/// its last live slot, and such reads failed.
#[test]
fn dead_slots_are_found_until_their_segment_is_used_again() {
    let (mut s, at) = moved();
    s.kill(at.plus(3), 2).expect("live");
    s.kill(at.plus(9), 1).expect("live");
    assert_eq!(s.locate(at.plus(9)), Some((1, 3)));
    s.seal(1);
    s.freeze();
    let free = s.emptied(u64::MAX, &BTreeSet::new());
    assert_eq!(free, vec![0, 1]);
    s.release(&free);
    for _ in 0..2 {
        s.open(SegmentKind::Log).expect("free");
    }
    assert_eq!(s.locate(at.plus(9)), None);
}

#[test]
fn a_live_slot_that_was_not_moved_stops_the_move() {
    let mut s = blank(4);
    let (from, generation) = s.open(SegmentKind::Log).expect("free");
    let at = VAddr::new(generation, 0);
    s.set_live(at, 2).expect("dead before");
    let moved = Moved {
        from: at,
        slots: vec![1],
        segment: 1,
        base: 1,
    };
    assert!(s.move_out(from, &[moved]).is_err());
    assert_eq!(s.locate(at), Some((0, 0)));
}
