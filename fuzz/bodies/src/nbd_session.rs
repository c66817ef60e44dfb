//! An NBD session under any bytes in any split: it never panics, holds no more than its limits, and
//! every byte it sends is a reply that a client can read.

use crate::nbd_client::{to_u64, Negotiated, Sent};
use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use esker_nbd::{
    Access, Action, ContextsAsked, Export, ExportError, Extent, Operation, ReadPiece, Reply,
    Request, RequestError, Session, SessionLimits, TlsPolicy, CONTEXTS_SELECTED_MAX,
    META_QUERIES_MAX,
};
use std::sync::Arc;

/// Small enough that every limit is met often.
const LIMITS: SessionLimits = SessionLimits {
    request_bytes_max: 64 << 10,
    requests_in_flight_max: 4,
    bytes_in_flight_max: 96 << 10,
};
const SIZE_BYTES: u64 = 1 << 30;
const ALLOCATION: &str = "base:allocation";
const SINCE: &str = "qemu:dirty-bitmap:since=";
/// Client's steps that are taken.
const STEPS_MAX: usize = 200;

/// What a client does.
#[derive(Arbitrary, Debug)]
enum ClientStep<'a> {
    /// Sends anything.
    Raw(&'a [u8]),
    /// Sends its flags.
    Flags(u8),
    /// Sends an option; its length is right unless `lie`.
    Option {
        code: u8,
        data: &'a [u8],
        lie: Option<u32>,
    },
    /// Sends INFO or GO.
    Go { go: bool, name: u8, items: u8 },
    /// Sends a request.
    Request {
        command: u8,
        flags: u8,
        cookie: u8,
        offset: u32,
        length: u16,
        /// Above the offset's 32 bits.
        high: u8,
        payload_missing: u8,
    },
    /// The owner answers the oldest or the newest request.
    Answer { newest: bool, how: u8 },
    /// The owner holds the session back or lets it go on.
    Hold(bool),
    /// The owner ends.
    Shutdown,
    /// From here on so many bytes arrive at a time.
    Split(u16),
    /// The owner offers TLS, or demands it; of clients with TLS some may open little.
    OfferTls(u8),
}

struct Owner {
    session: Session,
    negotiated: Negotiated,
    policy: TlsPolicy,
    is_secured: bool,
    access: Access,
    /// The client is in transmission.
    attached: bool,
    closed: bool,
    waiting: Vec<Request>,
    received_bytes: u64,
    sent_bytes: u64,
    split: usize,
    /// Client's bytes that the session does not want yet.
    backlog: Vec<u8>,
}

/// The first byte of an input that is a client's stream as it is; two bytes of split follow.
pub(crate) const STREAM: u8 = 0xff;

/// A client and an owner that do what `data` says: steps, or a stream as it is.
pub(crate) fn run(data: &[u8]) {
    let mut owner = Owner {
        session: Session::new(LIMITS),
        negotiated: Negotiated::default(),
        policy: TlsPolicy::Off,
        is_secured: false,
        access: Access::all(),
        attached: false,
        closed: false,
        waiting: Vec::new(),
        received_bytes: 0,
        sent_bytes: 0,
        split: 4096,
        backlog: Vec::new(),
    };
    let greeting = owner.output();
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\x00\x03");
    if let [STREAM, high, low, stream @ ..] = data {
        owner.take(&ClientStep::Split(u16::from_be_bytes([*high, *low])));
        for part in stream.chunks(1 << 18) {
            owner.send(part);
            owner.answer(true, 100);
        }
        return owner.end();
    }
    let mut u = Unstructured::new(data);
    for _ in 0..STEPS_MAX {
        if u.is_empty() {
            break;
        }
        let Ok(step) = ClientStep::arbitrary(&mut u) else {
            break;
        };
        owner.take(&step);
    }
    owner.end();
}

impl Owner {
    /// Whatever was begun can be ended.
    fn end(&mut self) {
        self.session.hold(false);
        self.settle();
        while !self.waiting.is_empty() {
            self.answer(false, 0);
        }
        self.session.shutdown();
        self.settle();
        assert_eq!(self.session.requests_in_flight(), 0);
        assert_eq!(self.session.bytes_in_flight(), 0);
        if self.attached {
            assert!(
                self.closed,
                "a session that shuts down and has nothing to do ends"
            );
            assert!(!self.session.wants_input());
        }
    }

    fn take(&mut self, step: &ClientStep<'_>) {
        match step {
            ClientStep::Raw(data) => self.send(data),
            ClientStep::Flags(flags) => self.send(&u32::from(*flags).to_be_bytes()),
            ClientStep::Option { code, data, lie } => {
                let length = u32::try_from(data.len()).expect("short");
                let mut bytes = b"IHAVEOPT".to_vec();
                bytes.extend(u32::from(*code % 16).to_be_bytes());
                bytes.extend(lie.unwrap_or(length).to_be_bytes());
                bytes.extend_from_slice(data);
                self.send(&bytes);
            }
            ClientStep::Go { go, name, items } => self.go(*go, *name, *items),
            ClientStep::Request { .. } => self.request(step),
            ClientStep::Answer { newest, how } => self.answer(*newest, *how),
            ClientStep::Hold(held) => {
                self.session.hold(*held);
                self.settle();
            }
            ClientStep::Shutdown => {
                self.session.shutdown();
                self.settle();
            }
            ClientStep::OfferTls(how) => {
                let all = [TlsPolicy::Off, TlsPolicy::Allow, TlsPolicy::Require];
                self.policy = all[usize::from(how % 3)];
                self.session.offer_tls(self.policy);
                if !self.is_secured {
                    let some = || Access::only(["v".into()]);
                    self.access = if *how >= 0x80 { some() } else { Access::all() };
                }
            }
            ClientStep::Split(bytes) => self.split = usize::from(*bytes).max(1),
        }
    }

    fn go(&mut self, go: bool, name: u8, items: u8) {
        let name: &[u8] = [&b"v"[..], b"", b"none", b"held"][usize::from(name % 4)];
        let mut data = u32::try_from(name.len())
            .expect("short")
            .to_be_bytes()
            .to_vec();
        data.extend_from_slice(name);
        if items >= 0xe0 {
            let all: [&[u8]; 3] = [b"base:allocation", b"qemu:dirty-bitmap:since=s", b"qemu:"];
            let some = &all[..1 + usize::from(items % 3)];
            let count = u32::try_from(some.len()).expect("few");
            let mut queries = count.to_be_bytes().to_vec();
            for query in some {
                let length = u32::try_from(query.len()).expect("short");
                queries.extend(length.to_be_bytes());
                queries.extend_from_slice(query);
            }
            let length = u32::try_from(data.len() + queries.len()).expect("short");
            let head = [b"IHAVEOPT", &10u32.to_be_bytes()[..], &length.to_be_bytes()].concat();
            self.send(&[head, data.clone(), queries].concat());
        }
        let wanted: Vec<u16> = (0..8u16).filter(|bit| items >> bit & 1 == 1).collect();
        data.extend(u16::try_from(wanted.len()).expect("few").to_be_bytes());
        data.extend(wanted.iter().flat_map(|item| item.to_be_bytes()));
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(if go { 7u32 } else { 6 }.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).expect("short").to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    fn request(&mut self, step: &ClientStep<'_>) {
        let ClientStep::Request {
            command,
            flags,
            cookie,
            offset,
            length,
            high,
            payload_missing,
        } = step
        else {
            return;
        };
        let command = u16::from(command % 10);
        let offset = u64::from(*high) << 32 | u64::from(*offset);
        // Lengths around the limits as well as short ones.
        let length = if length % 16 == 0 {
            u32::from(*length) << 4
        } else {
            u32::from(*length)
        };
        let mut bytes = if self.negotiated.extended {
            [
                &0x21e4_1c71u32.to_be_bytes()[..],
                // A write has its payload flag but for a few.
                &(u16::from(*flags) | u16::from(command == 1 && *flags != 1) << 5).to_be_bytes(),
            ]
            .concat()
        } else {
            [
                &0x2560_9513u32.to_be_bytes()[..],
                &u16::from(*flags).to_be_bytes(),
            ]
            .concat()
        };
        bytes.extend(command.to_be_bytes());
        bytes.extend(u64::from(*cookie).to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if self.negotiated.extended {
            bytes.extend(u64::from(length).to_be_bytes());
        } else {
            bytes.extend(length.to_be_bytes());
        }
        if command == 1 && length <= 1 << 18 {
            let whole = usize::try_from(length).expect("64-bit");
            let missing = if *payload_missing > 250 {
                usize::from(*payload_missing)
            } else {
                0
            };
            let filled = whole.saturating_sub(missing);
            bytes.resize(bytes.len() + filled, *cookie);
        }
        self.send(&bytes);
    }

    /// The client sends; the session takes what it wants, in pieces.
    fn send(&mut self, data: &[u8]) {
        if self.closed || self.backlog.len() > 1 << 20 {
            return;
        }
        self.backlog.extend_from_slice(data);
        self.settle();
    }

    fn settle(&mut self) {
        self.act();
        let mut at = 0;
        while at < self.backlog.len() && self.session.wants_input() {
            let end = (at + self.split).min(self.backlog.len());
            self.received_bytes += to_u64(end - at);
            self.session
                .receive(Bytes::copy_from_slice(&self.backlog[at..end]));
            at = end;
            self.act();
        }
        self.backlog.drain(..at);
        if self.closed {
            self.backlog.clear();
        }
    }

    /// Polls, answers what is asked of the owner, and reads what the session sent by itself.
    fn act(&mut self) {
        while let Some(action) = self.session.poll() {
            assert!(!self.closed, "an action after the end: {action:?}");
            self.read_own();
            match action {
                Action::StartTls => {
                    assert!(!self.is_secured, "TLS begins twice");
                    self.is_secured = true;
                    self.negotiated = Negotiated::default();
                    // What the client has sent and the session has not seen belongs to TLS, and is none.
                    self.session.secured(self.access.clone());
                }
                Action::ListExports => {
                    self.session
                        .list_exports(&[("v".into(), SIZE_BYTES), (String::new(), 0)]);
                }
                Action::Export {
                    name,
                    attach,
                    contexts,
                } => {
                    let is_served = self.is_secured || self.policy != TlsPolicy::Require;
                    assert!(is_served, "{name} is asked for without TLS");
                    let may = !self.is_secured || self.access.permits(&name);
                    assert!(may, "{name} is for other clients");
                    self.export(&name, attach, &contexts);
                }
                Action::Request(request) => {
                    check_request(&request);
                    self.waiting.push(request);
                }
                Action::Close { reason, .. } => {
                    assert!(!reason.is_empty() && !reason.contains('\n'), "{reason:?}");
                    self.closed = true;
                    self.waiting.clear();
                }
            }
            self.check_limits();
        }
        self.read_own();
        self.check_limits();
    }

    fn export(&mut self, name: &str, attach: bool, asked: &ContextsAsked) {
        assert!(asked.names.len() <= META_QUERIES_MAX);
        if let Some(of) = &asked.of {
            assert!(&**of == "v" && !asked.list && asked.names.len() <= CONTEXTS_SELECTED_MAX);
            let known = |name: &Arc<str>| **name == *ALLOCATION || name.starts_with(SINCE);
            assert!(asked.names.iter().all(known), "{asked:?}");
        }
        // More than anybody lists: what is asked for by name is there as well.
        let mut contexts: Vec<Arc<str>> = vec![ALLOCATION.into()];
        let since = asked.names.iter().filter(|name| name.starts_with(SINCE));
        contexts.extend(since.cloned());
        contexts.extend(
            asked
                .list
                .then(|| Arc::from("qemu:dirty-bitmap:since=newest")),
        );
        contexts.sort();
        contexts.dedup();
        let answer = match name {
            "none" => Err(ExportError::Unknown("no volume is named none".into())),
            "held" => Err(ExportError::Unavailable("it is suspended".into())),
            _ => Ok(Export {
                name: "v".into(),
                size_bytes: SIZE_BYTES,
                read_only: name.is_empty(),
                multi_conn: true,
                block_size_min: if name.is_empty() { 512 } else { 1 },
                block_size_preferred: 4096,
                block_size_max: 32 << 20,
                description: "d".into(),
                contexts,
            }),
        };
        let had = answer.is_ok();
        self.session.export(answer);
        self.read_own();
        self.attached |= had && attach;
    }

    /// What the session says without being told to: option replies, refusals, empty answers.
    fn read_own(&mut self) {
        let bytes = self.output();
        let mut sent = Sent(&bytes);
        while !sent.is_empty() {
            if self.attached {
                sent.reply(self.negotiated, None);
                continue;
            }
            if !sent.0.starts_with(&0x0003_e889_0455_65a9u64.to_be_bytes()) {
                // The answer to EXPORT_NAME: size, flags, perhaps zeros.
                assert!(
                    sent.0.len() == 10 || sent.0.len() == 134,
                    "{} bytes",
                    sent.0.len()
                );
                assert_eq!(sent.take(8), SIZE_BYTES.to_be_bytes());
                sent.take(sent.0.len());
                continue;
            }
            match sent.option_reply() {
                (8, 1) => self.negotiated.structured = true,
                (11, 1) => {
                    self.negotiated.structured = true;
                    self.negotiated.extended = true;
                }
                _ => {}
            }
        }
        // What is sent unasked is paid for by what was received.
        assert!(
            self.sent_bytes <= 4096 + 256 * self.received_bytes,
            "replies grow without bound"
        );
    }

    fn answer(&mut self, newest: bool, how: u8) {
        if self.waiting.is_empty() {
            return;
        }
        let at = if newest { self.waiting.len() - 1 } else { 0 };
        let request = self.waiting.remove(at);
        let mut read = None;
        let result = match (how % 4, &request.op) {
            (1, _) => Err(RequestError::Io),
            (_, Operation::Read { .. }) => {
                read = Some((request.offset, request.length));
                let head = request.length * u64::from(how) / 256;
                let data = vec![how; usize::try_from(head).expect("64-bit")];
                let rest = request.length - head + u64::from(how == 2); // one byte too many
                Ok(Reply::Data(vec![
                    ReadPiece::Data(data.into()),
                    ReadPiece::Zeros(rest),
                ]))
            }
            (_, Operation::BlockStatus { contexts, .. }) => {
                assert!((1..=CONTEXTS_SELECTED_MAX).contains(&contexts.len()));
                let length = request.length.div_ceil(1 + u64::from(how));
                let extent = Extent { length, flags: 3 };
                Ok(Reply::BlockStatus(vec![vec![extent]; contexts.len()]))
            }
            _ => Ok(Reply::Done),
        };
        let failed = result.is_err() || (read.is_some() && how == 2);
        self.session.complete(request.id, result);
        let bytes = self.output();
        self.sent_bytes -= to_u64(bytes.len()); // asked for: not counted as the session's own
        let mut sent = Sent(&bytes);
        let (_, error) = sent.reply(self.negotiated, read);
        assert_eq!(error, failed, "the wrong outcome of {request:?}");
        assert!(sent.is_empty(), "more than one reply to one request");
        self.settle();
    }

    fn output(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.session.take_output(&mut out);
        let bytes = out.concat();
        self.sent_bytes += to_u64(bytes.len());
        bytes
    }

    fn check_limits(&self) {
        let requests = self.session.requests_in_flight();
        assert!(
            requests <= LIMITS.requests_in_flight_max + 1,
            "{requests} requests in flight"
        );
        let bytes = self.session.bytes_in_flight();
        // One request is always admitted: the status of many contexts counts more than the limit.
        assert!(
            bytes <= LIMITS.bytes_in_flight_max || requests == 1,
            "{bytes} bytes in flight"
        );
        let held: u64 = self.waiting.iter().map(payload_bytes).sum();
        assert!(
            self.closed || held <= to_u64(bytes),
            "more is held than counted"
        );
    }
}

fn payload_bytes(request: &Request) -> u64 {
    match &request.op {
        Operation::Write { payload } => to_u64(payload.len()),
        _ => 0,
    }
}

/// What reaches the owner is valid: inside the export, permitted, within the limits.
fn check_request(request: &Request) {
    let end = request.offset.checked_add(request.length);
    assert!(end.is_some_and(|end| end <= SIZE_BYTES), "{request:?}");
    match &request.op {
        Operation::Write { payload } => {
            assert_eq!(to_u64(payload.len()), request.length);
            let address = payload.as_ptr().addr();
            assert_eq!(
                to_u64(address % 4096),
                request.offset % 4096,
                "payload is not aligned"
            );
        }
        Operation::Read { .. } => assert!(request.length <= to_u64(LIMITS.request_bytes_max)),
        _ => {}
    }
}
