//! A small NBD client: fixed newstyle, simple replies, as many requests on their way as its caller likes.

use esker_nbd::wire::{
    handshake_flag, info, option, option_reply, MAGIC_GREETING, MAGIC_OPTION, MAGIC_REQUEST,
    MAGIC_SIMPLE_REPLY,
};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No answer takes longer: an election takes seconds.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// What a server's text of an option reply may be long.
const OPTION_REPLY_BYTES_MAX: usize = 64 << 10;

/// A session with one export.
pub struct Session {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

/// What came back for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The request's cookie.
    pub cookie: u64,
    /// 0, or an error number of NBD. Only an answer without one to a read has data after it.
    pub error: u32,
}

impl Session {
    /// Attaches to an export of the node whose socket this is.
    ///
    /// # Errors
    /// When nobody is there, or the export is refused.
    pub fn open(socket: &Path, export: &str) -> io::Result<Self> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
        writer.set_write_timeout(Some(ANSWER_WAIT_MAX))?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut session = Self { writer, reader };
        session.greet(export)?;
        Ok(session)
    }

    fn greet(&mut self, export: &str) -> io::Result<()> {
        let greeting: [u8; 18] = self.array()?;
        let magics = [MAGIC_GREETING.to_be_bytes(), MAGIC_OPTION.to_be_bytes()].concat();
        if greeting[..16] != magics {
            return Err(odd("its greeting is not NBD's"));
        }
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let mut hello = u32::from(flags).to_be_bytes().to_vec();
        let length = |n: usize| u32::try_from(n).map_err(|_| odd("the name is too long"));
        hello.extend(MAGIC_OPTION.to_be_bytes());
        hello.extend(option::GO.to_be_bytes());
        hello.extend(length(export.len() + 6)?.to_be_bytes());
        hello.extend(length(export.len())?.to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0u16.to_be_bytes()); // no information asked for
        self.writer.write_all(&hello)?;
        let mut has_size = false;
        loop {
            let (kind, data) = self.option_reply()?;
            match kind {
                option_reply::ACK if has_size => return Ok(()),
                option_reply::INFO if data.starts_with(&info::EXPORT.to_be_bytes()) => {
                    has_size = true;
                }
                option_reply::INFO => {}
                _ => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(io::Error::other(format!("{export} is refused: {text}")));
                }
            }
        }
    }

    fn option_reply(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let head: [u8; 20] = self.array()?;
        let length = be32(&head[16..]) as usize;
        if length > OPTION_REPLY_BYTES_MAX {
            return Err(odd("its answer to an option is too long"));
        }
        let mut data = vec![0; length];
        self.reader.read_exact(&mut data)?;
        Ok((be32(&head[12..]), data))
    }

    /// Sends a request and does not wait. A write's payload is as long as `length`, others have none.
    ///
    /// # Errors
    /// When the session broke.
    pub fn send(
        &mut self,
        command: u16,
        cookie: u64,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(28 + payload.len());
        bytes.extend(MAGIC_REQUEST.to_be_bytes());
        bytes.extend(0u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(payload);
        self.writer.write_all(&bytes)
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    /// When none comes, or the session broke.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let head: [u8; 16] = self.array()?;
        if be32(&head) != MAGIC_SIMPLE_REPLY {
            return Err(odd("its reply is not NBD's"));
        }
        let (high, low) = (be32(&head[8..]), be32(&head[12..]));
        Ok(Reply {
            cookie: u64::from(high) << 32 | u64::from(low),
            error: be32(&head[4..]),
        })
    }

    /// The data after the reply to a read.
    ///
    /// # Errors
    /// When the session broke.
    pub fn data(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact(into)
    }

    /// Waits until there is something of a reply; false when there is nothing for this long.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub fn wait(&self, at_most: Duration) -> io::Result<bool> {
        if !self.reader.buffer().is_empty() {
            return Ok(true);
        }
        let timeout = Timespec::try_from(at_most).map_err(|_| odd("too long a wait"))?;
        let mut fds = [PollFd::new(&self.writer, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn be32(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .take(4)
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
