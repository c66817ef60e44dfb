//! A client's side of the protocol, written independently of the crate's own encoders.

use bytes::Bytes;
use esker_nbd::{Action, ContextsAsked, Export, Request, Session, SessionLimits};
use std::sync::Arc;

pub const SIZE: u64 = 8 << 30;
pub const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
pub const DONE: u16 = 1;
/// With extended headers: the length is that of the payload.
pub const PAYLOAD: u16 = 32;

/// The form of requests and replies that a client negotiates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Simple,
    Structured,
    Extended,
}

pub const FORMS: [Form; 3] = [Form::Simple, Form::Structured, Form::Extended];

impl Form {
    pub fn chunks(self) -> bool {
        self != Self::Simple
    }

    /// Options that lead to it.
    pub fn options(self) -> Vec<u8> {
        match self {
            Self::Simple => Vec::new(),
            Self::Structured => option(8, &[]),
            Self::Extended => option(11, &[]),
        }
    }
}

pub fn export() -> Export {
    Export {
        name: "vol".to_owned(),
        size_bytes: SIZE,
        read_only: false,
        multi_conn: true,
        block_size_min: 1,
        block_size_preferred: 4096,
        block_size_max: 32 << 20,
        description: "a volume".to_owned(),
        contexts: ["base:allocation", "x-test:one", "x-test:two"]
            .map(Arc::from)
            .to_vec(),
    }
}

pub fn len32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("short").to_be_bytes()
}

/// An option with the client's own idea of its length.
pub fn option_lying(code: u32, length: u32, data: &[u8]) -> Vec<u8> {
    [
        b"IHAVEOPT",
        &code.to_be_bytes()[..],
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

pub fn option(code: u32, data: &[u8]) -> Vec<u8> {
    option_lying(code, u32::from_be_bytes(len32(data)), data)
}

/// Payload of INFO and GO.
pub fn info(name: &str, items: &[u16]) -> Vec<u8> {
    let count = u16::try_from(items.len()).expect("few").to_be_bytes();
    let items: Vec<u8> = items.iter().flat_map(|item| item.to_be_bytes()).collect();
    [&len32(name.as_bytes())[..], name.as_bytes(), &count, &items].concat()
}

/// Payload of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).expect("few").to_be_bytes();
    let text = |text: &str| [&len32(text.as_bytes())[..], text.as_bytes()].concat();
    let queries: Vec<u8> = queries.iter().flat_map(|query| text(query)).collect();
    [text(name), count.to_vec(), queries].concat()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> OptionReply {
    OptionReply {
        option,
        kind,
        data: data.to_vec(),
    }
}

fn take<const N: usize>(raw: &mut &[u8]) -> [u8; N] {
    let (head, rest) = raw
        .split_first_chunk::<N>()
        .expect("a reply that is cut short");
    *raw = rest;
    *head
}

fn take_vec(raw: &mut &[u8], length: u32) -> Vec<u8> {
    let length = usize::try_from(length).expect("64-bit");
    let (head, rest) = raw
        .split_at_checked(length)
        .expect("a reply that is cut short");
    *raw = rest;
    head.to_vec()
}

pub fn option_replies(mut raw: &[u8]) -> Vec<OptionReply> {
    let mut replies = Vec::new();
    while !raw.is_empty() {
        assert_eq!(u64::from_be_bytes(take(&mut raw)), 0x0003_e889_0455_65a9);
        let option = u32::from_be_bytes(take(&mut raw));
        let kind = u32::from_be_bytes(take(&mut raw));
        let length = u32::from_be_bytes(take(&mut raw));
        replies.push(OptionReply {
            option,
            kind,
            data: take_vec(&mut raw, length),
        });
    }
    replies
}

/// A compact request header followed by `data`.
pub fn request(
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
    data: &[u8],
) -> Vec<u8> {
    [
        &0x2560_9513u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// An extended request header followed by `data`.
pub fn extended(
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
    data: &[u8],
) -> Vec<u8> {
    [
        &0x21e4_1c71u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
        data,
    ]
    .concat()
}

/// A request in whichever form, with the payload flag where it belongs.
pub fn request_in(
    form: Form,
    flags: u16,
    command: u16,
    (cookie, offset): (u64, u64),
    length: u32,
    data: &[u8],
) -> Vec<u8> {
    if form != Form::Extended {
        return request(flags, command, cookie, offset, length, data);
    }
    let payload = if command == 1 { PAYLOAD } else { 0 };
    extended(
        flags | payload,
        command,
        cookie,
        offset,
        length.into(),
        data,
    )
}

pub fn write(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    request(
        flags,
        1,
        cookie,
        offset,
        u32::from_be_bytes(len32(data)),
        data,
    )
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Simple {
        error: u32,
        cookie: u64,
        data: Vec<u8>,
    },
    Chunk {
        flags: u16,
        kind: u16,
        cookie: u64,
        payload: Vec<u8>,
    },
    /// With extended headers; carries the request's offset.
    Extended {
        flags: u16,
        kind: u16,
        cookie: u64,
        offset: u64,
        payload: Vec<u8>,
    },
}

pub fn simple(error: u32, cookie: u64) -> Message {
    Message::Simple {
        error,
        cookie,
        data: Vec::new(),
    }
}

pub fn chunk(flags: u16, kind: u16, cookie: u64, payload: &[u8]) -> Message {
    Message::Chunk {
        flags,
        kind,
        cookie,
        payload: payload.to_vec(),
    }
}

/// A chunk in the form that is negotiated, to a request at `offset`.
pub fn chunk_in(
    form: Form,
    flags: u16,
    kind: u16,
    (cookie, offset): (u64, u64),
    payload: &[u8],
) -> Message {
    assert!(form.chunks());
    if form == Form::Structured {
        return chunk(flags, kind, cookie, payload);
    }
    Message::Extended {
        flags,
        kind,
        cookie,
        offset,
        payload: payload.to_vec(),
    }
}

/// Success without data, as every form has it.
pub fn done(form: Form, cookie: u64, offset: u64) -> Message {
    match form {
        Form::Extended => chunk_in(form, DONE, 0, (cookie, offset), &[]),
        _ => simple(0, cookie),
    }
}

/// Reads replies; a successful simple one carries as many bytes as `data_length` says for its
/// cookie.
pub fn messages_with(mut raw: &[u8], data_length: impl Fn(u64) -> u32) -> Vec<Message> {
    let mut messages = Vec::new();
    while !raw.is_empty() {
        messages.push(match u32::from_be_bytes(take(&mut raw)) {
            0x6744_6698 => {
                let error = u32::from_be_bytes(take(&mut raw));
                let cookie = u64::from_be_bytes(take(&mut raw));
                let length = if error == 0 { data_length(cookie) } else { 0 };
                Message::Simple {
                    error,
                    cookie,
                    data: take_vec(&mut raw, length),
                }
            }
            0x668e_33ef => {
                let flags = u16::from_be_bytes(take(&mut raw));
                let kind = u16::from_be_bytes(take(&mut raw));
                let cookie = u64::from_be_bytes(take(&mut raw));
                let length = u32::from_be_bytes(take(&mut raw));
                Message::Chunk {
                    flags,
                    kind,
                    cookie,
                    payload: take_vec(&mut raw, length),
                }
            }
            0x6e8a_278c => {
                let flags = u16::from_be_bytes(take(&mut raw));
                let kind = u16::from_be_bytes(take(&mut raw));
                let cookie = u64::from_be_bytes(take(&mut raw));
                let offset = u64::from_be_bytes(take(&mut raw));
                let length = u64::from_be_bytes(take(&mut raw));
                let length = u32::try_from(length).expect("a payload of less than 4 GiB");
                Message::Extended {
                    flags,
                    kind,
                    cookie,
                    offset,
                    payload: take_vec(&mut raw, length),
                }
            }
            magic => panic!("reply with magic {magic:#x}"),
        });
    }
    messages
}

pub fn messages(raw: &[u8]) -> Vec<Message> {
    messages_with(raw, |_| 0)
}

/// The error number of the only message, which must be an error in the right form, and to a request
/// at `offset` where the form says so.
pub fn only_error(form: Form, raw: &[u8], (cookie, offset): (u64, u64)) -> u32 {
    let payload = match (messages(raw).as_slice(), form) {
        (
            [Message::Simple {
                error, cookie: c, ..
            }],
            Form::Simple,
        ) if *c == cookie => return *error,
        (
            [Message::Chunk {
                flags: DONE,
                kind: 0x8001,
                cookie: c,
                payload,
            }],
            Form::Structured,
        ) if *c == cookie => payload.clone(),
        (
            [Message::Extended {
                flags: DONE,
                kind: 0x8001,
                cookie: c,
                offset: o,
                payload,
            }],
            Form::Extended,
        ) if (*c, *o) == (cookie, offset) => payload.clone(),
        other => panic!("not one error: {other:?}"),
    };
    let text = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
    assert!(text > 0 && payload.len() == 6 + text);
    assert!(std::str::from_utf8(&payload[6..]).is_ok());
    u32::from_be_bytes([payload[0], payload[1], payload[2], payload[3]])
}

/// A session and its owner's hands.
#[derive(Debug)]
pub struct Peer(pub Session);

impl Peer {
    /// Greeted, nothing sent.
    pub fn new(limits: SessionLimits) -> Self {
        let mut peer = Self(Session::new(limits));
        assert_eq!(peer.output(), GREETING);
        peer
    }

    /// Greeted, with client flags sent.
    pub fn haggling() -> Self {
        let mut peer = Self::new(SessionLimits::default());
        assert_eq!(peer.send(&3u32.to_be_bytes()), []);
        peer
    }

    /// In transmission.
    pub fn attached_with(limits: SessionLimits, form: Form, export: Export) -> Self {
        Self::attached_to(limits, form, export, &[])
    }

    /// In transmission, with these metadata contexts selected.
    pub fn attached_to(
        limits: SessionLimits,
        form: Form,
        export: Export,
        selected: &[&str],
    ) -> Self {
        let mut peer = Self::new(limits);
        peer.send(&3u32.to_be_bytes());
        assert_eq!(peer.send(&form.options()), []);
        let asks = |attach, contexts| {
            let name = "vol".to_owned();
            [Action::Export {
                name,
                attach,
                contexts,
            }]
        };
        let mut asked = ContextsAsked {
            names: selected.iter().copied().map(Arc::from).collect(),
            ..ContextsAsked::default()
        };
        if !selected.is_empty() {
            let actions = peer.send(&option(10, &contexts("vol", selected)));
            assert_eq!(actions, asks(false, asked.clone()));
            peer.0.export(Ok(export.clone()));
        }
        let has = |name: &Arc<str>| export.contexts.contains(name);
        asked.names.retain(has);
        asked.of = (!selected.is_empty()).then(|| "vol".into());
        assert_eq!(peer.send(&option(7, &info("vol", &[]))), asks(true, asked));
        peer.0.export(Ok(export));
        peer.output();
        peer
    }

    pub fn attached(form: Form) -> Self {
        Self::attached_with(SessionLimits::default(), form, export())
    }

    /// Sends bytes; gives what the session asks then.
    pub fn send(&mut self, data: &[u8]) -> Vec<Action> {
        self.0.receive(Bytes::copy_from_slice(data));
        self.actions()
    }

    pub fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.0.poll()).collect()
    }

    /// Sends bytes that make exactly one request.
    pub fn one(&mut self, data: &[u8]) -> Request {
        let mut requests = requests(self.send(data));
        assert_eq!(requests.len(), 1);
        requests.remove(0)
    }

    pub fn output(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.0.take_output(&mut out);
        out.concat()
    }
}

pub fn requests(actions: Vec<Action>) -> Vec<Request> {
    actions
        .into_iter()
        .map(|action| match action {
            Action::Request(request) => request,
            other => panic!("not a request: {other:?}"),
        })
        .collect()
}

/// Whether the only action is a close, and whether it is clean.
pub fn closed(actions: &[Action]) -> Option<bool> {
    match actions {
        [Action::Close { reason, clean }] => {
            assert!(!reason.is_empty() && !reason.contains('\n'));
            Some(*clean)
        }
        _ => None,
    }
}
