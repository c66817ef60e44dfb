//! One io_uring ring: the only place that hands memory to the kernel.
//!
//! The promise to the rest of the crate, which is free of `unsafe`: an [`Op`] given to
//! [`Ring::submit`] comes back through [`Ring::next`] when the kernel is done with it, and its
//! memory is neither moved, freed nor touched in between, whatever happens to the ring.

#![allow(unsafe_code)] // submissions, registrations, accepted descriptors

mod buffers;
mod ops;

pub(crate) use buffers::{ReceiveBuffers, Staging};
pub(crate) use ops::{Op, Owner, Vectors, VECTORS_MAX};

use crate::driver::LoopConfig;
use crate::error::RuntimeError;
use crate::pace::{Wait, GATHER_TIME_MAX};
use crate::store_file::StoreFile;
use io_uring::{cqueue, opcode, squeue, types, IoUring};
use ops::{StoreTarget, Table};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How often in a row the kernel may refuse to make progress (EAGAIN, EBUSY) before that is an
/// error; there is a pause of a millisecond after each refusal.
const STALLS_MAX: u32 = 5_000;
/// Looks at the ring between two looks at the clock.
const SPIN_LOOKS: u32 = 32;
/// How long a ring that is dropped waits for its operations. After that their memory is leaked.
const REAP_TIME_MAX: Duration = Duration::from_secs(30);
/// Names the completion of the request that cancels everything; no [`OpKey`] has this value.
const CANCEL_ALL: u64 = u64::MAX;

/// Names an operation in flight: generation(32) ‖ index(32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpKey(u64);

impl OpKey {
    #[allow(clippy::cast_possible_truncation)] // the mask leaves 32 bits
    fn index(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    #[allow(clippy::cast_possible_truncation)] // the shift leaves 32 bits
    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// An operation that ended, or one of several completions of an `Accept`.
pub(crate) struct Completion {
    /// Whom it is for.
    pub(crate) owner: Owner,
    /// The operation and its memory; none when more completions follow.
    pub(crate) op: Option<Op>,
    /// What the kernel returned: a count, or an error number.
    pub(crate) result: Result<usize, i32>,
    /// The connection, when an `Accept` brought one.
    pub(crate) accepted: Option<OwnedFd>,
}

/// A ring, used by the thread that made it.
pub(crate) struct Ring {
    /// Dropped before the memory below, which the kernel may know.
    uring: IoUring,
    table: Table,
    /// Entries that found the submission queue full.
    waiting: VecDeque<squeue::Entry>,
    completed: VecDeque<(u64, i32, u32)>,
    /// The registered buffers.
    pub(crate) staging: Staging,
    store: StoreTarget,
    stalls: u32,
    /// The kernel can wait for several completions for a short time (Linux 6.12).
    gathers: bool,
}

impl Ring {
    /// Sets up a ring for `store`.
    ///
    /// # Errors
    /// When the kernel has no io_uring or forbids it.
    pub(crate) fn new(config: &LoopConfig, store: &StoreFile) -> Result<Self, RuntimeError> {
        let name = config.name.as_str();
        let uring = set_up(config.ring_entries, name)?;
        let store_fd = store.as_fd().as_raw_fd();
        let store = match uring.submitter().register_files(&[store_fd]) {
            Ok(()) => StoreTarget::Fixed(types::Fixed(0)),
            Err(error) => {
                tracing::warn!("{name}: the store's file could not be registered: {error}");
                StoreTarget::Fd(types::Fd(store_fd))
            }
        };
        let slots = match config.staged_bytes_max {
            0 => buffers::STAGING_SLOTS_FEW,
            _ => buffers::STAGING_SLOTS,
        };
        let staging = register_staging(&uring, name, slots);
        let gathers = uring.params().is_feature_min_timeout();
        Ok(Self {
            uring,
            table: Table::default(),
            waiting: VecDeque::new(),
            completed: VecDeque::new(),
            staging,
            store,
            stalls: 0,
            gathers,
        })
    }

    /// Takes an operation; it is given to the kernel at the latest by the next [`Ring::wait`].
    pub(crate) fn submit(&mut self, op: Op, owner: Owner) -> OpKey {
        let key = self.table.insert(op, owner);
        let Some((op, _)) = self.table.get_mut(key) else {
            unreachable!("the operation was inserted in the line above")
        };
        let entry = op.entry(self.store, &self.staging).user_data(key.0);
        self.enqueue(entry);
        key
    }

    /// Asks the kernel to give up on an operation. Its completion still comes, soon.
    pub(crate) fn cancel(&mut self, target: OpKey) {
        self.submit(Op::Cancel { target }, Owner::Cancel);
    }

    /// Submits what is queued, and waits as `wait` says or until `timeout` passes. True when a spin
    /// found something.
    ///
    /// # Errors
    /// When the kernel refuses for good; the ring can only be dropped then.
    pub(crate) fn wait(&mut self, wait: Wait, timeout: Option<Duration>) -> io::Result<bool> {
        self.enqueue_waiting();
        let mut wait = match wait {
            _ if !self.completed.is_empty() || !self.waiting.is_empty() => Wait::No,
            Wait::Gather(_) if !self.gathers => Wait::Sleep,
            wait => wait,
        };
        let mut found = false;
        if let Wait::Spin(time) = wait {
            let submitted = self.uring.submit();
            self.refused(submitted)?;
            found = self.spin(timeout.map_or(time, |timeout| time.min(timeout)));
            wait = if found { Wait::No } else { Wait::Sleep };
        }
        let span = timeout.map(|time| {
            types::Timespec::new()
                .sec(time.as_secs())
                .nsec(time.subsec_nanos())
        });
        let mut args = types::SubmitArgs::new();
        if let Some(span) = &span {
            args = args.timespec(span);
        }
        let result = match wait {
            Wait::No => self.uring.submit_and_wait(0),
            Wait::Gather(completions) => {
                let micros = u32::try_from(GATHER_TIME_MAX.as_micros()).unwrap_or(u32::MAX);
                let args = args.min_wait_usec(micros);
                self.uring.submitter().submit_with_args(completions, &args)
            }
            Wait::Sleep | Wait::Spin(_) if span.is_some() => {
                self.uring.submitter().submit_with_args(1, &args)
            }
            Wait::Sleep | Wait::Spin(_) => self.uring.submit_and_wait(1),
        };
        let outcome = self.refused(result);
        self.collect();
        outcome.map(|()| found)
    }

    /// Looks for completions until there is one or `time` has passed.
    fn spin(&mut self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            for _ in 0..SPIN_LOOKS {
                // Deferred work shows before its completion does.
                if !self.uring.completion().is_empty() || self.uring.submission().taskrun() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }

    /// What a call that the kernel refused means.
    fn refused(&mut self, result: io::Result<usize>) -> io::Result<()> {
        match result.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) | Err(Some(libc::ETIME | libc::EINTR)) => {
                self.stalls = 0;
                Ok(())
            }
            Err(Some(libc::EAGAIN | libc::EBUSY)) if self.stalls < STALLS_MAX => {
                self.stalls += 1;
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
            Err(_) => result.map(|_| ()),
        }
    }

    /// The next completion that has arrived.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        loop {
            let (user_data, result, flags) = self.completed.pop_front()?;
            let key = OpKey(user_data);
            let (op, owner, is_accept) = if cqueue::more(flags) {
                let Some((op, owner)) = self.table.get_mut(key) else {
                    continue;
                };
                (None, *owner, matches!(op, Op::Accept { .. }))
            } else {
                let Some((op, owner)) = self.table.remove(key) else {
                    continue;
                };
                let is_accept = matches!(op, Op::Accept { .. });
                (Some(op), owner, is_accept)
            };
            let accepted = (is_accept && result >= 0).then(|| {
                // SAFETY: a completed accept returns a new descriptor that nothing else in the
                // process knows; each completion is taken once, so it gets exactly one owner.
                unsafe { OwnedFd::from_raw_fd(result) }
            });
            let result = usize::try_from(result).map_err(|_| -result);
            return Some(Completion {
                owner,
                op,
                result,
                accepted,
            });
        }
    }

    /// Operations whose last completion has not been taken yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.table.in_flight()
    }

    fn enqueue(&mut self, entry: squeue::Entry) {
        if self.waiting.is_empty() && self.push(&entry) {
            return;
        }
        self.waiting.push_back(entry);
        // The queue is full: hand it over. What the kernel doesn't take now stays for `wait`.
        let _ = self.uring.submit();
        self.enqueue_waiting();
    }

    fn enqueue_waiting(&mut self) {
        while let Some(entry) = self.waiting.pop_front() {
            if !self.push(&entry) {
                self.waiting.push_front(entry);
                break;
            }
        }
    }

    /// False when the submission queue is full.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: every entry is built by `Op::entry` from an operation that sits in `self.table`
        // (or is `CANCEL_ALL`, which points at nothing). The addresses in it are:
        // - buffers of `AlignedBuf`, `Bytes` and `Vec<iovec>`/`Vec<msghdr>` owned by that
        //   operation: on the heap, so growing the table doesn't move them, and untouched while
        //   the operation is in the table (nothing but `entry` looks into an operation there);
        // - a registered staging buffer, owned by `self.staging`; its `StagingSlot` is in the
        //   operation, so nobody else can fill it;
        // - descriptors, which the kernel resolves at submission. Closing one early could only
        //   direct the operation at another file, and connections, listeners, the eventfd and the
        //   store are kept open by the driver until their operations have completed.
        // An operation leaves the table only in `next`, when its last completion has arrived. When
        // the ring is dropped earlier, `drop` waits for the rest or leaks it. Bytes that the
        // kernel reads (`Bytes`) are immutable for as long as any handle exists.
        unsafe { self.uring.submission().push(entry).is_ok() }
    }

    /// Moves completions out of the ring, so that it can take new ones.
    fn collect(&mut self) {
        for entry in self.uring.completion() {
            self.completed
                .push_back((entry.user_data(), entry.result(), entry.flags()));
        }
    }

    /// Cancels everything and waits until the kernel is done with all memory. False when it isn't
    /// within `REAP_TIME_MAX`.
    fn reap_all(&mut self) -> bool {
        let deadline = Instant::now() + REAP_TIME_MAX;
        let all = types::CancelBuilder::any().all();
        self.enqueue(opcode::AsyncCancel2::new(all).build().user_data(CANCEL_ALL));
        loop {
            while self.next().is_some() {}
            if self.in_flight() == 0 {
                return true;
            }
            let patience = Some(Duration::from_millis(100));
            let failed = self.wait(Wait::Sleep, patience).is_err();
            if failed || Instant::now() > deadline {
                return false;
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.in_flight() > 0 && !self.reap_all() {
            tracing::error!(
                "{} operations did not end; their memory is leaked",
                self.in_flight()
            );
            std::mem::forget(std::mem::take(&mut self.table));
            std::mem::forget(std::mem::replace(&mut self.staging, Staging::with_slots(0)));
        }
        // The kernel takes a closed ring apart some time later. The store's file must not stay
        // open (and locked) until then.
        if let StoreTarget::Fixed(_) = self.store {
            let _ = self.uring.submitter().unregister_files();
        }
    }
}

fn set_up(entries: u32, name: &str) -> Result<IoUring, RuntimeError> {
    let entries = entries.clamp(8, 4096).next_power_of_two();
    // Completions can pile up while a turn runs: a send and a receive of every connection.
    let completions = entries.saturating_mul(8).max(4096);
    let mut builder = IoUring::builder();
    builder
        .dontfork()
        .setup_cqsize(completions)
        .setup_submit_all();
    let mut quiet = builder.clone();
    quiet
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let built = quiet.build(entries).or_else(|error| {
        if error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
        tracing::warn!("{name}: this kernel has no deferred task work; running without it");
        builder.build(entries)
    });
    built.map_err(unavailable)
}

/// Puts what the system says about io_uring into one line.
fn unavailable(source: io::Error) -> RuntimeError {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let detail = match (source.raw_os_error(), setting) {
        (Some(libc::ENOSYS), _) => "this kernel was built without it".into(),
        (Some(libc::ENOMEM), _) => "not enough locked memory (see ulimit -l)".into(),
        (_, Ok(value)) if value.trim() != "0" => {
            format!("kernel.io_uring_disabled={}", value.trim())
        }
        (Some(libc::EPERM), _) => "it is forbidden here (a seccomp filter of a container?)".into(),
        _ => "the kernel refused to set it up".into(),
    };
    RuntimeError::RingUnavailable { detail, source }
}

fn register_staging(uring: &IoUring, name: &str, mut slots: usize) -> Staging {
    loop {
        let mut staging = Staging::with_slots(slots);
        if slots == 0 {
            return staging;
        }
        let vectors = staging.vectors();
        // SAFETY: each vector describes one buffer that `staging` owns, and nothing replaces or
        // frees a buffer while `staging` exists. `Ring` drops `staging` after `uring`, and only
        // when no operation is in flight (otherwise it leaks it): a closed ring may hold the pages
        // a little longer, but touches them only on behalf of operations.
        match unsafe { uring.submitter().register_buffers(&vectors) } {
            Ok(()) => return staging,
            Err(error) => {
                slots /= 2;
                tracing::warn!(
                    "{name}: registering write buffers failed ({error}); trying with {slots} \
                     (LimitMEMLOCK= raises the limit)"
                );
            }
        }
    }
}
