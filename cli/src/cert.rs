//! `esker cert`: a small certificate authority, for those who have none.

use crate::error::CliError;
use crate::output::Output;
use crate::table::fields;
use crate::when;
use clap::Subcommand;
use esker_base::NodeId;
use esker_keys::ca::{inspect, Authority, Certificate, Request, Role};
use esker_keys::{AdminRole, Rights};
use serde::Serialize;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;

/// What to do with certificates.
#[derive(Clone, Debug, Subcommand)]
pub enum CertVerb {
    /// Make an authority: ca.pem, which everybody is given, and ca.key, which makes certificates
    Init {
        /// Folder for it; made if it is not there
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Its name
        #[arg(long, default_value = "esker-authority")]
        name: String,
        /// Days that it is valid
        #[arg(long, value_name = "DAYS", default_value_t = 3650)]
        days: u32,
    },
    /// Issue a certificate for a node
    Server {
        /// Folder of the authority; the certificate goes there too
        #[arg(long, value_name = "DIR")]
        authority: PathBuf,
        /// Host name or address that the node is reached under; may be repeated
        #[arg(long = "host", value_name = "HOST", required = true)]
        hosts: Vec<String>,
        /// Name of the certificate and of its files
        #[arg(long, default_value = "server")]
        name: String,
        /// Days that it is valid
        #[arg(long, value_name = "DAYS", default_value_t = 365)]
        days: u32,
    },
    /// Issue a certificate for a node of a cluster: for its clients, and for the other nodes
    Node {
        /// Name of the certificate and of its files
        name: String,
        /// The node's number, as `esker status` shows it
        #[arg(long, value_name = "ID")]
        id: u64,
        /// Folder of the authority; the certificate goes there too
        #[arg(long, value_name = "DIR")]
        authority: PathBuf,
        /// Host name or address that clients reach the node under; may be repeated
        #[arg(long = "host", value_name = "HOST", required = true)]
        hosts: Vec<String>,
        /// Days that it is valid
        #[arg(long, value_name = "DAYS", default_value_t = 365)]
        days: u32,
    },
    /// Issue a certificate for a client, which says what its owner may do
    Client {
        /// Name of the certificate and of its files
        name: String,
        /// Folder of the authority; the certificate goes there too
        #[arg(long, value_name = "DIR")]
        authority: PathBuf,
        /// What it may do over the admin API on TCP. A viewer looks: lists, states, space, differences. An operator also
        /// creates and changes volumes, takes, deletes and goes back to snapshots, clones, scrubs, rotates keys. An
        /// admin also deletes volumes, accepts losses and changes the cluster
        #[arg(long, value_name = "viewer|operator|admin")]
        role: Option<AdminRole>,
        /// Volumes it may open over NBD, like `vm-*`; may be repeated
        #[arg(long = "volume", value_name = "PATTERN")]
        volumes: Vec<String>,
        /// Days that it is valid
        #[arg(long, value_name = "DAYS", default_value_t = 365)]
        days: u32,
        /// Also put it into this new folder, with the file names that libnbd and QEMU look for
        #[arg(long, value_name = "DIR")]
        bundle: Option<PathBuf>,
    },
    /// Show what a certificate says
    Show {
        /// The certificate, in PEM
        file: PathBuf,
    },
}

/// A certificate, as JSON shows it.
#[derive(Serialize)]
struct Shown {
    name: String,
    kind: &'static str,
    issuer: String,
    serial: String,
    hosts: Vec<String>,
    role: Option<&'static str>,
    volumes: Vec<String>,
    node: Option<u64>,
    not_before_unix: i64,
    not_after_unix: i64,
    cert_file: PathBuf,
    key_file: Option<PathBuf>,
}

/// Does what the verb says.
///
/// # Errors
/// When files are there already, or cannot be read or written.
pub fn run(verb: CertVerb, output: &mut Output) -> Result<(), CliError> {
    let now = OffsetDateTime::now_utc();
    match verb {
        CertVerb::Init { out, name, days } => {
            let authority = Authority::init(&out, &name, days, now)?;
            let key = out.join("ca.key");
            show(
                authority.certificate(),
                out.join("ca.pem"),
                Some(key),
                output,
            )
        }
        CertVerb::Server {
            authority,
            hosts,
            name,
            days,
        } => {
            let request = Request {
                role: Role::Node,
                name,
                hosts,
                rights: Rights::default(),
                days,
            };
            issue(&authority, &request, now, output)
        }
        CertVerb::Node {
            name,
            id,
            authority,
            hosts,
            days,
        } => {
            let request = Request {
                role: Role::Node,
                name,
                hosts,
                rights: Rights {
                    node: Some(NodeId(id)),
                    ..Rights::default()
                },
                days,
            };
            issue(&authority, &request, now, output)
        }
        CertVerb::Client {
            name,
            authority,
            role,
            volumes,
            days,
            bundle,
        } => {
            if role.is_none() && volumes.is_empty() {
                return Err(CliError::Usage(
                    "a certificate that gives nothing: say what its owner may do with --volume \
                     PATTERN, --role ROLE, or both"
                        .into(),
                ));
            }
            let request = Request {
                role: Role::Client,
                name,
                hosts: Vec::new(),
                rights: Rights {
                    role,
                    volumes,
                    node: None,
                },
                days,
            };
            // Before the certificate: what is refused leaves nothing behind.
            if let Some(folder) = &bundle {
                let mut builder = std::fs::DirBuilder::new();
                let made = builder.mode(0o700).create(folder);
                made.map_err(|source| failed(folder, source))?;
            }
            let issued = issue(&authority, &request, now, output);
            match bundle {
                Some(folder) if issued.is_ok() => fill(&folder, &authority, &request.name),
                Some(folder) => {
                    let _ = std::fs::remove_dir(folder); // it is empty
                    issued
                }
                None => issued,
            }
        }
        CertVerb::Show { file } => show(&inspect(&file)?, file, None, output),
    }
}

fn issue(
    folder: &Path,
    request: &Request,
    now: OffsetDateTime,
    output: &mut Output,
) -> Result<(), CliError> {
    let certificate = Authority::open(folder)?.issue(request, now)?;
    let file = |end: &str| folder.join(format!("{}.{end}", request.name));
    show(&certificate, file("pem"), Some(file("key")), output)
}

/// Copies a client's files under the names that programs look for.
fn fill(folder: &Path, authority: &Path, name: &str) -> Result<(), CliError> {
    for (from, to) in [
        ("ca.pem".to_owned(), "ca-cert.pem"),
        (format!("{name}.pem"), "client-cert.pem"),
        (format!("{name}.key"), "client-key.pem"), // keeps its mode
    ] {
        let copied = std::fs::copy(authority.join(from), folder.join(to));
        copied.map_err(|source| failed(folder, source))?;
    }
    Ok(())
}

fn failed(folder: &Path, source: std::io::Error) -> CliError {
    CliError::Folder {
        path: folder.to_path_buf(),
        source,
    }
}

fn show(
    certificate: &Certificate,
    cert_file: PathBuf,
    key_file: Option<PathBuf>,
    output: &mut Output,
) -> Result<(), CliError> {
    let rights = &certificate.rights;
    let shown = Shown {
        name: certificate.name.clone(),
        kind: match certificate {
            c if c.is_authority => "authority",
            c if c.rights.node.is_some() => "node",
            c if !c.hosts.is_empty() => "server",
            _ => "client",
        },
        issuer: certificate.issuer.clone(),
        serial: certificate.serial.clone(),
        hosts: certificate.hosts.clone(),
        role: rights.role.map(AdminRole::as_str),
        volumes: rights.volumes.clone(),
        node: rights.node.map(|node| node.0),
        not_before_unix: certificate.not_before_unix,
        not_after_unix: certificate.not_after_unix,
        cert_file,
        key_file,
    };
    output.show(&shown, text)
}

fn text(shown: &Shown) -> String {
    let list = |items: &[String]| match items.is_empty() {
        true => "-".to_owned(),
        false => items.join(" "),
    };
    let file = |path: &Path| path.display().to_string();
    let key = shown.key_file.as_deref().map_or("-".into(), file);
    fields(&[
        ("name", shown.name.clone()),
        ("kind", shown.kind.into()),
        ("issuer", shown.issuer.clone()),
        ("serial", shown.serial.clone()),
        ("hosts", list(&shown.hosts)),
        ("role", shown.role.unwrap_or("-").into()),
        ("volumes", list(&shown.volumes)),
        ("node", shown.node.map_or("-".into(), |id| id.to_string())),
        ("not before", when::text(second(shown.not_before_unix))),
        ("not after", when::text(second(shown.not_after_unix))),
        ("certificate", file(&shown.cert_file)),
        ("key", key),
    ])
}

fn second(unix: i64) -> u64 {
    u64::try_from(unix).unwrap_or(0)
}
