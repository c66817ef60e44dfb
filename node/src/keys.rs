//! Keys of encrypted volumes: who has which, where they lie wrapped, and what waits for them.
//!
//! A volume's DEK is made and wrapped outside ([`KeyAsk`]); the wrapped key lies in a slot of the store that
//! is overwritten in place ([`SlotArea`]), durable before the volume exists. At the start every wrapped
//! key is asked for in the clear; until one comes, the volumes that need it are locked. A key goes with the
//! last group that reads or writes with it.

use crate::admin::{AdminError, AdminReply, ReplicaSpec};
use crate::event::{AdminToken, Effect, KeyAnswer, KeyAsk};
use crate::node::Node;
use crate::sealing::Sealer;
use crate::snapshots::SnapshotAsk;
use crate::volume::Volume;
use bytes::Bytes;
use esker_base::num::{to_u64, to_usize};
use esker_base::{DiskError, DiskOp, GroupId, IoId, Moment, Stamp, VolumeId};
use esker_crypto::slots::{PageWrite, SlotArea};
use esker_crypto::{Backend, BlockKey, DataKey, EpochId, EpochKeys, KeyId, KeyName, WrappedKey};
use esker_engine::format::checkpoint::EpochEntry;
use esker_engine::keys::{KeyRef, KEY_SLOTS_BYTES, KEY_SLOTS_OFFSET};
use esker_engine::StoreError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Disk operations of this module are told from the engine's by this bit of their ids.
const KEY_IO: u64 = 1 << 62;
/// Block keys kept ready, about 1 KiB each.
const BLOCK_KEYS_MAX: usize = 1024;
/// How often to look for keys that nobody needs, while volumes are still starting.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
pub(crate) const SLOTS_FULL: &str =
    "all key slots of the store are taken; delete an encrypted volume, or use another store";
const MARKED_PLAIN: &str =
    "the store has a key of it and says that it was never encrypted: somebody has changed the store. \
     Restore the device from a copy";
const NOT_READ: &str = "the key slots of the store are not read yet; try again";

/// The key slots.
pub(crate) enum Area {
    /// This node keeps no keys.
    Off,
    /// On their way from the device.
    Reading,
    Open(Box<SlotArea>),
    /// They cannot be used, and why.
    Broken(String),
}

/// After which time key slots are read again that could not be read.
const READ_AGAIN_INTERVAL: Duration = Duration::from_secs(1);

/// A DEK as far as this node has it.
pub(crate) enum Dek {
    /// Its provider was asked.
    Asked,
    /// It is not to be had now, and why.
    Away(String),
    Here(DataKey),
}

/// Whether a volume's blocks can be read and written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Open,
    /// Its keys are on their way.
    Waits,
    /// A key is not to be had, and why.
    Away(String),
}

/// What a new key is for.
pub(crate) enum KeyFor {
    Volume(AdminToken, Box<ReplicaSpec>),
    Clone(AdminToken, GroupId, SnapshotAsk),
    /// Another one for a volume.
    Rotation(AdminToken, GroupId),
}

/// What happens when a change of a slot is durable.
pub(crate) enum Then {
    Nothing,
    Begin(KeyFor),
    Answer(AdminToken),
    Rewrapped(KeyName),
}

/// Pages of a slot's change: one is written and synced before the next.
struct Change {
    pages: VecDeque<PageWrite>,
    then: Then,
}

/// A rotation that an operator waits for.
pub(crate) struct Rotation {
    pub token: AdminToken,
    pub group: GroupId,
    pub left: BTreeSet<KeyName>,
}

/// See the module.
pub(crate) struct Keys {
    pub(crate) area: Area,
    pub(crate) deks: BTreeMap<KeyName, Dek>,
    ready: EpochKeys,
    changes: VecDeque<Change>,
    /// The operation of the first change that is on its way.
    io: Option<IoId>,
    /// It is the sync after a page.
    is_syncing: bool,
    next_io: u64,
    making: BTreeMap<KeyName, KeyFor>,
    /// Keys of volumes that are about to begin.
    pub(crate) reserved: BTreeSet<KeyName>,
    /// When other nodes placed keys here.
    pub(crate) placed: BTreeMap<KeyName, Moment>,
    pub(crate) rotations: Vec<Rotation>,
    pub(crate) asks: Vec<KeyAsk>,
    io_asks: Vec<(IoId, DiskOp)>,
    /// Reading the slots failed, with this; when it is tried again.
    pub(crate) read_again: Option<(Moment, String)>,
    sweep_wanted: bool,
    sweep_next: Moment,
    /// What [`esker_engine::Engine::epochs_spent`] said last.
    spent_seen: u64,
    /// Blocks that did not open.
    pub refused: u64,
    /// Maps that nothing vouched for.
    pub maps_refused: u64,
    /// A checkpoint that is to sign for maps was asked for.
    pub awaits_signing: bool,
    /// Replicas that begin once their key is here.
    pub(crate) begin_later: Vec<(KeyName, KeyFor)>,
    /// What was sealed under which key, when somebody wants to know.
    pub(crate) seals: Option<Vec<(EpochId, Stamp)>>,
}

impl Keys {
    pub(crate) fn new(is_on: bool, notes_seals: bool) -> Self {
        Self {
            area: if is_on { Area::Reading } else { Area::Off },
            deks: BTreeMap::new(),
            ready: EpochKeys::new(BLOCK_KEYS_MAX),
            changes: VecDeque::new(),
            io: None,
            is_syncing: false,
            next_io: KEY_IO,
            making: BTreeMap::new(),
            reserved: BTreeSet::new(),
            placed: BTreeMap::new(),
            rotations: Vec::new(),
            asks: Vec::new(),
            io_asks: Vec::new(),
            read_again: None,
            sweep_wanted: false,
            sweep_next: Moment(0),
            spent_seen: 0,
            refused: 0,
            maps_refused: 0,
            awaits_signing: false,
            begin_later: Vec::new(),
            seals: notes_seals.then(Vec::new),
        }
    }

    /// What seals blocks of an epoch; none while its DEK is not here.
    pub(crate) fn sealer(&mut self, epoch: &EpochEntry) -> Option<Sealer<'_>> {
        let Self {
            deks, ready, seals, ..
        } = self;
        Some(Sealer {
            key: ready_key(deks, ready, epoch)?,
            epoch: epoch_id(epoch),
            seals: seals.as_mut(),
        })
    }

    /// The key of an epoch's blocks; none while its DEK is not here.
    pub(crate) fn block_key(&mut self, epoch: &EpochEntry) -> Option<&BlockKey> {
        ready_key(&self.deks, &mut self.ready, epoch)
    }

    /// Why no key can be made now.
    pub(crate) fn refusal(&self) -> Option<String> {
        match &self.area {
            Area::Open(_) => None,
            Area::Off => Some("this node keeps no keys".into()),
            Area::Reading => Some(NOT_READ.into()),
            Area::Broken(why) => Some(why.clone()),
        }
    }

    /// Whether all that is in slots is on the device.
    pub(crate) fn is_durable(&self) -> bool {
        self.changes.is_empty()
    }

    pub(crate) fn unreserve(&mut self, key: KeyRef) {
        if let Some(name) = name_of(key) {
            self.reserved.remove(&name);
        }
    }

    /// Looks for slots that nothing needs.
    pub(crate) fn sweep(&mut self) {
        self.sweep_wanted = true;
    }

    pub(crate) fn change(&mut self, pages: Vec<PageWrite>, then: Then) {
        let pages = pages.into();
        self.changes.push_back(Change { pages, then });
        self.go_on();
    }

    /// Begins the next operation of the first change, unless one is on its way.
    fn go_on(&mut self) {
        let Some(change) = self.changes.front_mut().filter(|_| self.io.is_none()) else {
            return;
        };
        if let Some(PageWrite { offset, page }) = change.pages.pop_front() {
            let offset = KEY_SLOTS_OFFSET + to_u64(offset);
            let bufs = vec![page.freeze()];
            self.disk(DiskOp::Write { offset, bufs });
        }
    }

    fn disk(&mut self, op: DiskOp) {
        let io = IoId(self.next_io);
        self.next_io += 1;
        self.io = Some(io);
        self.io_asks.push((io, op));
    }
}

fn ready_key<'a>(
    deks: &BTreeMap<KeyName, Dek>,
    ready: &'a mut EpochKeys,
    epoch: &EpochEntry,
) -> Option<&'a BlockKey> {
    let Some(Dek::Here(dek)) = deks.get(&name_of((epoch.volume, epoch.key_id))?) else {
        return None;
    };
    let derive = || {
        let (volume, number, salt) = (epoch.volume, epoch.epoch, epoch.salt);
        let key = BlockKey::derive(Backend::default(), dek, volume, number, salt);
        Ok::<_, ()>(key)
    };
    ready.get(epoch_id(epoch), derive).ok()
}

fn epoch_id(epoch: &EpochEntry) -> EpochId {
    EpochId {
        volume: epoch.volume,
        epoch: epoch.epoch,
        salt: epoch.salt,
    }
}

pub(crate) fn name_of((volume, key): KeyRef) -> Option<KeyName> {
    KeyId::new(key).map(|key| KeyName { volume, key })
}

/// The first key of a volume.
pub(crate) fn first_key(volume: VolumeId) -> KeyName {
    match KeyId::new(1) {
        Some(key) => KeyName { volume, key },
        None => unreachable!("one is not zero"),
    }
}

/// The key that a replica begins with.
fn begins_with(spec: &ReplicaSpec) -> KeyName {
    let given = spec.key.as_ref().map(WrappedKey::name);
    given.unwrap_or_else(|| first_key(spec.volume))
}

/// Why a volume is locked, as it is told.
pub(crate) fn lock_text(volume: &Volume, why: &str) -> String {
    let name = &volume.name;
    match volume.key_id {
        _ if volume.map_refused => format!("volume {name} is locked: {why}"),
        0 => format!("volume {name} is locked: {why}"),
        _ => format!("volume {name} is locked: {why}. It opens by itself once its key can be had"),
    }
}

/// Whether a disk operation is one of this module's.
pub(crate) fn is_key_io(io: IoId) -> bool {
    io.0 & KEY_IO != 0
}

impl Node {
    /// Reads the key slots; the volumes are there.
    pub(crate) fn keys_begin(&mut self) {
        if matches!(self.keys.area, Area::Reading) {
            let length = to_usize(KEY_SLOTS_BYTES);
            let offset = KEY_SLOTS_OFFSET;
            self.keys.disk(DiskOp::Read { offset, length });
        }
    }

    /// What was asked for goes out.
    pub(crate) fn tell_key_asks(&mut self, effects: &mut Vec<Effect>) {
        let spent = self.engine.epochs_spent();
        if std::mem::replace(&mut self.keys.spent_seen, spent) != spent {
            (self.keys.sweep_wanted, self.keys.sweep_next) = (true, self.now);
        }
        self.sweep_keys();
        let asks = self.keys.asks.drain(..).map(Effect::Keys);
        effects.extend(asks);
        let ios = self.keys.io_asks.drain(..);
        effects.extend(ios.map(|(io, op)| Effect::Disk { io, op }));
    }

    /// A disk operation of the key slots ended.
    pub(crate) fn key_io_done(
        &mut self,
        io: IoId,
        result: Result<Bytes, DiskError>,
        effects: &mut Vec<Effect>,
    ) {
        if self.keys.io != Some(io) {
            return;
        }
        self.keys.io = None;
        match result {
            Ok(bytes) if matches!(self.keys.area, Area::Reading) => self.slots_read(&bytes),
            Ok(_) => self.slot_step(effects),
            Err(error) if matches!(self.keys.area, Area::Reading) => {
                tracing::error!(%error, "the key slots of the store cannot be read; trying again");
                let at = self.now + READ_AGAIN_INTERVAL;
                self.keys.read_again = Some((at, error.to_string()));
            }
            Err(error) => self.slots_failed(&error, effects),
        }
    }

    /// Reads the slots again when it is time.
    pub(crate) fn read_slots_if_due(&mut self) {
        let is_due = |(at, _): &(Moment, String)| *at <= self.now;
        if self.keys.read_again.as_ref().is_some_and(is_due) {
            self.keys.read_again = None;
            self.keys_begin();
        }
    }

    fn slots_failed(&mut self, error: &DiskError, effects: &mut Vec<Effect>) {
        let why = format!(
            "the key slots of the store failed ({error}); check the device, then restart eskerd"
        );
        let (offset, error) = (KEY_SLOTS_OFFSET, error.clone());
        self.engine.device_failed(match self.keys.is_syncing {
            true => StoreError::Sync(error),
            false => StoreError::Write { offset, error },
        });
        self.engine_told = true;
        self.slots_broken(why, effects);
    }

    /// The slots came from the device: keys that volumes need are asked for.
    fn slots_read(&mut self, bytes: &[u8]) {
        let opened = match SlotArea::open(self.engine.store_id(), bytes) {
            Ok(opened) => opened,
            Err(error) => {
                self.keys.area = Area::Broken(error.to_string());
                return self.keys_changed();
            }
        };
        for slot in &opened.lost {
            tracing::error!(?slot, "a key slot is damaged; a key may be lost");
        }
        if !opened.mend.0.is_empty() {
            self.keys.change(opened.mend.0, Then::Nothing);
        }
        let needed = self.engine.keys_in_use();
        let mut needed: BTreeSet<KeyName> = needed.into_iter().filter_map(name_of).collect();
        // The log may hold an epoch under a newer key, which is applied once the map is vouched for.
        let volumes: BTreeSet<VolumeId> = self.volumes.values().map(|v| v.id).collect();
        let own = opened.area.keys().map(|(_, key)| key.name());
        needed.extend(own.filter(|name| volumes.contains(&name.volume)));
        for name in needed {
            let slot = opened.area.find(name.volume, name.key);
            let wrapped = opened.area.keys().find(|(index, _)| Some(*index) == slot);
            let dek = match wrapped {
                Some((_, wrapped)) => {
                    self.keys.asks.push(KeyAsk::Open(wrapped.clone()));
                    Dek::Asked
                }
                None => Dek::Away(format!(
                    "key {} of volume {} is in no key slot of the store; restore the device from \
                     a copy",
                    name.key, name.volume
                )),
            };
            self.keys.deks.insert(name, dek);
        }
        self.keys.area = Area::Open(Box::new(opened.area));
        self.keys.sweep_wanted = true;
        self.keys_changed();
    }

    /// Whether a volume that is said to be plain can be one: a key of it means that it is not.
    fn lock_of_plain(&self, volume: VolumeId) -> Lock {
        match &self.keys.area {
            Area::Reading => Lock::Waits,
            Area::Open(area) if area.keys().any(|(_, k)| k.name().volume == volume) => {
                Lock::Away(MARKED_PLAIN.into())
            }
            Area::Open(_) | Area::Off | Area::Broken(_) => Lock::Open,
        }
    }

    /// A page is written, or synced.
    fn slot_step(&mut self, effects: &mut Vec<Effect>) {
        self.keys.is_syncing = !self.keys.is_syncing;
        if self.keys.is_syncing {
            return self.keys.disk(DiskOp::Sync);
        }
        if self
            .keys
            .changes
            .front()
            .is_some_and(|c| c.pages.is_empty())
        {
            if let Some(change) = self.keys.changes.pop_front() {
                self.slot_changed(change.then, effects);
            }
        }
        self.keys.go_on();
    }

    fn slot_changed(&mut self, then: Then, effects: &mut Vec<Effect>) {
        match then {
            Then::Nothing => {}
            Then::Answer(token) => Self::answer(token, Ok(AdminReply::Done), effects),
            Then::Begin(KeyFor::Volume(token, spec))
                if matches!(self.keys.deks.get(&begins_with(&spec)), Some(Dek::Asked)) =>
            {
                let name = begins_with(&spec);
                let what = KeyFor::Volume(token, spec);
                self.keys.begin_later.push((name, what));
            }
            Then::Begin(KeyFor::Volume(token, spec)) => {
                let key_id = begins_with(&spec).key.get();
                self.create(token, *spec, key_id);
            }
            Then::Begin(KeyFor::Clone(token, origin, ask)) => {
                if let Err(error) = self.ask(token, origin, ask.clone()) {
                    self.free_name(&ask);
                    Self::answer(token, Err(error), effects);
                }
            }
            Then::Begin(KeyFor::Rotation(token, group)) => self.rekey_durable(token, group),
            Then::Rewrapped(name) => self.rewrapped(name, effects),
        }
    }

    fn slots_broken(&mut self, why: String, effects: &mut Vec<Effect>) {
        tracing::error!(why, "key slots");
        self.keys.area = Area::Broken(why.clone());
        for change in std::mem::take(&mut self.keys.changes) {
            match change.then {
                Then::Begin(what) => self.key_failed(what, &why, effects),
                Then::Answer(token) => {
                    let text =
                        format!("the volume is deleted, but its key is not destroyed: {why}");
                    Self::answer(token, Err(AdminError::Refused(text)), effects);
                }
                Then::Nothing | Then::Rewrapped(_) => {}
            }
        }
        for rotation in std::mem::take(&mut self.keys.rotations) {
            let refused = AdminError::Refused(why.clone());
            Self::answer(rotation.token, Err(refused), effects);
        }
        self.keys_changed();
    }

    fn key_failed(&mut self, what: KeyFor, why: &str, effects: &mut Vec<Effect>) {
        let token = match what {
            KeyFor::Volume(token, spec) => {
                self.by_name.retain(|_, group| *group != spec.group);
                self.keys.reserved.remove(&begins_with(&spec));
                token
            }
            KeyFor::Clone(token, _, ask) => {
                self.free_name(&ask);
                token
            }
            KeyFor::Rotation(token, group) => {
                if !self.rekey_failed(token, group) {
                    return;
                }
                token
            }
        };
        Self::answer(token, Err(AdminError::Refused(why.into())), effects);
    }

    /// Why no encrypted volume can begin now.
    pub(crate) fn require_keys(&self) -> Result<(), AdminError> {
        // A keyring that is only away must not be replaced by a new one.
        let locked = self.volumes.values().find_map(|v| match &v.lock {
            Lock::Away(why) => Some(lock_text(v, why)),
            Lock::Open | Lock::Waits => None,
        });
        if let Some(text) = locked {
            return Err(AdminError::Refused(format!("no key is made while {text}")));
        }
        self.keys.refusal().map_or(Ok(()), |why| {
            Err(AdminError::Refused(format!("no key can be made: {why}")))
        })
    }

    /// Has a key made for a new volume, which begins once its slot is durable.
    pub(crate) fn make_volume_key(&mut self, token: AdminToken, spec: ReplicaSpec) {
        let name = first_key(spec.volume);
        self.by_name.insert(spec.name.clone(), spec.group); // taken from now on
        self.make_key(name, KeyFor::Volume(token, Box::new(spec)));
    }

    /// A replica of a volume whose key another node has made: it begins once the wrapped key is durable
    /// here, too.
    pub(crate) fn take_replica_key(
        &mut self,
        token: AdminToken,
        spec: ReplicaSpec,
        wrapped: WrappedKey,
    ) -> Result<(), AdminError> {
        let name = wrapped.name();
        if name.volume != spec.volume {
            return Err(AdminError::Invalid(
                "the replica's key is another volume's".into(),
            ));
        }
        if let Some(why) = self.keys.refusal() {
            return Err(AdminError::Refused(format!("no key can be kept: {why}")));
        }
        self.drop_strays(name);
        let pages = match &mut self.keys.area {
            // It is there already when a crash came between the key and the replica.
            Area::Open(area) => match area.find(name.volume, name.key) {
                Some(slot) => Some(area.replace(slot, wrapped.clone()).0),
                None => area.add(wrapped.clone()).map(|(_, pages)| pages.0),
            },
            Area::Off | Area::Reading | Area::Broken(_) => None,
        };
        let pages = pages.ok_or_else(|| AdminError::Refused(SLOTS_FULL.into()))?;
        self.by_name.insert(spec.name.clone(), spec.group); // taken from now on
        self.keys.reserved.insert(name);
        self.keys.deks.insert(name, Dek::Asked);
        self.keys.asks.push(KeyAsk::Open(wrapped));
        let begin = KeyFor::Volume(token, Box::new(spec));
        self.keys.change(pages, Then::Begin(begin));
        Ok(())
    }

    /// A node that had a copy before may have a key that was made for it and did not come into force, whose number
    /// another one has since.
    fn drop_strays(&mut self, begins: KeyName) {
        let used = self.engine.keys_in_use();
        let Area::Open(area) = &mut self.keys.area else {
            return;
        };
        let strays = area.keys().filter(|(_, k)| {
            let name = k.name();
            let is_other = name.volume == begins.volume && name != begins;
            is_other && !used.contains(&(name.volume, name.key.get()))
        });
        let strays: Vec<_> = strays.map(|(slot, k)| (slot, k.name())).collect();
        let mut changes = Vec::new();
        for (slot, name) in strays {
            changes.push(area.destroy(slot).0);
            self.keys.deks.remove(&name);
            self.keys.reserved.remove(&name);
        }
        for pages in changes {
            self.keys.change(pages, Then::Nothing);
        }
    }

    /// As [`Self::make_volume_key`], for a clone.
    pub(crate) fn make_clone_key(
        &mut self,
        token: AdminToken,
        origin: GroupId,
        volume: VolumeId,
        ask: SnapshotAsk,
    ) {
        self.make_key(first_key(volume), KeyFor::Clone(token, origin, ask));
    }

    pub(crate) fn make_key(&mut self, name: KeyName, what: KeyFor) {
        self.keys.reserved.insert(name);
        self.keys.making.insert(name, what);
        self.keys.asks.push(KeyAsk::Make(name));
    }

    /// A volume that was to begin with this key does not.
    pub(crate) fn unreserve_key(&mut self, volume: VolumeId) {
        if self.keys.reserved.remove(&first_key(volume)) {
            self.keys.sweep_wanted = true;
        }
    }

    /// A provider has answered.
    pub(crate) fn key_answer(&mut self, answer: KeyAnswer, effects: &mut Vec<Effect>) {
        match answer {
            KeyAnswer::Made(name, result) => self.key_made(name, result, effects),
            KeyAnswer::Opened(name, result) => {
                let Some(dek) = self.keys.deks.get_mut(&name) else {
                    return; // the volume has gone
                };
                if !matches!(dek, Dek::Here(_)) {
                    *dek = match result {
                        Ok(key) => Dek::Here(key),
                        Err(why) => Dek::Away(why),
                    };
                }
                self.begin_now(name, effects);
                self.keys_changed();
            }
            KeyAnswer::Rewrapped(name, result) => self.key_rewrapped(name, result, effects),
        }
    }

    /// Begins the replicas that waited for a key, with or without it.
    fn begin_now(&mut self, name: KeyName, effects: &mut Vec<Effect>) {
        let (now, later) = std::mem::take(&mut self.keys.begin_later)
            .into_iter()
            .partition(|(of, _)| *of == name);
        self.keys.begin_later = later;
        for (_, what) in now {
            self.slot_changed(Then::Begin(what), effects);
        }
    }

    fn key_made(
        &mut self,
        name: KeyName,
        result: Result<(DataKey, WrappedKey), String>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(what) = self.keys.making.remove(&name) else {
            return;
        };
        let added = match (result, &mut self.keys.area) {
            (Err(why), _) => Err(why),
            (Ok((dek, wrapped)), Area::Open(area)) if wrapped.name() == name => {
                match area.add(wrapped) {
                    Some((_, pages)) => Ok((dek, pages)),
                    None => Err(SLOTS_FULL.into()),
                }
            }
            (Ok(_), _) => Err(self.keys.refusal().unwrap_or_else(|| NOT_READ.into())),
        };
        match added {
            Ok((dek, pages)) => {
                self.keys.deks.insert(name, Dek::Here(dek));
                self.keys.change(pages.0, Then::Begin(what));
            }
            Err(why) => self.key_failed(what, &why, effects),
        }
    }

    /// Whether a volume's blocks can be read and written, as keys are now.
    fn lock_now(&self, id: GroupId) -> Lock {
        let volume = self.volumes.get(&id);
        if let Some(volume) = volume.filter(|v| v.key_id == 0) {
            return self.lock_of_plain(volume.id);
        }
        if let Area::Broken(why) = &self.keys.area {
            let keys = self.engine.keys_of(id).into_iter().filter_map(name_of);
            let mut missing = keys.filter(|k| !matches!(self.keys.deks.get(k), Some(Dek::Here(_))));
            return missing
                .next()
                .map_or(Lock::Open, |_| Lock::Away(why.clone()));
        }
        let mut lock = Lock::Open;
        for name in self.engine.keys_of(id).into_iter().filter_map(name_of) {
            match self.keys.deks.get(&name) {
                Some(Dek::Here(_)) => {}
                Some(Dek::Away(why)) => return Lock::Away(why.clone()),
                Some(Dek::Asked) => lock = Lock::Waits,
                None if matches!(self.keys.area, Area::Off) => {
                    return Lock::Away("this node keeps no keys".into());
                }
                None => lock = Lock::Waits,
            }
        }
        lock
    }

    /// What an operator should know of locked volumes.
    pub(crate) fn lock_problems(&self) -> Vec<String> {
        let locked = self
            .volumes
            .values()
            .filter_map(|volume| match &volume.lock {
                Lock::Away(why) => Some(lock_text(volume, why)),
                Lock::Open | Lock::Waits => None,
            });
        let mut problems: Vec<String> = locked.collect();
        if let Some((_, error)) = &self.keys.read_again {
            problems.push(format!(
                "the key slots of the store cannot be read ({error}), so encrypted volumes wait; it is tried \
                 again each second. Check the device"
            ));
        }
        if self.keys.maps_refused > 0 {
            problems.push(format!(
                "{} times since the start nothing vouched for the map of an encrypted volume: somebody may \
                 have changed the store; the log names them",
                self.keys.maps_refused
            ));
        }
        if self.keys.refused > 0 {
            problems.push(format!(
                "{} times a sealed block did not open since the start: it was changed, moved, or \
                 replaced by an older one; the log names them",
                self.keys.refused
            ));
        }
        problems
    }

    /// Keys are reserved no longer for volumes that did not begin.
    pub(crate) fn forget_reserved(&mut self) {
        let making: BTreeSet<VolumeId> = self.keys.making.keys().map(|k| k.volume).collect();
        self.keys.reserved.retain(|k| making.contains(&k.volume));
        self.keys.sweep_wanted = true;
    }

    /// Keys came, or will not: who waits for them is told.
    pub(crate) fn keys_changed(&mut self) {
        let refused = |node: &Self| node.volumes.values().filter(|v| v.map_refused).count();
        let mut before = 0;
        loop {
            for id in self.volumes.keys().copied().collect::<Vec<_>>() {
                self.key_changed(id);
            }
            // A clone waits for its origin, which may come behind it.
            let left = refused(self);
            if left == std::mem::replace(&mut before, left) {
                return;
            }
        }
    }

    /// Asks for keys that are needed only now: a clone may begin with an entry that was not applied yet when
    /// the slots were read.
    fn ask_for_late_keys(&mut self, id: GroupId) {
        let Area::Open(area) = &self.keys.area else {
            return;
        };
        for name in self.engine.keys_of(id).into_iter().filter_map(name_of) {
            let mut keys = area.keys().map(|(_, key)| key);
            let wrapped = keys.find(|key| key.name() == name);
            if let (false, Some(wrapped)) = (self.keys.deks.contains_key(&name), wrapped) {
                self.keys.deks.insert(name, Dek::Asked);
                self.keys.asks.push(KeyAsk::Open(wrapped.clone()));
            }
        }
    }

    /// As [`Self::keys_changed`], of one volume.
    pub(crate) fn key_changed(&mut self, id: GroupId) {
        self.ask_for_late_keys(id);
        let mut lock = self.lock_now(id);
        if lock == Lock::Open {
            lock = self.lock_of_map(id);
        }
        if let Some(volume) = self.volumes.get_mut(&id) {
            if volume.lock == lock && volume.key_id == 0 {
                return;
            }
            volume.lock = lock;
            self.keys.reserved.remove(&first_key(volume.id)); // the store says who needs it now
        }
        self.note_state(id);
        self.attach_waiting(id);
    }

    /// Keys that no volume needs any more are destroyed, once it is known what volumes there are: every log
    /// is in force.
    pub(crate) fn sweep_keys(&mut self) {
        let due = self.keys.sweep_wanted && self.now >= self.keys.sweep_next;
        if !due || self.fenced.is_some() {
            return;
        }
        self.keys.sweep_next = self.now + SWEEP_INTERVAL;
        self.sweep_keys_now(None);
    }

    /// True when somebody is answered later, with the last of what is destroyed.
    pub(crate) fn sweep_keys_now(&mut self, answer: Option<AdminToken>) -> bool {
        let is_known = |v: &Volume| v.is_serving() || v.deleting || !v.is_single();
        if !self.volumes.values().all(is_known) {
            self.keys.sweep_wanted = true;
            return false;
        }
        self.keys.sweep_wanted = false;
        let used = self.engine.keys_in_use().into_iter().filter_map(name_of);
        let used: BTreeSet<KeyName> = used.collect();
        self.keys.reserved.retain(|name| !used.contains(name));
        let Area::Open(area) = &mut self.keys.area else {
            return false;
        };
        // A volume that is marked as plain and has a key all the same keeps it.
        let marked = self.volumes.values().filter(|v| v.key_id == 0);
        let marked: BTreeSet<VolumeId> = marked.map(|v| v.id).collect();
        // An epoch under a newer key may be in a log and not yet in force.
        let newest: BTreeMap<VolumeId, u32> =
            self.volumes.values().map(|v| (v.id, v.key_id)).collect();
        let free = |k: &WrappedKey| {
            let name = k.name();
            let may_come = newest
                .get(&name.volume)
                .is_some_and(|id| name.key.get() > *id);
            let is_needed = used.contains(&name) || marked.contains(&name.volume) || may_come;
            !is_needed && !self.keys.reserved.contains(&name)
        };
        let gone = area.keys().filter(|(_, k)| free(k));
        let gone: Vec<_> = gone.map(|(slot, k)| (slot, k.name())).collect();
        let mut changes = Vec::new();
        for (slot, name) in gone {
            tracing::info!(volume = %name.volume, key = %name.key, "a key is destroyed");
            changes.push(area.destroy(slot).0);
            self.keys.deks.remove(&name);
            self.keys.ready.forget(name.volume);
        }
        let last = changes.len();
        for (n, pages) in changes.into_iter().enumerate() {
            let then = answer
                .filter(|_| n + 1 == last)
                .map_or(Then::Nothing, Then::Answer);
            self.keys.change(pages, then);
        }
        last > 0 && answer.is_some()
    }
}
