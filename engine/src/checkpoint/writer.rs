//! Where map nodes, pages of tables and checkpoints are written.

use crate::format::checkpoint::SegmentKind;
use crate::format::node::NodePage;
use crate::format::vaddr::VAddr;
use crate::format::PAGE;
use crate::map::tree::Missing;
use crate::space::Segments;
use bytes::Bytes;
use esker_base::{AlignedBuf, GroupId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where map nodes and checkpoints are written.
#[derive(Debug, Default)]
pub(crate) struct MapWriter {
    segment: Option<(u32, u64)>,
    pub slot: u32,
    /// [`Segments::deaths`] when the newest checkpoint began.
    pub deaths_frozen: u64,
    /// Nodes that the checkpoint in progress may have to write, at most.
    pub nodes_frozen: u64,
    /// Nodes gathered for the next write, at consecutive slots.
    pub gathered: Vec<(VAddr, Arc<NodePage>)>,
    /// Writes to be issued: segment, slot, nodes, bytes.
    pub ready: Vec<(u32, u32, Vec<VAddr>, Bytes)>,
    /// How often in a row a node of a discarded subtree could not be read.
    pub discard_failures: u32,
    /// Nodes being read, with what they must be.
    expected: BTreeMap<VAddr, (Missing, GroupId)>,
}

impl MapWriter {
    pub fn is_open(&self) -> bool {
        self.segment.is_some()
    }
    /// Goes on in a segment that an earlier process began.
    pub fn resume(&mut self, segment: u32, generation: u64, slot: u32) {
        (self.segment, self.slot) = (Some((segment, generation)), slot);
    }
    pub fn expect(&mut self, vaddr: VAddr, node: Missing, group: GroupId) {
        self.expected.insert(vaddr, (node, group));
    }
    pub fn expected(&mut self, vaddr: VAddr) -> Option<(Missing, GroupId)> {
        self.expected.remove(&vaddr)
    }

    /// Room for up to `wanted` pages at consecutive slots: segment, generation, slot, pages.
    pub fn take(
        &mut self,
        wanted: u32,
        segs: &mut Segments,
        slots: u32,
    ) -> Option<(u32, u64, u32, u32)> {
        if self.segment.is_none() || self.slot >= slots {
            self.gather();
            if let Some((old, _)) = self.segment.take() {
                segs.seal(old);
            }
            self.segment = Some(segs.open(SegmentKind::Map)?);
            self.slot = 0;
        }
        let (segment, generation) = self.segment?;
        let pages = wanted.min(slots - self.slot);
        let slot = self.slot;
        self.slot += pages;
        segs.set_written(segment, self.slot);
        Some((segment, generation, slot, pages))
    }

    /// Turns what is gathered into a write.
    pub fn gather(&mut self) {
        let Some((first, _)) = self.gathered.first() else {
            return;
        };
        let Some((segment, _)) = self.segment else {
            return;
        };
        let slot = first.slot();
        let mut buf = AlignedBuf::zeroed(self.gathered.len() * PAGE);
        let mut nodes = Vec::with_capacity(self.gathered.len());
        for (i, (vaddr, page)) in self.gathered.drain(..).enumerate() {
            buf[i * PAGE..(i + 1) * PAGE].copy_from_slice(&page.bytes);
            nodes.push(vaddr);
        }
        self.ready.push((segment, slot, nodes, buf.freeze()));
    }
}
