//! NBD sessions over a file, block by block: no engine, so that what differs between two runs is who
//! interprets the effects.

use bytes::Bytes;
use esker_base::{ConnId, DiskError, DiskOp, IoId, Moment, WallClock};
use esker_nbd::{
    Action, Export, Operation, ReadPiece, Reply, Request, RequestError, RequestId, Session,
    SessionLimits,
};
use esker_node::{Effect, Event, Machine};
use std::collections::HashMap;

pub struct Direct {
    size_bytes: u64,
    sessions: HashMap<ConnId, Session>,
    requests: HashMap<IoId, (ConnId, RequestId, bool)>,
    next_io: u64,
}

impl Direct {
    pub fn new(size_bytes: u64) -> Self {
        Self {
            size_bytes,
            sessions: HashMap::new(),
            requests: HashMap::new(),
            next_io: 1,
        }
    }

    fn serve(&mut self, conn: ConnId, effects: &mut Vec<Effect>) {
        let Some(session) = self.sessions.get_mut(&conn) else {
            return;
        };
        let mut close = None;
        while let Some(action) = session.poll() {
            match action {
                Action::StartTls => unreachable!("TLS is not offered"),
                Action::ListExports => session.list_exports(&[("v".into(), self.size_bytes)]),
                Action::Export { .. } => session.export(Ok(Export {
                    name: "v".into(),
                    size_bytes: self.size_bytes,
                    read_only: false,
                    multi_conn: true,
                    block_size_min: 4096,
                    block_size_preferred: 4096,
                    block_size_max: 32 << 20,
                    description: String::new(),
                })),
                Action::Request(request) => {
                    let io = IoId(self.next_io);
                    self.next_io += 1;
                    match operation(&request) {
                        Some(op) => {
                            let read = matches!(op, DiskOp::Read { .. });
                            self.requests.insert(io, (conn, request.id, read));
                            effects.push(Effect::Disk { io, op });
                        }
                        None => session.complete(request.id, Err(RequestError::NotSupported)),
                    }
                }
                Action::Close { reason, .. } => close = Some(reason),
            }
        }
        let mut bufs = Vec::new();
        session.take_output(&mut bufs);
        if !bufs.is_empty() {
            effects.push(Effect::Send { conn, bufs });
        }
        if let Some(reason) = close {
            effects.push(Effect::Close { conn, reason });
        }
    }

    fn disk(&mut self, io: IoId, result: Result<Bytes, DiskError>, effects: &mut Vec<Effect>) {
        let Some((conn, id, read)) = self.requests.remove(&io) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&conn) else {
            return;
        };
        session.complete(
            id,
            match result {
                Ok(bytes) if read => Ok(Reply::Data(vec![ReadPiece::Data(bytes)])),
                Ok(_) => Ok(Reply::Done),
                Err(_) => Err(RequestError::Io),
            },
        );
        self.serve(conn, effects);
    }
}

fn operation(request: &Request) -> Option<DiskOp> {
    let offset = request.offset;
    match &request.op {
        Operation::Read { .. } => Some(DiskOp::Read {
            offset,
            length: request.length as usize,
        }),
        Operation::Write { payload } => Some(DiskOp::Write {
            offset,
            bufs: vec![payload.clone()],
        }),
        Operation::Flush => Some(DiskOp::Sync),
        _ => None,
    }
}

impl Machine for Direct {
    fn step(&mut self, _: Moment, _: WallClock, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Connected { conn, .. } => {
                self.sessions
                    .insert(conn, Session::new(SessionLimits::default()));
                self.serve(conn, effects);
            }
            Event::Received { conn, data } => {
                if let Some(session) = self.sessions.get_mut(&conn) {
                    session.receive(data);
                }
                self.serve(conn, effects);
            }
            Event::Disconnected { conn, .. } => _ = self.sessions.remove(&conn),
            Event::Disk { io, result } => self.disk(io, result, effects),
            Event::Stop => effects.push(Effect::Stopped),
            _ => {}
        }
    }
}
