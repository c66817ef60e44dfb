//! The daemon's command line.

use crate::config::{ListenOn, NbdOn};
use crate::live::{LogFormat, SlowRequest};
use crate::retention::policy::Schedule;
use crate::rewind::Window;
use crate::scrub::ScrubRate;
use crate::tls::TlsSettings;
use clap::Parser;
use std::path::PathBuf;

/// Serves replicated block volumes over NBD.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "eskerd", version, about)]
pub struct Args {
    /// Folder of this node: its identity, its sockets, and its store unless --store names others
    #[arg(long, value_name = "DIR", required_unless_present_any = ["config", "dist"])]
    pub data: Option<PathBuf>,
    /// TOML file with the same settings; the command line wins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Device or file to use as a store; may be repeated [default: DIR/store-0.esker]
    #[arg(long = "store", value_name = "PATH")]
    pub stores: Vec<PathBuf>,
    /// Size of a store file that has to be created [default: 16GiB]
    #[arg(long, value_name = "SIZE", value_parser = esker_api::size::parse)]
    pub store_size: Option<u64>,
    /// Memory per store for its map cache [default: chosen by the store]
    #[arg(long, value_name = "SIZE", value_parser = esker_api::size::parse)]
    pub cache_size: Option<u64>,
    /// Bytes of each store that are read and checked a second in the background, or `none` [default:
    /// 16MiB]
    #[arg(long, value_name = "SIZE")]
    pub scrub_rate: Option<ScrubRate>,
    /// When volumes that are created without a schedule get snapshots, and how many are kept, like `hourly
    /// keep 24, daily keep 7` [default: none]
    #[arg(long, value_name = "RULES|none")]
    pub snapshot_schedule: Option<Schedule>,
    /// How far back volumes that are created without a window can be had at any second, like 6h [default: none]
    #[arg(long, value_name = "TIME|none")]
    pub rewind: Option<Window>,
    /// TCP address for NBD, repeatable, or none; with TLS other than --nbd-tls says: HOST:PORT,tls=MODE
    /// [default: 127.0.0.1:10809]
    #[arg(long, value_name = "HOST:PORT|none")]
    pub nbd: Vec<NbdOn>,
    /// Address for Prometheus metrics, or none [default: 127.0.0.1:9809]
    #[arg(long, value_name = "HOST:PORT|none")]
    pub metrics: Option<ListenOn>,
    /// TCP address for the admin API, or none; only for those with a certificate of the authority that --tls-ca
    /// names, which says what they may do [default: none]
    #[arg(long, value_name = "HOST:PORT|none")]
    pub admin: Option<ListenOn>,
    /// How lines of the log look: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Warn of requests that take this long, like 500ms, or none [default: 1s]
    #[arg(long, value_name = "TIME|none")]
    pub slow_request: Option<SlowRequest>,
    /// TLS of the node's sockets
    #[command(flatten)]
    pub tls: TlsSettings,
    /// Check the settings, say so, and exit; touches nothing
    #[arg(long)]
    pub check_config: bool,
    /// Keep all that the user may do, for looking into the process with other tools
    #[arg(long)]
    pub no_sandbox: bool,
    /// Try to read, write and run this file from within the sandbox, and tell how that went
    #[arg(long, value_name = "FILE", hide = true)]
    pub sandbox_probe: Option<PathBuf>,
    /// Write the man page and completions into folders of this folder
    #[arg(long, value_name = "DIR", hide = true)]
    pub dist: Option<PathBuf>,
}
