//! A client's side of the NBD protocol, written independently of the server's encoders.

const COOKIE_BYTES: usize = 8;

/// What a command does, by its number in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Disconnect.
    Disc,
    /// Flush.
    Flush,
    /// Trim.
    Trim,
    /// Cache.
    Cache,
    /// Write zeroes.
    WriteZeroes,
}

impl Command {
    fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disc => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
        }
    }
}

/// Flag: answer when durable.
pub const FUA: u16 = 1;
/// Flag: keep space allocated.
pub const NO_HOLE: u16 = 2;
/// Flag: one content chunk.
pub const DF: u16 = 4;

/// What a client sends after the greeting: its flags, and the options up to GO.
#[must_use]
pub fn hello(name: &str, structured: bool) -> Vec<u8> {
    let mut out = 3u32.to_be_bytes().to_vec(); // fixed newstyle, no zeroes
    if structured {
        option(&mut out, 8, &[]);
    }
    let mut go = length(name.len()).to_vec();
    go.extend_from_slice(name.as_bytes());
    go.extend_from_slice(&0u16.to_be_bytes());
    option(&mut out, 7, &go);
    out
}

fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

fn option(out: &mut Vec<u8>, code: u32, data: &[u8]) {
    out.extend_from_slice(b"IHAVEOPT");
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&length(data.len()));
    out.extend_from_slice(data);
}

/// A request, with the payload of a write.
#[must_use]
pub fn request(
    command: Command,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&command.number().to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Something a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The greeting.
    Greeting,
    /// An option was acknowledged, or an option's fact without meaning here.
    OptionOk(u32),
    /// The export's size in bytes.
    Size(u64),
    /// An option was refused.
    OptionError(u32, u32),
    /// A reply without content, or the end of one: cookie and error number.
    Done(u64, u32),
    /// Content of a read: cookie, offset in the export, bytes.
    Data(u64, u64, Vec<u8>),
    /// A hole in a read: cookie, offset in the export, length.
    Hole(u64, u64, u32),
}

/// Where a client's stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Options,
    Transmission,
}

/// Decodes a server's stream.
#[derive(Clone, Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    at: usize,
    phase: Phase,
    structured: bool,
    /// The end of a structured reply whose last chunk carried content.
    end_of: Option<u64>,
}

/// Length and offset of the read that a cookie stands for; none for other commands.
pub type ReadOf<'a> = &'a dyn Fn(u64) -> Option<(u64, u32)>;

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(structured: bool) -> Self {
        Self {
            buffer: Vec::new(),
            at: 0,
            phase: Phase::Greeting,
            structured,
            end_of: None,
        }
    }

    /// Takes bytes in.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    fn take(&mut self, n: usize) -> Option<&[u8]> {
        let taken = self.buffer.get(self.at..self.at + n)?;
        self.at += n;
        Some(taken)
    }

    fn peek(&self, at: usize, n: usize) -> Option<&[u8]> {
        self.buffer.get(self.at + at..self.at + at + n)
    }

    fn number(&self, at: usize, n: usize) -> Option<u64> {
        let bytes = self.peek(at, n)?;
        Some(bytes.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)))
    }

    fn number32(&self, at: usize) -> Option<u32> {
        self.number(at, 4).and_then(|n| u32::try_from(n).ok())
    }

    /// The next thing said in full, if any.
    ///
    /// # Errors
    /// When the server breaks the protocol.
    pub fn next(&mut self, read_of: ReadOf<'_>) -> Result<Option<Said>, String> {
        if let Some(cookie) = self.end_of.take() {
            return Ok(Some(Said::Done(cookie, 0)));
        }
        match self.phase {
            Phase::Greeting => {
                let Some(greeting) = self.take(18) else {
                    return Ok(None);
                };
                if greeting != b"NBDMAGICIHAVEOPT\x00\x03" {
                    return Err("bad greeting".into());
                }
                self.phase = Phase::Options;
                Ok(Some(Said::Greeting))
            }
            Phase::Options => self.option_reply(),
            Phase::Transmission => self.reply(read_of),
        }
    }

    fn option_reply(&mut self) -> Result<Option<Said>, String> {
        let (Some(magic), Some(option), Some(kind), Some(length)) = (
            self.number(0, 8),
            self.number32(8),
            self.number32(12),
            self.number32(16),
        ) else {
            return Ok(None);
        };
        if magic != 0x0003_e889_0455_65a9 {
            return Err("bad option reply".into());
        }
        let length = length as usize;
        if self.peek(20, length).is_none() {
            return Ok(None);
        }
        let said = if kind & 1 << 31 != 0 {
            Said::OptionError(option, kind)
        } else if kind == 3 && self.number(20, 2) == Some(0) {
            Said::Size(self.number(22, 8).ok_or("short info")?)
        } else {
            if option == 7 && kind == 1 {
                self.phase = Phase::Transmission;
            }
            Said::OptionOk(if kind == 1 { option } else { 0 })
        };
        self.at += 20 + length;
        Ok(Some(said))
    }

    fn reply(&mut self, read_of: ReadOf<'_>) -> Result<Option<Said>, String> {
        match self.number32(0) {
            None => Ok(None),
            Some(0x6744_6698) => {
                let (Some(error), Some(cookie)) = (self.number32(4), self.number(8, COOKIE_BYTES))
                else {
                    return Ok(None);
                };
                let read = read_of(cookie);
                let Some((offset, length)) = read.filter(|_| error == 0) else {
                    self.at += 16;
                    return Ok(Some(Said::Done(cookie, error)));
                };
                if self.structured {
                    return Err("a simple reply to a read".into());
                }
                let Some(data) = self.peek(16, length as usize).map(<[u8]>::to_vec) else {
                    return Ok(None);
                };
                self.at += 16 + length as usize;
                self.end_of = Some(cookie);
                Ok(Some(Said::Data(cookie, offset, data)))
            }
            Some(0x668e_33ef) if self.structured => self.chunk(read_of),
            Some(other) => Err(format!("bad reply magic {other:#x}")),
        }
    }

    fn chunk(&mut self, read_of: ReadOf<'_>) -> Result<Option<Said>, String> {
        let (Some(flags), Some(kind), Some(cookie), Some(length)) = (
            self.number(4, 2),
            self.number(6, 2),
            self.number(8, COOKIE_BYTES),
            self.number32(16),
        ) else {
            return Ok(None);
        };
        let length = length as usize;
        let Some(body) = self.peek(20, length).map(<[u8]>::to_vec) else {
            return Ok(None);
        };
        let said = match kind {
            0 => Said::Done(cookie, 0),
            1 => {
                let offset = self.number(20, 8).ok_or("short data chunk")?;
                Said::Data(cookie, offset, body[8..].to_vec())
            }
            2 => {
                let offset = self.number(20, 8).ok_or("short hole chunk")?;
                Said::Hole(cookie, offset, self.number32(28).ok_or("short hole chunk")?)
            }
            0x8001 => Said::Done(cookie, self.number32(20).ok_or("short error chunk")?),
            // An error that says where: behind its text, which is as long as it says.
            0x8002 => {
                let text = self.number(24, 2).ok_or("short error chunk")?;
                let at = 26 + usize::try_from(text).unwrap_or(usize::MAX);
                let place = self.number(at, 8).filter(|_| at + 8 == 20 + length);
                let place = place.ok_or("an error chunk of a wrong length")?;
                if let Some((offset, bytes)) = read_of(cookie) {
                    if place < offset || place >= offset + u64::from(bytes) {
                        return Err(format!(
                            "an error at {place} of a read of {bytes} at {offset}"
                        ));
                    }
                }
                Said::Done(cookie, self.number32(20).ok_or("short error chunk")?)
            }
            other => return Err(format!("unknown chunk type {other}")),
        };
        self.at += 20 + length;
        let content = matches!(said, Said::Data(..) | Said::Hole(..));
        if content && flags & 1 != 0 {
            self.end_of = Some(cookie);
        }
        Ok(Some(said))
    }
}
