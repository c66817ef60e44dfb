//! Certificates, ports and servers of the tests. A test whose server is not to be had says so and passes.
#![allow(dead_code)] // each test takes what it needs

use esker_base::VolumeId;
use esker_crypto::KeyId;
use esker_keys::{KeyName, KeysConfig, Provider};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long a server may take to listen.
const START_SECONDS_MAX: u64 = 60;

/// The folder with the key servers; none when they are not to be had, which is told then.
pub fn servers() -> Option<&'static Path> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOLDER.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/setup_key_servers.sh");
        let done = Command::new(script).output().expect("the script runs");
        match done.status.success() {
            true => Ok(PathBuf::from(String::from_utf8_lossy(&done.stdout).trim())),
            false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
        }
    });
    match found {
        Ok(folder) => Some(folder),
        Err(reason) => {
            let name = std::thread::current().name().unwrap_or("test").to_owned();
            let line = format!(
                "SKIPPED {name}: no key servers: {}\n",
                reason.replace('\n', " ")
            );
            eprint!("{line}");
            if let Some(log) = std::env::var_os("ESKER_SKIP_LOG") {
                let mut log = File::options().append(true).create(true).open(log).unwrap();
                log.write_all(line.as_bytes()).unwrap();
            }
            None
        }
    }
}

/// A port that was free a moment ago.
pub fn port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A server, ended with its test.
pub struct Server {
    child: Child,
    pub port: u16,
    log: PathBuf,
}

impl Server {
    /// Runs a command that is to listen on `port`; its output goes to `log`.
    pub fn start(command: &mut Command, port: u16, log: PathBuf) -> Self {
        let out = File::create(&log).unwrap();
        let command = command
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap());
        // A group of its own: PyKMIP's server has processes of its own, which go with it.
        let child = command.stderr(out).process_group(0).spawn().unwrap();
        let mut server = Self { child, port, log };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = server.child.try_wait().unwrap();
            let is_late = began.elapsed().as_secs() > START_SECONDS_MAX;
            let said = || fs::read_to_string(&server.log).unwrap_or_default();
            assert!(
                ended.is_none() && !is_late,
                "no server: {ended:?}\n{}",
                said()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    pub fn stop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok();
        if let Some(group) = pid.and_then(rustix::process::Pid::from_raw) {
            _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// An authority and what it vouches for, as PEM files in a folder.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
    name: String,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let authority = Self {
            issuer,
            folder: folder.to_owned(),
            name: name.to_owned(),
        };
        fs::write(authority.certificate(), authority.issuer.pem()).unwrap();
        authority
    }

    pub fn certificate(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// NAME.pem and NAME.key, for a server on this machine and for a client; `days` from now on, before
    /// now if negative.
    pub fn issue(&self, name: &str, days: i64) -> (PathBuf, PathBuf) {
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::days(30);
        params.not_after = now + time::Duration::days(days);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pem = self.folder.join(format!("{name}.pem"));
        fs::write(&pem, certificate.pem()).unwrap();
        let key_file = self.folder.join(format!("{name}.key"));
        write_secret(&key_file, &key.serialize_pem());
        (pem, key_file)
    }
}

/// Writes a file that only its owner may read.
pub fn write_secret(path: &Path, text: &str) {
    _ = fs::remove_file(path);
    let mut options = File::options();
    let mut file = options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// The provider that wraps by this configuration.
pub fn provider(text: &str, folder: &Path) -> Box<dyn Provider> {
    let config: KeysConfig = toml::from_str(text).unwrap();
    config.providers(folder, folder).unwrap().remove(0)
}

/// A DEK's name.
pub fn name(volume: u128) -> KeyName {
    KeyName {
        volume: VolumeId(volume),
        key: KeyId::new(1).unwrap(),
    }
}
