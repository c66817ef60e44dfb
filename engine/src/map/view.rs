//! Where the blocks of one version are looked for: layers of deltas, newest first, and the tree below
//! them.

use super::layer::Layer;
use crate::config::Sabotage;
use crate::format::node::ChildPointer;
use crate::group::Group;
use crate::snapshot::forest::Forest;
use esker_base::{GroupId, Stamp};
use std::collections::BTreeMap;

/// What a version sees.
#[derive(Clone, Debug)]
pub(crate) struct View<'a> {
    /// The group that is asked.
    pub group: &'a Group,
    /// It is the head.
    pub is_head: bool,
    /// Layers of the group itself, and of them what is not younger than the cut.
    own: [Option<&'a Layer>; 2],
    cut: Option<Stamp>,
    /// Layers of the groups it began from, as far as no checkpoint has merged that.
    below: Vec<(&'a Layer, Stamp)>,
    /// The tree under all of them.
    pub tree: (ChildPointer, u8),
}

impl<'a> View<'a> {
    /// The head of a group, or its snapshot with this stamp if there is one.
    pub fn of(
        groups: &'a BTreeMap<GroupId, Group>,
        forest: &Forest,
        group: &'a Group,
        at: Option<Stamp>,
        sabotage: Sabotage,
    ) -> Option<Self> {
        let mut view = Self {
            group,
            is_head: at.is_none(),
            own: [None, None],
            cut: at,
            below: Vec::new(),
            tree: (group.root, group.root_level),
        };
        if let Some(cut) = at {
            if let Some(root) = forest.at(group.meta.group, cut)?.root {
                view.tree = root;
                return Some(view);
            }
        }
        view.own = [Some(&group.active), group.frozen.as_deref()];
        let mut base = group.base;
        while let Some(version) = base.and_then(|base| forest.get(base.version)) {
            let Some(origin) = groups.get(&version.group) else {
                break;
            };
            let cut = match sabotage {
                Sabotage::CloneSeesLater => Stamp(u64::MAX),
                _ => version.cut,
            };
            view.below.push((&origin.active, cut));
            let frozen = origin.frozen.as_deref();
            view.below.extend(frozen.map(|frozen| (frozen, cut)));
            view.tree = (origin.root, origin.root_level);
            base = origin.base;
        }
        Some(view)
    }

    /// The first layer from number `from` on that has anything, its number, and what of it counts.
    pub fn layer(&self, from: usize) -> Option<(usize, &'a Layer, Option<Stamp>)> {
        let own = self.own.iter().map(|layer| layer.map(|l| (l, self.cut)));
        let below = self.below.iter();
        let below = below.map(|(layer, cut)| Some((*layer, Some(*cut))));
        let mut all = own.chain(below).enumerate().skip(from);
        all.find_map(|(n, layer)| {
            let (layer, cut) = layer.filter(|(layer, _)| !layer.index.is_empty())?;
            Some((n, layer, cut))
        })
    }

    /// A checkpoint must merge something before it has a tree that says it all but for the head's own
    /// deltas.
    pub fn waits_for_merge(&self) -> bool {
        !self.below.is_empty() || (self.cut.is_some() && self.own[0].is_some())
    }

    /// Some of its layers are looked at as of a cut.
    pub fn has_cuts(&self) -> bool {
        self.waits_for_merge()
    }
}
