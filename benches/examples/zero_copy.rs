//! What zero-copy sends do on this kernel: `cargo run --release -p esker-benches --example zero_copy`.
//!
//! Sends 1 MiB pieces with `IORING_OP_SEND` and with `IORING_OP_SEND_ZC` over a unix socket and over TCP on
//! the loopback, in turn, while a thread reads them, and prints what the kernel says, whether it copied all the same
//! (`IORING_SEND_ZC_REPORT_USAGE`), and CPU time of the sending thread per piece.

#![allow(unsafe_code)] // submissions to a ring of its own

use io_uring::{cqueue, opcode, types, IoUring};
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes of a piece: the payload of a large read.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces of a round.
const PIECES: u32 = 2000;
/// Rounds of each way.
const ROUNDS: u32 = 3;
/// Set in the result of a notification when the kernel has copied (`IORING_NOTIF_USAGE_ZC_COPIED`).
const COPIED: u32 = 1 << 31;

/// What a round took.
struct Outcome {
    cpu: Duration,
    bytes: u64,
    copied: u32,
}

fn main() {
    for round in 1..=ROUNDS {
        for (name, connect) in [("unix", unix as fn() -> Ends), ("tcp", tcp)] {
            for zero_copy in [false, true] {
                let (sender, reader) = connect();
                let drain = std::thread::spawn(move || drained(reader));
                let fd = sender.as_raw_fd();
                match send_all(fd, zero_copy) {
                    Ok(o) => println!(
                        "round {round}: {name}, zero-copy {zero_copy}: {:.1} us of CPU per MiB; copied all the same: {} of {PIECES}",
                        o.cpu.as_secs_f64() * 1e6 / (o.bytes as f64 / PIECE_BYTES as f64),
                        o.copied,
                    ),
                    Err(error) => println!("round {round}: {name}, zero-copy {zero_copy}: {error}"),
                }
                drop(sender);
                drain.join().expect("the reader ends");
            }
        }
    }
}

type Ends = (Box<dyn AsRawFd>, Box<dyn Read + Send>);

fn unix() -> Ends {
    let (a, b) = UnixStream::pair().expect("a pair of sockets");
    (Box::new(a), Box::new(b))
}

fn tcp() -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let a = TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
    let (b, _) = listener.accept().expect("accepts");
    (Box::new(a), Box::new(b))
}

fn drained(mut from: Box<dyn Read + Send>) {
    let mut buf = vec![0; PIECE_BYTES];
    while from.read(&mut buf).is_ok_and(|length| length > 0) {}
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let text =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("scheduler statistics");
    let nanos = text.split(' ').next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.expect("a number"))
}

fn send_all(fd: RawFd, zero_copy: bool) -> std::io::Result<Outcome> {
    let mut ring = IoUring::new(8)?;
    let piece = vec![7_u8; PIECE_BYTES];
    let before = cpu_time();
    let (mut bytes, mut copied) = (0, 0);
    for _ in 0..PIECES {
        let (start, length) = (
            piece.as_ptr(),
            esker_base::num::to_u32_saturating(piece.len()),
        );
        let entry = match zero_copy {
            true => opcode::SendZc::new(types::Fd(fd), start, length)
                .zc_flags(1 << 3) // IORING_SEND_ZC_REPORT_USAGE
                .build(),
            false => opcode::Send::new(types::Fd(fd), start, length).build(),
        };
        // SAFETY: `piece` outlives the loop, and each operation has ended before the next turn.
        unsafe { ring.submission().push(&entry) }.expect("the queue has room");
        let mut done = false;
        while !done {
            ring.submit_and_wait(1)?;
            for completion in ring.completion() {
                if cqueue::notif(completion.flags()) {
                    copied += u32::from(completion.result().cast_unsigned() & COPIED != 0);
                } else if completion.result() < 0 {
                    return Err(std::io::Error::from_raw_os_error(-completion.result()));
                } else {
                    bytes += u64::from(completion.result().cast_unsigned());
                }
                done = !cqueue::more(completion.flags());
            }
        }
    }
    Ok(Outcome {
        cpu: cpu_time() - before,
        bytes,
        copied,
    })
}
