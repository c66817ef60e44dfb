//! The words of the command line.

use crate::cert::CertVerb;
use crate::error::CliError;
use clap::{Parser, Subcommand, ValueEnum};
use esker_api::client::TcpAddress;
use esker_keys::ClientFiles;
use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

/// Manages the volumes of an Esker node.
#[derive(Clone, Debug, Parser)]
#[command(name = "esker", version, about, propagate_version = true)]
pub struct Args {
    /// Which daemon to talk to
    #[command(flatten)]
    pub admin: AdminAddress,
    /// How to show the result
    #[arg(
        short,
        long,
        value_enum,
        global = true,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
    /// What to do
    #[command(subcommand)]
    pub noun: Noun,
}

/// Which daemon to talk to.
#[derive(Clone, Debug, clap::Args)]
pub struct AdminAddress {
    /// The daemon's folder
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "ESKER_DATA",
        default_value = "./esker-data"
    )]
    pub data: PathBuf,
    /// The daemon's admin socket as PATH or unix:PATH, or HOST:PORT where its admin API is on TCP [default:
    /// DIR/admin.sock]
    #[arg(long, global = true, value_name = "ADDRESS", env = "ESKER_ADMIN")]
    pub admin: Option<String>,
    /// Folder with ca-cert.pem, client-cert.pem and client-key.pem for HOST:PORT, as `esker cert client --bundle` makes
    /// it [default: ~/.config/esker]
    #[arg(long, global = true, value_name = "DIR", env = "ESKER_CERTS")]
    pub certs: Option<PathBuf>,
    /// Certificate that is shown at HOST:PORT, in PEM; it says what its owner may do [default: of --certs]
    #[arg(long, global = true, value_name = "FILE", env = "ESKER_CERT")]
    pub cert: Option<PathBuf>,
    /// The certificate's key, in PEM [default: of --certs]
    #[arg(long, global = true, value_name = "FILE", env = "ESKER_KEY")]
    pub key: Option<PathBuf>,
    /// Authorities that may vouch for the daemon at HOST:PORT, in PEM [default: of --certs]
    #[arg(long, global = true, value_name = "FILE", env = "ESKER_CA")]
    pub ca: Option<PathBuf>,
}

/// Where a daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Behind a unix socket.
    Socket(PathBuf),
    /// At a TCP address, for those with these files.
    Tcp(TcpAddress, ClientFiles),
}

impl AdminAddress {
    /// Where the daemon is.
    #[must_use]
    pub fn daemon(&self) -> Daemon {
        let Some(address) = &self.admin else {
            return Daemon::Socket(self.data.join("admin.sock"));
        };
        let path = address
            .strip_prefix("unix://")
            .or(address.strip_prefix("unix:"));
        match (path, address.parse()) {
            (None, Ok(tcp)) => Daemon::Tcp(tcp, self.files()),
            (path, _) => Daemon::Socket(PathBuf::from(path.unwrap_or(address))),
        }
    }

    fn files(&self) -> ClientFiles {
        let folder = self.certs.clone().unwrap_or_else(|| {
            let home = |name: &str| std::env::var_os(name).map(PathBuf::from);
            let config = home("XDG_CONFIG_HOME").or(home("HOME").map(|home| home.join(".config")));
            config.unwrap_or_default().join("esker")
        });
        let file = |named: &Option<PathBuf>, name: &str| match named {
            Some(path) => path.clone(),
            None => folder.join(name),
        };
        ClientFiles {
            cert: file(&self.cert, "client-cert.pem"),
            key: file(&self.key, "client-key.pem"),
            ca: file(&self.ca, "ca-cert.pem"),
        }
    }
}

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For scripts; fields are only ever added
    Json,
    /// For Graphviz; of `snapshot list`
    Dot,
    /// A picture; of `snapshot list`
    Svg,
}

/// What a command is about.
#[derive(Clone, Debug, Subcommand)]
pub enum Noun {
    /// Create, list and change volumes
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Take, list and delete snapshots, go back to one, compare them
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Make a volume that begins as a snapshot is, or as a volume was at a second of its rewind window
    Clone {
        /// Snapshot; or a time in braces, VOLUME@{2026-11-21T10:05:00Z} in UTC or VOLUME@{-10m}
        #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = Place::parse)]
        place: Place,
        /// The new volume: 1 to 128 of A-Z a-z 0-9 . _ -
        #[arg(value_name = "NEW")]
        name: String,
        /// Label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
    },
    /// Show and rotate the keys of encrypted volumes
    #[command(subcommand)]
    Key(KeyVerb),
    /// List the copies of a volume, add one on another node of the cluster, take one away
    #[command(subcommand)]
    Replica(ReplicaVerb),
    /// List the nodes of the cluster, add one, drain one, take one away
    #[command(subcommand)]
    Node(NodeVerb),
    /// Begin a cluster, show it
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Show where the space is, of the node or of one volume
    Space {
        /// Volume
        #[arg(value_name = "VOLUME")]
        volume: Option<String>,
    },
    /// Show the health of the node
    Status {
        /// Say what is wrong, and the next safe step
        #[arg(long)]
        why: bool,
    },
    /// Make certificates for TLS, with an authority of your own
    #[command(subcommand)]
    Cert(CertVerb),
    /// Show what a cluster does: one on this machine, in a temporary folder, with a node killed under load
    Demo(crate::demo::DemoArgs),
    /// Check every invariant of a store that no daemon has open
    Verify {
        /// Device or file
        store: PathBuf,
    },
    /// Dump a part of a store that no daemon has open
    Inspect {
        /// Device or file
        store: PathBuf,
        /// Which part; the superblock when none is named
        #[command(subcommand)]
        part: Option<Part>,
    },
    /// Write man pages
    #[command(hide = true)]
    Man {
        /// Folder that gets them
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Write completions for a shell to stdout
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
}

/// What to do with keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyVerb {
    /// List the keys a volume reads and writes with: what wraps them, and whether they are open
    Show {
        /// Volume
        volume: String,
    },
    /// Wrap a volume's keys anew, under the newest key of the provider, or give it another data key; I/O goes on
    Rotate {
        /// Volume
        volume: String,
        /// Write under another data key from now on, and seal what is there anew under it; shows how far that is
        #[arg(long)]
        data_key: bool,
        /// Do not wait for that: it goes on in the background
        #[arg(long, requires = "data_key")]
        no_wait: bool,
    },
}

/// What to do with copies of a volume.
#[derive(Clone, Debug, Subcommand)]
pub enum ReplicaVerb {
    /// List the copies of a volume: their nodes, whether they vote, and how far they are behind
    List {
        /// Volume
        volume: String,
    },
    /// Give a volume another copy while it is used; waits until that one has everything and votes
    Add {
        /// Volume
        volume: String,
        /// Node that gets it; the one with most free space when none is named
        #[arg(long, value_name = "ID")]
        node: Option<u64>,
        /// Node whose copy goes once the new one votes; it is deleted when no client is attached through it
        #[arg(long, value_name = "ID")]
        replace: Option<u64>,
        /// Do not wait for that: it goes on in the background
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a copy of a volume away while it is used
    Remove {
        /// Volume
        volume: String,
        /// Node whose copy goes
        #[arg(long, value_name = "ID")]
        node: u64,
    },
}

/// What to do with nodes.
#[derive(Clone, Debug, Subcommand)]
pub enum NodeVerb {
    /// List the nodes: whether they answer, how full they are, and what they hold
    List,
    /// Add a new node to the cluster, one that waits for it (`cluster.join` in its configuration), and wait until it serves. Asked
    /// again after an interruption it goes on
    Add {
        /// Where the node answers others: its `cluster.control`, as all of them reach it
        #[arg(value_name = "HOST:PORT")]
        control: String,
        /// Its id; the one its certificate names, or the next free one, when none is said
        #[arg(long, value_name = "ID")]
        id: Option<u64>,
        /// Where its links are reached, when not as its `cluster.listen` says
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// Where it stands: zone=a; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
        /// Do not wait until it serves
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a node out of the cluster that holds nothing any more (`esker node drain`), or that is gone and whose copies have
    /// been made anew elsewhere
    Remove {
        /// Node
        #[arg(value_name = "ID")]
        node: u64,
    },
    /// Have the copies on a node go to other nodes while they are used; waits until it holds none. It gets no new ones,
    /// through restarts too, until it is taken back
    Drain {
        /// Node
        #[arg(value_name = "ID")]
        node: u64,
        /// Take the node back: it gets copies again, and those that have not gone stay
        #[arg(long)]
        cancel: bool,
        /// Do not wait: it goes on in the background
        #[arg(long, conflicts_with = "cancel")]
        no_wait: bool,
    },
}

/// What to do with the cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum ClusterVerb {
    /// Make this node the first of a cluster; `esker node add` adds others
    Init {
        /// Where others reach its links, when not as its `cluster.listen` says
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// Where others reach its `control`, when not as its `cluster.control` says
        #[arg(long, value_name = "HOST:PORT")]
        control: Option<String>,
        /// Where it stands: zone=a; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
    },
    /// Show the nodes, and what is wrong between them
    Status,
}

/// A part of a store.
#[derive(Clone, Copy, Debug, Default, Subcommand)]
pub enum Part {
    /// All copies of the superblock
    #[default]
    Superblock,
    /// The newest checkpoint
    Checkpoint,
    /// What a segment holds
    Segment {
        /// Number of the segment
        segment: u32,
    },
    /// A record of the log
    Record {
        /// Number of the segment
        segment: u32,
        /// Its first slot
        slot: u32,
    },
    /// A node of a map
    Node {
        /// Number of the segment
        segment: u32,
        /// Its slot
        slot: u32,
    },
}

/// What to do with volumes.
#[derive(Clone, Debug, Subcommand)]
pub enum VolumeVerb {
    /// Create a volume
    Create {
        /// 1 to 128 of A-Z a-z 0-9 . _ -
        name: String,
        /// Size, like 10GiB
        #[arg(long, value_parser = esker_api::size::parse)]
        size: u64,
        /// Number of copies
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        replicas: u32,
        /// Encrypt its blocks, under a key of its own that the daemon's key provider wraps
        #[arg(long)]
        encrypt: bool,
        /// Label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
        /// When it gets snapshots by itself and how many are kept, like `hourly keep 24, daily keep 7`, or `none`
        /// [default: as the daemon is configured]
        #[arg(long, value_name = "RULES|none")]
        snapshot_schedule: Option<String>,
        /// How far back it can be cloned as it was at any second, like 6h, or `none` [default: as the daemon is
        /// configured]
        #[arg(long, value_name = "TIME|none")]
        rewind: Option<String>,
    },
    /// Change the snapshot schedule, the rewind window and labels of a volume
    Set {
        /// Volume
        name: String,
        /// When it gets snapshots by itself and how many are kept, like `every 15m keep 8, daily keep 7`, or
        /// `none`. Periods: every TIME (s, m, h, d, w), hourly, daily, weekly, monthly, yearly, and `last`
        #[arg(
            long,
            value_name = "RULES|none",
            required_unless_present_any = ["labels", "unlabel", "rewind"]
        )]
        snapshot_schedule: Option<String>,
        /// How far back it can be cloned as it was at any second, like 6h, or `none`
        #[arg(long, value_name = "TIME|none")]
        rewind: Option<String>,
        /// Label that it gets; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
        /// Label that it loses; may be repeated
        #[arg(long, value_name = "KEY")]
        unlabel: Vec<String>,
    },
    /// Give a volume to one holder alone: its sessions attach as VOLUME:NUMBER, and those before them end
    ///
    /// The URI that is printed names the attachment. The same holder gets the same attachment again.
    Attach {
        /// Volume
        name: String,
        /// Who gets it, like the name of a host or of a machine; the name of this one
        #[arg(long, value_name = "WHO")]
        holder: Option<String>,
        /// Take it from whoever has it: nothing that was asked for before is carried out afterwards
        #[arg(long)]
        fence: bool,
    },
    /// Take a volume back from its holder, whose sessions end: anybody may attach then
    Detach {
        /// Volume
        name: String,
        /// Only if this attachment is in force
        #[arg(long, value_name = "NUMBER")]
        attachment: Option<u64>,
    },
    /// List all volumes
    List,
    /// Show a volume
    Show {
        /// Volume
        name: String,
    },
    /// Grow a volume
    Resize {
        /// Volume
        name: String,
        /// New size, like 20GiB
        #[arg(long, value_parser = esker_api::size::parse)]
        size: u64,
    },
    /// Rename a volume
    Rename {
        /// Volume
        name: String,
        /// Its new name
        new_name: String,
    },
    /// Delete a volume and all its data
    Delete {
        /// Volume
        name: String,
        /// Delete its snapshots with it; otherwise a volume with snapshots is refused
        #[arg(long)]
        with_snapshots: bool,
        /// Do not ask; only asked at a terminal
        #[arg(long, short)]
        yes: bool,
    },
    /// Read and check everything that is stored of a volume, its snapshots and what it was cloned from
    Scrub {
        /// Volume
        name: String,
    },
    /// Accept that a suspended volume lost a record of its log, and serve what is left; or take the map of an encrypted one as it is
    AcceptLoss {
        /// Volume
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// Every suspended volume of the node
        #[arg(long, conflicts_with = "name")]
        all: bool,
        /// Needed: what was lost does not come back
        #[arg(long)]
        yes: bool,
    },
}

impl VolumeVerb {
    /// The verb, once the user has confirmed it if it destroys something.
    ///
    /// # Errors
    /// When the user has not.
    pub fn confirmed(self) -> Result<Self, CliError> {
        match &self {
            Self::AcceptLoss {
                name, yes: false, ..
            } => Err(CliError::NotConfirmed(format!(
                "accept-loss gives up what the damaged record of {} held, or takes the map of an encrypted \
                 volume as it is; look at \
                 `esker status --why` first, then repeat it with --yes",
                name.as_deref().unwrap_or("every suspended volume")
            ))),
            Self::Delete {
                name, yes: false, ..
            } if std::io::stdin().is_terminal() => {
                let question = format!("Delete volume {name} and all its data? [y/N] ");
                confirm(&question, || format!("volume {name} is kept"))?;
                Ok(self)
            }
            _ => Ok(self),
        }
    }
}

/// What to do with snapshots.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotVerb {
    /// Keep a volume as it is now, or several as they are at one moment
    ///
    /// With several volumes it is a group snapshot: all are of the same moment, or none is taken. If a write was acknowledged before another one was
    /// asked for, and that one is in its volume's snapshot, the first one is in its volume's. Writes wait for as long as it takes the
    /// nodes to agree on the moment, and for half a second at most.
    Create {
        /// 1 to 128 of A-Z a-z 0-9 . _ - after the volume's name
        #[arg(value_name = "VOLUME@SNAPSHOT", required = true, value_parser = Place::parse)]
        places: Vec<Place>,
        /// Label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
    },
    /// List snapshots, oldest first
    List {
        /// Only of this volume
        #[arg(value_name = "VOLUME")]
        volume: Option<String>,
        /// Draw what began from what, branches that rollbacks left included
        #[arg(long)]
        graph: bool,
    },
    /// Delete a snapshot; what only it held becomes free
    Delete {
        /// Snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = Place::parse)]
        place: Place,
    },
    /// Delete the automatic snapshots that the volume's schedule does not need any more
    ///
    /// The daemon does this by itself. Snapshots that were asked for are never deleted.
    Prune {
        /// Volume
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// Delete nothing, tell what would be
        #[arg(long)]
        dry_run: bool,
        /// As if this were its schedule
        #[arg(long, value_name = "RULES", requires = "dry_run")]
        snapshot_schedule: Option<String>,
    },
    /// Let a volume go on from a snapshot; what it holds now is kept as a snapshot
    Rollback {
        /// Snapshot
        #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = Place::parse)]
        place: Place,
        /// Name of the snapshot of what the volume holds now [default: before-rollback-TIME]
        #[arg(long, value_name = "NAME", conflicts_with = "discard")]
        keep: Option<String>,
        /// Do not keep what the volume holds now
        #[arg(long)]
        discard: bool,
        /// End the sessions that are attached to the volume
        #[arg(long)]
        force: bool,
        /// Do not ask; only asked at a terminal, and with --discard
        #[arg(long, short)]
        yes: bool,
    },
    /// Show what differs between a snapshot and another, the volume as it is now, or a clone
    Diff {
        /// The older one
        #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = Place::parse)]
        from: Place,
        /// The newer one, of the same volume or of another one in its store [default: the volume]
        #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = Place::parse)]
        to: Option<Place>,
    },
}

impl SnapshotVerb {
    /// The verb, once the user has confirmed it if it destroys something.
    ///
    /// # Errors
    /// When the user has not.
    pub fn confirmed(self) -> Result<Self, CliError> {
        match &self {
            Self::Rollback {
                place,
                discard: true,
                yes: false,
                ..
            } if std::io::stdin().is_terminal() => {
                let name = &place.volume;
                let question = format!("Give up what volume {name} holds now? [y/N] ");
                confirm(&question, || format!("volume {name} stays as it is"))?;
                Ok(self)
            }
            _ => Ok(self),
        }
    }
}

/// A volume, or one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The volume.
    pub volume: String,
    /// The snapshot.
    pub snapshot: Option<String>,
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let (volume, snapshot) = match text.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (text, None),
        };
        if volume.is_empty() || snapshot.is_some_and(|s| s.is_empty() || s.contains('@')) {
            return Err("it is not VOLUME@SNAPSHOT".into());
        }
        Ok(Self {
            volume: volume.into(),
            snapshot: snapshot.map(String::from),
        })
    }

    /// The volume and the snapshot.
    ///
    /// # Errors
    /// When it is a volume.
    pub fn both(self) -> Result<(String, String), CliError> {
        match self.snapshot {
            Some(snapshot) => Ok((self.volume, snapshot)),
            None => Err(CliError::Usage(format!(
                "{0} names no snapshot: write {0}@SNAPSHOT",
                self.volume
            ))),
        }
    }
}

/// Asks whether to go on.
fn confirm(question: &str, kept: impl FnOnce() -> String) -> Result<(), CliError> {
    match ask(question)?.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(CliError::NotConfirmed(kept())),
    }
}

/// Asks at the terminal.
fn ask(question: &str) -> Result<String, CliError> {
    let mut err = std::io::stderr().lock();
    write!(err, "{question}").and_then(|()| err.flush())?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer)
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn addresses_of_daemons() {
        for (words, path) in [
            (&["--data", "/d"][..], "/d/admin.sock"),
            (&["--admin", "/s"], "/s"),
            (&["--admin", "unix:/s"], "/s"),
            (&["--admin", "unix:///s"], "/s"),
        ] {
            let words = ["esker"].iter().chain(words).chain(&["volume", "list"]);
            let args = Args::try_parse_from(words).unwrap();
            assert_eq!(args.admin.daemon(), Daemon::Socket(path.into()));
        }
        let tcp = |words: &[&str]| {
            let words = ["esker", "status"].iter().chain(words);
            match Args::try_parse_from(words).unwrap().admin.daemon() {
                Daemon::Tcp(address, files) => (address.to_string(), files),
                Daemon::Socket(path) => panic!("{path:?}"),
            }
        };
        let (address, files) = tcp(&["--admin", "[::1]:7", "--certs", "/c", "--key", "k"]);
        assert_eq!(address, "[::1]:7");
        let expected = ClientFiles {
            cert: "/c/client-cert.pem".into(),
            key: "k".into(),
            ca: "/c/ca-cert.pem".into(),
        };
        assert_eq!(files, expected);
        assert_eq!(tcp(&["--admin", "node-1:10810"]).0, "node-1:10810");
    }
}
