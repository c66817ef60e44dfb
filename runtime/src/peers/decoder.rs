//! From the bytes of a link to its frames. Without a socket: the loop feeds it, and so does the fuzzer.

use super::wire::{Hello, Prelude, WireError, WireKind, PRELUDE_BYTES};
use bytes::Bytes;
use esker_base::checksum::crc32;
use esker_base::AlignedBuf;

/// Payloads of which at least so much is missing are received in place, in bytes; the rest of smaller ones
/// is copied out of what has been received.
pub const DIRECT_BYTES_MIN: usize = 16 << 10;
/// Memory that a header gets before its bytes are there, in bytes.
const HEADER_BYTES_FIRST: usize = 64 << 10;

/// What a link has brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrived {
    /// Its first frame.
    Hello(Hello),
    /// Any other one.
    Frame(ArrivedFrame),
}

/// A frame, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrivedFrame {
    /// What it is; not a hello.
    pub kind: WireKind,
    /// The sending store's index in its node.
    pub from_store: u16,
    /// The receiving store's index in this node.
    pub to_store: u16,
    /// Its header, as the checksum says.
    pub header: Bytes,
    /// Its payload in one piece of page-aligned memory; none when there is none.
    pub payload: Option<Bytes>,
}

/// A payload that is being received.
#[derive(Debug)]
pub struct Partial {
    /// The memory of all of it.
    pub buf: AlignedBuf,
    /// Bytes that are there.
    pub filled: usize,
}

/// Reads a link from its first byte. Holds at most one frame; what it may get is checked before there is
/// memory for it.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
    has_begun: bool,
}

#[derive(Debug)]
enum State {
    Prelude([u8; PRELUDE_BYTES], usize),
    Header(Prelude, Vec<u8>),
    /// The partial is away while it is received in place.
    Payload(Prelude, Bytes, Option<Partial>),
    Failed(WireError),
}

impl Default for State {
    fn default() -> Self {
        Self::Prelude([0; PRELUDE_BYTES], 0)
    }
}

impl Decoder {
    /// Takes the next bytes; whole frames go to `out`.
    ///
    /// # Errors
    /// When they are not those of a link. Nothing comes out of it any more.
    ///
    /// # Panics
    /// When a partial payload is away.
    pub fn push(&mut self, mut data: &[u8], out: &mut Vec<Arrived>) -> Result<(), WireError> {
        while !data.is_empty() {
            data = self.take(data);
            self.advance(out)?;
        }
        Ok(())
    }

    /// The payload that is being received, when it is worth receiving the rest in place. Comes back by
    /// [`Decoder::put_partial`] before anything else.
    pub fn take_partial(&mut self) -> Option<Partial> {
        match &mut self.state {
            State::Payload(_, _, partial)
                if partial
                    .as_ref()
                    .is_some_and(|p| p.buf.len() - p.filled >= DIRECT_BYTES_MIN) =>
            {
                partial.take()
            }
            _ => None,
        }
    }

    /// Takes it back, with more of it filled.
    ///
    /// # Errors
    /// As [`Decoder::push`].
    pub fn put_partial(&mut self, back: Partial, out: &mut Vec<Arrived>) -> Result<(), WireError> {
        if let State::Payload(_, _, partial) = &mut self.state {
            *partial = Some(back);
        }
        self.advance(out)
    }

    /// Takes bytes of the part that is being received, and returns the rest.
    fn take<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        match &mut self.state {
            State::Prelude(bytes, filled) => {
                let (mine, rest) = data.split_at(data.len().min(PRELUDE_BYTES - *filled));
                bytes[*filled..*filled + mine.len()].copy_from_slice(mine);
                *filled += mine.len();
                rest
            }
            State::Header(prelude, header) => {
                let (mine, rest) =
                    data.split_at(data.len().min(prelude.header_bytes - header.len()));
                header.extend_from_slice(mine);
                rest
            }
            State::Payload(_, _, Some(Partial { buf, filled })) => {
                let (mine, rest) = data.split_at(data.len().min(buf.len() - *filled));
                buf[*filled..*filled + mine.len()].copy_from_slice(mine);
                *filled += mine.len();
                rest
            }
            State::Payload(_, _, None) => panic!("bytes of a link while its payload is received"),
            State::Failed(_) => data,
        }
    }

    /// Goes on to the next part for as long as the present one is whole.
    fn advance(&mut self, out: &mut Vec<Arrived>) -> Result<(), WireError> {
        loop {
            let is_whole = match &self.state {
                State::Prelude(_, filled) => *filled == PRELUDE_BYTES,
                State::Header(prelude, header) => header.len() == prelude.header_bytes,
                State::Payload(_, _, partial) => {
                    partial.as_ref().is_some_and(|p| p.filled == p.buf.len())
                }
                State::Failed(error) => return Err(*error),
            };
            if !is_whole {
                return Ok(());
            }
            self.state = match self.next(out) {
                Ok(state) => state,
                Err(error) => State::Failed(error),
            };
        }
    }

    /// What follows the present part, which is whole.
    fn next(&mut self, out: &mut Vec<Arrived>) -> Result<State, WireError> {
        match std::mem::take(&mut self.state) {
            State::Prelude(bytes, _) => {
                let prelude = Prelude::decode(&bytes)?;
                if (prelude.kind == WireKind::Hello) == self.has_begun {
                    return Err(WireError::Order);
                }
                let room = prelude.header_bytes.min(HEADER_BYTES_FIRST);
                Ok(State::Header(prelude, Vec::with_capacity(room)))
            }
            State::Header(prelude, header) => {
                if crc32(&header) != prelude.header_crc {
                    return Err(WireError::Checksum("header"));
                }
                if prelude.kind == WireKind::Hello {
                    self.has_begun = true;
                    out.push(Arrived::Hello(Hello::of_header(&header)?));
                    return Ok(State::default());
                }
                let header = Bytes::from(header);
                if prelude.payload_bytes == 0 {
                    out.push(arrived(&prelude, header, None));
                    return Ok(State::default());
                }
                let buf = AlignedBuf::to_overwrite(prelude.payload_bytes);
                Ok(State::Payload(
                    prelude,
                    header,
                    Some(Partial { buf, filled: 0 }),
                ))
            }
            State::Payload(prelude, header, partial) => {
                let payload = partial.map(|partial| partial.buf.freeze());
                out.push(arrived(&prelude, header, payload));
                Ok(State::default())
            }
            State::Failed(error) => Err(error),
        }
    }
}

fn arrived(prelude: &Prelude, header: Bytes, payload: Option<Bytes>) -> Arrived {
    Arrived::Frame(ArrivedFrame {
        kind: prelude.kind,
        from_store: prelude.from_store,
        to_store: prelude.to_store,
        header,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::super::wire::frame;
    use super::*;

    fn hello() -> Hello {
        Hello {
            cluster: vec![1; 16],
            from_node: 2,
            version_min: 1,
            version_max: 1,
            ..Hello::default()
        }
    }

    fn numbered(length: usize) -> Bytes {
        (0..length)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect()
    }

    fn stream() -> (Vec<u8>, Vec<Arrived>) {
        let mut bytes = hello().to_frame().concat();
        let mut expected = vec![Arrived::Hello(hello())];
        for (kind, header, payload) in [
            (WireKind::Group, 10, 0),
            (WireKind::Group, 100, 4096),
            (WireKind::Door, 0, 1),
            (WireKind::Group, 5000, 300_000),
            (WireKind::Door, 0, 0),
        ] {
            let (header, payload) = (numbered(header), numbered(payload));
            let pieces = payload.chunks(4096).map(Bytes::copy_from_slice).collect();
            bytes.extend(frame(kind, (1, 2), &header, pieces).unwrap().concat());
            expected.push(Arrived::Frame(ArrivedFrame {
                kind,
                from_store: 1,
                to_store: 2,
                header,
                payload: Some(payload).filter(|p| !p.is_empty()),
            }));
        }
        (bytes, expected)
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut_and_payloads_are_aligned() {
        let (bytes, expected) = stream();
        for cut in [1, 7, 31, 4096, 65_536, usize::MAX] {
            let (mut decoder, mut out) = (Decoder::default(), Vec::new());
            for piece in bytes.chunks(cut.min(bytes.len())) {
                decoder.push(piece, &mut out).unwrap();
            }
            assert!(out == expected, "cut at {cut}");
            for arrived in out {
                if let Arrived::Frame(ArrivedFrame {
                    payload: Some(p), ..
                }) = arrived
                {
                    assert!(esker_base::buf::is_aligned(&p));
                }
            }
        }
    }

    #[test]
    fn large_payloads_are_received_in_place() {
        let (bytes, expected) = stream();
        let (mut decoder, mut out) = (Decoder::default(), Vec::new());
        let (mut rest, mut direct) = (&bytes[..], 0);
        while !rest.is_empty() {
            if let Some(mut partial) = decoder.take_partial() {
                let count = (partial.buf.len() - partial.filled).min(100_000);
                let to = partial.filled + count;
                partial.buf[partial.filled..to].copy_from_slice(&rest[..count]);
                partial.filled = to;
                (rest, direct) = (&rest[count..], direct + count);
                decoder.put_partial(partial, &mut out).unwrap();
                continue;
            }
            let (piece, after) = rest.split_at(rest.len().min(8192));
            decoder.push(piece, &mut out).unwrap();
            rest = after;
        }
        assert!(out == expected);
        assert!(direct > 250_000, "{direct}");
    }

    #[test]
    fn what_is_no_link_is_refused_and_stays_refused() {
        let (good, _) = stream();
        let hello = hello().to_frame().concat();
        let group = frame(WireKind::Group, (0, 0), &numbered(9), vec![]).unwrap();
        let group = group.concat();
        let mut bad_header = [hello.clone(), group.clone()].concat();
        *bad_header.last_mut().unwrap() ^= 1;
        for (bytes, expected) in [
            (vec![b'G'; 64], WireError::Magic),
            (group, WireError::Order),
            ([hello.clone(), hello].concat(), WireError::Order),
            (bad_header, WireError::Checksum("header")),
        ] {
            let (mut decoder, mut out) = (Decoder::default(), Vec::new());
            assert_eq!(decoder.push(&bytes, &mut out), Err(expected));
            assert_eq!(decoder.push(&good, &mut out), Err(expected));
            assert!(out.len() <= 1);
        }
    }
}
