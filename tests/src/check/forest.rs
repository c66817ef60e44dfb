//! All versions of all volumes as copies: what each of them alone holds is found by counting.

use super::group::{Applied, Blocks, GroupModel, Instance, VersionKey, HEAD};
use super::world::World;
use super::Violation;
use bytes::Bytes;
use esker_base::GroupId;
use std::collections::{BTreeMap, BTreeSet};

/// A group that is gone, as far as others may have begun from it.
#[derive(Clone, Debug)]
pub struct Grave {
    instance: Instance,
    base: Option<VersionKey>,
    applied: Applied,
}

impl Grave {
    /// Of a group as it is.
    #[must_use]
    pub fn of(model: &GroupModel) -> Self {
        Self {
            instance: model.instance(),
            base: model.origin.as_ref().map(|origin| origin.base),
            applied: model.applied.clone(),
        }
    }
}

/// A version.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Its blocks.
    pub blocks: &'a Blocks,
    /// Somebody can still see it.
    pub visible: bool,
    /// It is a rewind point.
    pub is_point: bool,
    /// Where it begins.
    pub parent: Option<VersionKey>,
}

/// All versions that there still must be.
#[derive(Debug, Default)]
pub struct Forest<'a> {
    /// By group and stamp.
    pub versions: BTreeMap<VersionKey, Known<'a>>,
    /// How many of them use each block: a block's content names who wrote it and its stamp.
    users: BTreeMap<(u64, &'a [u8]), Users>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Users {
    all: u64,
    visible: u64,
}

fn named<'a>((lba, page): (&'a u64, &'a Bytes)) -> (u64, &'a [u8]) {
    (*lba, &page[..16])
}

impl<'a> Forest<'a> {
    fn add(
        &mut self,
        instance: Instance,
        base: Option<VersionKey>,
        applied: &'a Applied,
        alive: bool,
    ) {
        let parent = |cut: u64| match cut {
            0 => base,
            cut => Some((instance, cut)),
        };
        let of = |cut: &u64| parent(applied.parents.get(cut).copied().unwrap_or(0));
        let hidden = applied.hidden.iter().map(|(cut, s)| (cut, s, false));
        let shown = applied.snapshots.iter().map(|(cut, s)| (cut, s, alive));
        for (cut, s, visible) in hidden.chain(shown) {
            let known = Known {
                blocks: &s.blocks,
                visible,
                is_point: s.name.starts_with('@'),
                parent: of(cut),
            };
            self.versions.insert((instance, *cut), known);
        }
        let head = Known {
            blocks: &applied.blocks,
            visible: alive,
            is_point: false,
            parent: parent(applied.head_parent),
        };
        self.versions.insert((instance, HEAD), head);
    }

    /// The versions that begin at one.
    #[must_use]
    pub fn children(&self, key: VersionKey) -> Vec<VersionKey> {
        let of = self.versions.iter().filter(|(_, v)| v.parent == Some(key));
        of.map(|(key, _)| *key).collect()
    }

    /// Deleted versions are gone when at most one begins at them.
    fn collapse(&mut self) {
        while let Some((gone, parent)) = self.versions.iter().find_map(|(key, v)| {
            let goes = !v.visible && self.children(*key).len() < 2;
            goes.then_some((*key, v.parent))
        }) {
            for child in self.children(gone) {
                if let Some(child) = self.versions.get_mut(&child) {
                    child.parent = parent;
                }
            }
            self.versions.remove(&gone);
        }
    }

    fn count(&mut self) {
        for v in self.versions.values() {
            for block in v.blocks {
                let users = self.users.entry(named(block)).or_default();
                users.all += 1;
                users.visible += u64::from(v.visible);
            }
        }
    }

    /// Blocks of a version that no other one uses.
    #[must_use]
    pub fn alone(&self, key: VersionKey) -> u64 {
        let blocks = self.versions.get(&key).map(|v| v.blocks);
        let own = blocks.into_iter().flatten();
        own.filter(|block| self.users[&named(*block)].all == 1)
            .count() as u64
    }

    /// Blocks written to a volume that somebody can see.
    #[must_use]
    pub fn own(&self, instance: Instance) -> u64 {
        let range = (instance, 0)..=(instance, HEAD);
        let all: Vec<_> = self.versions.range(range).map(|(_, v)| v).collect();
        let foreign = |v: &&&Known| v.parent.is_none_or(|(of, _)| of != instance);
        let base = all.iter().find(foreign).and_then(|v| v.parent);
        let base = base.and_then(|key| self.versions.get(&key));
        let has =
            |(lba, page): (&u64, &Bytes)| base.is_some_and(|b| b.blocks.get(lba) == Some(page));
        let mut blocks: BTreeSet<(u64, &[u8])> = BTreeSet::new();
        for v in all {
            let own = v.blocks.iter().filter(|block| !has(*block));
            blocks.extend(own.map(named));
        }
        let seen = |b: &&(u64, &[u8])| self.users[*b].visible > 0;
        blocks.iter().filter(seen).count() as u64
    }

    /// Blocks that nothing but rewind points of a volume uses. Points at which several versions begin, or a clone,
    /// would stay, as deleted versions do.
    #[must_use]
    pub fn rewind(&self, instance: Instance) -> u64 {
        let leads_on = |key: VersionKey| {
            let children = self.children(key);
            children.len() < 2 && children.iter().all(|(of, _)| *of == instance)
        };
        let goes =
            |key: VersionKey, v: &Known<'_>| key.0 == instance && v.is_point && leads_on(key);
        let (points, others): (Vec<_>, Vec<_>) =
            self.versions.iter().partition(|(key, v)| goes(**key, v));
        let blocks = |all: Vec<(&VersionKey, &Known<'a>)>| -> BTreeSet<(u64, &'a [u8])> {
            all.into_iter()
                .flat_map(|(_, v)| v.blocks)
                .map(named)
                .collect()
        };
        let (held, stays) = (blocks(points), blocks(others));
        held.difference(&stays).count() as u64
    }

    /// Blocks that there are: those that somebody can see.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.users.values().filter(|u| u.visible > 0).count() as u64
    }
}

impl World {
    /// All versions as they must be.
    #[must_use]
    pub fn forest(&self) -> Forest<'_> {
        let mut forest = Forest::default();
        for grave in &self.graves {
            forest.add(grave.instance, grave.base, &grave.applied, false);
        }
        for model in self.groups.values() {
            let base = model.origin.as_ref().map(|origin| origin.base);
            forest.add(model.instance(), base, &model.applied, true);
        }
        forest.collapse();
        forest.count();
        forest
    }

    /// Holds what the engine says that a volume takes against the copies.
    ///
    /// # Errors
    /// When it is something else.
    pub fn check_space(&self, id: GroupId) -> Result<(), Violation> {
        let Some(model) = self.groups.get(&id) else {
            return Ok(());
        };
        let forest = self.forest();
        let expected = esker_engine::VolumeSpace {
            referenced_blocks: model.applied.blocks.len() as u64,
            unique_blocks: forest.alone((model.instance(), HEAD)),
            own_blocks: forest.own(model.instance()),
        };
        let points = forest.rewind(model.instance());
        if let Some(told) = self.engine.rewind_blocks(id).filter(|told| *told != points) {
            return Err(Violation::new(format!(
                "group {id}: rewind points hold {told} blocks instead of {points}"
            )));
        }
        match self.engine.volume_space(id) {
            Some(space) if space == expected => Ok(()),
            other => Err(Violation::new(format!(
                "group {id} takes {other:?} instead of {expected:?}"
            ))),
        }
    }
}
