//! Clients that read snapshots: what they are told must be what the snapshot may hold, and the same whenever it
//! is read, whatever happens to the volume and to the node meanwhile.

use super::catalog::Change;
use super::client::{Asked, Client, Mood, Wish};
use super::host::State;
use super::wire::Command;
use super::world::World;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const ESHUTDOWN: u32 = 108;

impl World {
    /// A client that is about to connect may turn to a snapshot of its volume.
    pub(crate) fn choose_export(&mut self, client: usize) {
        self.clients[client].snapshot = None;
        let slot = &self.slots[self.clients[client].slot];
        let Some(volume) = &slot.volume else { return };
        let scripted = self.clients[client].script.is_some();
        let names: Vec<&String> = volume.kept.sure.keys().collect();
        if self.plan.nodes > 1 || scripted || names.is_empty() || !volume.kept.is_known {
            return;
        }
        if self.rng.chance(300) {
            let name = names[self.rng.index(names.len())].clone();
            self.clients[client].snapshot = Some((name, volume.born));
        }
    }

    /// A client of a volume has to leave for what an operator wants; one of a snapshot only if that is no
    /// rollback.
    pub(crate) fn is_in_the_way(&self, client: usize) -> bool {
        let c = &self.clients[client];
        let stays = c.snapshot.is_some();
        match &self.slots[c.slot].wanted {
            None => false,
            Some(Change::Rollback { .. }) => !stays,
            Some(_) => true,
        }
    }

    /// A client of a snapshot was answered.
    pub(crate) fn reader_answered(&mut self, client: usize, asked: &Asked, error: u32) {
        let c = &self.clients[client];
        let Some((name, born)) = c.snapshot.clone() else {
            return;
        };
        let changes = matches!(
            asked.wish.command,
            Command::Write | Command::WriteZeroes | Command::Trim
        );
        let stopping = self.hosts.iter().any(|h| h.state == State::Stopping);
        let faulty = self.plan.weights.disk_errors > 0 || self.plan.damages();
        let is_right = match error {
            0 => !changes,
            EPERM => changes,
            EIO => faulty && !changes,
            ESHUTDOWN => stopping,
            _ => false,
        };
        if !is_right {
            let wish = asked.wish;
            return self.violate(format!("snapshot {name}: {wish:?} is answered {error}"));
        }
        if error != 0 || asked.wish.command != Command::Read {
            return;
        }
        let (slot, mood, grid) = (c.slot, c.mood, &self.plan.grid);
        let volume = self.slots[slot].volume.as_mut();
        // A volume that was made anew since has none of it; a snapshot that is attached stays.
        let Some(volume) = volume.filter(|v| v.born == born) else {
            return;
        };
        let held = match volume.kept.sure.get_mut(&name) {
            _ if asked.got != asked.wish.length => {
                Err(format!("{} of {} bytes", asked.got, asked.wish.length))
            }
            Some(frozen) => frozen.read(grid, asked.cells.clone(), &asked.data),
            None if volume.kept.unsure.contains_key(&name) => Ok(()),
            // It has left, and hears of this late.
            None if mood != Mood::Attached => Ok(()),
            None => Err("it is gone while a session is attached to it".into()),
        };
        self.stats.did("reads of snapshots");
        if let Err(text) = held {
            let wish = asked.wish;
            self.violate(format!(
                "snapshot {name}, client {client}, {wish:?}: {text}"
            ));
        }
    }
}

impl Client {
    /// Most of what a client of a snapshot asks for are reads.
    pub fn tame(&self, wish: Wish, reads: bool) -> Wish {
        let is_hollow = wish.length == 0;
        match self.snapshot.is_some() && reads && !is_hollow {
            true => Wish {
                command: Command::Read,
                flags: 0,
                ..wish
            },
            false => wish,
        }
    }
}
