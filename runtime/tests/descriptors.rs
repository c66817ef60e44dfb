//! Running out of descriptors. In a process of its own: the limit is the whole process's.
#![allow(clippy::unwrap_used)] // tests may unwrap

mod common;

use common::{echo, fresh_socket, Running, PATIENCE};
use esker_runtime::{Listener, LoopConfig};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[test]
fn without_descriptors_the_loop_waits_instead_of_spinning() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(64);
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let path = fresh_socket();
    let listeners = vec![Listener::unix(&path).unwrap()];
    let running = Running::start(LoopConfig::new(0), listeners, |_, e, fx| echo(e, fx));
    let mut fillers = Vec::new();
    while let Ok(filler) = File::open("/dev/null") {
        fillers.push(filler);
    }
    // The last descriptor is the client's own; there is none for the other end.
    fillers.pop();
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"x").unwrap();
    let turns = || running.handle.inspect().unwrap().turns;
    let before = turns();
    std::thread::sleep(Duration::from_millis(600));
    let turns = turns() - before;
    assert!((3..60).contains(&turns), "{turns} turns in 600 ms");
    assert_eq!(running.handle.connections(), 0);
    drop(fillers);
    client.read_exact(&mut [0]).unwrap();
}
