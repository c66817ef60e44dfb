//! The command line of Esker: one module per noun. What it asks of a running daemon goes over the
//! admin API (`esker_api`); [`offline`] reads a store that no daemon holds.

pub mod args;
pub mod cert;
pub mod completions;
pub mod demo;
pub mod error;
pub mod graph;
pub mod key;
pub mod man;
pub mod model;
pub mod node;
pub mod offline;
pub mod output;
pub mod progress;
pub mod replica;
pub mod scrub;
pub mod snapshot;
pub mod space;
pub mod status;
pub mod table;
pub mod volume;
pub mod when;

use args::{Args, Daemon, Noun};
use error::CliError;
use esker_api::client;
use output::Output;

/// Does what the arguments say and writes the result to stdout.
///
/// # Errors
/// When it is refused or fails; one line that names the thing and the remedy.
pub fn run(args: Args) -> Result<(), CliError> {
    let mut output = Output::stdout(args.output);
    match args.noun {
        Noun::Completions { shell } => completions::write(shell, &mut output),
        Noun::Man { out } => man::write(&out),
        Noun::Verify { store } => offline::verify(&store, &mut output),
        Noun::Inspect { store, part } => {
            offline::inspect(&store, part.unwrap_or_default(), &mut output)
        }
        Noun::Demo(args) => demo::run(args, &mut output),
        Noun::Cert(verb) => cert::run(verb, &mut output),
        Noun::Volume(verb) => {
            let verb = verb.confirmed()?;
            with_daemon(&args.admin, async |client| {
                volume::run(verb, client, &mut output).await
            })
        }
        Noun::Snapshot(verb) => {
            let verb = verb.confirmed()?;
            with_daemon(&args.admin, async |client| {
                snapshot::run(verb, client, &mut output).await
            })
        }
        Noun::Clone {
            place,
            name,
            labels,
        } => with_daemon(&args.admin, async |client| {
            volume::clone(place, name, labels, client, &mut output).await
        }),
        Noun::Key(verb) => with_daemon(&args.admin, async |client| {
            key::run(verb, client, &mut output).await
        }),
        Noun::Node(verb) => with_daemon(&args.admin, async |client| {
            node::run(verb, client, &mut output).await
        }),
        Noun::Cluster(verb) => with_daemon(&args.admin, async |client| {
            node::cluster(verb, client, &mut output).await
        }),
        Noun::Replica(verb) => with_daemon(&args.admin, async |client| {
            replica::run(verb, client, &mut output).await
        }),
        Noun::Space { volume } => with_daemon(&args.admin, async |client| {
            space::run(volume, client, &mut output).await
        }),
        Noun::Status { why } => with_daemon(&args.admin, async |client| {
            status::run(why, client, &mut output).await
        }),
    }
}

/// Connects to the daemon and runs `action` on this thread.
fn with_daemon(
    admin: &args::AdminAddress,
    action: impl AsyncFnOnce(&mut error::Client) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    runtime.block_on(async {
        let mut client = match admin.daemon() {
            Daemon::Socket(path) => client::connect(&path).await?,
            Daemon::Tcp(address, files) => {
                let all = [&files.cert, &files.key, &files.ca];
                if let Some(path) = all.into_iter().find(|path| !path.exists()) {
                    let path = path.clone();
                    return Err(CliError::NoCertificate { address, path });
                }
                client::connect_tcp(address, files.load()?).await?
            }
        };
        action(&mut client).await
    })
}
