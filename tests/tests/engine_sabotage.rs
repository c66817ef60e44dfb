//! Each rule that can be broken on purpose is seen to be broken: the oracle is not blind.

use esker_engine::Sabotage;
use esker_tests::check::settle::{run_seed, Options};

/// Seeds until which a sabotage must have been noticed.
const SEEDS_MAX: u64 = 600;

fn noticed(sabotage: Sabotage) {
    let options = Options {
        sabotage,
        ..Options::default()
    };
    let seen = (0..SEEDS_MAX).find_map(|seed| {
        let result = std::panic::catch_unwind(|| run_seed(seed, options));
        match result {
            Ok(Ok(_)) => None,
            Ok(Err(violation)) => Some((seed, violation.to_string())),
            Err(_) => Some((seed, "panic".into())),
        }
    });
    println!("{sabotage:?}: {seen:?}");
    assert!(seen.is_some(), "{sabotage:?} goes unnoticed");
}

#[test]
fn taking_damage_for_a_torn_tail_is_noticed() {
    esker_tests::check::damage::ignore_durable_seq_is_noticed();
}

#[test]
fn building_on_a_cut_that_is_not_durable_is_noticed() {
    noticed(Sabotage::CutNotDurable);
}

#[test]
fn late_live_bits_are_noticed() {
    noticed(Sabotage::LiveBitLate);
}

#[test]
fn acknowledging_before_the_sync_is_noticed() {
    noticed(Sabotage::AckBeforeSync);
}

#[test]
fn reuse_before_the_checkpoint_is_durable_is_noticed() {
    noticed(Sabotage::ReuseBeforeCheckpoint);
}

#[test]
fn killing_what_a_snapshot_uses_is_noticed() {
    noticed(Sabotage::KillIgnoresCut);
}

#[test]
fn a_second_address_for_what_a_snapshot_uses_is_noticed() {
    noticed(Sabotage::RehomeIgnoresCut);
}

#[test]
fn a_page_of_versions_that_is_not_written_is_noticed() {
    noticed(Sabotage::ForgetVersionPage);
}

#[test]
fn losing_an_entry_of_a_deadlist_is_noticed() {
    noticed(Sabotage::DeadEntryLost);
}

#[test]
fn merging_into_an_older_snapshot_is_noticed() {
    noticed(Sabotage::MergeIntoOlder);
}

#[test]
fn a_clone_that_kills_what_its_origin_uses_is_noticed() {
    noticed(Sabotage::CloneIgnoresBase);
}

#[test]
fn a_clone_that_sees_what_its_origin_wrote_later_is_noticed() {
    noticed(Sabotage::CloneSeesLater);
}

#[test]
fn a_clone_whose_first_item_is_not_replayed_is_noticed() {
    noticed(Sabotage::CloneForgotten);
}

#[test]
fn giving_back_what_one_of_two_branches_uses_is_noticed() {
    noticed(Sabotage::OrphanIgnoresBranch);
}

#[test]
fn a_page_of_a_table_that_is_not_written_is_noticed() {
    noticed(Sabotage::ForgetTablePage);
}
