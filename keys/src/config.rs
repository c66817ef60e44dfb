//! The part of the configuration that says where keys come from.
//!
//! ```toml
//! [keys]
//! provider = "file"                         # who wraps: "file", "kmip" or "vault"; all named below unwrap
//!
//! [keys.file]
//! path = "keyring"                          # in the data directory unless absolute
//! passphrase_file = "/run/credentials/…"    # optional: a passphrase for the keyring
//!
//! [keys.kmip]
//! address = "kms.example.com:5696"
//! ca_file = "/etc/esker/kmip-ca.pem"        # who vouches for the server
//! cert_file = "/etc/esker/kmip.pem"         # who this node is
//! key_file = "/etc/esker/kmip.key"
//! group = "esker"                           # the object group of the KEKs
//! username = "esker"                        # optional, with password_file
//! password_file = "/etc/esker/kmip-password"
//! timeout_ms = 10000
//!
//! [keys.vault]
//! url = "https://vault.example.com:8200"
//! ca_file = "/etc/esker/vault-ca.pem"
//! mount = "transit"
//! key = "esker"
//! namespace = "team"                        # optional
//! token_file = "/run/vault/token"           # or role_id and secret_id_file
//! role_id = "…"
//! secret_id_file = "/etc/esker/vault-secret-id"
//! auth_mount = "approle"
//! timeout_ms = 10000
//! ```
//!
//! Without a `keys` table it is the keyring `keyring` in the data directory.

use crate::error::KeyError;
use crate::file::FileProvider;
use crate::http::Server;
use crate::kmip::{KmipProvider, KmipSettings};
use crate::provider::Provider;
use crate::tls::TlsFiles;
use crate::vault::{Login, VaultProvider, VaultSettings};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How long a key server may take to answer when nothing is said, in milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 10_000;
/// The longest time that may be said.
pub const TIMEOUT_MS_MAX: u64 = 120_000;
/// The name of the keyring when nothing is said.
pub const KEYRING_DEFAULT: &str = "keyring";
const NAME_BYTES_MAX: usize = 48;

/// Who wraps new keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// A keyring file.
    #[default]
    File,
    /// A KMIP server.
    Kmip,
    /// Vault or OpenBao.
    Vault,
}

/// The `keys` table as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeysConfig {
    /// Who wraps.
    pub provider: ProviderKind,
    /// The keyring file.
    pub file: Option<FileConfig>,
    /// The KMIP server.
    pub kmip: Option<KmipConfig>,
    /// Vault or OpenBao.
    pub vault: Option<VaultConfig>,
}

/// `keys.file`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileConfig {
    /// The keyring; in the data directory unless absolute.
    pub path: Option<PathBuf>,
    /// A file that holds its passphrase.
    pub passphrase_file: Option<PathBuf>,
}

/// `keys.kmip`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KmipConfig {
    /// HOST:PORT of the server.
    pub address: String,
    /// Authorities that vouch for it, in PEM.
    pub ca_file: PathBuf,
    /// This node's certificate, in PEM.
    pub cert_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
    /// Object group of the KEKs.
    #[serde(default = "group_default")]
    pub group: String,
    /// User name, for servers that want one beside the certificate.
    pub username: Option<String>,
    /// A file that holds the password.
    pub password_file: Option<PathBuf>,
    /// How long the server may take, in milliseconds.
    #[serde(default = "timeout_default")]
    pub timeout_ms: u64,
}

/// `keys.vault`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultConfig {
    /// Where it is; http only on this machine.
    pub url: String,
    /// Authorities that vouch for it, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Where the Transit engine is mounted.
    #[serde(default = "mount_default")]
    pub mount: String,
    /// The Transit key.
    #[serde(default = "group_default")]
    pub key: String,
    /// Namespace of both.
    pub namespace: Option<String>,
    /// A file that holds a token.
    pub token_file: Option<PathBuf>,
    /// AppRole: the role.
    pub role_id: Option<String>,
    /// AppRole: a file that holds its secret.
    pub secret_id_file: Option<PathBuf>,
    /// AppRole: where it is mounted.
    #[serde(default = "auth_mount_default")]
    pub auth_mount: String,
    /// How long it may take, in milliseconds.
    #[serde(default = "timeout_default")]
    pub timeout_ms: u64,
}

fn group_default() -> String {
    "esker".into()
}

fn mount_default() -> String {
    "transit".into()
}

fn auth_mount_default() -> String {
    "approle".into()
}

fn timeout_default() -> u64 {
    TIMEOUT_MS_DEFAULT
}

fn wrong(key: &str, what: impl std::fmt::Display) -> KeyError {
    KeyError::config(format!("keys.{key}: {what}"))
}

impl KeysConfig {
    /// The same with relative paths, but for the keyring's, beginning at `folder`.
    #[must_use]
    pub fn rebased(mut self, folder: &Path) -> Self {
        let optional = |path: &mut Option<PathBuf>| {
            if let Some(path) = path {
                *path = folder.join(&*path);
            }
        };
        if let Some(file) = &mut self.file {
            optional(&mut file.passphrase_file);
        }
        if let Some(kmip) = &mut self.kmip {
            for path in [&mut kmip.ca_file, &mut kmip.cert_file, &mut kmip.key_file] {
                *path = folder.join(&*path);
            }
            optional(&mut kmip.password_file);
        }
        if let Some(vault) = &mut self.vault {
            optional(&mut vault.ca_file);
            optional(&mut vault.token_file);
            optional(&mut vault.secret_id_file);
        }
        self
    }

    /// Files that providers read: certificates, keys, passwords, tokens.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        let file = self.file.iter().map(|file| file.passphrase_file.as_ref());
        let kmip = self.kmip.iter().flat_map(|kmip| {
            let files = [&kmip.ca_file, &kmip.cert_file, &kmip.key_file].map(Some);
            files.into_iter().chain([kmip.password_file.as_ref()])
        });
        let vault = self.vault.iter().flat_map(|vault| {
            let files = [&vault.ca_file, &vault.token_file, &vault.secret_id_file];
            files.map(Option::as_ref)
        });
        let all = file.chain(kmip).chain(vault).flatten();
        all.map(PathBuf::as_path).collect()
    }

    /// The files among them that hold certificates, and the keys of the configuration that name them.
    #[must_use]
    pub fn certificates(&self) -> Vec<(&'static str, PathBuf)> {
        let kmip = self.kmip.iter().flat_map(|kmip| {
            [
                ("keys.kmip.ca_file", kmip.ca_file.clone()),
                ("keys.kmip.cert_file", kmip.cert_file.clone()),
            ]
        });
        let vault = self.vault.iter().filter_map(|vault| vault.ca_file.clone());
        kmip.chain(vault.map(|path| ("keys.vault.ca_file", path)))
            .collect()
    }

    /// The keyring file, unless it has its usual name in the data folder.
    #[must_use]
    pub fn keyring(&self) -> Option<&Path> {
        self.file.as_ref()?.path.as_deref()
    }

    /// Makes the providers it names, without reaching for any of them. The first one wraps. A relative
    /// keyring lies in `data`; other relative paths are relative to `folder`, that of the
    /// configuration file.
    ///
    /// # Errors
    /// When the configuration cannot work; the error names the key.
    pub fn providers(
        &self,
        data: &Path,
        folder: &Path,
    ) -> Result<Vec<Box<dyn Provider>>, KeyError> {
        let mut all: Vec<(ProviderKind, Box<dyn Provider>)> = Vec::new();
        let file_default = FileConfig::default();
        let file = match (&self.file, self.provider) {
            (None, ProviderKind::File) => Some(&file_default),
            (file, _) => file.as_ref(),
        };
        if let Some(file) = file {
            let path = file.path.as_deref().unwrap_or(Path::new(KEYRING_DEFAULT));
            let passphrase = file.passphrase_file.as_ref().map(|path| folder.join(path));
            let provider = FileProvider::new(data.join(path), passphrase);
            all.push((ProviderKind::File, Box::new(provider)));
        }
        if let Some(kmip) = &self.kmip {
            let provider = KmipProvider::new(kmip.settings(folder)?);
            all.push((ProviderKind::Kmip, Box::new(provider)));
        }
        if let Some(vault) = &self.vault {
            let provider = VaultProvider::new(vault.settings(folder)?);
            all.push((ProviderKind::Vault, Box::new(provider)));
        }
        let first = all.iter().position(|(kind, _)| *kind == self.provider);
        let Some(first) = first else {
            let name = match self.provider {
                ProviderKind::Kmip => "kmip",
                _ => "vault",
            };
            let what = format!("\"{name}\" wraps, and there is no table [keys.{name}]; add it");
            return Err(wrong("provider", what));
        };
        all.swap(0, first);
        Ok(all.into_iter().map(|(_, provider)| provider).collect())
    }
}

impl KmipConfig {
    fn settings(&self, folder: &Path) -> Result<KmipSettings, KeyError> {
        let (host, port) = host_port("kmip.address", &self.address, 5696)?;
        let login = match (&self.username, &self.password_file) {
            (Some(user), Some(file)) => Some((user.clone(), folder.join(file))),
            (None, None) => None,
            (Some(_), None) => {
                return Err(wrong("kmip.password_file", "username is set; set it too"))
            }
            (None, Some(_)) => {
                return Err(wrong("kmip.username", "password_file is set; set it too"))
            }
        };
        Ok(KmipSettings {
            host,
            port,
            tls: TlsFiles {
                prefix: "keys.kmip",
                ca_file: folder.join(&self.ca_file),
                client: Some((folder.join(&self.cert_file), folder.join(&self.key_file))),
            },
            group: name("kmip.group", &self.group)?,
            login,
            timeout: timeout("kmip.timeout_ms", self.timeout_ms)?,
        })
    }
}

impl VaultConfig {
    fn settings(&self, folder: &Path) -> Result<VaultSettings, KeyError> {
        let url = self.url.trim_end_matches('/');
        let (is_tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(wrong("vault.url", "write it as https://HOST:PORT")),
        };
        if rest.contains(['/', '?', '#', '@']) {
            return Err(wrong(
                "vault.url",
                "write it as https://HOST:PORT, without a path",
            ));
        }
        let (host, port) = host_port("vault.url", rest, 8200)?;
        let is_here =
            host == "localhost" || IpAddr::from_str(&host).is_ok_and(|ip| ip.is_loopback());
        let tls = match (is_tls, &self.ca_file) {
            (true, Some(ca_file)) => Some(TlsFiles {
                prefix: "keys.vault",
                ca_file: folder.join(ca_file),
                client: None,
            }),
            (true, None) => {
                return Err(wrong(
                    "vault.ca_file",
                    "name the authorities that vouch for the server, \
                     like /etc/ssl/certs/ca-certificates.crt",
                ))
            }
            (false, _) if !is_here => {
                return Err(wrong(
                    "vault.url",
                    "keys would cross the network in the clear; use https:// (http:// is for \
                     this machine alone)",
                ))
            }
            (false, _) => None,
        };
        Ok(VaultSettings {
            server: Server {
                name: format!("Vault at {url}"),
                host,
                port,
                tls,
                timeout: timeout("vault.timeout_ms", self.timeout_ms)?,
            },
            mount: path("vault.mount", &self.mount)?,
            key: name("vault.key", &self.key)?,
            namespace: match &self.namespace {
                Some(namespace) => Some(path("vault.namespace", namespace)?),
                None => None,
            },
            login: self.login(folder)?,
        })
    }

    fn login(&self, folder: &Path) -> Result<Login, KeyError> {
        match (&self.token_file, &self.role_id, &self.secret_id_file) {
            (Some(file), None, None) => Ok(Login::TokenFile(folder.join(file))),
            (None, Some(role), Some(file)) => Ok(Login::AppRole {
                mount: path("vault.auth_mount", &self.auth_mount)?,
                role_id: role.clone(),
                secret_id_file: folder.join(file),
            }),
            (None, Some(_), None) => {
                Err(wrong("vault.secret_id_file", "role_id is set; set it too"))
            }
            (None, None, Some(_)) => {
                Err(wrong("vault.role_id", "secret_id_file is set; set it too"))
            }
            _ => Err(wrong(
                "vault.token_file",
                "set either token_file, or role_id and secret_id_file",
            )),
        }
    }
}

/// HOST, HOST:PORT or [IPV6]:PORT.
fn host_port(key: &str, text: &str, default: u16) -> Result<(String, u16), KeyError> {
    let odd = || wrong(key, format!("`{text}` is not HOST:PORT"));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bracketed {
        Some(host) => host,
        None if host.contains(':') => {
            return Err(wrong(
                key,
                "write an IPv6 address in brackets, like [::1]:8200",
            ))
        }
        None => host,
    };
    let is_plain = host
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b".-:_%".contains(&b));
    if host.is_empty() || !is_plain {
        return Err(odd());
    }
    let port = port.map_or(Ok(default), |port| port.parse().map_err(|_| odd()))?;
    Ok((host.to_owned(), port))
}

/// A name that stands in paths and in names of KEKs.
fn name(key: &str, text: &str) -> Result<String, KeyError> {
    let is_plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    match is_plain && !text.is_empty() && text.len() <= NAME_BYTES_MAX {
        true => Ok(text.to_owned()),
        false => Err(wrong(
            key,
            format!("`{text}`: use 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` and `.`"),
        )),
    }
}

/// Names with slashes between them.
fn path(key: &str, text: &str) -> Result<String, KeyError> {
    let text = text.trim_matches('/');
    for part in text.split('/') {
        name(key, part)?;
    }
    match text.len() <= NAME_BYTES_MAX {
        true => Ok(text.to_owned()),
        false => Err(wrong(key, format!("longer than {NAME_BYTES_MAX} bytes"))),
    }
}

fn timeout(key: &str, ms: u64) -> Result<Duration, KeyError> {
    match (1..=TIMEOUT_MS_MAX).contains(&ms) {
        true => Ok(Duration::from_millis(ms)),
        false => Err(wrong(
            key,
            format!("{ms} is not within 1 and {TIMEOUT_MS_MAX}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::KeyErrorKind;

    #[derive(Deserialize)]
    struct Whole {
        #[serde(default)]
        keys: KeysConfig,
    }

    fn kinds(text: &str) -> Result<Vec<&'static str>, String> {
        let whole: Whole = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        let providers = whole
            .keys
            .providers(Path::new("/d"), Path::new("/etc/esker"));
        let providers = providers.map_err(|e| {
            assert_eq!(e.kind, KeyErrorKind::Config);
            e.to_string()
        })?;
        Ok(providers.iter().map(|provider| provider.kind()).collect())
    }

    const KMIP: &str =
        "[keys.kmip]\naddress = 'kms:5696'\nca_file = 'a'\ncert_file = 'c'\nkey_file = 'k'\n";
    const VAULT: &str = "[keys.vault]\nurl = 'https://vault'\nca_file = 'a'\n";

    #[test]
    fn nothing_said_is_a_keyring() {
        assert_eq!(kinds("").unwrap(), ["file"]);
    }

    #[test]
    fn one_wraps_and_all_unwrap() {
        let text =
            format!("[keys]\nprovider = 'vault'\n[keys.file]\n{KMIP}{VAULT}token_file = 't'\n");
        assert_eq!(kinds(&text).unwrap(), ["vault", "kmip", "file"]);
        let text = format!("[keys]\nprovider = 'kmip'\n{KMIP}");
        assert_eq!(kinds(&text).unwrap(), ["kmip"]);
    }

    /// The example at the top names every key and is understood, but for the two ways to log in.
    #[test]
    fn the_example_is_true() {
        let source = include_str!("config.rs");
        let (_, example) = source.split_once("```toml\n").unwrap();
        let (example, _) = example.split_once("//! ```").unwrap();
        let lines = example.lines().map(|line| line.trim_start_matches("//!"));
        let without_token: Vec<&str> = lines.filter(|line| !line.contains("token_file")).collect();
        let text = without_token.join("\n");
        assert_eq!(kinds(&text).unwrap(), ["file", "kmip", "vault"]);
        let whole: Whole = toml::from_str(&text).unwrap();
        let named = |config: String| config.matches(": ").count();
        assert_eq!(named(format!("{:?}", whole.keys.kmip)), 8);
        assert_eq!(
            whole.keys.vault.as_ref().map(|v| v.timeout_ms),
            Some(TIMEOUT_MS_DEFAULT)
        );
        let unknown = toml::from_str::<VaultConfig>("unknown = 1").unwrap_err();
        let (_, known) = unknown.message().split_once("expected one of ").unwrap();
        for key in known.split(", ") {
            let key = format!(" {} = ", key.trim_matches('`'));
            assert!(example.contains(&key), "{key}");
        }
    }

    #[test]
    fn errors_name_the_key_and_the_remedy() {
        let vault = |rest: &str| format!("[keys]\nprovider='vault'\n[keys.vault]\n{rest}");
        let token = "token_file = 't'\n";
        for (text, parts) in [
            (
                "[keys]\nprovider = 'kmip'".to_owned(),
                &["keys.provider", "[keys.kmip]"][..],
            ),
            ("[keys]\nprovider = 'disk'".to_owned(), &["disk", "vault"]),
            (
                "[keys.file]\npaht = 'x'".to_owned(),
                &["paht", "passphrase_file"],
            ),
            (
                vault(&format!("url = 'http://10.0.0.1:8200'\n{token}")),
                &["keys.vault.url", "https"],
            ),
            (
                vault(&format!("url = 'https://v'\n{token}")),
                &["keys.vault.ca_file"],
            ),
            (
                vault(&format!("url = 'vault:8200'\n{token}")),
                &["keys.vault.url", "https://HOST"],
            ),
            (
                vault(&format!("url = 'https://v/ui'\n{token}")),
                &["keys.vault.url", "path"],
            ),
            (
                vault("url = 'http://[::1]:8200'\n"),
                &["keys.vault.token_file", "role_id"],
            ),
            (
                vault("url = 'http://[::1]:8200'\nrole_id = 'r'"),
                &["keys.vault.secret_id_file"],
            ),
            (
                vault(&format!("url = 'http://localhost'\n{token}mount = 'a b'")),
                &["keys.vault.mount", "letters"],
            ),
            (
                vault(&format!("url = 'http://localhost'\n{token}timeout_ms = 0")),
                &["keys.vault.timeout_ms", "120000"],
            ),
            (
                KMIP.replace("kms:5696", "kms:x"),
                &["keys.kmip.address", "HOST:PORT"],
            ),
            (
                format!("{KMIP}username = 'u'"),
                &["keys.kmip.password_file"],
            ),
            (format!("{KMIP}group = ''"), &["keys.kmip.group"]),
        ] {
            let error = kinds(&text).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{part} in: {error}");
            }
        }
    }

    #[test]
    fn hosts_and_ports() {
        let parse = |text| host_port("k", text, 7).ok();
        assert_eq!(parse("a.b"), Some(("a.b".into(), 7)));
        assert_eq!(parse("a:1"), Some(("a".into(), 1)));
        assert_eq!(parse("[::1]:1"), Some(("::1".into(), 1)));
        assert_eq!(parse("[::1]"), Some(("::1".into(), 7)));
        for odd in ["", ":1", "::1", "a:99999", "a b:1", "a:"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
