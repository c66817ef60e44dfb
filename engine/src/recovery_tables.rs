//! Opening a store: the pages of the tables that the checkpoint names are read, many at a time, the
//! second copy of a page where the first is damaged.

use crate::engine::Engine;
use crate::error::OpenError;
use crate::event::Effect;
use crate::format::checkpoint::Checkpoint;
use crate::format::{PAGE, PAGE_U64};
use crate::recovery::{checkpoint_error, Probe, Stage};
use crate::space::load::{SpaceLoader, WantedPage};
use crate::space::TableShape;
use bytes::Bytes;
use esker_base::num::to_u64;
use std::collections::VecDeque;

/// Pages read at a time (8 MiB).
const PAGES_AT_ONCE: usize = 2048;
/// Pages that are read in one piece where they follow each other (1 MiB).
const PAGES_PER_READ: usize = 256;

/// A page that is being read, and which copy of it.
#[derive(Debug)]
struct Reading {
    page: WantedPage,
    copy: usize,
    part: usize,
    /// Where in the part it begins, in bytes.
    at: usize,
}

/// Tables being loaded.
#[derive(Debug)]
pub(crate) struct Tables {
    checkpoint: Checkpoint,
    loader: SpaceLoader,
    reading: Vec<Reading>,
    /// Pages whose first copy is damaged.
    again: VecDeque<WantedPage>,
}

impl Engine {
    /// How tables are cut into pages.
    pub(crate) fn table_shape(&self) -> TableShape {
        TableShape {
            content_max: self.config.table_content_max,
            rewrite_min: self.config.table_rewrite_min,
            audit: self.config.table_audit,
        }
    }

    /// The checkpoint is read: its tables are next.
    pub(crate) fn tables_begin(
        &mut self,
        checkpoint: Checkpoint,
        effects: &mut Vec<Effect>,
    ) -> Result<(), OpenError> {
        let (sb, shape) = (&self.sb, self.table_shape());
        let loader = SpaceLoader::new(&checkpoint, sb.store, sb.segment_count, sb.slots(), shape)
            .map_err(OpenError::Checkpoint)?;
        let Some(r) = &mut self.recovery else {
            return Ok(());
        };
        r.stage = Stage::Tables;
        r.tables = Some(Tables {
            checkpoint,
            loader,
            reading: Vec::new(),
            again: VecDeque::new(),
        });
        self.tables_read(&[], effects)
    }

    /// Pages came; reads the next ones, or ends.
    pub(crate) fn tables_read(
        &mut self,
        parts: &[Option<Bytes>],
        effects: &mut Vec<Effect>,
    ) -> Result<(), OpenError> {
        let Some(r) = &mut self.recovery else {
            return Ok(());
        };
        let failed = r.read_error.clone();
        let Some(mut t) = r.tables.take() else {
            return Ok(());
        };
        let mut second = false;
        for reading in std::mem::take(&mut t.reading) {
            let part = parts.get(reading.part).and_then(Option::as_ref);
            let bytes = part.and_then(|part| part.get(reading.at..reading.at + PAGE));
            let given = bytes.map(|bytes| t.loader.give(&reading.page, bytes));
            match given {
                Some(Ok(())) => second |= reading.copy > 0,
                _ if reading.copy == 0 && reading.page.copies[1].is_some() => {
                    t.again.push_back(reading.page);
                }
                Some(Err(error)) => return Err(OpenError::Checkpoint(error)),
                // A device that fails for a moment is not damage.
                None => {
                    return Err(match failed {
                        Some((offset, error)) => OpenError::Read { offset, error },
                        None => checkpoint_error("a page of a table is missing"),
                    });
                }
            }
        }
        if second {
            self.probes.insert(Probe::SecondTableCopy);
        }
        let (pages, copy) = match t.again.is_empty() {
            true => (t.loader.wanted(PAGES_AT_ONCE), 0),
            false => (Ok(t.again.drain(..).collect()), 1),
        };
        let pages = pages.map_err(OpenError::Checkpoint)?;
        if pages.is_empty() {
            if t.loader.has_deaths() {
                self.probes.insert(Probe::DeathsRead);
            }
            return self.tables_done(t.loader, t.checkpoint, effects);
        }
        let reads = self.reads_of(&mut t.reading, pages, copy);
        if let Some(r) = &mut self.recovery {
            r.tables = Some(t);
        }
        self.recovery_read_parts(reads, effects);
        Ok(())
    }

    /// The reads that give these pages: those that follow each other on the device in one.
    fn reads_of(
        &self,
        reading: &mut Vec<Reading>,
        pages: Vec<WantedPage>,
        copy: usize,
    ) -> Vec<(u64, usize)> {
        let mut placed: Vec<(u64, WantedPage)> = Vec::with_capacity(pages.len());
        for page in pages {
            if let Some((segment, slot)) = page.copies[copy] {
                placed.push((self.sb.offset_of(segment, slot), page));
            }
        }
        placed.sort_by_key(|(offset, _)| *offset);
        let mut reads: Vec<(u64, usize)> = Vec::new();
        for (offset, page) in placed {
            match reads.last_mut() {
                Some((start, length))
                    if *start + to_u64(*length) == offset && *length < PAGES_PER_READ * PAGE =>
                {
                    *length += PAGE;
                }
                Some((start, length)) if *start + to_u64(*length) == offset + PAGE_U64 => {}
                _ => reads.push((offset, PAGE)),
            }
            let part = reads.len() - 1;
            let at = reads[part].1 - PAGE;
            reading.push(Reading {
                page,
                copy,
                part,
                at,
            });
        }
        reads
    }
}
