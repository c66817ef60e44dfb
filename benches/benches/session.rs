//! An NBD session, from request bytes to reply bytes, without sockets.
#![allow(missing_docs)] // criterion's macros make undocumented functions

use bytes::Bytes;
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use esker_nbd::{Action, Export, Reply, Session, SessionLimits};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const OPTION_GO: u32 = 7;
const COMMAND_WRITE: u16 = 1;
const COMMAND_FLUSH: u16 = 3;

fn attached() -> Session {
    let mut session = Session::new(SessionLimits::default());
    let mut hello = 3u32.to_be_bytes().to_vec(); // fixed newstyle, no zeroes
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&OPTION_GO.to_be_bytes());
    hello.extend_from_slice(&7u32.to_be_bytes());
    hello.extend_from_slice(&1u32.to_be_bytes());
    hello.extend_from_slice(b"v");
    hello.extend_from_slice(&0u16.to_be_bytes());
    session.receive(Bytes::from(hello));
    assert!(
        matches!(session.poll(), Some(Action::Export { .. })),
        "GO is not understood"
    );
    session.export(Ok(Export {
        name: "v".into(),
        size_bytes: 1 << 30,
        read_only: false,
        multi_conn: true,
        block_size_min: 1,
        block_size_preferred: 4096,
        block_size_max: 32 << 20,
        description: String::new(),
        contexts: Vec::new(),
    }));
    assert!(session.poll().is_none());
    session.take_output(&mut Vec::new());
    session
}

fn request(command: u16, length: u32, payload: &[u8]) -> Bytes {
    let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&1u64.to_be_bytes());
    bytes.extend_from_slice(&0u64.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    Bytes::from(bytes)
}

fn serve(session: &mut Session, bytes: &Bytes, out: &mut Vec<Bytes>) {
    session.receive(bytes.clone());
    while let Some(action) = session.poll() {
        let Action::Request(request) = action else {
            panic!("not a request: {action:?}")
        };
        session.complete(request.id, Ok(Reply::Done));
    }
    session.take_output(out);
    assert!(!out.is_empty(), "no reply");
    out.clear();
}

fn session(c: &mut Criterion) {
    let mut group = c.benchmark_group("session");
    let mut out = Vec::new();
    let flush = request(COMMAND_FLUSH, 0, &[]);
    let mut s = attached();
    group.bench_function("flush", |b| b.iter(|| serve(&mut s, &flush, &mut out)));
    for bytes in [4096u32, 1 << 20] {
        let payload = vec![0x5a; bytes as usize];
        let write = request(COMMAND_WRITE, bytes, &payload);
        group.throughput(Throughput::Bytes(u64::from(bytes)));
        let mut s = attached();
        group.bench_function(format!("write of {bytes} bytes"), |b| {
            b.iter(|| serve(&mut s, &write, &mut out));
        });
    }
    group.finish();
}

criterion_group!(benches, session);
criterion_main!(benches);
