//! Where keys lie in memory: each on a page of its own that the system neither swaps out nor dumps, as far as it
//! lets this process.

use crate::secret::KEY_BYTES;
use memmap2::{Advice, MmapMut};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use zeroize::{Zeroize, Zeroizing};

/// Whether a key came to lie where it may be swapped out.
static IS_SWAPPABLE: AtomicBool = AtomicBool::new(false);

/// True once a key of this process lies where it may be swapped out: the process may lock no more memory
/// (`RLIMIT_MEMLOCK`).
#[must_use]
pub fn is_swappable() -> bool {
    IS_SWAPPABLE.load(Ordering::Relaxed)
}

/// The bytes of a key, zero at first, wiped when they are dropped.
pub(crate) struct KeyBytes(Place);

enum Place {
    /// A page, of which the first bytes are the key's.
    Page(MmapMut),
    /// The system gave no page.
    Heap(Box<Zeroizing<[u8; KEY_BYTES]>>),
}

impl KeyBytes {
    pub(crate) fn zeroed() -> Self {
        let Ok(page) = MmapMut::map_anon(KEY_BYTES) else {
            IS_SWAPPABLE.store(true, Ordering::Relaxed);
            return Self(Place::Heap(Box::new(Zeroizing::new([0; KEY_BYTES]))));
        };
        if page.lock().is_err() {
            IS_SWAPPABLE.store(true, Ordering::Relaxed);
        }
        let _ = page.advise(Advice::DontDump); // the daemon makes no dumps at all
        Self(Place::Page(page))
    }
}

impl Deref for KeyBytes {
    type Target = [u8; KEY_BYTES];

    fn deref(&self) -> &[u8; KEY_BYTES] {
        match &self.0 {
            Place::Page(page) => page
                .first_chunk()
                .unwrap_or_else(|| unreachable!("it was mapped with this length")),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl DerefMut for KeyBytes {
    fn deref_mut(&mut self) -> &mut [u8; KEY_BYTES] {
        match &mut self.0 {
            Place::Page(page) => page
                .first_chunk_mut()
                .unwrap_or_else(|| unreachable!("it was mapped with this length")),
            Place::Heap(bytes) => bytes,
        }
    }
}

impl Drop for KeyBytes {
    fn drop(&mut self) {
        self.deref_mut().zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `/proc/self/smaps` says of the page that an address lies on.
    fn flags_of(address: usize) -> Option<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let mut is_here = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|r| r.split_once('-'));
            let bound = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(from), Some(to))) = range.map(|(from, to)| (bound(from), bound(to))) {
                is_here = (from..to).contains(&address);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_here) {
                return Some(flags.into());
            }
        }
        None
    }

    #[test]
    fn a_key_lies_on_a_page_that_is_neither_swapped_out_nor_dumped() {
        let mut bytes = KeyBytes::zeroed();
        assert_eq!(*bytes, [0; KEY_BYTES]);
        bytes[KEY_BYTES - 1] = 7;
        let flags = flags_of(bytes.as_ptr().addr()).unwrap();
        let has = |flag| flags.split_whitespace().any(|f| f == flag);
        assert!(has("dd"), "dumped: {flags}");
        // Few may lock nothing at all; who may not is told by the daemon.
        assert!(has("lo") || is_swappable(), "swapped: {flags}");
        let other = KeyBytes::zeroed();
        assert_ne!(bytes.as_ptr(), other.as_ptr());
        assert_eq!(bytes[KEY_BYTES - 1], 7);
    }
}
