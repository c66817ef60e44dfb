//! Why a command was refused or failed, in one line.

use esker_api::client::{ConnectError, TcpAddress};
use esker_api::v1::admin_client::AdminClient;
use std::io;
use std::path::PathBuf;
use tonic::transport::Channel;
use tonic::Code;

/// A connection to a daemon.
pub type Client = AdminClient<Channel>;

/// A failure: exit code 1.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No daemon could be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The daemon refused, or the connection broke.
    #[error("{}", text_of(.0))]
    Daemon(Box<tonic::Status>),
    /// The daemon's answer lacks what it must hold.
    #[error("the daemon's answer has no {0}; are eskerd and esker of the same version?")]
    Answer(&'static str),
    /// What was asked for is done, and what it leads to has not come within the time that is waited.
    #[error("{0}")]
    NotYet(String),
    /// The user did not confirm.
    #[error("{0}")]
    NotConfirmed(String),
    /// The words contradict each other, or what they name: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// A daemon over TCP, and no certificate for it.
    #[error(
        "{address} is served to those with a certificate, and there is no {}: name --cert, --key and --ca, or the \
         folder with them as --certs (`esker cert client --bundle` makes one)",
        path.display()
    )]
    NoCertificate {
        /// Where the daemon is.
        address: TcpAddress,
        /// Which file is missing.
        path: PathBuf,
    },
    /// A certificate cannot be made or read.
    #[error(transparent)]
    Certificate(#[from] esker_keys::KeyError),
    /// A scrub found damage.
    #[error("{0}")]
    Damaged(String),
    /// Some of several things failed.
    #[error("{0}")]
    Partly(String),
    /// The demo failed.
    #[error("demo: {0}")]
    Demo(String),
    /// Somebody ended the demo.
    #[error("demo: interrupted; its nodes are stopped and its folder is removed")]
    Interrupted,
    /// A store file cannot be looked at.
    #[error("{}: {reason}", path.display())]
    Store {
        /// The store.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Files cannot be written into a folder.
    #[error("cannot write into {}: {source}; name a folder that is there and may be written", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The control thread cannot be set up.
    #[error("cannot start: {0}")]
    Runtime(io::Error),
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Write(io::Error),
    /// The reader of the output has gone, like `head` does; not a failure.
    #[error("nobody reads the output")]
    NobodyReads,
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        Self::Daemon(Box::new(status))
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Write(error),
        }
    }
}

/// A refusal is the daemon's own line; failures of the connection are told in ours.
fn text_of(status: &tonic::Status) -> String {
    let message = status.message().replace('\n', " ");
    match status.code() {
        Code::Unimplemented => "the daemon is older than this command; upgrade eskerd".into(),
        Code::DeadlineExceeded | Code::Cancelled => {
            "the daemon did not answer in time; see its log, and look at the result before trying \
             again"
                .into()
        }
        Code::Unknown | Code::Internal => {
            format!("the connection to the daemon broke ({message}); see its log")
        }
        _ => message,
    }
}
