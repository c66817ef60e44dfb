//! Whole nodes in a simulated world: a fixed range of seeds, sabotage that must be noticed,
//! and the seeds that found bugs, with their stories.

use esker_engine::Sabotage;
use esker_tests::world::hunt::{hunt, run_caught};
use esker_tests::world::Options;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

/// Seeds of [`every_seed_holds_and_runs_the_same_twice`].
const SEEDS_DEFAULT: u64 = 2400;
/// Seconds after which it ends all the same, and says so.
const SECONDS_DEFAULT: u64 = 1800;
/// Worlds of [`copies_move_between_nodes`].
const MOVES_SEEDS: u64 = 150;
/// Worlds in which something that happens now and then must happen.
const SEARCHED_MAX: u64 = 1200;
/// Seeds in which a sabotage must be noticed.
const SABOTAGE_SEEDS_MAX: u64 = 4000;

/// The same seeds every time: `ESKER_SIM_SEEDS` of them from `ESKER_SIM_FROM` (0) on. A machine on
/// which they take longer than `ESKER_SIM_SECONDS` runs fewer, which is told like a skipped test.
#[test]
fn every_seed_holds_and_runs_the_same_twice() {
    let seeds = setting("ESKER_SIM_SEEDS", SEEDS_DEFAULT);
    let seconds = setting("ESKER_SIM_SECONDS", SECONDS_DEFAULT);
    let first = setting("ESKER_SIM_FROM", 0);
    let time = Duration::from_secs(seconds);
    let found = hunt(Options::new(0), first, seeds, time, true);
    println!("simulated worlds: {}", found.summary());
    for (kind, n) in &found.stats.faults {
        println!("  {n:>8} {kind}");
    }
    println!("  branches not taken: {:?}", found.probes_missed());
    if found.cut_short {
        let done = found.seeds;
        let told = tell_cut_short(&format!(
            "{seconds} s were over after {done} of {seeds} seeds; raise ESKER_SIM_SECONDS"
        ));
        told.expect("ESKER_SKIP_LOG is a file that can be written");
    }
    assert!(found.failures.is_empty(), "{:#?}", found.failures);
    assert!(found.seeds > 0, "no seed was done in {seconds} s");
}

/// A number a person may set; a typing error is no default.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name}={text}"))
    })
}

/// Tells it past the capture of test output, and in the file `ESKER_SKIP_LOG` names.
fn tell_cut_short(reason: &str) -> std::io::Result<()> {
    let line = format!("CUT SHORT every_seed_holds_and_runs_the_same_twice: {reason}\n");
    std::io::stderr().write_all(line.as_bytes())?;
    let Some(log) = std::env::var_os("ESKER_SKIP_LOG") else {
        return Ok(());
    };
    let mut log = File::options().append(true).create(true).open(log)?;
    log.write_all(line.as_bytes())
}

/// The first seed that fails with the sabotage and holds without it.
fn is_noticed(sabotage: Sabotage) {
    is_noticed_from(sabotage, 0);
}

/// The same, from a seed on.
fn is_noticed_from(sabotage: Sabotage, first: u64) {
    for seed in first..first + SABOTAGE_SEEDS_MAX {
        let healthy = Options::new(seed);
        let broken = Options {
            sabotage,
            ..healthy
        };
        let Some(violation) = run_caught(broken).violation else {
            continue;
        };
        if run_caught(healthy).violation.is_none() {
            println!("{sabotage:?} is noticed by seed {seed}: {violation}");
            return;
        }
    }
    panic!("{sabotage:?} goes unnoticed in {SABOTAGE_SEEDS_MAX} seeds");
}

#[test]
fn ignoring_what_is_known_durable_is_noticed() {
    is_noticed(Sabotage::IgnoreDurableSeq);
}

#[test]
fn building_on_a_cut_that_is_not_durable_is_noticed() {
    is_noticed(Sabotage::CutNotDurable);
}

#[test]
fn slots_that_become_live_late_are_noticed() {
    is_noticed(Sabotage::LiveBitLate);
}

#[test]
fn acknowledging_before_the_sync_is_noticed() {
    is_noticed(Sabotage::AckBeforeSync);
}

#[test]
fn reusing_segments_too_early_is_noticed() {
    is_noticed(Sabotage::ReuseBeforeCheckpoint);
}

#[test]
fn moving_slots_before_they_are_written_is_noticed() {
    is_noticed(Sabotage::MoveUnwritten);
}

#[test]
fn segments_that_are_opened_while_zeros_come_are_noticed() {
    is_noticed_from(Sabotage::OpenWhileZeroed, 440); // one in 300 worlds opens one at such a moment
}

#[test]
fn a_page_of_a_table_that_is_not_written_is_noticed() {
    is_noticed(Sabotage::ForgetTablePage);
}

#[test]
fn a_page_of_versions_that_is_not_written_is_noticed() {
    is_noticed(Sabotage::ForgetVersionPage);
}

/// As [`is_noticed`], by the record of what was sealed.
fn is_noticed_as_a_nonce(sabotage: Sabotage) {
    for seed in 0..SABOTAGE_SEEDS_MAX {
        let options = Options {
            sabotage,
            ..Options::new(seed)
        };
        let found = run_caught(options).violation;
        if found.is_some_and(|text| text.contains("nonce used twice")) {
            println!("{sabotage:?} is noticed by seed {seed}");
            return;
        }
    }
    panic!("{sabotage:?} uses no nonce twice in {SABOTAGE_SEEDS_MAX} seeds");
}

#[test]
fn stamps_that_a_dropped_proposal_gives_back_are_noticed() {
    is_noticed_as_a_nonce(Sabotage::ReturnStamps);
}

#[test]
fn a_counter_that_is_resumed_is_noticed() {
    is_noticed_as_a_nonce(Sabotage::ResumeStamps);
}

/// A seed that was found when worlds were as [`Options::plain`] has them.
fn holds(seed: u64) {
    let outcome = run_caught(Options::plain(seed));
    assert_eq!(outcome.violation, None, "seed {seed}");
}

/// A seed that was found when worlds were as [`Options::whole`] has them, with so many nodes.
fn holds_of(nodes: usize, seed: u64) {
    let outcome = run_caught(Options {
        nodes: Some(nodes),
        ..Options::whole(seed)
    });
    assert_eq!(outcome.violation, None, "seed {seed}");
}

/// A seed that was found in worlds as they are, with so many nodes.
fn holds_now(nodes: usize, seed: u64) {
    let outcome = run_caught(Options {
        nodes: Some(nodes),
        ..Options::new(seed)
    });
    assert_eq!(outcome.violation, None, "seed {seed}");
}

/// A stop closed a connection, and an answer that was still on its way was sent on it.
#[test]
fn nothing_is_sent_on_a_connection_after_its_close() {
    let outcome = run_caught(Options::whole(2_001_690));
    assert_eq!(outcome.violation, None);
}

/// A replica that seemed to be behind every log caught up while the others were being compared, and was compared
/// by a checkpoint from before.
#[test]
fn a_replica_that_catches_up_late_is_compared_as_it_is_then() {
    holds_of(3, 5_208_631);
}

/// The checkpoint that merges the trims of a full store ended after a hundred writes had been refused,
/// which was taken for a store that stays full.
#[test]
fn an_emptied_store_has_time_until_it_takes_writes() {
    let full = |seed| Options {
        full_stores: true,
        ..Options::whole(seed)
    };
    for options in [Options::whole(701_870), full(800_399), full(800_620)] {
        assert_eq!(run_caught(options).violation, None);
    }
}

/// Copies of volumes come, go and take each other's places among five nodes, from one copy or from three on. Found by such
/// worlds, and told in docs/adr/0021: votes for replicas whose log was empty; replicas that took themselves for removed;
/// numbers of requests that began anew with a copy that came back, so that writes were answered and not carried out; a
/// removal that those that stayed could forget.
#[test]
fn copies_move_between_nodes() {
    let options = Options {
        nodes: Some(5),
        ..Options::new(0)
    };
    let found = hunt(options, 0, MOVES_SEEDS, Duration::from_secs(600), false);
    println!("worlds in which copies move: {}", found.summary());
    assert!(found.failures.is_empty(), "{:#?}", found.failures);
    assert_eq!(found.seeds, MOVES_SEEDS);
    for work in ["members added", "members removed", "copies deleted"] {
        let times = found.stats.work.get(work).copied().unwrap_or(0);
        assert!(times >= MOVES_SEEDS / 2, "{work}: {times}");
    }
}

/// What a seed does changes with whatever the nodes do. So these are looked for: the first worlds from
/// `first` on in which something was done, `wanted` of them, and all on the way hold.
fn those_that_did(work: &str, nodes: usize, first: u64, wanted: usize) {
    let mut found = 0;
    for seed in first..first + SEARCHED_MAX {
        let outcome = run_caught(Options {
            nodes: Some(nodes),
            ..Options::new(seed)
        });
        assert_eq!(outcome.violation, None, "seed {seed}");
        found += usize::from(outcome.stats.work.contains_key(work));
        if found == wanted {
            return;
        }
    }
    panic!("only {found} of {SEARCHED_MAX} worlds from {first} on did: {work}");
}

/// A killed process had written two superblock copies that were not synced yet. The next opening
/// read them, took the checkpoint they name, and wrote its own over the one before. A power cut took
/// the two copies back: what was left named a checkpoint that was gone, and the store did not open.
/// An opening now syncs before it builds on anything it reads.
#[test]
fn an_opening_does_not_build_on_superblocks_that_a_power_cut_takes_back() {
    holds(74);
    holds(251);
}

/// After a restart, entries count as applied when they are committed; the outcome of a resize among
/// them came a step later. A client that attached in between was told the old size.
#[test]
fn a_client_that_attaches_after_a_restart_is_told_the_size_that_was_answered() {
    holds(99);
    holds(116);
    holds(174);
}

/// A mistake of the simulator itself. After an accepted loss nothing is known of a volume's size,
/// since a resize may be among what is lost. The operator then took the volume for one of a single
/// block, asked for a size below the true one, and the node rightly refused to shrink. Now a volume
/// whose size is not known is not resized.
#[test]
fn a_volume_of_unknown_size_is_not_resized() {
    holds(4366);
}

/// Another one: a process was killed when the acceptance of a loss was durable and its answer was on
/// its way. The next process rightly took the loss as accepted; the oracle still counted the write
/// that the damaged record had held.
#[test]
fn a_loss_whose_acceptance_was_not_answered_may_be_accepted() {
    holds(1754);
}

/// A volume was deleted while a resize of it was on its way. What was proposed went with the volume,
/// and the operator who had asked for the new size was never answered. The same held for one who
/// waited for a new volume to serve.
#[test]
fn a_resize_of_a_volume_that_is_deleted_is_answered() {
    those_that_did("resizes of volumes that go", 1, 314, 3);
}

/// A mistake of the simulator: a resize was refused because its volume was being deleted, and a power
/// cut took the deletion back but not the resize. "Refused" there says no more than that nobody knows.
#[test]
fn a_resize_refused_for_a_deletion_may_outlive_it() {
    for seed in [2494, 3491] {
        assert_eq!(
            run_caught(Options::whole(seed)).violation,
            None,
            "seed {seed}"
        );
    }
}

/// A mistake of the simulator: a write was never answered, a snapshot was taken that may have held it, and it was not
/// known whether the volume went back to that. Then the write counted as one that had taken effect, so that it had to be
/// gone once a read showed a later one; in truth it was still on its way.
#[test]
fn a_write_that_a_snapshot_may_hold_may_still_come() {
    holds_of(3, 104_574);
}

/// A mistake of the simulator: all nodes were asked to stop while the effects of one, whose answer had led to that, were still
/// being carried out. It closed its connections then, and what it had sent before came after.
#[test]
fn what_a_node_does_is_carried_out_before_it_is_told_more() {
    holds_of(3, 7158);
}

/// A store was fenced whose replicas were among three. They took no further part, and reads that
/// waited for the group's word that this is still the leader were never answered. The world had
/// hidden it: clients of a group give up after a while and try another node.
#[test]
fn a_fenced_replica_answers_reads_that_wait_for_its_group() {
    those_that_did("fences", 3, 315, 2);
}

/// The answers of a replica were lost, so that its leader knew of less than it held. Then the leader
/// cut its log between the two, took the replica for one that is behind every log, and never asked it
/// again: nothing but a new election, or a catch-up by state, could have brought it back.
#[test]
fn a_replica_that_holds_the_cut_point_goes_on_from_there() {
    holds_of(3, 2790);
}

/// Of three replicas one had lost its log to damage and another one lagged behind what the third, which led, still had. A catch-up began
/// with an entry of the log, and that needed a majority, of which one of the two would have had to be: the volume stood still for ever.
#[test]
fn who_lags_is_brought_up_by_a_leader_without_a_majority() {
    holds_of(3, 949_842);
}

/// A small store had room for what its replica lacked, but not for as much at a time as a leader sends: it waited for more, for ever.
#[test]
fn with_little_room_less_is_fetched_at_a_time() {
    holds_of(3, 2_100_388);
}

/// Two followers had been told once that they lag, which was not so any more when they were elected. Each handed the lead over, as one
/// that has nothing to serve with, to the other one or to the replica that was to be replaced and handed it back: 1,750 terms in two minutes.
#[test]
fn who_was_told_that_it_lags_and_does_not_leads() {
    holds_of(5, 3_550_489);
}

/// A scrub had noted where blocks lie; they died, and their segment was free when it came to read them. It read them there all the
/// same, and the segment was opened anew meanwhile: its readers were counted below zero, and it was never free again.
#[test]
fn a_scrub_reads_nothing_in_free_segments() {
    holds_of(1, 3_150_334);
}

/// Clients that stay attached to a snapshot while its volume is written, goes back and is merged, and its node
/// crashes: what they read is what it may hold, and the same every time.
#[test]
fn snapshots_are_what_they_were_whenever_they_are_read() {
    those_that_did("reads of snapshots", 1, 0, 3);
}

/// A volume of three goes back to a snapshot among changes of its leader.
#[test]
fn volumes_of_three_go_back_to_snapshots() {
    those_that_did("volumes of three rolled back", 3, 0, 3);
}

/// Blocks of one of three are damaged, or cannot be read: clients never learn of it, and they come back.
#[test]
fn blocks_of_one_of_three_are_repaired() {
    those_that_did("blocks repaired", 3, 0, 10);
}

/// A leader alone had entries that were never committed, and their payload was damaged. It could neither send them nor hand
/// the lead over to one of those that lacked them, and led for ever. It steps down, and the others elect one of their own.
#[test]
fn a_leader_that_cannot_give_what_it_alone_has_steps_down() {
    for seed in [10_349, 20_318] {
        let outcome = run_caught(Options {
            nodes: Some(3),
            clones: false,
            ..Options::asking(seed)
        });
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

/// A session attached while a key was awaited, and its group was asked again as fast as it answered: under a lease without an end.
#[test]
fn a_session_waits_for_a_key_without_asking() {
    let outcome = run_caught(Options {
        nodes: Some(3),
        zero_ahead: false,
        keys_of_three: false,
        ..Options::new(245)
    });
    assert_eq!(outcome.violation, None);
}

/// The checkpoint of a stop took the last free segment for its own pages, and the process was killed: the opening had two for the log
/// and none for the map, which goes on in that one now.
#[test]
fn a_store_opens_whose_checkpoint_took_its_last_segment() {
    assert_eq!(run_caught(Options::new(2598)).violation, None);
}

/// A copy of a clone had no key yet, its snapshot was deleted, and the process ended: nothing vouched for it any more, and a clone of the
/// clone waited for that without an end.
#[test]
fn a_clone_without_its_key_outlives_its_snapshot() {
    assert_eq!(run_caught(Options::new(4337)).violation, None);
}

/// Two readers met one damaged block, and both had it written over at once: two writes to one place have no order.
#[test]
fn repairs_of_one_block_share_a_write() {
    let outcome = run_caught(Options {
        nodes: Some(3),
        ..Options::new(100_538)
    });
    assert_eq!(outcome.violation, None);
}

/// A replica waited for a feed from a leader that was damaged in the entries that another one lacked; its own log had all that was committed, and
/// the leader had no quorum without it.
#[test]
fn a_replica_whose_log_reaches_needs_no_feed() {
    let outcome = run_caught(Options {
        nodes: Some(3),
        ..Options::new(104_458)
    });
    assert_eq!(outcome.violation, None);
}

/// A replica that caught up was past a key that was still on its way to it, and a read there ended with an error: it goes to the leader.
#[test]
fn a_read_goes_where_its_key_is() {
    let outcome = run_caught(Options {
        nodes: Some(3),
        ..Options::new(513)
    });
    assert_eq!(outcome.violation, None);
}

/// A copy of a clone had no key yet, and took writes into its log; after a restart they could have been anybody's, and its map was refused.
/// It takes none until a checkpoint has signed for what it begins from.
#[test]
fn a_copy_without_its_key_takes_no_writes() {
    let outcome = run_caught(Options {
        nodes: Some(3),
        ..Options::new(60_032)
    });
    assert_eq!(outcome.violation, None);
}

/// Volumes of three are cloned; where a node is past the entry that makes a clone, a copy is made anew.
#[test]
fn clones_of_three_begin_everywhere() {
    those_that_did("volumes of three cloned", 3, 0, 20);
    those_that_did("copies of clones made anew", 3, 0, 3);
}

/// A copy was made of a clone that had grown, began with the size it had then, and kept a snapshot from before that with it.
#[test]
fn a_copy_that_is_made_later_has_snapshots_of_their_own_size() {
    holds_now(3, 1358);
}

/// Volumes are kept at one moment under load, and what each snapshot holds is what its volume may have held then.
#[test]
fn group_snapshots_are_of_one_moment() {
    those_that_did("snapshots of cuts", 3, 0, 20);
    those_that_did("snapshots of cuts that came too late", 3, 0, 2);
}

/// A volume was rolled back between the moment of a group snapshot and its part of it, which held what that had gone back to.
#[test]
fn a_volume_that_is_held_is_not_rolled_back() {
    holds_now(3, 1640);
}

/// Volumes of three are given to one holder after the other, whatever is on its way; from each answer on nothing of an earlier one
/// takes effect.
#[test]
fn volumes_change_hands() {
    those_that_did("volumes given to a holder", 3, 0, 10);
}

/// A copy that was replaced could not be deleted while somebody held its volume: the node took that for the volume.
#[test]
fn a_replaced_copy_goes_whoever_holds_its_volume() {
    holds_now(5, 80_009);
}

/// What a copy had fetched was left for something else, and was given a stamp above all of it, which was the one of the snapshot
/// to be fetched next: the node took that for a contradiction and fenced itself.
#[test]
fn what_is_fetched_and_left_takes_no_stamp() {
    holds_now(5, 92_502);
}

/// A copy that had been replaced was deleted, and failed what a client at another node had asked it for.
#[test]
fn a_copy_that_goes_sends_back_what_others_asked_it_for() {
    holds_now(5, 95_111);
}

/// Volumes of three are given other data keys under load, while nodes crash and leaders change; what an older key opened is sealed
/// anew and reads as before.
#[test]
fn data_keys_of_three_are_exchanged() {
    those_that_did("volumes of three sealed anew", 3, 0, 3);
    // Somebody placed a key on some nodes and died; the next leader would give another one its number.
    those_that_did("numbers of data keys that were taken", 3, 574, 1);
}

/// Scrubs run among everything else and find nothing.
#[test]
fn scrubs_get_to_their_end() {
    those_that_did("scrubs that got to their end", 1, 0, 5);
}

/// Volumes are given other data keys under load, in crashes and among snapshots and rollbacks; no nonce is used twice
/// with a key, and what an older key opened is sealed anew and reads as before.
#[test]
fn data_keys_are_exchanged_under_load() {
    those_that_did("volumes sealed anew", 1, 0, 3);
}

/// A volume was deleted while the provider still made the data key that it was to get. Whoever had asked for it was
/// told so, and again when the provider failed.
#[test]
fn who_asked_for_a_data_key_is_answered_once() {
    holds_of(1, 2086);
}

/// What a volume was at a moment of its past is what is cloned.
#[test]
fn the_past_is_what_it_was() {
    those_that_did("volumes cloned as they were", 1, 300, 1);
}

/// The last node to hold an entry lost its payload to a flipped bit, and led. It asked its disk for it
/// without end, for the sake of a node that had been away, while the third had a good copy.
#[test]
fn a_leader_with_a_damaged_payload_lets_another_lead() {
    holds_of(3, 6_200_983);
}

/// Tables of many pages next to what the store holds. Clients were let in as long as there was room for
/// the tables twice, while the log waits for room to write them three times beside those that are
/// there: what was accepted was never written. With four times kept from everybody, trims were
/// refused that would have made room (the second seed).
#[test]
fn a_full_store_accepts_what_it_can_write_and_trims() {
    for seed in [6_100_303, 7_301_832] {
        let outcome = run_caught(Options {
            full_stores: true,
            ..Options::whole(seed)
        });
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

/// Segments without a live slot counted as room that the next checkpoint gives, so that nothing was
/// collected. Pages of tables were still in them, and no checkpoint was due: the log waited for ever.
#[test]
fn segments_that_hold_pages_of_tables_are_no_room() {
    for seed in [5998, 7_400_637, 7_401_929] {
        let outcome = run_caught(Options::whole(seed));
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

/// Replicas that lag behind the retained log and catch up by versions, while the volume is written to, snapshots come
/// and go, and nodes die. At the end all are equal.
#[test]
fn replicas_that_lag_catch_up() {
    those_that_did("replicas that caught up", 3, 80_000, 10);
}

/// What a rollback left was kept as a snapshot, with the stamp of the rollback; a replica that had fetched it took its
/// head for what the volume went on from, and laid what came next over the wrong blocks.
#[test]
fn what_a_rollback_left_does_not_lead_on() {
    holds_of(3, 70_185);
}

/// The leadership went while the edges of a write were read: its client was told of an error, though the next leader
/// would have carried it out.
#[test]
fn a_write_outlives_a_leadership_that_goes_while_its_edges_are_read() {
    holds_of(3, 40_878);
}

/// Addresses are not in what names a node of an encrypted volume, so one in memory is used by pointers with its hash alone. One
/// that a checkpoint had made and put there without its hash was looked for on the device, where it was not yet: a
/// node fenced itself.
#[test]
fn a_node_that_is_not_on_the_device_yet_is_known_by_its_hash() {
    holds_of(3, 910_538);
}
