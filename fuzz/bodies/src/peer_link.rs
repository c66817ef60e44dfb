//! What comes in on a link between nodes: bytes of anybody who reaches the port. However they are cut, the
//! same frames come out, or the same refusal.

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use esker_runtime::peers::decoder::{Arrived, Decoder};
use esker_runtime::peers::wire::{self, Hello, WireError, WireKind};

/// Payloads of a mended stream, in bytes: room for one that is received in place.
const PAYLOAD_BYTES_MAX: usize = 40_000;
const FRAMES_MAX: usize = 16;

/// Any bytes as a link; and a link made of them whose checksums fit.
pub(crate) fn run(data: &[u8]) {
    let Some((cut, rest)) = data.split_first() else {
        return;
    };
    check(rest, usize::from(*cut) + 1);
    let mut u = Unstructured::new(rest);
    if let Ok((stream, expected)) = mended(&mut u) {
        let (out, end) = decoded(&stream, usize::from(*cut) * 97 + 1, true);
        assert_eq!(end, Ok(()), "our own frames");
        assert_eq!(out.len(), expected);
    }
}

fn check(bytes: &[u8], cut: usize) {
    let whole = decoded(bytes, bytes.len().max(1), false);
    assert!(whole == decoded(bytes, cut, false), "cut at {cut}");
    assert!(whole == decoded(bytes, cut, true), "cut at {cut}, in place");
    for (at, arrived) in whole.0.iter().enumerate() {
        match arrived {
            Arrived::Hello(_) => assert_eq!(at, 0, "a second hello"),
            Arrived::Frame(frame) => {
                assert_ne!(at, 0, "no hello");
                assert!(frame.kind != WireKind::Hello);
                let payload = frame.payload.as_ref();
                assert!(payload.is_none_or(|p| esker_base::buf::is_aligned(p) && !p.is_empty()));
            }
        }
    }
}

/// What comes out, in pieces of `cut` bytes, and whether it ended.
fn decoded(mut bytes: &[u8], cut: usize, in_place: bool) -> (Vec<Arrived>, Result<(), WireError>) {
    let (mut decoder, mut out) = (Decoder::default(), Vec::new());
    while !bytes.is_empty() {
        let length = cut.min(bytes.len());
        let partial = in_place.then(|| decoder.take_partial()).flatten();
        let (piece, result) = match partial {
            None => {
                let piece = &bytes[..length];
                (piece, decoder.push(piece, &mut out))
            }
            Some(mut partial) => {
                let from = partial.filled;
                let piece = &bytes[..length.min(partial.buf.len() - from)];
                partial.filled += piece.len();
                partial.buf[from..partial.filled].copy_from_slice(piece);
                (piece, decoder.put_partial(partial, &mut out))
            }
        };
        if result.is_err() {
            return (out, result);
        }
        bytes = &bytes[piece.len()..];
    }
    (out, Ok(()))
}

/// A link as a node would send it, and its number of frames.
fn mended(u: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, usize)> {
    let hello = Hello {
        cluster: u.arbitrary::<[u8; 16]>()?.to_vec(),
        from_node: u.arbitrary()?,
        from_store: u32::from(u.arbitrary::<u16>()?),
        to_node: u.arbitrary()?,
        started_us: u.arbitrary()?,
        link: u.arbitrary()?,
        version_min: 1,
        version_max: 1,
    };
    let mut stream = hello.to_frame().concat();
    let mut frames = 1;
    while !u.is_empty() && frames < FRAMES_MAX {
        let kind = match bool::arbitrary(u)? {
            true => WireKind::Group,
            false => WireKind::Door,
        };
        let header = Bytes::copy_from_slice(<&[u8]>::arbitrary(u)?);
        let length = usize::from(u16::arbitrary(u)?) % PAYLOAD_BYTES_MAX;
        let payload = Bytes::from(vec![u8::arbitrary(u)?; length]);
        let stores = (u.arbitrary()?, u.arbitrary()?);
        let pieces = wire::frame(kind, stores, &header, vec![payload]);
        stream.extend(pieces.expect("within its limits").concat());
        frames += 1;
    }
    Ok((stream, frames))
}

/// Links to begin with: as nodes send them, whole and cut off, and of somebody else.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let hello = Hello {
        cluster: vec![7; 16],
        from_node: 1,
        to_node: 2,
        started_us: 10,
        link: 1,
        version_min: 1,
        version_max: 1,
        ..Hello::default()
    };
    let mut link = vec![100];
    link.extend(hello.to_frame().concat());
    let only_hello = link.clone();
    for (kind, header, payload) in [
        (WireKind::Group, &b"a header"[..], 0),
        (WireKind::Door, b"", 20_000),
        (WireKind::Group, &[5; 300], 4096),
    ] {
        let payload = vec![Bytes::from(vec![9; payload])];
        let header = Bytes::copy_from_slice(header);
        let pieces = wire::frame(kind, (0, 1), &header, payload);
        link.extend(pieces.expect("within its limits").concat());
    }
    let twice = [&only_hello[..], &only_hello[1..]].concat();
    let cut_off = link[..link.len() - 100].to_vec();
    let http = b"\x07GET / HTTP/1.1\r\n\r\n".to_vec();
    vec![only_hello, link, cut_off, twice, http]
}
