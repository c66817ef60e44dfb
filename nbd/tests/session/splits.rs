//! How a stream is cut into pieces makes no difference, and no stream makes a session panic.

use crate::client::{contexts, export, extended, info, option, request, Form, FORMS, PAYLOAD};
use bytes::Bytes;
use esker_nbd::{
    Action, ExportError, Extent, Operation, ReadPiece, Reply, Request, RequestError, RequestId,
    Session, SessionLimits,
};
use proptest::prelude::*;

/// An owner that answers by fixed rules: requests in reverse order as soon as `hold` are waiting.
struct Owner {
    session: Session,
    hold: usize,
    held: Vec<Request>,
    seen: Vec<Action>,
}

impl Owner {
    fn new(hold: usize) -> Self {
        let session = Session::new(SessionLimits::default());
        Self {
            session,
            hold,
            held: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn feed(&mut self, part: &[u8]) {
        self.session.receive(Bytes::copy_from_slice(part));
        while let Some(action) = self.session.poll() {
            self.seen.push(action.clone());
            match action {
                Action::StartTls => panic!("TLS is not offered"),
                Action::ListExports => self.session.list_exports(&[("vol".to_owned(), 1 << 20)]),
                Action::Export { name, .. } if name == "none" => {
                    self.session
                        .export(Err(ExportError::Unknown("none".to_owned())));
                }
                Action::Export { .. } => {
                    let mut export = export();
                    export.size_bytes = 1 << 20;
                    self.session.export(Ok(export));
                }
                Action::Request(request) => self.held.push(request),
                Action::Close { .. } => {}
            }
            if self.held.len() >= self.hold {
                self.answer_all();
            }
        }
    }

    fn answer_all(&mut self) {
        while let Some(request) = self.held.pop() {
            self.session.complete(request.id, result(&request));
        }
    }

    fn finish(mut self) -> (Vec<Action>, Vec<u8>, bool) {
        self.answer_all();
        while let Some(action) = self.session.poll() {
            self.seen.push(action);
        }
        let mut out = Vec::new();
        self.session.take_output(&mut out);
        (self.seen, out.concat(), self.session.wants_input())
    }
}

/// A result that depends on nothing but the request.
fn result(request: &Request) -> Result<Reply, RequestError> {
    if request.offset % 7 == 3 {
        return Err(RequestError::Io);
    }
    if let Operation::BlockStatus { contexts, .. } = &request.op {
        let (length, flags) = (request.length.min(700), 1);
        let extent = Extent { length, flags };
        return Ok(Reply::BlockStatus(vec![vec![extent]; contexts.len()]));
    }
    let Operation::Read { .. } = request.op else {
        return Ok(Reply::Done);
    };
    let head = request.length / 3;
    let middle = request.length / 2 - head;
    let data = |length: u64| {
        ReadPiece::Data(Bytes::from(vec![
            9;
            usize::try_from(length).expect("64-bit")
        ]))
    };
    let tail = request.length - head - middle;
    Ok(Reply::Data(vec![
        data(head),
        ReadPiece::Zeros(middle),
        data(tail),
    ]))
}

/// An option that leaves the handshake going, but for a rare one.
fn an_option() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("vol"), Just(""), Just("none")];
    let items = prop::collection::vec(0u16..5, 0..5);
    let junk = (0u32..14, prop::collection::vec(any::<u8>(), 0..40));
    prop_oneof![
        8 => (name, items).prop_map(|(name, items)| option(6, &info(name, &items))),
        4 => Just(option(7, &info("none", &[3]))),
        4 => Just(option(3, &[])),
        4 => Just(option(8, &[])),
        3 => Just(option(9, &contexts("vol", &["base:"]))),
        3 => Just(option(10, &contexts("vol", &["base:allocation"]))),
        1 => Just(option(7, &info("vol", &[]))),
        1 => Just(option(2, &[])),
        8 => junk
            .prop_filter("may end the handshake or change the form", |(code, _)| {
                ![1, 2, 11].contains(code)
            })
            .prop_map(|(code, data)| option(code, &data)),
    ]
}

fn a_request(form: Form) -> impl Strategy<Value = Vec<u8>> {
    let command = prop_oneof![20 => 0u16..2, 10 => 3u16..8, 1 => 2u16..3, 1 => 8u16..10];
    let flags = prop_oneof![16 => Just(0u16), 4 => 0u16..32, 1 => any::<u16>()];
    let offset = prop_oneof![8 => 0u64..(1 << 20), 1 => any::<u64>()];
    let length = prop_oneof![
        8 => 0u64..300,
        1 => 0u64..20_000,
        1 => (32u64 << 20)..(33 << 20),
        1 => any::<u64>(),
    ];
    let ids =
        prop_oneof![4 => Just(None), 1 => prop::collection::vec(0u32..3, 0..3).prop_map(Some)];
    (flags, command, any::<u64>(), offset, length, ids).prop_map(
        move |(flags, command, cookie, offset, length, ids)| {
            let filter = ids.filter(|_| command == 7 && form == Form::Extended);
            let length = if length > 100_000 && command == 1 {
                20_000
            } else {
                length
            };
            if form != Form::Extended {
                let length = u32::try_from(length).unwrap_or(u32::MAX);
                let data = carried(u64::from(length) * u64::from(command == 1));
                return request(flags, command, cookie, offset, length, &data);
            }
            let payload = command == 1 || flags & PAYLOAD != 0;
            let (length, data) = match filter {
                Some(ids) => {
                    let ids = ids.iter().flat_map(|id| id.to_be_bytes());
                    let data: Vec<u8> = length.to_be_bytes().into_iter().chain(ids).collect();
                    (u64::try_from(data.len()).expect("short"), data)
                }
                None if payload && length < 100_000 => (length, carried(length)),
                None => (length, Vec::new()),
            };
            let flag = if data.is_empty() { 0 } else { PAYLOAD };
            extended(flags | flag, command, cookie, offset, length, &data)
        },
    )
}

fn carried(length: u64) -> Vec<u8> {
    (0..length).map(|i| i.to_le_bytes()[0]).collect()
}

/// A conversation, most often one that reaches transmission.
fn a_stream() -> impl Strategy<Value = Vec<u8>> {
    let form = prop_oneof![
        1 => Just(Form::Simple),
        1 => Just(Form::Structured),
        2 => Just(Form::Extended),
    ];
    form.prop_flat_map(a_stream_in)
}

fn a_stream_in(form: Form) -> impl Strategy<Value = Vec<u8>> {
    let client_flags = prop_oneof![18 => Just(3u32), 1 => 0u32..4, 1 => any::<u32>()];
    let select = match form {
        Form::Simple => Vec::new(),
        _ => option(10, &contexts("vol", &["base:allocation", "x-test:two"])),
    };
    let go = prop_oneof![
        4 => Just(option(7, &info("vol", &[3]))),
        4 => Just([select, option(7, &info("vol", &[3]))].concat()),
        2 => Just(option(1, b"vol")),
        1 => Just(Vec::new()),
    ];
    (
        client_flags,
        prop::collection::vec(an_option(), 0..5),
        go,
        prop::collection::vec(a_request(form), 1..20),
    )
        .prop_map(move |(flags, options, go, requests)| {
            let head = [&flags.to_be_bytes()[..], &form.options(), &options.concat()].concat();
            [head, go, requests.concat()].concat()
        })
}

/// The stream with bytes flipped, cut out, or its end missing.
fn a_broken_stream() -> impl Strategy<Value = Vec<u8>> {
    let places = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (
        a_stream(),
        places,
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(mut stream, places, end, cut)| {
            for (place, value) in places {
                if !stream.is_empty() {
                    let at = place.index(stream.len());
                    stream[at] ^= value;
                }
            }
            if cut && !stream.is_empty() {
                stream.truncate(end.index(stream.len()));
            }
            stream
        })
}

fn run(stream: &[u8], hold: usize, splits: &[usize]) -> (Vec<Action>, Vec<u8>, bool) {
    let mut owner = Owner::new(hold);
    let mut rest = stream;
    for length in splits.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (part, after) = rest.split_at((*length).clamp(1, rest.len()));
        owner.feed(part);
        rest = after;
    }
    owner.finish()
}

/// What an owner may do at any time.
#[derive(Clone, Debug)]
enum Call {
    Receive(Vec<u8>),
    Poll,
    List,
    Export(bool),
    Complete(prop::sample::Index, u64),
    FailAt(prop::sample::Index, u64),
    Take,
    Shutdown,
}

fn a_call() -> impl Strategy<Value = Call> {
    prop_oneof![
        6 => a_request(Form::Simple).prop_map(Call::Receive),
        3 => a_request(Form::Extended).prop_map(Call::Receive),
        3 => an_option().prop_map(Call::Receive),
        3 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Call::Receive),
        8 => Just(Call::Poll),
        1 => Just(Call::List),
        2 => any::<bool>().prop_map(Call::Export),
        4 => (any::<prop::sample::Index>(), 0u64..2000).prop_map(|(i, n)| Call::Complete(i, n)),
        2 => (any::<prop::sample::Index>(), any::<u64>()).prop_map(|(i, n)| Call::FailAt(i, n)),
        2 => Just(Call::Take),
        1 => Just(Call::Shutdown),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn splits_make_no_difference(
        stream in prop_oneof![a_stream(), a_broken_stream()],
        hold in 1usize..6,
        splits in prop::collection::vec(1usize..200, 1..20),
    ) {
        let whole = run(&stream, hold, &[usize::MAX]);
        prop_assert_eq!(&run(&stream, hold, &[1]), &whole);
        prop_assert_eq!(&run(&stream, hold, &splits), &whole);
    }

    #[test]
    fn no_order_of_calls_panics(
        attached in any::<bool>(),
        form in prop::sample::select(&FORMS[..]),
        calls in prop::collection::vec(a_call(), 0..60),
    ) {
        let mut session = Session::new(SessionLimits {
            requests_in_flight_max: 3,
            bytes_in_flight_max: 10_000,
            ..SessionLimits::default()
        });
        let mut held: Vec<RequestId> = Vec::new();
        let mut closed = false;
        if attached {
            let go = option(7, &info("vol", &[]));
            let go = [&3u32.to_be_bytes()[..], &form.options(), &go].concat();
            session.receive(Bytes::from(go));
        }
        for call in calls {
            match call {
                Call::Receive(data) => session.receive(Bytes::from(data)),
                Call::Poll => match session.poll() {
                    Some(Action::Request(request)) => held.push(request.id),
                    Some(Action::Close { .. }) => {
                        prop_assert!(!closed, "closed twice");
                        closed = true;
                    }
                    Some(_) => prop_assert!(!closed),
                    None => {}
                },
                Call::List => session.list_exports(&[]),
                Call::Export(true) => session.export(Ok(export())),
                Call::Export(false) => session.export(Err(ExportError::Policy(String::new()))),
                Call::Complete(..) | Call::FailAt(..) if held.is_empty() => {}
                Call::FailAt(index, place) => {
                    let id = held.swap_remove(index.index(held.len()));
                    session.fail_at(id, RequestError::Io, place);
                }
                Call::Complete(index, length) => {
                    let id = held.swap_remove(index.index(held.len()));
                    let reply = Reply::Data(vec![ReadPiece::Zeros(length)]);
                    session.complete(id, Ok(reply));
                }
                Call::Take => session.take_output(&mut Vec::new()),
                Call::Shutdown => session.shutdown(),
            }
            prop_assert!(session.requests_in_flight() <= 3);
            prop_assert!(!(closed && session.wants_input()));
        }
    }
}

#[test]
fn most_streams_reach_transmission() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = a_stream();
    let reached = (0..200)
        .filter(|_| {
            let stream = strategy.new_tree(&mut runner).expect("generated").current();
            let (seen, ..) = run(&stream, 1, &[usize::MAX]);
            seen.iter()
                .filter(|action| matches!(action, Action::Request(_)))
                .count()
                >= 2
        })
        .count();
    assert!(
        reached >= 100,
        "only {reached} of 200 streams exercise transmission"
    );
}
