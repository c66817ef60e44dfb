//! Links between nodes: frames both ways, ends and new beginnings, who is refused, and what is bounded.
#![allow(clippy::unwrap_used)] // tests may unwrap
#![allow(clippy::cast_possible_truncation)] // patterns of bytes

mod common;

use bytes::Bytes;
use common::{eventually, obey, Running, PATIENCE};
use esker_base::{buf, ClusterId, NodeId, Place};
use esker_keys::ca::{Authority, Request, Role};
use esker_keys::{NodeTls, Rights, ServerFiles};
use esker_node::{Effect, Event, FrameKind, PeerFrame};
use esker_runtime::peers::decoder::{Arrived, Decoder};
use esker_runtime::peers::wire::{self, Hello, WireKind};
use esker_runtime::peers::{DropReason, Neighbour, PeerCounts, PeerTls, PEER_QUEUE_BYTES_MAX};
use esker_runtime::{link, Directory, DirectorySlot, Inbound, Listener, LoopConfig, Outbound};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::time::{Duration, Instant};

const CLUSTER: ClusterId = ClusterId(77);

fn at(node: u64, store: u16) -> Place {
    Place {
        node: NodeId(node),
        store,
    }
}

fn listener() -> Listener {
    Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap()
}

fn directory(node: u64, started_us: u64, others: &[(u64, &str)]) -> Directory {
    let neighbour = |address: &str| Neighbour {
        address: address.to_owned(),
        client: None,
    };
    Directory {
        node: NodeId(node),
        cluster: CLUSTER,
        started_us,
        neighbours: others
            .iter()
            .map(|(node, address)| (NodeId(*node), neighbour(address)))
            .collect(),
        tls: None,
        allows_plain: false,
    }
}

#[derive(Debug)]
enum Told {
    Frame(Place, PeerFrame),
    Lost(NodeId),
}

/// A loop that sends what a test tells it and tells what it gets.
struct Loop {
    running: Running,
    commands: Sender<Effect>,
    told: Receiver<Told>,
}

impl Loop {
    fn start(store: usize, slot: &DirectorySlot, listeners: Vec<Listener>) -> Self {
        let (commands, to_do) = channel();
        let (report, told) = channel();
        let mut config = LoopConfig::new(store);
        config.directory = slot.clone();
        let step = move |_, event, effects: &mut Vec<Effect>| {
            obey(&event, effects);
            match event {
                Event::Places(_) => effects.extend(to_do.try_iter()),
                Event::Peer { from, frame } => drop(report.send(Told::Frame(from, frame))),
                Event::PeerLost { node } => drop(report.send(Told::Lost(node))),
                _ => {}
            }
        };
        Self {
            running: Running::start(config, listeners, step),
            commands,
            told,
        }
    }

    fn send(&self, to: Place, frames: impl IntoIterator<Item = PeerFrame>) {
        for frame in frames {
            self.commands.send(Effect::Peer { to, frame }).unwrap();
        }
        let nudge = Event::Places(BTreeMap::new());
        assert!(self.running.handle.send(Inbound::Event(nudge)));
    }

    fn next(&self) -> (Place, PeerFrame) {
        loop {
            match self.told.recv_timeout(PATIENCE).unwrap() {
                Told::Frame(from, frame) => return (from, frame),
                Told::Lost(_) => {}
            }
        }
    }

    fn lost(&self) -> NodeId {
        match self.told.recv_timeout(PATIENCE).unwrap() {
            Told::Lost(node) => node,
            Told::Frame(from, frame) => panic!("{frame:?} from {from}"),
        }
    }

    fn nothing_comes(&self) {
        let told = self.told.recv_timeout(Duration::from_millis(100));
        assert!(told.is_err(), "{told:?}");
    }
}

fn frame(number: u32, payload: usize) -> PeerFrame {
    let bytes: Bytes = (0..payload)
        .map(|n| (n % 253) as u8 ^ number as u8)
        .collect();
    PeerFrame {
        kind: match number % 2 {
            0 => FrameKind::Group,
            _ => FrameKind::Door,
        },
        header: Bytes::copy_from_slice(&number.to_le_bytes()),
        payloads: bytes.chunks(100_000).map(Bytes::copy_from_slice).collect(),
    }
}

/// As it arrives: its payload in one piece.
fn same(got: &PeerFrame, sent: &PeerFrame) {
    assert_eq!((got.kind, &got.header), (sent.kind, &sent.header));
    assert!(
        got.payloads.concat() == sent.payloads.concat(),
        "another payload"
    );
    assert!(got.payloads.len() <= 1 && got.payloads.iter().all(|p| buf::is_aligned(p)));
}

fn counts(slot: &DirectorySlot, node: u64) -> PeerCounts {
    slot.counts()
        .get(&NodeId(node))
        .copied()
        .unwrap_or_default()
}

/// Nodes 1 and 2, each with one store.
fn two() -> [(Loop, DirectorySlot, String); 2] {
    let listeners = [listener(), listener()];
    let addresses = [0, 1].map(|n: usize| listeners[n].local_addr().to_owned());
    let mut made = listeners.into_iter().enumerate().map(|(n, listener)| {
        let slot = DirectorySlot::default();
        let other = 2 - n as u64;
        slot.set(directory(n as u64 + 1, 10, &[(other, &addresses[1 - n])]));
        let one = Loop::start(0, &slot, vec![listener.for_peers()]);
        (one, slot, addresses[n].clone())
    });
    [made.next().unwrap(), made.next().unwrap()]
}

#[test]
fn frames_go_both_ways_whole_and_in_order() {
    let [(a, slot, _), (b, _, _)] = two();
    let sizes = |n: u32| match n % 7 {
        0 => 0,
        1 => 1,
        2 => 4096,
        3 => 65_536 + 17,
        4 => 1 << 20,
        _ => 300,
    };
    let frames: Vec<_> = (0..300).map(|n| frame(n, sizes(n))).collect();
    a.send(at(2, 0), frames.clone());
    b.send(at(1, 0), frames.clone());
    for (to, from) in [(&a, 2), (&b, 1)] {
        for sent in &frames {
            let (place, got) = to.next();
            assert_eq!(place, at(from, 0));
            same(&got, sent);
        }
    }
    // What has arrived counts as sent when the kernel has said so, which may be a moment later.
    let until = Instant::now() + PATIENCE;
    while counts(&slot, 2).sent_frames < 300 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let counts = counts(&slot, 2);
    assert_eq!((counts.links, counts.links_in), (1, 1));
    assert_eq!((counts.sent_frames, counts.received_frames), (300, 300));
    assert!(counts.sent_bytes > 40 << 20 && counts.received_bytes > 40 << 20);
    assert_eq!((counts.failures, counts.dropped), (0, Default::default()));
    assert!(matches!(a.running.stop(), Outbound::Stopped));
    assert!(matches!(b.running.stop(), Outbound::Stopped));
}

#[test]
fn a_payload_of_16_mib_arrives_aligned_and_intact() {
    let [(a, ..), (b, ..)] = two();
    let large = frame(8, 16 << 20);
    a.send(at(2, 0), [frame(1, 5), large.clone(), frame(3, 5)]);
    same(&b.next().1, &frame(1, 5));
    same(&b.next().1, &large);
    same(&b.next().1, &frame(3, 5));
}

#[test]
fn a_frame_reaches_the_store_it_is_for() {
    let listening = listener();
    let address = listening.local_addr().to_owned();
    let (one, two) = (DirectorySlot::default(), DirectorySlot::default());
    one.set(directory(1, 10, &[(2, &address)]));
    two.set(directory(2, 10, &[(1, "127.0.0.1:1")]));
    let stores: Vec<_> = [vec![listening.for_peers()], vec![]]
        .into_iter()
        .enumerate()
        .map(|(n, listeners)| Loop::start(n, &two, listeners))
        .collect();
    let handles: Vec<_> = stores.iter().map(|s| s.running.handle.clone()).collect();
    link(&handles);
    let sender = Loop::start(3, &one, vec![]);
    sender.send(at(2, 1), [frame(4, 9)]);
    let (from, got) = stores[1].next();
    assert_eq!(from, at(1, 3));
    same(&got, &frame(4, 9));
    // Stores of one node reach each other without a link, and themselves.
    stores[1].send(at(2, 0), [frame(5, 1)]);
    assert_eq!(stores[0].next().0, at(2, 1));
    stores[0].send(at(2, 0), [frame(5, 1)]);
    assert_eq!(stores[0].next().0, at(2, 0));
    sender.send(at(2, 9), [frame(6, 0)]);
    eventually("a frame for no store to be dropped", || {
        counts(&two, 1).dropped[DropReason::NoStore as usize] == 1
    });
    stores[0].nothing_comes();
}

#[test]
fn a_node_that_comes_back_is_connected_to_again() {
    let [(a, slot, first), (b, _, address)] = two();
    a.send(at(2, 0), [frame(1, 10)]);
    same(&b.next().1, &frame(1, 10));
    assert!(matches!(b.running.stop(), Outbound::Stopped));
    assert_eq!(a.lost(), NodeId(2));
    a.send(at(2, 0), [frame(2, 10)]);
    assert_eq!(a.lost(), NodeId(2));
    let failed = counts(&slot, 2);
    assert_eq!(failed.links, 0);
    assert_eq!(failed.dropped[DropReason::NoLink as usize], 1);

    let again = DirectorySlot::default();
    again.set(directory(2, 11, &[(1, &first)]));
    let listening = Listener::tcp(address.parse().unwrap()).unwrap();
    let b = Loop::start(0, &again, vec![listening.for_peers()]);
    // By itself: what it says to node 1 makes that one connect at once.
    b.send(at(1, 0), [frame(3, 10)]);
    same(&a.next().1, &frame(3, 10));
    let asked = Instant::now();
    a.send(at(2, 0), [frame(4, 10)]);
    same(&b.next().1, &frame(4, 10));
    assert!(asked.elapsed() < PATIENCE);
    assert_eq!(counts(&slot, 2).links, 1);
}

#[test]
fn without_a_way_frames_are_dropped_and_counted() {
    let slot = DirectorySlot::default();
    let a = Loop::start(0, &slot, vec![]);
    a.send(at(2, 0), [frame(1, 0)]);
    let unknown = DropReason::UnknownNode as usize;
    eventually("a drop without a directory", || {
        counts(&slot, 0).dropped[unknown] == 1
    });
    // 192.0.2.0/24 is nobody's; a plain link there is not even tried.
    slot.set(directory(1, 10, &[(2, "192.0.2.1:7")]));
    a.send(at(3, 0), [frame(1, 0)]);
    eventually("a drop for a node that is not there", || {
        counts(&slot, 0).dropped[unknown] == 2
    });
    let begin = Instant::now();
    a.send(at(2, 0), [frame(1, 0)]);
    assert_eq!(a.lost(), NodeId(2));
    assert!(begin.elapsed() < Duration::from_secs(1), "it was tried");
    let no_link = DropReason::NoLink as usize;
    assert_eq!(counts(&slot, 2).dropped[no_link], 1);
    a.send(at(2, 0), [frame(1, (64 << 20) + 1)]);
    eventually("a drop of a frame that is too long", || {
        counts(&slot, 2).dropped[DropReason::TooLong as usize] == 1
    });
}

/// Speaks for node 1 towards a loop of node 2.
struct Liar(TcpStream);

impl Liar {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn say(&mut self, pieces: &[Bytes]) {
        // The other side may have closed the connection already.
        let _ = self.0.write_all(&pieces.concat());
    }

    /// Waits for the other side to end the link.
    fn is_ended(&mut self) {
        match self.0.read(&mut [0; 8]) {
            Ok(count) => assert_eq!(count, 0),
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }
}

fn hello(started_us: u64, link: u64) -> Hello {
    Hello {
        cluster: CLUSTER.0.to_be_bytes().to_vec(),
        from_node: 1,
        from_store: 0,
        to_node: 2,
        started_us,
        link,
        version_min: 1,
        version_max: 1,
    }
}

fn encoded(number: u32, payload: usize) -> Vec<Bytes> {
    let PeerFrame {
        header, payloads, ..
    } = frame(number, payload);
    wire::frame(WireKind::Group, (0, 0), &header, payloads).unwrap()
}

fn number_of(frame: &PeerFrame) -> u32 {
    u32::from_le_bytes(frame.header[..].try_into().unwrap())
}

/// Node 2, which knows node 1, and where it listens.
fn second() -> (Loop, DirectorySlot, String) {
    let listening = listener();
    let address = listening.local_addr().to_owned();
    let slot = DirectorySlot::default();
    slot.set(directory(2, 10, &[(1, "127.0.0.1:1")]));
    let two = Loop::start(0, &slot, vec![listening.for_peers()]);
    (two, slot, address)
}

#[test]
fn a_newer_link_of_a_sender_ends_the_one_before_with_what_it_had_not_delivered() {
    let (two, slot, address) = second();
    let mut first = Liar::connect(&address);
    first.say(&hello(10, 1).to_frame());
    first.say(&encoded(1, 100));
    assert_eq!(number_of(&two.next().1), 1);
    // Half of a frame is there, received in place, when a newer link begins.
    let half = encoded(2, 200_000).concat();
    first.say(&[Bytes::copy_from_slice(&half[..100_000])]);
    let mut second = Liar::connect(&address);
    second.say(&hello(10, 2).to_frame());
    second.say(&encoded(3, 100));
    assert_eq!(number_of(&two.next().1), 3);
    first.say(&[Bytes::copy_from_slice(&half[100_000..])]);
    first.is_ended();
    // An older one that comes late is refused, with all it brings.
    for (started_us, link) in [(10, 1), (10, 2), (9, 50)] {
        let mut late = Liar::connect(&address);
        late.say(&hello(started_us, link).to_frame());
        late.say(&encoded(4, 100));
        late.is_ended();
    }
    assert_eq!(slot.refused(), 3);
    two.nothing_comes();
    let mut third = Liar::connect(&address);
    third.say(&hello(11, 0).to_frame());
    third.say(&encoded(5, 100));
    assert_eq!(number_of(&two.next().1), 5);
    second.is_ended();
    assert_eq!(counts(&slot, 1).links_in, 1);
}

#[test]
fn what_is_no_link_of_this_cluster_for_this_node_is_refused() {
    let (two, slot, address) = second();
    let changed = |change: fn(&mut Hello)| {
        let mut changed = hello(10, 1);
        change(&mut changed);
        changed.to_frame()
    };
    let http = vec![Bytes::from_static(
        b"GET / HTTP/1.1\r\nHost: here\r\nAccept: */*\r\n\r\n",
    )];
    let cases = [
        http,
        encoded(1, 10),
        changed(|h| h.cluster[0] ^= 1),
        changed(|h| h.to_node = 3),
        changed(|h| h.from_node = 3),
        changed(|h| h.from_store = 64),
        changed(|h| h.version_min = 2),
    ];
    let refused = cases.len() as u64;
    for case in cases {
        let mut liar = Liar::connect(&address);
        liar.say(&case);
        liar.say(&encoded(1, 10));
        liar.is_ended();
    }
    eventually("all refusals to be counted", || slot.refused() == refused);
    // A sender that turns into another one, and one that damages a header.
    for (link, bytes) in [
        (
            1,
            wire::frame(WireKind::Group, (1, 0), &Bytes::new(), vec![]).unwrap(),
        ),
        (2, {
            let mut damaged = encoded(1, 0).concat();
            *damaged.last_mut().unwrap() ^= 1;
            vec![damaged.into()]
        }),
    ] {
        let mut liar = Liar::connect(&address);
        liar.say(&hello(10, link).to_frame());
        liar.say(&bytes);
        liar.is_ended();
    }
    two.nothing_comes();
    // Whoever says nothing is not waited for.
    let mut silent = Liar::connect(&address);
    silent.is_ended();
    assert_eq!(slot.refused(), refused + 1);
}

/// A connection that says nothing does not keep the loop from ending.
#[test]
fn a_loop_ends_with_links_open_both_ways() {
    let [(a, ..), (b, ..)] = two();
    a.send(at(2, 0), [frame(1, 10)]);
    b.send(at(1, 0), [frame(1, 10)]);
    a.next();
    b.next();
    let begin = Instant::now();
    assert!(matches!(a.running.stop(), Outbound::Stopped));
    assert!(begin.elapsed() < PATIENCE);
    assert_eq!(b.lost(), NodeId(1));
}

#[test]
fn a_slow_reader_costs_no_more_than_its_bound_and_gets_whole_frames() {
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listening.local_addr().unwrap().to_string();
    let slot = DirectorySlot::default();
    slot.set(directory(1, 10, &[(2, &address)]));
    let one = Loop::start(0, &slot, vec![]);
    one.send(at(2, 0), [frame(0, 0)]);
    let (mut stream, _) = listening.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let all = 200;
    let begin = Instant::now();
    one.send(at(2, 0), (1..all).map(|n| frame(n, 1 << 20)));
    let full = DropReason::QueueFull as usize;
    eventually("frames to be dropped", || {
        counts(&slot, 2).dropped[full] > 0 && one.running.handle.inspect().is_some()
    });
    let is_quick = begin.elapsed() < Duration::from_secs(4); // else the kernel has given it up
    let (mut decoder, mut arrived) = (Decoder::default(), Vec::new());
    let mut piece = vec![0; 1 << 20];
    let dropped = || counts(&slot, 2).dropped[full];
    while arrived.len() < all as usize + 1 - dropped() as usize {
        let count = stream.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        decoder.push(&piece[..count], &mut arrived).unwrap();
    }
    let mut last = None;
    for arrived in arrived.into_iter().skip(1) {
        let Arrived::Frame(got) = arrived else {
            panic!("a second hello")
        };
        let number = u32::from_le_bytes(got.header[..].try_into().unwrap());
        assert!(last < Some(number), "{number} after {last:?}");
        last = Some(number);
        if number > 0 {
            assert!(got.payload.unwrap() == frame(number, 1 << 20).payloads.concat());
        }
    }
    let kept = u64::from(all) - dropped();
    assert!(
        kept << 20 >= PEER_QUEUE_BYTES_MAX as u64 / 2,
        "{kept} frames were sent"
    );
    assert!(
        !is_quick || dropped() >= 50,
        "{} of {all} dropped",
        dropped()
    );
}

/// TLS of a node, as an authority in this folder gives it.
fn node_tls(folder: &std::path::Path, authority: &Authority, node: u64) -> NodeTls {
    let name = format!("node-{node}");
    let request = Request {
        role: Role::Node,
        name: name.clone(),
        hosts: vec!["localhost".to_owned()],
        rights: Rights {
            node: Some(NodeId(node)),
            ..Rights::default()
        },
        days: 1,
    };
    authority
        .issue(&request, time::OffsetDateTime::now_utc())
        .unwrap();
    NodeTls::load(&ServerFiles {
        cert: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
        ca: Some(folder.join("ca.pem")),
    })
    .unwrap()
}

fn with_tls(mut directory: Directory, tls: &NodeTls) -> Directory {
    for (node, neighbour) in &mut directory.neighbours {
        neighbour.client = Some(tls.client(Some(*node)).unwrap());
    }
    directory.tls = Some(PeerTls {
        server: tls.server(),
        server_name: NodeTls::server_name(),
        node_of: |shown| esker_keys::node_of(shown).map_err(|e| e.to_string()),
    });
    directory
}

#[test]
fn with_certificates_links_are_sealed_and_only_for_the_nodes_they_name() {
    let folder = tempfile::tempdir().unwrap();
    let now = time::OffsetDateTime::now_utc();
    let authority = Authority::init(folder.path(), "esker", 100, now).unwrap();
    let tls = [1, 2, 3].map(|node| node_tls(folder.path(), &authority, node));
    let listeners = [listener(), listener(), listener()];
    let addresses = [0, 1, 2].map(|n: usize| listeners[n].local_addr().to_owned());
    let slots = [0, 1, 2].map(|_: usize| DirectorySlot::default());
    // Node 3 shows its own certificate and says that it is node 2.
    let claims = [(1, &tls[0]), (2, &tls[1]), (2, &tls[2])];
    let others = [(2, &addresses[1]), (1, &addresses[0]), (1, &addresses[0])];
    for ((slot, (node, tls)), (other, address)) in slots.iter().zip(claims).zip(others) {
        let directory = directory(node, 10, &[(other, address)]);
        slot.set(with_tls(directory, tls));
    }
    let mut loops = listeners.into_iter().zip(&slots);
    let mut start = || {
        let (listener, slot) = loops.next().unwrap();
        Loop::start(0, slot, vec![listener.for_peers()])
    };
    let (one, two, liar) = (start(), start(), start());
    let frames = [frame(1, 0), frame(2, 5_000_000), frame(3, 4096)];
    one.send(at(2, 0), frames.clone());
    for sent in &frames {
        same(&two.next().1, sent);
    }
    two.send(at(1, 0), frames.clone());
    for sent in &frames {
        same(&one.next().1, sent);
    }
    liar.send(at(1, 0), [frame(4, 10)]);
    assert_eq!(liar.lost(), NodeId(1));
    eventually("the liar to be refused", || slots[0].refused() > 0);
    // Plain bytes are no TLS.
    let before = slots[0].refused();
    let mut plain = Liar::connect(&addresses[0]);
    plain.say(&hello(10, 1).to_frame());
    plain.say(&encoded(4, 10));
    let mut rest = Vec::new();
    let _ = plain.0.read_to_end(&mut rest); // an alert, and the end
    eventually("plain bytes to be refused", || slots[0].refused() > before);
    one.nothing_comes();
    // A node that is not the one that is looked for is not spoken to.
    let wrong = directory(1, 11, &[(2, &addresses[2])]);
    let slot = DirectorySlot::default();
    slot.set(with_tls(wrong, &tls[0]));
    let astray = Loop::start(0, &slot, vec![]);
    astray.send(at(2, 0), [frame(5, 10)]);
    assert_eq!(astray.lost(), NodeId(2));
    assert_eq!(counts(&slot, 2).sent_frames, 0);
    liar.nothing_comes();
}
