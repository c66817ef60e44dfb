//! PostgreSQL on a volume, while the daemon is killed under it: its transactions wait and go on,
//! none fails, none that was committed is lost, and pg_amcheck finds nothing.

use crate::disk::{Disk, NEEDS};
use crate::harness::{has, repository, run, run_for, setting, skip, verify, Done, Folder, Start};
use crate::pattern::Dice;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The packages may have to be fetched first.
const FETCH_SECONDS_MAX: u32 = 570;
/// Longest a transaction may stay away after a kill. A safety net: a restart takes a second, and
/// nbdkit tries again once a second.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The folder with PostgreSQL's programs; None when they are not to be had.
pub fn programs() -> Option<PathBuf> {
    let script = repository().join("scripts/setup_postgres.sh");
    let done = run_for::<&str>(FETCH_SECONDS_MAX, script.to_str().unwrap(), &[]);
    if done.code == Some(0) {
        return Some(PathBuf::from(done.out.trim()));
    }
    let reason = done.err.lines().last().unwrap_or("no reason").to_string();
    skip(&format!("no PostgreSQL: {reason}"));
    None
}

/// A server and its programs; stopped when its test ends.
pub struct Postgres {
    programs: PathBuf,
    /// Sockets and logs.
    folder: PathBuf,
    data: PathBuf,
}

impl Postgres {
    /// One whose sockets and logs lie here, and its data there.
    pub fn new(programs: PathBuf, folder: &Path, data: PathBuf) -> Self {
        Self {
            programs,
            folder: folder.to_path_buf(),
            data,
        }
    }

    /// A command of PostgreSQL. It refuses to be root: as root it becomes nobody in a user namespace
    /// in which nobody owns what root owns.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "300"]);
        if run("id", &["-u"]).ok().trim() == "0" {
            command.args(["unshare", "--map-user=65534", "--map-group=65534"]);
        }
        command
            .arg(self.programs.join("bin").join(program))
            .env("LD_LIBRARY_PATH", self.programs.join("lib"))
            .env("PGHOST", &self.folder)
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres")
            .env("PGDATA", &self.data)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, program: &str, words: &[&str]) -> Done {
        // Into files: a server that is started keeps what it was given for its output.
        let (out, err) = (self.folder.join("pg.out"), self.folder.join("pg.err"));
        let status = self
            .command(program)
            .args(words)
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .status();
        Done {
            code: status.unwrap().code(),
            out: fs::read_to_string(&out).unwrap(),
            err: fs::read_to_string(&err).unwrap(),
        }
    }

    pub fn create(&self) {
        self.run(
            "initdb",
            &["-U", "postgres", "-A", "trust", "--data-checksums"],
        )
        .ok();
        let socket = self.folder.display();
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{socket}'\nshared_buffers = 16MB\n\
             max_wal_size = 256MB\nautovacuum_naptime = 5s\n"
        );
        let file = self.data.join("postgresql.conf");
        fs::write(&file, fs::read_to_string(&file).unwrap() + &settings).unwrap();
    }

    pub fn start(&self) {
        let log = self.log_file();
        let words = ["-w", "-t", "60", "-l", log.to_str().unwrap(), "start"];
        let done = self.run("pg_ctl", &words);
        assert_eq!(done.code, Some(0), "{done:?} {}", self.log());
    }

    /// `fast` writes everything where it belongs; `immediate` leaves it to the journal.
    pub fn stop(&self, how: &str) {
        let done = self.run("pg_ctl", &["-w", "-t", "60", "-m", how, "stop"]);
        assert_eq!(done.code, Some(0), "{done:?} {}", self.log());
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The answer of a query, a number.
    fn number(&self, query: &str) -> i64 {
        let answer = self.run("psql", &["-Atqc", query]).ok();
        answer.trim().parse().unwrap()
    }

    pub fn history(&self) -> i64 {
        self.number("SELECT count(*) FROM pgbench_history")
    }

    /// pgbench in the background, until the file `name` says how it went.
    pub fn bench(&self, seconds: u64, name: &str) -> Child {
        let out = File::create(self.folder.join(name)).unwrap();
        let seconds = seconds.to_string();
        self.command("pgbench")
            .args(["-n", "-c", "4", "-j", "1", "-T", &seconds])
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap()
    }

    /// What pgbench's transactions keep equal, and every page and index.
    pub fn check(&self, transactions: i64) {
        let sums = [
            "SELECT coalesce(sum(delta), 0) FROM pgbench_history",
            "SELECT sum(abalance) FROM pgbench_accounts",
            "SELECT sum(tbalance) FROM pgbench_tellers",
            "SELECT sum(bbalance) FROM pgbench_branches",
        ]
        .map(|query| self.number(query));
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        assert_eq!(self.history(), transactions, "committed transactions");
        let words = [
            "--all",
            "--install-missing",
            "--heapallindexed",
            "--parent-check",
        ];
        let checked = self.run("pg_amcheck", &words);
        assert!(
            checked.code == Some(0) && checked.out.is_empty(),
            "{checked:#?}"
        );
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            let _ = self.run("pg_ctl", &["-W", "-m", "immediate", "stop"]);
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(20)..] {
                eprintln!("postgres: {line}");
            }
        }
    }
}

/// The transactions that pgbench says it did; none may have failed.
pub fn transactions(report: &Path) -> i64 {
    let text = fs::read_to_string(report).unwrap();
    let number = |line: &str| -> i64 {
        let (_, rest) = text
            .split_once(line)
            .unwrap_or_else(|| panic!("no {line} in: {text}"));
        let word = rest.split_whitespace().next().unwrap();
        word.split('/').next().unwrap().parse().unwrap()
    };
    assert_eq!(number("number of failed transactions:"), 0, "{text}");
    assert!(
        !text.contains("ERROR") && !text.contains("aborted"),
        "{text}"
    );
    number("number of transactions actually processed:")
}

/// ESKER_POSTGRES_KILLS says how often; `docs/testing.md` has the long run.
#[test]
fn postgres_goes_on_while_the_daemon_is_killed() {
    if !has(&NEEDS) || !has(&["nbdkit", "unshare"]) {
        return;
    }
    let Some(programs) = programs() else { return };
    let kills = setting("ESKER_POSTGRES_KILLS", 2);
    let folder = Folder::new();
    // Room for every opening, which begins a new segment.
    let size = format!("{}MiB", 2048 + 192 * kills);
    let how = Start::new(&folder.join("d")).with(&["--store-size", &size]);
    let mut daemon = how.ready();
    daemon.create("pg", "768MiB");
    let Some(mut disk) = Disk::patient(&folder, &daemon.uri("pg")) else {
        return;
    };
    run("mkfs.ext4", &["-q", "-F", disk.device()]).ok();
    if !disk.mount() {
        return;
    }
    let postgres = Postgres::new(programs, &folder.0, disk.mnt().join("data"));
    postgres.create();
    postgres.start();
    postgres.run("pgbench", &["-i", "-q", "-s", "5"]).ok();

    let mut dice = Dice::new(20);
    let (mut done, mut slowest) = (0, Duration::ZERO);
    for kill in 0..kills {
        let report = folder.join("pgbench.log");
        let mut bench = postgres.bench(4, "pgbench.log");
        std::thread::sleep(Duration::from_millis(500 + dice.below(2000)));
        daemon.kill();
        let began = Instant::now();
        daemon = how.ready();
        let before = postgres.history();
        while postgres.history() == before {
            if began.elapsed() > PAUSE_MAX {
                let status = daemon.esker(&["status", "--why"]).out;
                panic!("kill {kill}: nothing goes on: {status}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        slowest = slowest.max(began.elapsed());
        assert!(bench.wait().unwrap().success(), "kill {kill}: {report:?}");
        done += transactions(&report);
        assert_eq!(postgres.history(), done, "kill {kill}");
        if kill % 5 == 4 {
            postgres.stop("immediate");
            postgres.start();
        }
        println!("postgres: kill {}, {done} transactions so far", kill + 1);
    }
    assert!(done > 100, "too few to mean anything: {done}");
    // What was committed since the last checkpoint is in the journal alone, and what was in memory
    // is gone.
    postgres.stop("immediate");
    disk.unmount();
    run("e2fsck", &["-f", "-n", disk.device()]).ok();
    disk.detach();
    drop(disk);
    daemon.kill();

    let daemon = how.ready();
    let Some(mut disk) = Disk::patient(&folder, &daemon.uri("pg")) else {
        return;
    };
    assert!(disk.mount());
    postgres.start();
    postgres.check(done);
    postgres.stop("fast");
    postgres.run("pg_checksums", &["--check"]).ok();
    let log = postgres.log();
    assert!(log.contains("redo done"), "nothing to recover: {log}");
    for bad in ["PANIC", "could not", "invalid page"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
    drop(postgres);
    disk.unmount();
    drop(disk);
    daemon.stop();
    verify(&folder.join("d/store-0.esker"));
    println!("postgres: {kills} kills, {done} transactions, longest pause {slowest:.1?}");
}
