//! Exclusive attachment: one holder at a time, and what came before it is fenced.
//!
//! Each change of who holds a volume is an entry of its log and counts up one number, held or not. A session belongs to the number
//! that was in force when it attached: it is ended once its node applies the next one, and the leader carries out nothing
//! more of it from the moment at which it puts the change into the log. So nothing that an earlier holder asked for comes after the
//! answer to whoever took its place, wherever its requests are by then.
//!
//! The number is a label of the volume ([`ATTACHMENT_LABEL`]): it is in checkpoints, on all replicas and on those that come later.

use crate::admin::{AdminError, AdminReply};
use crate::control::Outcome;
use crate::event::{AdminToken, Effect};
use crate::node::Node;
use crate::volume::{Proposal, Volume};
use esker_base::{ConnId, GroupId, RaftIndex, Term};
use esker_engine::format::operation::Operation;
use serde::Serialize;
use std::collections::BTreeMap;

/// The label of a volume that tells who holds it: the number, the time, and the holder where there is one.
pub const ATTACHMENT_LABEL: &str = "esker.attachment";

/// Most bytes of a holder's name.
pub const HOLDER_BYTES_MAX: usize = 128;

/// Who holds a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// Counts the changes; 0 before the first one.
    pub number: u64,
    /// Seconds since the Unix epoch; 0 before the first one.
    pub since_unix: u64,
    /// Whose it is alone; none where anybody may attach.
    pub holder: Option<String>,
}

/// A change that is in the log and not in force yet: nothing is proposed behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changing {
    pub index: RaftIndex,
    pub term: Term,
}

impl Attachment {
    /// What the labels of a volume say. A label that cannot be read lets nobody in.
    pub(crate) fn of(labels: &BTreeMap<String, String>) -> Self {
        let Some(label) = labels.get(ATTACHMENT_LABEL) else {
            return Self::default();
        };
        let mut words = label.splitn(3, ' ');
        let mut number = || words.next()?.parse().ok();
        let (number, since) = (number(), number());
        let holder = match number {
            Some(_) => words.next().map(str::to_owned),
            None => Some("?".into()),
        };
        Self {
            number: number.unwrap_or_default(),
            since_unix: since.unwrap_or_default(),
            holder,
        }
    }

    fn label(&self) -> String {
        let holder = self.holder.iter().map(|holder| format!(" {holder}"));
        let mut label = format!("{} {}", self.number, self.since_unix);
        label.extend(holder);
        label
    }

    /// Why the volume is not deleted.
    #[must_use]
    pub fn keeps(&self, volume: &str) -> Option<String> {
        let (holder, number) = (self.holder.as_ref()?, self.number);
        Some(format!(
            "{holder} holds volume {volume}, as attachment {number}: `esker volume detach {volume}` ends that"
        ))
    }

    /// Why a session that names this number, or none, does not get the volume.
    pub(crate) fn refuses(&self, volume: &str, asked: Option<u64>) -> Option<String> {
        let number = self.number;
        Some(match (&self.holder, asked) {
            (None, None) => return None,
            (Some(_), Some(asked)) if asked == number => return None,
            (_, Some(asked)) if asked > number => {
                format!("volume {volume} has no attachment {asked}")
            }
            (Some(holder), Some(asked)) => {
                format!("attachment {asked} of volume {volume} has ended: {holder} holds it since, as attachment {number}")
            }
            (None, Some(asked)) => {
                format!("attachment {asked} of volume {volume} has ended, and nobody holds it")
            }
            (Some(holder), None) => format!(
                "{holder} holds volume {volume} alone, as {volume}:{number}; `esker volume attach` tells how to take it over"
            ),
        })
    }
}

/// The name of an export without the number of an attachment that it may end in, and that number.
pub(crate) fn split(export: &str) -> (&str, Option<u64>) {
    let numbered = export.rsplit_once(':').and_then(|(name, number)| {
        let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| number.parse().ok()).flatten()?;
        Some((name, Some(number)))
    });
    numbered.unwrap_or((export, None))
}

fn check_holder(holder: &str) -> Result<(), AdminError> {
    let good = |b: u8| b.is_ascii_graphic();
    match !holder.is_empty() && holder.len() <= HOLDER_BYTES_MAX && holder.bytes().all(good) {
        true => Ok(()),
        false => Err(AdminError::Invalid(format!(
            "`{}` is no holder: 1 to {HOLDER_BYTES_MAX} letters, digits and signs, without spaces",
            crate::admin::one_line(holder)
        ))),
    }
}

impl Volume {
    /// Takes up what its labels are now.
    pub(crate) fn take_labels(&mut self, labels: BTreeMap<String, String>) {
        self.attachment = Attachment::of(&labels);
        self.labels = labels;
    }

    /// A change of who holds it is in the log of this leader, and not in force yet.
    pub(crate) fn is_changing_hands(&self) -> bool {
        let term = self.group.as_ref().map(esker_replication::Group::term);
        let waits = |c: &Changing| c.index > self.applied && Some(c.term) == term;
        self.changing_hands.as_ref().is_some_and(waits)
    }
}

impl Node {
    /// Gives a volume to one holder, or to nobody in particular.
    ///
    /// `holder`: none takes it from whoever has it; `only`: if that is this attachment. `fence`: whoever has it loses it.
    pub(crate) fn volume_attach(
        &mut self,
        token: AdminToken,
        name: &str,
        holder: Option<String>,
        only: Option<u64>,
        fence: bool,
    ) -> Outcome {
        let id = self.find(name)?;
        self.writable()?;
        if let Some(holder) = &holder {
            check_holder(holder)?;
        }
        let since_unix = self.wall.0 / 1_000_000;
        let Some(volume) = self.volumes.get(&id) else {
            return Ok(None);
        };
        if !volume.is_serving() {
            return Err(volume.not_serving());
        }
        if volume.is_relabelled() {
            return Err(AdminError::NotLeading(format!(
                "the labels of volume {name} are being changed; try again"
            )));
        }
        let now = &volume.attachment;
        match (&holder, &now.holder) {
            (Some(asks), Some(has)) if asks == has && !fence => return self.attached(id),
            (Some(_), Some(has)) if !fence => {
                return Err(AdminError::Refused(format!(
                    "{has} holds volume {name}, as attachment {}: end that with `esker volume detach {name}`, or, if {has} is not to \
                     write any more, take the volume over with --fence",
                    now.number
                )));
            }
            (Some(_), None) if !fence && !volume.sessions.is_empty() => {
                return Err(AdminError::Refused(format!(
                    "{} sessions use volume {name} without an attachment: end them, or have them ended with --fence",
                    volume.sessions.len()
                )));
            }
            (None, None) => return self.attached(id),
            (None, Some(has)) if only.is_some_and(|only| only != now.number) => {
                return Err(AdminError::Refused(format!(
                    "attachment {} of volume {name} is not in force: {has} holds it, as attachment {}",
                    only.unwrap_or_default(),
                    now.number
                )));
            }
            _ => {}
        }
        let next = Attachment {
            number: now.number + 1,
            since_unix,
            holder,
        };
        let mut after = volume.labels.clone();
        after.insert(ATTACHMENT_LABEL.into(), next.label());
        crate::control::check_volume_labels(name, &after)?;
        let labels = BTreeMap::from([(ATTACHMENT_LABEL.to_owned(), Some(next.label()))]);
        let operation = Operation::Relabel { labels };
        let outcome = self.propose_change(id, &operation, Proposal::Relabel(token))?;
        if let Some(volume) = self.volumes.get_mut(&id) {
            let last = volume.proposals.last_key_value();
            volume.changing_hands = last.map(|(index, (term, _))| Changing {
                index: *index,
                term: *term,
            });
        }
        Ok(outcome)
    }

    fn attached(&self, id: GroupId) -> Outcome {
        let report = self.report_of(id, &self.engine.snapshot_blocks());
        Ok(report.map(AdminReply::Volume))
    }

    /// The labels of a volume may tell of another attachment.
    pub(crate) fn labels_changed(&mut self, id: GroupId) {
        self.refenced.push(id);
    }

    /// Ends the sessions of attachments that have passed.
    pub(crate) fn fence_sessions(&mut self, effects: &mut Vec<Effect>) {
        for id in std::mem::take(&mut self.refenced) {
            let Some(volume) = self.volumes.get(&id) else {
                continue;
            };
            let now = volume.attachment.clone();
            let is_past = |conn: &&ConnId| {
                let conn = self.conns.get(conn).filter(|c| !c.closing);
                conn.is_some_and(|c| c.attachment != now.number)
            };
            let past: Vec<ConnId> = volume.sessions.iter().filter(is_past).copied().collect();
            let holder = now.holder.as_deref().unwrap_or("nobody");
            let why = format!(
                "{holder} holds volume {} since, as attachment {}",
                volume.name, now.number
            );
            for conn in past {
                tracing::warn!(conn = conn.0, "session fenced: {why}");
                self.meters.sessions.fenced += 1;
                self.close(conn, format!("fenced: {why}"), effects);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_who_holds_a_volume() {
        let labels =
            |label: &str| BTreeMap::from([(ATTACHMENT_LABEL.to_owned(), label.to_owned())]);
        assert_eq!(Attachment::of(&BTreeMap::new()), Attachment::default());
        for holder in [None, Some("vm-7/eth0"), Some("a")] {
            let attachment = Attachment {
                number: 12,
                since_unix: 1_700_000_000,
                holder: holder.map(str::to_owned),
            };
            assert_eq!(Attachment::of(&labels(&attachment.label())), attachment);
        }
        // Nobody is let in by what nobody can read.
        for label in ["", "x", "x 1", "-1 3 a"] {
            let attachment = Attachment::of(&labels(label));
            assert!(attachment.refuses("v", None).is_some(), "{label}");
        }
    }

    #[test]
    fn names_end_in_the_number_of_an_attachment() {
        for (export, name, number) in [
            ("v", "v", None),
            ("v:7", "v", Some(7)),
            ("v:", "v:", None),
            ("v:+7", "v:+7", None),
            ("v:7a", "v:7a", None),
            ("", "", None),
            ("v@s", "v@s", None),
            ("v:18446744073709551616", "v:18446744073709551616", None),
        ] {
            assert_eq!(split(export), (name, number), "{export}");
        }
    }

    #[test]
    fn who_names_the_attachment_in_force_gets_the_volume() {
        let free = |number| Attachment {
            number,
            ..Attachment::default()
        };
        let held = |number| Attachment {
            holder: Some("a".into()),
            ..free(number)
        };
        assert_eq!(free(0).refuses("v", None), None);
        assert_eq!(free(4).refuses("v", None), None);
        assert_eq!(held(4).refuses("v", Some(4)), None);
        let told = |attachment: Attachment, asked| attachment.refuses("v", asked).unwrap();
        assert!(told(held(4), None).contains("a holds volume v alone, as v:4"));
        assert!(told(held(4), Some(3)).contains("attachment 3 of volume v has ended: a holds"));
        assert!(told(held(4), Some(5)).contains("has no attachment 5"));
        assert!(told(free(4), Some(4)).contains("has ended, and nobody holds it"));
        assert!(told(free(4), Some(5)).contains("has no attachment 5"));
    }

    #[test]
    fn holders_are_one_word() {
        assert!(check_holder("node-3").is_ok() && check_holder(&"x".repeat(128)).is_ok());
        for bad in ["", "a b", "a\n", "ä", &"x".repeat(129)] {
            assert!(check_holder(bad).is_err(), "{bad:?}");
        }
    }
}
