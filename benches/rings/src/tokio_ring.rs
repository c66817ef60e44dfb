//! The effects interpreted with tokio-uring: a task per connection that receives, one that sends, and
//! one per disk operation.

use crate::machine::Direct;
use bytes::Bytes;
use esker_base::{AlignedBuf, ConnId, DiskError, DiskErrorKind, DiskOp, IoId, Moment, WallClock};
use esker_node::{Effect, Event, Machine, Transport};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use tokio_uring::buf::{IoBuf, IoBufMut};
use tokio_uring::fs::File;
use tokio_uring::net::{TcpListener, TcpStream, UnixListener};

/// A page-aligned buffer that the ring reads into.
struct Aligned(AlignedBuf, usize);

// SAFETY: the memory is on the heap and stays where it is while `self` moves.
unsafe impl IoBuf for Aligned {
    fn stable_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.1
    }
    fn bytes_total(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: as above, and all of the memory is initialised.
unsafe impl IoBufMut for Aligned {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
    unsafe fn set_init(&mut self, end: usize) {
        self.1 = self.1.max(end);
    }
}

#[derive(Default)]
struct Sender {
    queue: VecDeque<Bytes>,
    busy: bool,
}

struct World {
    machine: Direct,
    file: Rc<File>,
    streams: HashMap<ConnId, (Rc<TcpStream>, Sender)>,
}

type Shared = Rc<RefCell<World>>;

pub fn serve(path: &Path, size_bytes: u64, address: &str) {
    tokio_uring::start(async {
        let probe = path.with_extension("probe.sock");
        match UnixListener::bind(&probe) {
            Ok(_) => eprintln!("tokio-uring binds a unix socket"),
            Err(error) => eprintln!("tokio-uring cannot bind a unix socket: {error}"),
        }
        _ = std::fs::remove_file(&probe);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .expect("the file opens");
        let listener = TcpListener::bind(address.parse().expect("an address")).expect("binds");
        println!("ready {}", listener.local_addr().expect("bound"));
        let world = Rc::new(RefCell::new(World {
            machine: Direct::new(size_bytes),
            file: Rc::new(File::from_std(file)),
            streams: HashMap::new(),
        }));
        for number in 1.. {
            let (stream, peer) = listener.accept().await.expect("accepts");
            stream.set_nodelay(true).expect("no delay");
            let (conn, stream) = (ConnId(number), Rc::new(stream));
            world
                .borrow_mut()
                .streams
                .insert(conn, (stream.clone(), Sender::default()));
            step(
                &world,
                Event::Connected {
                    conn,
                    transport: Transport::Tcp(peer.to_string()),
                },
            );
            tokio_uring::spawn(receive(world.clone(), conn, stream));
        }
    });
}

async fn receive(world: Shared, conn: ConnId, stream: Rc<TcpStream>) {
    loop {
        let (result, buf) = stream.read(Vec::with_capacity(64 << 10)).await;
        match result {
            Ok(n) if n > 0 => step(
                &world,
                Event::Received {
                    conn,
                    data: buf.into(),
                },
            ),
            _ => break,
        }
    }
    world.borrow_mut().streams.remove(&conn);
    step(
        &world,
        Event::Disconnected {
            conn,
            reason: "end of stream".into(),
        },
    );
}

fn step(world: &Shared, event: Event) {
    let mut effects = Vec::new();
    world
        .borrow_mut()
        .machine
        .step(Moment(1), WallClock(1), event, &mut effects);
    for effect in effects {
        match effect {
            Effect::Disk { io, op } => _ = tokio_uring::spawn(disk(world.clone(), io, op)),
            Effect::Send { conn, bufs } => {
                let mut world_mut = world.borrow_mut();
                let Some((stream, sender)) = world_mut.streams.get_mut(&conn) else {
                    continue;
                };
                sender.queue.extend(bufs);
                if !std::mem::replace(&mut sender.busy, true) {
                    tokio_uring::spawn(send(world.clone(), conn, stream.clone()));
                }
            }
            Effect::Close { conn, .. } => {
                if let Some((stream, _)) = world.borrow_mut().streams.get(&conn) {
                    _ = stream.shutdown(std::net::Shutdown::Both);
                }
            }
            _ => {}
        }
    }
}

async fn send(world: Shared, conn: ConnId, stream: Rc<TcpStream>) {
    loop {
        let batch: Vec<Bytes> = match world.borrow_mut().streams.get_mut(&conn) {
            Some((_, sender)) if !sender.queue.is_empty() => sender.queue.drain(..).collect(),
            Some((_, sender)) => {
                sender.busy = false;
                return;
            }
            None => return,
        };
        // Small replies leave together, as they do from our ring.
        if batch.iter().all(|b| b.len() <= 64) || batch.len() == 1 {
            if stream
                .write_all(Bytes::from(batch.concat()))
                .await
                .0
                .is_err()
            {
                return;
            }
            continue;
        }
        if writev_all(&stream, batch).await.is_err() {
            return;
        }
    }
}

async fn writev_all(stream: &TcpStream, mut batch: Vec<Bytes>) -> std::io::Result<()> {
    while !batch.is_empty() {
        let (result, mut rest) = stream.writev(batch).await;
        let mut sent = result?;
        while sent > 0 {
            let part = sent.min(rest[0].len());
            sent -= part;
            if part == rest[0].len() {
                rest.remove(0);
            } else {
                rest[0] = rest[0].slice(part..);
            }
        }
        batch = rest;
    }
    Ok(())
}

async fn disk(world: Shared, io: IoId, op: DiskOp) {
    let file = world.borrow().file.clone();
    let outcome = match op {
        DiskOp::Read { offset, length } => {
            let (result, buf) = file
                .read_at(Aligned(AlignedBuf::to_overwrite(length), 0), offset)
                .await;
            result.map(|n| {
                assert_eq!(n, length, "a short read");
                buf.0.freeze()
            })
        }
        DiskOp::Write { offset, bufs } => {
            let mut at = offset;
            let mut outcome = Ok(Bytes::new());
            for buf in bufs {
                let length = buf.len();
                let (result, _) = file.write_at(buf, at).submit().await;
                match result {
                    Ok(n) => assert_eq!(n, length, "a short write"),
                    Err(error) => outcome = Err(error),
                }
                at += length as u64;
            }
            outcome
        }
        DiskOp::Sync => file.sync_data().await.map(|()| Bytes::new()),
    };
    let result = outcome.map_err(|error| DiskError {
        kind: DiskErrorKind::Io,
        errno: error.raw_os_error().unwrap_or(0),
    });
    step(&world, Event::Disk { io, result });
}
