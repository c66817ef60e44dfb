//! Tables in pages: what is too much to be written whole at every checkpoint.
//!
//! A table is a set of records, each with a 128-bit key, kept in the order of the keys in pages of
//! 4 KiB. Pages are never changed in place: one whose records changed is written anew at the next
//! checkpoint, where there is room, and the old one is no longer needed once that checkpoint is
//! durable. What names the pages is a directory, pages of the same kind one level up, and what names
//! the highest level is a [`TableRoot`](crate::format::table::TableRoot) in the checkpoint. The
//! checksum of every page lies with its pointer, and every pointer can name two copies.
//!
//! [`PagedTable`] keeps the directory in memory and knows which pages are to be written; the records
//! are its owner's, in whatever form suits the owner. How to use it, in order:
//!
//! 1. When a record changes, comes or goes: [`PagedTable::touch`] with its key. What the checkpoint in
//!    progress does itself, and is to be in it, is told to [`PagedTable::touch_in_checkpoint`].
//! 2. When a checkpoint begins: [`PagedTable::freeze`]. The owner keeps the records as they are now
//!    until 3 is done; what is touched from here on is for the next checkpoint.
//! 3. When it is written: [`PagedTable::next_batch`] gives the pages of one level, made from the
//!    frozen records; the caller finds places for them and writes them; [`PagedTable::placed`] takes
//!    the places and gives the pages that are no longer needed. Again, until there is no batch.
//! 4. [`PagedTable::root`] goes into the checkpoint. The pages given by 3 may be reused when it is durable.
//! 5. When the store is opened: [`PagedTable::open`] with the root; [`PagedTable::load`] with each page that
//!    is wanted, from the top; level 0 gives the records.
//!
//! A table whose records do not stay in memory (`resident` is false) can only grow at its end, by
//! [`PagedTable::begin_page`], and shrink at its beginning, by [`PagedTable::drop_before`].
//!
//! Where pages are is the caller's business. The tables of segments and pieces lie at physical places
//! that no live bit speaks of: a table that described its own pages would change by being written. A
//! segment is kept while it holds a page that the newest directory names. Other tables take virtual
//! addresses with live slots, as map nodes do, and garbage collection moves their pages like any
//! other slot.

mod audit;
mod paged;

pub use paged::{Batch, Loaded, PageContext, PagedTable, Source, ToLoad, ROOT_PAGES_MAX};
