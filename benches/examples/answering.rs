//! A server that answers and stores nothing: how many requests a client can drive at most on this
//! machine. Writes are dropped, reads answered with zeros. One thread, one connection at a time.
//!
//! `answering SOCKET SIZE_BYTES`

use esker_nbd::{Action, Export, Operation, ReadPiece, Reply, Session, SessionLimits};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

const RECEIVE_BYTES: usize = 256 * 1024;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(size)) = (arguments.next(), arguments.next()) else {
        return Err(std::io::Error::other("usage: answering SOCKET SIZE_BYTES"));
    };
    let size_bytes = size.parse().map_err(std::io::Error::other)?;
    let listener = UnixListener::bind(socket)?;
    for stream in listener.incoming() {
        // A client that leaves in the middle is no reason to end.
        match serve(stream?, size_bytes) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn serve(mut stream: UnixStream, size_bytes: u64) -> std::io::Result<()> {
    let mut session = Session::new(SessionLimits::default());
    let mut buf = vec![0; RECEIVE_BYTES];
    let mut out = Vec::new();
    loop {
        while let Some(action) = session.poll() {
            match action {
                Action::StartTls => panic!("TLS is not offered"),
                Action::ListExports => session.list_exports(&[(String::new(), size_bytes)]),
                Action::Export { name, .. } => session.export(Ok(export(name, size_bytes))),
                Action::Request(request) => {
                    let reply = match request.op {
                        Operation::Read { .. } => {
                            Reply::Data(vec![ReadPiece::Zeros(request.length)])
                        }
                        _ => Reply::Done,
                    };
                    session.complete(request.id, Ok(reply));
                }
                Action::Close { .. } => return Ok(()),
            }
        }
        out.clear();
        session.take_output(&mut out);
        let mut slices: Vec<IoSlice<'_>> = out.iter().map(|b| IoSlice::new(b)).collect();
        let mut rest = slices.as_mut_slice();
        while !rest.is_empty() {
            let few = rest.len().min(1024);
            let sent = stream.write_vectored(&rest[..few])?;
            IoSlice::advance_slices(&mut rest, sent);
        }
        let length = stream.read(&mut buf)?;
        if length == 0 {
            return Ok(());
        }
        session.receive(bytes::Bytes::copy_from_slice(&buf[..length]));
    }
}

fn export(name: String, size_bytes: u64) -> Export {
    Export {
        name,
        size_bytes,
        read_only: false,
        multi_conn: true,
        block_size_min: 1,
        block_size_preferred: 4096,
        block_size_max: 32 << 20,
        description: String::new(),
        contexts: Vec::new(),
    }
}
