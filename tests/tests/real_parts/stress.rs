//! Everybody at once on one volume: fio, qemu-io, qemu-img, nbdcopy and libnbd, each in a region of
//! its own whose every byte it checks, while others read all of it. No error, no growth, a clean
//! stop. `scripts/stress.sh MINUTES` is the long run.

use crate::harness::{has, python, run_for, script, setting, verify, Daemon, Folder, Start};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Each region. Every tool writes all of its own again and again: nothing moves live blocks together
/// yet, so that space comes back only when all that lies in a segment was overwritten.
const REGION: u64 = 24 * MIB;
const VOLUME: u64 = 5 * REGION;
/// Longest a round of a tool may take. A safety net.
const ROUND_SECONDS_MAX: u32 = 300;
/// What the resident memory may grow after the first third of the run.
const GROWTH_BYTES_MAX: u64 = 48 << 20;
const MEMORY_BYTES_MAX: u64 = 512 << 20;

/// Runs a command of a tool, which must go well.
fn tool(name: &str, words: &[String]) -> String {
    let out = run_for(ROUND_SECONDS_MAX, name, words).ok();
    assert!(!out.contains("verification failed"), "{name}: {out}");
    out
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

fn fio(uri: &str, offset: u64, round: u64) {
    let text = format!(
        "--name=stress --ioengine=nbd --uri={uri} --offset={offset} --size={REGION} --rw=randwrite \
         --bs=4k --iodepth=16 --fsync=64 --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
         --randseed={round} --verify_pattern={round} --output-format=terse"
    );
    tool("fio", &words(&text));
}

fn qemu_io(uri: &str, offset: u64, round: u64) {
    let pattern = round % 254 + 1;
    let (part, mut all) = (REGION / 4, words("-f raw"));
    for i in 0..4 {
        let at = offset + i * part;
        all.extend(["-c".into(), format!("aio_write -P {pattern} {at} {part}")]);
    }
    let (half, third) = (offset + REGION / 2, offset + REGION / 3 / 4096 * 4096);
    for command in [
        "aio_flush".into(),
        format!("read -P {pattern} {offset} {REGION}"),
        format!("discard {half} 1M"),
        format!("write -z {third} 64k"),
        "flush".into(),
        format!("read -P 0 {half} 1M"),
        format!("read -P 0 {third} 64k"),
        format!("read -P {pattern} {offset} 1M"),
    ] {
        all.extend(["-c".into(), command]);
    }
    all.push(uri.into());
    tool("qemu-io", &all);
}

/// As much noise as a region holds.
fn noise(seed: u64) -> Vec<u8> {
    let mut dice = crate::pattern::Dice::new(seed);
    (0..REGION / 8)
        .flat_map(|_| dice.next().to_le_bytes())
        .collect()
}

fn qemu_img(folder: &Folder, daemon: &Daemon, offset: u64, round: u64) {
    let source = folder.join("qemu-img.raw");
    fs::write(&source, noise(round)).unwrap();
    let region = format!(
        "driver=raw,offset={offset},size={REGION},file.driver=nbd,file.export=v,file.server.type=unix,\
         file.server.path={}",
        daemon.socket().display()
    );
    let source = format!("driver=file,filename={}", source.display());
    let (from, to) = (source.as_str(), region.as_str());
    let text = format!("convert --image-opts --target-image-opts -n -W -m 8 {from} {to}");
    tool("qemu-img", &words(&text));
    let text = format!("compare --image-opts {from} {to}");
    let said = tool("qemu-img", &words(&text));
    assert!(said.contains("identical"), "{said}");
}

fn nbdcopy(folder: &Folder, uri: &str, offset: u64, round: u64) {
    let (source, back) = (folder.join("nbdcopy.in"), folder.join("nbdcopy.out"));
    let bytes = noise(round + 1_000_000);
    fs::write(&source, &bytes).unwrap();
    let _ = fs::remove_file(&back);
    let region = format!(
        "[ nbdkit --exit-with-parent --filter=offset nbd uri={uri} offset={offset} range={REGION} ]"
    );
    let (source, back) = (source.display(), back.display());
    tool("nbdcopy", &words(&format!("--flush -- {source} {region}")));
    tool("nbdcopy", &words(&format!("-- {region} {back}")));
    assert!(
        fs::read(back.to_string()).unwrap() == bytes,
        "nbdcopy, round {round}"
    );
}

/// Reads of the whole volume, for no error.
fn readers(uri: &str, round: u64) {
    match round % 2 {
        0 => tool("nbdcopy", &words(&format!("--connections=4 {uri} null:"))),
        _ => {
            let text = format!("bench -f raw -c 4000 -d 16 -s 16384 -S 20480 {uri}");
            tool("qemu-img", &words(&text))
        }
    };
}

#[test]
fn everybody_at_once_on_one_volume() {
    if !has(&["fio", "qemu-io", "qemu-img", "nbdcopy", "nbdkit"]) {
        return;
    }
    let Some(python) = python() else { return };
    let seconds = setting("ESKER_STRESS_SECONDS", 30);
    let folder = Folder::new();
    let daemon = Start::new(&folder.join("d"))
        .with(&["--store-size", "3GiB"])
        .ready();
    daemon.create("v", &format!("{}MiB", VOLUME / MIB));
    let (unix, tcp) = (daemon.uri("v"), daemon.tcp_uri("v"));
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds);
    let descriptors = daemon.descriptors();
    let failed = AtomicBool::new(false);
    let mut settled = 0;
    let rounds: Vec<u64> = std::thread::scope(|scope| {
        // One tool: rounds until the time is over or somebody has failed.
        let tool = |work: Box<dyn Fn(u64) + Send>| {
            let failed = &failed;
            scope.spawn(move || {
                let told = Told(failed);
                let mut round = 0;
                while Instant::now() < end && !failed.load(Ordering::Relaxed) {
                    work(round);
                    round += 1;
                }
                std::mem::forget(told);
                round
            })
        };
        let (folder, daemon) = (&folder, &daemon);
        let (u, t) = (&unix, &tcp);
        let tools = [
            tool(Box::new(move |round| fio(u, 0, round))),
            tool(Box::new(move |round| qemu_io(t, REGION, round))),
            tool(Box::new(move |round| {
                qemu_img(folder, daemon, 2 * REGION, round);
            })),
            tool(Box::new(move |round| nbdcopy(folder, u, 3 * REGION, round))),
            tool(Box::new(move |_| {
                let left = end
                    .saturating_duration_since(Instant::now())
                    .as_secs()
                    .max(1);
                // In pieces, so that the region is begun anew.
                let text = format!("{t} {} {REGION} {}", 4 * REGION, left.min(20));
                let load = script("libnbd_load.py");
                let mut all = vec![load];
                all.extend(words(&text));
                run_for(ROUND_SECONDS_MAX, &python, &all).ok();
            })),
            tool(Box::new(move |round| readers(u, round))),
            tool(Box::new(move |round| readers(t, round + 1))),
        ];
        while Instant::now() < end && !failed.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            let memory = daemon.memory_bytes();
            assert!(memory < MEMORY_BYTES_MAX, "{} MiB", memory >> 20);
            if began.elapsed().as_secs() < seconds / 3 {
                settled = settled.max(memory);
            }
        }
        let rounds = tools.map(|tool| tool.join());
        rounds.into_iter().map(|done| done.unwrap()).collect()
    });
    let memory = daemon.memory_bytes();
    println!(
        "stress: {seconds} s; rounds of fio, qemu-io, qemu-img, nbdcopy, libnbd, readers: {rounds:?}; \
         memory {} MiB after a third, {} MiB at the end",
        settled >> 20,
        memory >> 20
    );
    assert!(rounds.iter().all(|done| *done > 0), "{rounds:?}");
    let until = Instant::now() + Duration::from_secs(10);
    while daemon.descriptors() > descriptors {
        let now = daemon.descriptors();
        assert!(
            Instant::now() < until,
            "descriptors: {descriptors} to {now}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(
        memory < settled + GROWTH_BYTES_MAX,
        "{settled} to {memory} bytes"
    );
    let log = daemon.log();
    assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
}

/// Tells the others when its tool fails.
struct Told<'a>(&'a AtomicBool);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
