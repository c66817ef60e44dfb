//! Exports: a volume under its name, for a holder alone as `volume:attachment`, a snapshot of it as `volume@snapshot`; and what
//! attaches to them.

use crate::admin::one_line;
use crate::attachment;
use crate::conns::Conn;
use crate::event::{Effect, ExportInfo};
use crate::keys::{lock_text, Lock};
use crate::node::{Node, Phase};
use crate::status::{Context, SINCE_PREFIX};
use crate::volume::Volume;
use esker_base::{limits, ConnId, GroupId, Stamp};
use esker_engine::SnapshotView;
use esker_nbd as nbd;
use esker_nbd::wire::allocation;
use std::sync::Arc;

/// Snapshots of one volume in a list of exports: the newest. Others are had by their names all the same.
pub(crate) const SNAPSHOTS_LISTED_MAX: usize = 16;
/// Snapshots in a list of exports; of further volumes none is listed.
pub(crate) const SNAPSHOTS_LISTED_SUM_MAX: usize = 1024;
/// Snapshots in a list of metadata contexts: the newest. Others can be selected all the same.
pub(crate) const SNAPSHOT_CONTEXTS_LISTED_MAX: usize = 64;
/// The stamp of the head: above all snapshots.
const HEAD: Stamp = Stamp(u64::MAX);

/// Parts of an export's name, the volume's and the snapshot's: those of volumes have no `@` and no `:`.
fn parts(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (attachment::split(name).0, None),
    }
}

/// Where an export is.
enum Place {
    Here(GroupId),
    /// In another store of the node.
    There(usize),
}

/// What a session gets to know of an export, and holds once it is attached.
struct Described {
    export: nbd::Export,
    /// The snapshot's cut; none for a volume.
    at: Option<Stamp>,
    /// The metadata contexts that the client has selected of it.
    contexts: Vec<(Arc<str>, Context)>,
}

impl Node {
    /// Exports of this store that another one can answer for.
    pub(crate) fn own_exports(&self) -> Vec<ExportInfo> {
        let mut room = SNAPSHOTS_LISTED_SUM_MAX;
        let own = self.exported().filter_map(|(name, id)| {
            let volume = self.volumes.get(&id).filter(|v| !v.deleting)?;
            let most = SNAPSHOTS_LISTED_MAX.min(room);
            let snapshots = self.engine.snapshots_before(id, HEAD, most);
            room -= snapshots.len();
            Some(ExportInfo {
                name: name.clone(),
                size_bytes: volume.size_bytes,
                store: self.config.store_index,
                snapshots: snapshots.iter().map(name_and_size).collect(),
            })
        });
        own.collect()
    }

    /// Names and sizes for a list of exports: all volumes of the node, and the newest snapshots of each.
    pub(crate) fn listed_exports(&self) -> Vec<(String, u64)> {
        let mut all = self.own_exports();
        all.extend(self.others.values().flatten().cloned());
        all.sort_by(|a, b| a.name.cmp(&b.name));
        let mut room = SNAPSHOTS_LISTED_SUM_MAX;
        let mut listed = Vec::new();
        for export in all {
            let snapshots = export.snapshots.iter().take(room);
            listed.push((export.name.clone(), export.size_bytes));
            for (name, size_bytes) in snapshots {
                room -= 1;
                listed.push((format!("{}@{name}", export.name), *size_bytes));
            }
        }
        listed
    }

    /// Tells the other stores what this one exports.
    pub(crate) fn exports_changed(&mut self, effects: &mut Vec<Effect>) {
        self.snapshots_changed = false;
        effects.push(Effect::ExportsChanged {
            exports: self.own_exports(),
        });
    }

    /// As [`Self::exports_changed`], where only a list of snapshots has changed: worth it where there
    /// are other stores.
    pub(crate) fn tell_snapshots_changed(&mut self, effects: &mut Vec<Effect>) {
        if std::mem::take(&mut self.snapshots_changed) && !self.others.is_empty() {
            self.exports_changed(effects);
        }
    }

    /// Names of this store that clients can ask for.
    fn exported(&self) -> impl Iterator<Item = (&String, GroupId)> {
        let named = self.by_name.iter().map(|(name, id)| (name, *id));
        named.filter(|(name, _)| *name != limits::METADATA_VOLUME)
    }

    /// The volume of this store that a name stands for; the empty name is the only one.
    fn own_volume(&self, name: &str) -> Option<GroupId> {
        let exists = |id: &GroupId| self.volumes.get(id).is_some_and(|v| !v.deleting);
        if name.is_empty() {
            let mut own = self.exported().map(|(_, id)| id).filter(exists);
            return own.next().filter(|_| own.next().is_none());
        }
        let own = self.by_name.get(name).copied().filter(exists);
        own.filter(|_| name != limits::METADATA_VOLUME)
    }

    fn place_of_volume(&self, name: &str) -> Option<Place> {
        if !name.is_empty() {
            let here = self.own_volume(name).map(Place::Here);
            let there = || {
                let mut others = self.others.iter();
                others.find_map(|(store, exports)| {
                    // They come in the order of names.
                    let at = exports.binary_search_by(|e| e.name.as_str().cmp(name));
                    at.ok().map(|_| Place::There(*store))
                })
            };
            return here.or_else(there);
        }
        let others: usize = self.others.values().map(Vec::len).sum();
        let exists = |id: &GroupId| self.volumes.get(id).is_some_and(|v| !v.deleting);
        let own = self.exported().map(|(_, id)| id).filter(exists);
        match (own.take(2).count(), others) {
            (1, 0) => self.own_volume("").map(Place::Here),
            (0, 1) => {
                let mut others = self.others.iter();
                let store = others.find(|(_, exports)| !exports.is_empty())?.0;
                Some(Place::There(*store))
            }
            _ => None,
        }
    }

    /// A client asks for an export. True when the connection was handed to another store's loop.
    pub(crate) fn export_asked(
        &mut self,
        id: ConnId,
        name: &str,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let refused = match self.phase {
            Phase::Opening => nbd::ExportError::Unavailable("the node is starting".into()),
            Phase::Draining(_) | Phase::Closing | Phase::Ended => {
                nbd::ExportError::Shutdown("the node stops".into())
            }
            Phase::Serving => match self.place_of_volume(parts(name).0) {
                Some(Place::Here(group)) => {
                    self.attach(id, group);
                    return false;
                }
                Some(Place::There(store)) => {
                    self.hand_over(id, store, effects);
                    return true;
                }
                None => self.unknown_volume(name),
            },
        };
        self.answer_export(id, Err(refused));
        false
    }

    fn unknown_volume(&self, name: &str) -> nbd::ExportError {
        let (volume, snapshot) = parts(name);
        nbd::ExportError::Unknown(match (volume, snapshot) {
            ("", None) => {
                let others = self.others.values().flatten().count();
                let all = self.exported().count() + others;
                format!("name a volume: this node has {all}")
            }
            _ => format!("no volume is named {}", one_line(volume)),
        })
    }

    /// The other loop answers: it knows whether the volume serves, and its snapshots.
    fn hand_over(&mut self, id: ConnId, store: usize, effects: &mut Vec<Effect>) {
        self.send_output(id, effects);
        if let Some(conn) = self.forget(id) {
            self.paused.remove(&id);
            effects.push(Effect::HandOver {
                conn: id,
                store,
                transport: conn.transport,
                session: Box::new(conn.session),
            });
        }
    }

    /// Another loop found an export here and left the answer to this one.
    pub(crate) fn answer_adopted(&mut self, id: ConnId, name: &str) {
        let found = self.own_volume(parts(name).0);
        match found.filter(|_| self.phase == Phase::Serving) {
            Some(group) => self.attach(id, group),
            None => {
                let gone = self.unknown_volume(name);
                self.answer_export(id, Err(gone));
            }
        }
    }

    pub(crate) fn answer_export(
        &mut self,
        id: ConnId,
        answer: Result<nbd::Export, nbd::ExportError>,
    ) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.session.export(answer);
            self.conns_dirty.insert(id);
        }
    }

    /// Answers a session that asks for a volume of this store or for a snapshot of one, and attaches it if
    /// it wants that; or lets it wait until the volume has started.
    fn attach(&mut self, id: ConnId, group_id: GroupId) {
        self.attach_when(id, group_id, false);
    }

    /// The same, of a volume that spans nodes once this replica has seen all that was in force.
    pub(crate) fn attach_when(&mut self, id: ConnId, group_id: GroupId, has_seen_all: bool) {
        let (Some(volume), Some(conn)) = (self.volumes.get_mut(&group_id), self.conns.get(&id))
        else {
            return;
        };
        let Some((name, attach, asked)) = conn.session.export_asked().cloned() else {
            return;
        };
        let key_waits = match &volume.lock {
            Lock::Away(why) => {
                let text = lock_text(volume, why);
                return self.answer_export(id, Err(nbd::ExportError::Unavailable(text)));
            }
            Lock::Waits => true,
            Lock::Open => false,
        };
        if let Some(trouble) = &volume.trouble {
            let trouble = nbd::ExportError::Unavailable(trouble.clone());
            return self.answer_export(id, Err(trouble));
        }
        if volume.spans && !has_seen_all {
            return self.attach_later(id, group_id);
        }
        // What a volume holds is another thing once it is rolled back.
        let changes = volume.is_rolling_back && parts(&name).1.is_none();
        let starts = !volume.spans && !volume.is_serving();
        if starts || changes || key_waits {
            volume.attaching.push(id);
            return;
        }
        let answer = self
            .describe(group_id, &name, &asked, attach)
            .and_then(|described| {
                if attach {
                    self.hold(id, group_id, &described)?;
                }
                Ok(described.export)
            });
        self.answer_export(id, answer);
    }

    /// An export as a session is told of it.
    fn describe(
        &self,
        group: GroupId,
        name: &str,
        asked: &nbd::ContextsAsked,
        attach: bool,
    ) -> Result<Described, nbd::ExportError> {
        let unknown = nbd::ExportError::Unknown;
        let volume = self.volumes.get(&group);
        let volume = volume.ok_or_else(|| unknown("the volume is gone".into()))?;
        let snapshot = match parts(name).1 {
            None => None,
            Some(name) => match self.engine.snapshot_named(group, name) {
                Some(view) => Some(view),
                None => {
                    let (volume, name) = (&volume.name, one_line(name));
                    let text = format!("volume {volume} has no snapshot named {name}");
                    return Err(unknown(text));
                }
            },
        };
        let mut export = export_of(volume, snapshot.as_ref());
        if let (None, (_, number)) = (&snapshot, attachment::split(name)) {
            let refused = volume.attachment.refuses(&volume.name, number);
            if let Some(text) = refused.filter(|_| attach || number.is_some()) {
                return Err(nbd::ExportError::Policy(text));
            }
            export.name.extend(number.map(|n| format!(":{n}")));
        }
        let at = snapshot.map(|s| s.cut);
        let is_of_this = asked.of.as_ref().is_none_or(|of| **of == *export.name);
        let mut contexts: Vec<(Arc<str>, Context)> = Vec::new();
        for name in asked.names.iter().filter(|_| is_of_this) {
            match self.context(group, at, name) {
                Some(context) => contexts.push((name.clone(), context)),
                None if attach => {
                    let name = one_line(name);
                    let text = format!("metadata context {name} is gone since it was selected");
                    return Err(nbd::ExportError::Unavailable(text));
                }
                None => {}
            }
        }
        let mut described = Described {
            export,
            at,
            contexts,
        };
        described.export.contexts = self.offered(group, &described, asked);
        Ok(described)
    }

    /// Names of the metadata contexts that matter for an answer.
    fn offered(
        &self,
        group: GroupId,
        described: &Described,
        asked: &nbd::ContextsAsked,
    ) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = vec![Arc::from(allocation::NAME)];
        let asked_for = described.contexts.iter().map(|(name, _)| name.clone());
        names.extend(asked_for);
        if asked.list {
            let (before, most) = (described.at.unwrap_or(HEAD), SNAPSHOT_CONTEXTS_LISTED_MAX);
            let older = self.engine.snapshots_before(group, before, most);
            let name = |s: &SnapshotView| format!("{SINCE_PREFIX}{}", s.meta.name).into();
            names.extend(older.iter().map(name));
        }
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// The metadata context of this name, of a volume or of its snapshot at a cut.
    fn context(&self, group: GroupId, at: Option<Stamp>, name: &str) -> Option<Context> {
        if name == allocation::NAME {
            return Some(Context::Allocation);
        }
        let snapshot = name.strip_prefix(SINCE_PREFIX)?;
        let cut = self.engine.snapshot_named(group, snapshot)?.cut;
        (cut < at.unwrap_or(HEAD)).then_some(Context::Since(cut))
    }

    /// Attaches a session: from now on the volume and the snapshots that it needs stay.
    fn hold(
        &mut self,
        id: ConnId,
        group: GroupId,
        described: &Described,
    ) -> Result<(), nbd::ExportError> {
        let (Some(volume), Some(conn)) = (self.volumes.get_mut(&group), self.conns.get_mut(&id))
        else {
            return Err(nbd::ExportError::Unknown("the volume is gone".into()));
        };
        let since = described.contexts.iter().filter_map(|(_, c)| c.since());
        for cut in described.at.into_iter().chain(since) {
            if !volume.attach_reader(cut, id) {
                volume.detach(id);
                let text = format!("a snapshot of volume {} is being deleted", volume.name);
                return Err(nbd::ExportError::Unavailable(text));
            }
        }
        if described.at.is_none() {
            volume.sessions.insert(id);
            conn.attachment = volume.attachment.number;
        }
        self.meters.sessions.attached += 1;
        conn.volume = Some(group);
        conn.at = described.at;
        conn.contexts.clone_from(&described.contexts);
        let (export, transport) = (described.export.name.as_str(), &conn.transport);
        tracing::info!(conn = id.0, export, ?transport, "session attached");
        self.handshake_over(id);
        Ok(())
    }

    /// Attachments that waited for a volume to start.
    pub(crate) fn attach_waiting(&mut self, group: GroupId) {
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        // What keeps them waiting is looked at before the group is asked anew, which may answer at once.
        let waits = volume.lock == Lock::Waits || volume.is_rolling_back;
        let serves = if volume.spans {
            !waits
        } else {
            volume.is_serving()
        };
        if volume.attaching.is_empty() || !(serves || volume.trouble.is_some()) {
            return;
        }
        for conn in std::mem::take(&mut volume.attaching) {
            self.attach(conn, group);
        }
    }

    /// Attachments that waited for a volume to start, which it will not.
    pub(crate) fn refuse_attaching(&mut self, group: GroupId) {
        let Some(volume) = self.volumes.get_mut(&group) else {
            return;
        };
        let text = format!("volume {} stopped serving meanwhile", volume.name);
        let mut attaching = std::mem::take(&mut volume.attaching);
        attaching.extend(volume.route.take_attaching());
        for conn in attaching {
            let refused = nbd::ExportError::Unavailable(text.clone());
            self.answer_export(conn, Err(refused));
        }
    }
}

impl Conn {
    /// What a metadata context means that the client has selected.
    pub(crate) fn context(&self, name: &str) -> Option<Context> {
        let mut known = self.contexts.iter();
        known.find(|(known, _)| **known == *name).map(|(_, c)| *c)
    }
}

fn name_and_size(snapshot: &SnapshotView) -> (String, u64) {
    (snapshot.meta.name.clone(), snapshot.meta.size_bytes)
}

fn export_of(volume: &Volume, snapshot: Option<&SnapshotView>) -> nbd::Export {
    let (name, size_bytes) = match snapshot {
        None => (volume.name.clone(), volume.size_bytes),
        Some(s) => (
            format!("{}@{}", volume.name, s.meta.name),
            s.meta.size_bytes,
        ),
    };
    nbd::Export {
        name,
        size_bytes,
        read_only: snapshot.is_some(),
        // A flush on any connection covers what was answered on all of them.
        multi_conn: true,
        block_size_min: 1,
        block_size_preferred: 4096,
        block_size_max: u32::try_from(limits::REQUEST_BYTES_MAX).unwrap_or(u32::MAX),
        description: String::new(),
        contexts: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_a_volume_and_perhaps_a_snapshot() {
        assert_eq!(parts("v"), ("v", None));
        assert_eq!(parts("v@s"), ("v", Some("s")));
        assert_eq!(parts("v@s@t"), ("v", Some("s@t")));
        assert_eq!(parts("@s"), ("", Some("s")));
        assert_eq!(parts(""), ("", None));
        assert_eq!(parts("v:3"), ("v", None));
        assert_eq!(parts("v@s:3"), ("v", Some("s:3")));
    }
}
