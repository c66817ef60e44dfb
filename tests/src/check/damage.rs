//! Media damage chosen by a test, and what must follow from it: nothing durable is lost silently,
//! nothing wrong is read, and groups that were not touched do not notice.

use super::group::{index, GroupModel};
use super::settle::Report;
use super::world::{Catalog, World};
use super::Violation;
use crate::sim::SimRng;
use esker_base::{BlockRange, GroupId, BLOCK_SIZE_U64};
use esker_engine::format::operation::Operation;
use esker_engine::format::record::{Item, ItemBody, RecordHeader};
use esker_engine::{EngineConfig, Event, ReadError, Sabotage};
use std::collections::BTreeSet;

/// Which part of a record is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A header page.
    Header,
    /// A payload page.
    Payload,
}

/// A record on the device.
#[derive(Clone, Debug)]
struct OnDevice {
    header: RecordHeader,
    items: Vec<Item>,
    first_page: u64,
}

impl OnDevice {
    fn groups(&self) -> BTreeSet<GroupId> {
        self.items.iter().map(|item| item.group).collect()
    }
    fn creates(&self) -> bool {
        let create = |item: &Item| matches!(item.body, ItemBody::GroupCreate(_));
        self.items.iter().any(create)
    }
}

/// Damages one durable record behind the newest checkpoint of a store that was in use, and opens
/// it.
///
/// # Errors
/// When a rule is broken.
pub fn run_damage(seed: u64, part: Part, sabotage: Sabotage) -> Result<Report, Violation> {
    let mut rng = SimRng::new(seed, 3);
    let config = EngineConfig {
        checkpoint_bytes: 1 << 30,
        checkpoint_records: 1 << 30,
        delta_extents_max: 1 << 30,
        ..World::config(&mut rng, sabotage)
    };
    let mut world = World::new(seed, config);
    // What a lost record means for clones is looked at in chosen situations.
    world.clones = false;
    world.open(&mut rng, false)?;
    let steps = rng.range(50, 400);
    for step in 0..steps {
        world.random_op()?;
        for _ in 0..rng.below(6) {
            world.disk_step()?;
        }
        while world.timer_step()? {}
        if step == steps / 3 {
            world.run(true)?;
        }
    }
    // The closing record says that everything before it is durable.
    world.run(true)?;
    let sb = world.engine.superblock().clone();
    let mut records = records_of(&world);
    records.retain(|r| r.header.seq >= sb.log.seq);
    records.sort_by_key(|r| r.header.seq);
    // What no record says is durable may be taken for a torn tail, and rightly so.
    let durable = records.iter().map(|r| r.header.durable_seq).max();
    records.retain(|r| Some(r.header.seq) <= durable && !r.creates());
    records.retain(|r| part == Part::Header || r.header.payload_pages > 0);
    // Segments are so small here that one record can fill one. Stores have segments that hold several of
    // the largest, so that a damaged header never hides which segment follows.
    let several = |r: &OnDevice| r.header.pages() * 4 <= sb.slots();
    records.retain(|r| several(r) || r.header.segment == sb.log.segment);
    let mut report = Report::default();
    if !records.is_empty() {
        let victim = records[rng.index(records.len())].clone();
        damage(&mut world, &mut rng, &victim, part);
        world.damaged = true;
        world.disk.power_cut();
        world.restart();
        world.open(&mut rng, false)?;
        judge(&mut world, &victim, part)?;
    }
    world.probes.extend(world.engine.probes().iter().copied());
    report.trace = world.trace.digest();
    report.probes = world.probes;
    Ok(report)
}

fn records_of(world: &World) -> Vec<OnDevice> {
    let sb = world.engine.superblock();
    let image = world.disk.visible();
    let mut found = Vec::new();
    for (page, bytes) in image.pages() {
        let Ok((header, items, _)) = RecordHeader::decode(bytes).or_else(|_| {
            let all = image.read(page * BLOCK_SIZE_U64, 16 * 4096);
            RecordHeader::decode(&all)
        }) else {
            continue;
        };
        let here = sb.offset_of(header.segment, header.slot) == page * BLOCK_SIZE_U64;
        if here && header.store == sb.store {
            found.push(OnDevice {
                header,
                items,
                first_page: page,
            });
        }
    }
    found
}

fn damage(world: &mut World, rng: &mut SimRng, victim: &OnDevice, part: Part) {
    let headers = u64::from(victim.header.header_pages);
    let page = victim.first_page
        + match part {
            Part::Header => rng.below(headers),
            Part::Payload => headers + rng.below(u64::from(victim.header.payload_pages)),
        };
    let (how, bit, other) = (rng.below(3), rng.index(4096 * 8), victim.first_page ^ 1);
    world.disk.damage(|image| match how {
        0 => image.flip_bit(page, bit),
        1 => image.zero_page(page),
        _ => image.misdirect(other, page),
    });
}

fn judge(world: &mut World, victim: &OnDevice, part: Part) -> Result<(), Violation> {
    let Some(opened) = world.open.clone() else {
        return Err(Violation::new("not open"));
    };
    let touched = victim.groups();
    for found in &opened.groups {
        let id = found.meta.group;
        let suspected = part == Part::Header && touched.contains(&id);
        if suspected && !found.suspended {
            return Err(Violation::new(format!(
                "group {id} lost record {} and is not suspended",
                victim.header.seq
            )));
        }
        if part == Part::Payload && found.suspended {
            return Err(Violation::new(format!(
                "group {id} is suspended for a payload"
            )));
        }
    }
    let gone: Vec<GroupId> = world.groups.keys().copied().collect();
    world.check_opened_with(&touched)?;
    if world.groups.len() != gone.len() && !touched.iter().any(|id| world.deleted.contains(id)) {
        return Err(Violation::new("a group is gone"));
    }
    world.settle()?;
    let suspended: Vec<GroupModel> = world
        .groups
        .values()
        .filter(|m| m.suspended)
        .cloned()
        .collect();
    for model in suspended {
        accept_loss(world, &model, victim)?;
    }
    Ok(())
}

/// After the accepted loss of a group of one, every block has a content it once had, or is
/// unreadable; what no lost entry touched has its last content.
fn accept_loss(world: &mut World, model: &GroupModel, victim: &OnDevice) -> Result<(), Violation> {
    let id = model.meta.group;
    if !model.is_single() {
        return Ok(());
    }
    let token = world.token();
    world.catalog.insert(token, Catalog::AcceptLoss(id));
    world.step(Event::AcceptLoss { token, group: id })?;
    world.run(true)?;
    let applied = world.engine.group(id).map_or(0, |view| view.applied.0);
    let rolls_back = |entry: &std::sync::Arc<super::group::ModelEntry>| {
        matches!(entry.operation, Some(Operation::Rollback { .. }))
    };
    if model.log.iter().skip(index(applied)).any(rolls_back) {
        return Ok(()); // such a volume is not taken on
    }
    let lost: BTreeSet<u64> = victim
        .items
        .iter()
        .filter(|item| item.group == id)
        .filter_map(|item| match &item.body {
            ItemBody::Entry { index, .. } => Some(index.0),
            _ => None,
        })
        .collect();
    let mut left = super::group::Applied::new(model.meta.size_bytes);
    for (at, entry) in (1..).zip(&model.log) {
        if !lost.contains(&at) {
            left.apply(entry);
        }
    }
    let Some(view) = world.engine.group(id) else {
        return Err(Violation::new(format!("group {id} has vanished")));
    };
    if view.suspended || index(view.meta.size_bytes) != index(left.size_bytes) {
        return Err(Violation::new(format!(
            "group {id} is not what is left of it"
        )));
    }
    if let Some(m) = world.groups.get_mut(&id) {
        m.accept(Vec::new());
        m.applied = left.clone();
        m.suspended = false;
    }
    world.read_all(&[id])?;
    // The acceptance itself must survive a crash.
    world.disk.power_cut();
    world.restart();
    let mut rng = SimRng::new(victim.header.seq.0, 4);
    world.open(&mut rng, false)?;
    let again = world.open.clone().unwrap_or_default();
    let found = again.groups.iter().find(|g| g.meta.group == id);
    if found.is_none_or(|g| g.suspended) {
        return Err(Violation::new(format!(
            "group {id}: the accepted loss is forgotten"
        )));
    }
    world.run(true)?;
    world.read_all(&[id])
}

/// Reads all blocks of a group one by one and counts those that are damaged.
///
/// # Errors
/// When a block has a content it must not have.
pub fn count_damaged(world: &mut World, id: GroupId) -> Result<u64, Violation> {
    let lbas: Vec<u64> = world.groups[&id].applied.blocks.keys().copied().collect();
    let mut damaged = 0;
    for lba in lbas {
        let token = world.read(id, BlockRange::new(lba, 1), false)?;
        world.wanted.insert(token);
        world.run(false)?;
        let bad = matches!(
            world.results.remove(&token),
            Some(Err(ReadError::Damaged(_)))
        );
        damaged += u64::from(bad);
    }
    Ok(damaged)
}

/// Damaged headers under an engine that takes them for a torn tail.
///
/// # Panics
/// When nobody notices.
pub fn ignore_durable_seq_is_noticed() {
    let seen = (0..50).find_map(|seed| {
        run_damage(seed, Part::Header, Sabotage::IgnoreDurableSeq)
            .err()
            .map(|violation| (seed, violation))
    });
    println!("{seen:?}");
    assert!(seen.is_some(), "goes unnoticed");
}
