//! A client's view of what a session sends: a parser that knows only the protocol, and refuses
//! whatever a client could not read.

/// What the client has negotiated, as far as it changes the form of replies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Negotiated {
    pub structured: bool,
    pub extended: bool,
}

/// Takes fields off what was sent.
pub(crate) struct Sent<'a>(pub &'a [u8]);

impl<'a> Sent<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, count: usize) -> &'a [u8] {
        assert!(
            count <= self.0.len(),
            "a reply is cut short by {} bytes",
            count - self.0.len()
        );
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        head
    }

    fn number<const N: usize>(&mut self) -> u64 {
        self.take(N)
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// One option reply: the option it answers and its kind.
    pub fn option_reply(&mut self) -> (u64, u64) {
        assert_eq!(
            self.number::<8>(),
            0x0003_e889_0455_65a9,
            "magic of an option reply"
        );
        let (option, kind, length) = (self.number::<4>(), self.number::<4>(), self.number::<4>());
        assert!(length <= 64 << 10, "an option reply of {length} bytes");
        let data = self.take(usize::try_from(length).expect("64-bit"));
        if kind >> 31 == 1 {
            let text = std::str::from_utf8(data).expect("an error's text is UTF-8");
            assert!(text.len() <= 4096);
        }
        (option, kind)
    }

    /// The whole reply to one request. `read` is the request's offset and length when it is a read
    /// that may succeed. Returns its cookie and whether it reports an error.
    pub fn reply(&mut self, negotiated: Negotiated, read: Option<(u64, u64)>) -> (u64, bool) {
        let mut covered = 0;
        let mut failed = false;
        loop {
            let magic = self.number::<4>();
            if magic == 0x6744_6698 {
                assert!(!negotiated.extended, "a simple reply with extended headers");
                let (error, cookie) = (self.number::<4>(), self.number::<8>());
                if let Some((_, length)) = read.filter(|_| error == 0) {
                    assert!(!negotiated.structured, "a read in a simple reply");
                    self.take(usize::try_from(length).expect("64-bit"));
                }
                return (cookie, error != 0);
            }
            let wide = magic == 0x6e8a_278c;
            assert!(wide || magic == 0x668e_33ef, "magic {magic:#x} of a reply");
            assert!(if wide {
                negotiated.extended
            } else {
                negotiated.structured
            });
            let (flags, kind, cookie) =
                (self.number::<2>(), self.number::<2>(), self.number::<8>());
            assert!(flags <= 1, "flags of a chunk");
            let length = if wide {
                _ = self.number::<8>();
                self.number::<8>()
            } else {
                self.number::<4>()
            };
            let mut body = Sent(self.take(usize::try_from(length).expect("64-bit")));
            match kind {
                0 => assert!(body.is_empty() && flags == 1, "an empty chunk ends a reply"),
                1 | 2 => {
                    let (offset, asked) = read.expect("content of something that is no read");
                    let from = body.number::<8>();
                    let count = if kind == 1 {
                        to_u64(body.0.len())
                    } else {
                        body.number::<4>()
                    };
                    assert!(
                        count > 0 && from == offset + covered,
                        "content out of order"
                    );
                    covered += count;
                    assert!(covered <= asked, "more than was asked for");
                    assert!(kind == 1 || body.is_empty());
                }
                0x8001 => {
                    let (error, text) = (body.number::<4>(), body.number::<2>());
                    assert!(error != 0);
                    let text = body.take(usize::try_from(text).expect("64-bit"));
                    assert!(std::str::from_utf8(text).is_ok() && body.is_empty());
                    failed = true;
                }
                // Block status and what else may come: its length was right.
                _ => {}
            }
            if flags == 1 {
                if let Some((_, asked)) = read.filter(|_| !failed) {
                    assert_eq!(covered, asked, "a read is answered in part");
                }
                return (cookie, failed);
            }
        }
    }
}

pub(crate) fn to_u64(value: usize) -> u64 {
    u64::try_from(value).expect("64-bit")
}
