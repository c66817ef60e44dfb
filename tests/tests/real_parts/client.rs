//! A plain NBD client with simple replies: what it sends and gets is all visible here.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const FUA: u16 = 1;

pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const ESHUTDOWN: u32 = 108;

pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const REPLY_MAGIC: u32 = 0x6744_6698;
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_GO: u32 = 7;
/// No answer takes longer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A stream of either kind.
pub trait Stream: Read + Write + Send {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// A session.
pub struct Client {
    stream: Box<dyn Stream>,
    pub size_bytes: u64,
    next_cookie: u64,
}

/// A request's answer: its data, or the error number.
pub type Answer = io::Result<Result<Vec<u8>, u32>>;

pub fn connect_unix(socket: &Path) -> io::Result<Box<dyn Stream>> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    Ok(Box::new(stream))
}

pub fn connect_tcp(port: u16) -> io::Result<Box<dyn Stream>> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    Ok(Box::new(stream))
}

/// An option of the handshake.
pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// The data of `GO` for an export.
pub fn go_data(export: &str) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend(0u16.to_be_bytes());
    data
}

/// The header of a request.
pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = REQUEST_MAGIC.to_be_bytes().to_vec();
    out.extend(flags.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}

pub fn exact<const N: usize>(stream: &mut dyn Stream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Client {
    pub fn unix(socket: &Path, export: &str) -> io::Result<Self> {
        Self::new(connect_unix(socket)?, export)
    }

    pub fn tcp(port: u16, export: &str) -> io::Result<Self> {
        Self::new(connect_tcp(port)?, export)
    }

    /// Does the handshake up to transmission.
    pub fn new(mut stream: Box<dyn Stream>, export: &str) -> io::Result<Self> {
        let greeting: [u8; 18] = exact(&mut *stream)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        let mut hello = 3u32.to_be_bytes().to_vec(); // fixed newstyle, no zeroes
        hello.extend(option(OPTION_GO, &go_data(export)));
        stream.write_all(&hello)?;
        let mut size_bytes = 0;
        loop {
            let head: [u8; 20] = exact(&mut *stream)?;
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let length = u32::from_be_bytes(head[16..].try_into().unwrap());
            let mut data = vec![0; length as usize];
            stream.read_exact(&mut data)?;
            match kind {
                1 => break,
                3 if data[..2] == [0, 0] => {
                    size_bytes = u64::from_be_bytes(data[2..10].try_into().unwrap());
                }
                3 => {}
                other => {
                    let text = String::from_utf8_lossy(&data).into_owned();
                    return Err(io::Error::other(format!("{other:#x}: {text}")));
                }
            }
        }
        Ok(Self {
            stream,
            size_bytes,
            next_cookie: 0,
        })
    }

    /// Starts cookies from here, so that they tell which client asked.
    pub fn cookies_from(mut self, first: u64) -> Self {
        self.next_cookie = first;
        self
    }

    /// Sends a request; gives its cookie.
    pub fn send(
        &mut self,
        flags: u16,
        kind: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let mut bytes = request(flags, kind, cookie, offset, length);
        bytes.extend(payload);
        self.stream.write_all(&bytes)?;
        Ok(cookie)
    }

    /// The next reply to a request that is no read: cookie and error.
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        let head: [u8; 16] = exact(&mut *self.stream)?;
        let magic = u32::from_be_bytes(head[..4].try_into().unwrap());
        assert_eq!(magic, REPLY_MAGIC, "magic of a reply");
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        Ok((cookie, error))
    }

    /// One request alone.
    fn ask(&mut self, flags: u16, kind: u16, offset: u64, length: u32, payload: &[u8]) -> Answer {
        let sent = self.send(flags, kind, offset, length, payload)?;
        let (cookie, error) = self.reply()?;
        assert_eq!(cookie, sent);
        if error != 0 {
            return Ok(Err(error));
        }
        let mut data = vec![0; if kind == READ { length as usize } else { 0 }];
        self.stream.read_exact(&mut data)?;
        Ok(Ok(data))
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Answer {
        self.ask(0, READ, offset, length, &[])
    }

    pub fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> Answer {
        self.ask(flags, WRITE, offset, data.len() as u32, data)
    }

    pub fn flush(&mut self) -> Answer {
        self.ask(0, FLUSH, 0, 0, &[])
    }

    pub fn trim(&mut self, offset: u64, length: u32) -> Answer {
        self.ask(0, TRIM, offset, length, &[])
    }
}
