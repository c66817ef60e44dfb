//! A small certificate authority, for clusters that have none: files in a folder.
//!
//! | file | is | may be read by |
//! |---|---|---|
//! | `ca.pem` | the authority's certificate, which everybody is given | all |
//! | `ca.key` | its key; whoever has it is the authority | its owner |
//! | `NAME.pem`, `NAME.key` | a node's or client's certificate and key | all; their owner |
//! | `issued` | one line per certificate: serial, what for, name, last second of validity | all |
//!
//! Keys are on the curve P-256. A node's certificate is one of a server and of a client, for the hosts it
//! names, and may say which node of a cluster it is; a client's is of a client alone, and says what it gives
//! ([`crate::rights`]). Serials are random,
//! 127 bits.

use crate::error::KeyError;
use crate::private::{self, failed, SECRET_BYTES_MAX};
use crate::random;
use crate::rights::Rights;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::CertificateDer;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use zeroize::Zeroizing;

/// Longest name, in bytes (a common name has at most 64).
pub const NAME_BYTES_MAX: usize = 64;
/// Hosts of one certificate.
pub const HOSTS_MAX: usize = 64;
/// Longest validity, in days.
pub const DAYS_MAX: u32 = 36_500;
const CERTIFICATE_BYTES_MAX: u64 = 64 << 10;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A node: serves and connects to others.
    Node,
    /// Someone who connects.
    Client,
}

/// A certificate to be issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What for.
    pub role: Role,
    /// Its name: of the files, and the common name.
    pub name: String,
    /// Names and addresses that a node is reached under; empty for a client.
    pub hosts: Vec<String>,
    /// What it gives a client; of a node, at most which one it is.
    pub rights: Rights,
    /// Days that it is valid.
    pub days: u32,
}

/// A certificate as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The common name.
    pub name: String,
    /// That of who issued it.
    pub issuer: String,
    /// In hexadecimal.
    pub serial: String,
    /// Names and addresses it is for.
    pub hosts: Vec<String>,
    /// What it gives its owner.
    pub rights: Rights,
    /// Whether it may issue others.
    pub is_authority: bool,
    /// First second of its validity, since the Unix epoch.
    pub not_before_unix: i64,
    /// Last second of its validity, since the Unix epoch.
    pub not_after_unix: i64,
}

/// A folder with an authority.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    /// Makes an authority in a folder, which is made if it is not there.
    ///
    /// # Errors
    /// When there is one already, the name or the days do not do, or files cannot be written.
    pub fn init(
        folder: &Path,
        name: &str,
        days: u32,
        now: OffsetDateTime,
    ) -> Result<Self, KeyError> {
        check_name(name)?;
        fs::create_dir_all(folder).map_err(|e| failed("make", folder, &e))?;
        let (certificate_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
        for file in [&certificate_file, &key_file] {
            if file.exists() {
                let file = file.display();
                let message = format!("{file} is there already: an authority is never replaced");
                return Err(KeyError::config(message));
            }
        }
        let mut params = params(name, days, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(odd)?;
        let certificate = params.self_signed(&key).map_err(odd)?;
        write_new(
            &key_file,
            Zeroizing::new(key.serialize_pem()).as_bytes(),
            0o600,
        )?;
        write_new(&certificate_file, certificate.pem().as_bytes(), 0o644)?;
        Self::open(folder)
    }

    /// The authority in a folder.
    ///
    /// # Errors
    /// When there is none, or others may read its key.
    pub fn open(folder: &Path) -> Result<Self, KeyError> {
        let (certificate_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
        let none = || {
            let folder = folder.display();
            KeyError::config(format!(
                "there is no certificate authority in {folder}; make one"
            ))
        };
        let key = private::read(&key_file, SECRET_BYTES_MAX)?.ok_or_else(none)?;
        let bad = |file: &Path| {
            let file = file.display();
            KeyError::damaged(format!("{file} cannot be read; restore it from a backup"))
        };
        let key = std::str::from_utf8(&key).map_err(|_| bad(&key_file))?;
        let key = KeyPair::from_pem(key).map_err(|_| bad(&key_file))?;
        let der = read_certificate(&certificate_file)?;
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|_| bad(&certificate_file))?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer,
            certificate: inspect(&certificate_file)?,
        })
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Issues a certificate: `NAME.pem` and `NAME.key` in the folder, and a line in `issued`.
    ///
    /// # Errors
    /// When a certificate of that name is there, the request does not do, or files cannot be written.
    pub fn issue(&self, request: &Request, now: OffsetDateTime) -> Result<Certificate, KeyError> {
        check_name(&request.name)?;
        let name = &request.name;
        let (certificate_file, key_file) = (
            self.folder.join(format!("{name}.pem")),
            self.folder.join(format!("{name}.key")),
        );
        for file in [&certificate_file, &key_file] {
            if file.exists() {
                let file = file.display();
                let message = format!("{file} is there already; move it away to issue another");
                return Err(KeyError::config(message));
            }
        }
        let params = self.leaf(request, now)?;
        let key = KeyPair::generate().map_err(odd)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(odd)?;
        // What was issued is noted first: a line without a certificate does no harm.
        self.note(request, &params)?;
        write_new(
            &key_file,
            Zeroizing::new(key.serialize_pem()).as_bytes(),
            0o600,
        )?;
        write_new(&certificate_file, certificate.pem().as_bytes(), 0o644)?;
        inspect(&certificate_file)
    }

    fn leaf(&self, request: &Request, now: OffsetDateTime) -> Result<CertificateParams, KeyError> {
        let mut params = params(&request.name, request.days, now)?;
        if params.not_after.unix_timestamp() > self.certificate.not_after_unix {
            return Err(KeyError::config(format!(
                "{} days reach past the end of the authority itself; ask for fewer, or make a new \
                 authority",
                request.days
            )));
        }
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let hosts = &request.hosts;
        match request.role {
            Role::Node if hosts.is_empty() => {
                return Err(KeyError::config(
                    "a node's certificate needs a host name or address",
                ))
            }
            Role::Node if request.rights.role.is_some() || !request.rights.volumes.is_empty() => {
                return Err(KeyError::config("a node's certificate gives no rights"))
            }
            Role::Client if request.rights.node.is_some() => {
                return Err(KeyError::config("a client is no node"))
            }
            Role::Client if !hosts.is_empty() => {
                return Err(KeyError::config(
                    "a client's certificate has no hosts; leave them out",
                ))
            }
            Role::Node => {
                params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ServerAuth);
                if hosts.len() > HOSTS_MAX {
                    return Err(KeyError::config(format!("at most {HOSTS_MAX} hosts")));
                }
                if let Some(host) = hosts.iter().find(|host| !is_host(host)) {
                    return Err(KeyError::config(format!(
                        "`{host}` is no host name or address"
                    )));
                }
                let names = CertificateParams::new(hosts.clone()).map_err(odd)?;
                params.subject_alt_names = names.subject_alt_names;
            }
            Role::Client => {}
        }
        for name in request.rights.names()? {
            let name = name.try_into().map_err(odd)?;
            params.subject_alt_names.push(SanType::URI(name));
        }
        Ok(params)
    }

    fn note(&self, request: &Request, params: &CertificateParams) -> Result<(), KeyError> {
        let path = self.folder.join("issued");
        let role = match request.role {
            Role::Node => "node",
            Role::Client => "client",
        };
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes);
        let serial = hex(&serial.unwrap_or_default());
        let (name, until) = (&request.name, params.not_after.unix_timestamp());
        let line = format!("{serial} {role} {name} {until}\n");
        let written = || -> io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.create(true).append(true).mode(0o644).open(&path)?;
            file.write_all(line.as_bytes())?;
            file.sync_all()
        };
        written().map_err(|e| failed("write", &path, &e))
    }
}

/// What a certificate file says; of several, the first.
///
/// # Errors
/// When it cannot be read or is no certificate.
pub fn inspect(path: &Path) -> Result<Certificate, KeyError> {
    let read = Certificate::of(&read_certificate(path)?);
    read.map_err(|e| KeyError::new(e.kind, format!("{}: {e}", path.display())))
}

/// The second in which the first certificate of a PEM file ends, since the Unix epoch.
///
/// # Errors
/// When it cannot be read or holds no certificate.
pub fn first_end(path: &Path) -> Result<i64, KeyError> {
    let all = crate::tls::certificates("certificate", path)?;
    let mut first = i64::MAX;
    for der in all {
        let parsed = x509_parser::parse_x509_certificate(&der);
        let (_, parsed) = parsed.map_err(|_| {
            KeyError::config(format!("{}: not an X.509 certificate", path.display()))
        })?;
        first = first.min(parsed.validity().not_after.timestamp());
    }
    Ok(first)
}

impl Certificate {
    /// What a certificate says, in DER.
    ///
    /// # Errors
    /// When it is none, or names rights that there are not.
    pub fn of(der: &[u8]) -> Result<Self, KeyError> {
        let bad = || KeyError::config("not an X.509 certificate");
        let (_, parsed) = x509_parser::parse_x509_certificate(der).map_err(|_| bad())?;
        let common_name = |name: &x509_parser::x509::X509Name<'_>| {
            let mut names = name.iter_common_name();
            let text = names.next().and_then(|name| name.as_str().ok());
            text.unwrap_or_default().to_owned()
        };
        let names = parsed.subject_alternative_name().map_err(|_| bad())?;
        let names = names.map_or(&[][..], |names| &names.value.general_names);
        let hosts = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        });
        Ok(Self {
            name: common_name(parsed.subject()),
            issuer: common_name(parsed.issuer()),
            serial: hex(parsed.raw_serial()),
            hosts: hosts.collect(),
            rights: Rights::of(der)?,
            is_authority: parsed.is_ca(),
            not_before_unix: parsed.validity().not_before.timestamp(),
            not_after_unix: parsed.validity().not_after.timestamp(),
        })
    }
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, KeyError> {
    let length = fs::metadata(path)
        .map_err(|e| failed("read", path, &e))?
        .len();
    let shown = path.display();
    if length > CERTIFICATE_BYTES_MAX {
        return Err(KeyError::config(format!(
            "{shown} is too long for a certificate"
        )));
    }
    let none = |_| KeyError::config(format!("{shown}: no certificate in PEM"));
    CertificateDer::from_pem_file(path).map_err(none)
}

/// What every certificate has.
fn params(name: &str, days: u32, now: OffsetDateTime) -> Result<CertificateParams, KeyError> {
    if !(1..=DAYS_MAX).contains(&days) {
        let message = format!("a certificate is valid for 1 to {DAYS_MAX} days, not {days}");
        return Err(KeyError::config(message));
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = DnValue::Utf8String(name.to_owned());
    params.distinguished_name.push(DnType::CommonName, name);
    let end = now.checked_add(Duration::days(days.into()));
    params.not_after = end.ok_or_else(|| KeyError::config(format!("{days} days are too many")))?;
    // Other clocks may be a little behind.
    params.not_before = now.checked_sub(Duration::minutes(5)).unwrap_or(now);
    let mut serial: [u8; 16] = random::array()?;
    serial[0] = serial[0] & 0x7f | 0x40; // positive, and of full length
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn check_name(name: &str) -> Result<(), KeyError> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@".contains(&b);
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    let is_file = !name.starts_with('.') && !["ca", "issued"].contains(&name);
    match fits && is_file && name.bytes().all(is_plain) {
        true => Ok(()),
        false => Err(KeyError::config(format!(
            "`{name}` is no name for a certificate: 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_`, `@` \
             and `.`; not `ca` nor `issued`"
        ))),
    }
}

fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        let is_plain = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (1..=63).contains(&label.len()) && is_plain && !label.starts_with('-')
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    host.parse::<IpAddr>().is_ok() || (host.len() <= 253 && name.split('.').all(is_label))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a file that was not there, and makes it durable.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    let written = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    written().map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            KeyError::config(format!("{} is there already", path.display()))
        }
        _ => failed("write", path, &e),
    })
}

fn odd(error: rcgen::Error) -> KeyError {
    KeyError::config(format!("the certificate cannot be made: {error}"))
}
