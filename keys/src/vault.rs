//! The `vault` provider: KEKs are versions of a key of the Transit engine of Vault or OpenBao. They never
//! leave it: it wraps and unwraps.
//!
//! A KEK is named `vault:MOUNT/KEY:vN`. Volume, number of the DEK and name of the KEK are authenticated
//! with the DEK (`associated_data`), so the Transit key must be of an AEAD type; `aes256-gcm96` is what
//! this provider makes. Rotation of the Transit key makes the next version.
//!
//! What a policy must allow: read of `MOUNT/keys/KEY`, update of `MOUNT/encrypt/KEY` and
//! `MOUNT/decrypt/KEY`; create and update of `MOUNT/keys/KEY` if the key is to be made from here, and
//! update of `MOUNT/keys/KEY/rotate` if it is to be rotated.

use crate::error::KeyError;
use crate::http::{Answer, Ask, Server};
use crate::private;
use crate::provider::{KeyName, Pending, Provider};
use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine;
use esker_crypto::wrap::provided_aad;
use esker_crypto::{DataKey, KekId, WrappedKey, KEY_BYTES};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tokio::sync::Mutex;
use zeroize::{Zeroize, Zeroizing};

/// What the names of its KEKs begin with.
pub const KIND: &str = "vault";
/// The type of Transit keys that are made here.
const KEY_TYPE: &str = "aes256-gcm96";

/// How this node proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    /// A token in a file, which an agent may replace at any time: it is read for each request.
    TokenFile(PathBuf),
    /// AppRole: a role, and the file with its secret.
    AppRole {
        mount: String,
        role_id: String,
        secret_id_file: PathBuf,
    },
}

/// Where Vault is and what to ask it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VaultSettings {
    pub(crate) server: Server,
    pub(crate) mount: String,
    pub(crate) key: String,
    pub(crate) namespace: Option<String>,
    pub(crate) login: Login,
}

/// KEKs in the Transit engine of Vault or OpenBao.
pub struct VaultProvider {
    settings: VaultSettings,
    /// The token of the last login, until it is refused.
    token: Mutex<Option<Zeroizing<String>>>,
}

#[derive(Deserialize)]
struct Envelope<T> {
    data: Option<T>,
    auth: Option<Auth>,
}

#[derive(Deserialize)]
struct Auth {
    client_token: String,
}

#[derive(Deserialize)]
struct KeyInfo {
    latest_version: u64,
    #[serde(rename = "type")]
    key_type: String,
}

#[derive(Deserialize)]
struct Ciphertext {
    ciphertext: String,
}

#[derive(Deserialize)]
struct Plaintext {
    plaintext: String,
}

#[derive(Deserialize)]
struct Errors {
    #[serde(default)]
    errors: Vec<String>,
}

#[derive(Serialize)]
struct Encrypt<'a> {
    plaintext: &'a str,
    associated_data: &'a str,
    key_version: u64,
}

#[derive(Serialize)]
struct Decrypt<'a> {
    ciphertext: &'a str,
    associated_data: &'a str,
}

#[derive(Serialize)]
struct NewKey {
    #[serde(rename = "type")]
    key_type: &'static str,
}

#[derive(Serialize)]
struct RoleLogin<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct Nothing {}

impl VaultProvider {
    pub(crate) fn new(settings: VaultSettings) -> Self {
        Self {
            settings,
            token: Mutex::new(None),
        }
    }

    fn server(&self) -> &str {
        &self.settings.server.name
    }

    /// The KEK of a version.
    fn kek_id(&self, version: u64) -> Result<KekId, KeyError> {
        let (mount, key) = (&self.settings.mount, &self.settings.key);
        let id = KekId::new(&format!("{KIND}:{mount}/{key}:v{version}"));
        id.ok_or_else(|| KeyError::config("keys.vault.mount and keys.vault.key are too long"))
    }

    /// A path of the key, below the Transit engine.
    fn path(&self, verb: &str) -> String {
        let (mount, key) = (&self.settings.mount, &self.settings.key);
        format!("/v1/{mount}/{verb}/{key}")
    }

    /// Asks with a token; one that is refused is replaced by a new login, once.
    async fn ask(&self, path: &str, body: Option<&[u8]>) -> Result<Answer, KeyError> {
        let (token, is_new) = self.token().await?;
        let answer = self.ask_with(Some(&token), path, body).await?;
        let is_approle = matches!(self.settings.login, Login::AppRole { .. });
        if answer.status != 403 || is_new || !is_approle {
            return Ok(answer);
        }
        {
            // Somebody else may have logged in meanwhile.
            let mut kept = self.token.lock().await;
            if kept.as_ref().is_some_and(|kept| **kept == *token) {
                *kept = None;
            }
        }
        let (token, _) = self.token().await?;
        self.ask_with(Some(&token), path, body).await
    }

    async fn ask_with(
        &self,
        token: Option<&str>,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<Answer, KeyError> {
        let mut headers = vec![("x-vault-request", "true")];
        headers.extend(token.map(|token| ("x-vault-token", token)));
        let namespace = self.settings.namespace.as_deref();
        headers.extend(namespace.map(|name| ("x-vault-namespace", name)));
        let ask = Ask {
            path,
            headers: &headers,
            body: body.map(|body| Zeroizing::new(body.to_vec())),
        };
        self.settings.server.ask(ask).await
    }

    /// A token, and whether it was just issued.
    async fn token(&self) -> Result<(Zeroizing<String>, bool), KeyError> {
        match &self.settings.login {
            Login::TokenFile(path) => {
                Ok((private::secret_text("keys.vault.token_file", path)?, false))
            }
            Login::AppRole {
                mount,
                role_id,
                secret_id_file,
            } => {
                let mut kept = self.token.lock().await;
                if let Some(token) = kept.as_ref() {
                    return Ok((token.clone(), false));
                }
                let key = "keys.vault.secret_id_file";
                let secret_id = private::secret_text(key, secret_id_file)?;
                let token = self.log_in(mount, role_id, &secret_id).await?;
                *kept = Some(token.clone());
                Ok((token, true))
            }
        }
    }

    async fn log_in(
        &self,
        mount: &str,
        role_id: &str,
        secret_id: &str,
    ) -> Result<Zeroizing<String>, KeyError> {
        let body = json(&RoleLogin { role_id, secret_id })?;
        let path = format!("/v1/auth/{mount}/login");
        let answer = self.ask_with(None, &path, Some(&body)).await?;
        let server = self.server();
        match answer.status {
            200 => {}
            400 | 403 => {
                return Err(KeyError::denied(format!(
                    "{server} refuses the AppRole login: {}; check keys.vault.role_id and \
                     secret_id_file",
                    said(&answer)
                )))
            }
            _ => return Err(self.refusal(&answer, "log in")),
        }
        let envelope: Envelope<serde::de::IgnoredAny> = self.read(&answer)?;
        let mut auth = envelope.auth.ok_or_else(|| self.odd())?;
        Ok(Zeroizing::new(std::mem::take(&mut auth.client_token)))
    }

    /// The key as Transit knows it; none when there is no such key.
    async fn info(&self) -> Result<Option<KeyInfo>, KeyError> {
        let answer = self.ask(&self.path("keys"), None).await?;
        let is_absent = answer.status == 404 && errors(&answer).is_empty();
        if is_absent {
            return Ok(None);
        }
        let info: KeyInfo = self.data(&answer, "read the key")?;
        match info.key_type.as_str() {
            KEY_TYPE | "aes128-gcm96" | "chacha20-poly1305" | "xchacha20-poly1305" => {
                Ok(Some(info))
            }
            other => Err(KeyError::config(format!(
                "keys.vault.key: {} is of type {other}, which does not authenticate what it wraps; \
                 name one of type {KEY_TYPE}",
                self.settings.key
            ))),
        }
    }

    /// The newest version; the key is made when there is none.
    async fn version(&self) -> Result<u64, KeyError> {
        if let Some(info) = self.info().await? {
            return Ok(info.latest_version);
        }
        let body = json(&NewKey { key_type: KEY_TYPE })?;
        let answer = self.ask(&self.path("keys"), Some(&body)).await?;
        if !matches!(answer.status, 200 | 204) {
            return Err(self.refusal(&answer, "make the key"));
        }
        let info = self.info().await?;
        info.map(|info| info.latest_version)
            .ok_or_else(|| self.odd())
    }

    async fn rotate(&self) -> Result<u64, KeyError> {
        if self.info().await?.is_none() {
            return self.version().await;
        }
        let path = format!("{}/rotate", self.path("keys"));
        let answer = self.ask(&path, Some(&json(&Nothing {})?)).await?;
        if !matches!(answer.status, 200 | 204) {
            return Err(self.refusal(&answer, "rotate the key"));
        }
        self.version().await
    }

    async fn encrypt(&self, name: KeyName, dek: &DataKey) -> Result<WrappedKey, KeyError> {
        let version = self.version().await?;
        let id = self.kek_id(version)?;
        let aad = BASE64.encode(provided_aad(name.volume, name.key, &id));
        let plaintext = Zeroizing::new(BASE64.encode(dek.expose()));
        let body = json(&Encrypt {
            plaintext: &plaintext,
            associated_data: &aad,
            key_version: version,
        })?;
        let answer = self.ask(&self.path("encrypt"), Some(&body)).await?;
        let made: Ciphertext = self.data(&answer, "wrap a key")?;
        let is_of_version = made.ciphertext.starts_with(&format!("vault:v{version}:"));
        let bytes = made.ciphertext.into_bytes();
        let wrapped = WrappedKey::provided(id, name.volume, name.key, bytes);
        wrapped.filter(|_| is_of_version).ok_or_else(|| self.odd())
    }

    async fn decrypt(&self, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let (id, volume) = (wrapped.kek(), wrapped.volume());
        let (mount, key) = (&self.settings.mount, &self.settings.key);
        let is_ours = id.as_str().starts_with(&format!("{KIND}:{mount}/{key}:v"));
        if !is_ours {
            return Err(KeyError::missing(format!(
                "the key of volume {volume} is wrapped by {id}, and keys.vault names {mount}/{key}"
            )));
        }
        let damaged = |what: &str| {
            KeyError::damaged(format!(
                "{}: the key of volume {volume} does not open with {id}: {what}; restore the key of that name if \
                 another one has taken its place",
                self.server()
            ))
        };
        let bytes = wrapped
            .provided_bytes()
            .and_then(|b| std::str::from_utf8(b).ok());
        let ciphertext = bytes.ok_or_else(|| damaged("not made by Transit"))?;
        let aad = BASE64.encode(provided_aad(volume, wrapped.key(), id));
        let body = json(&Decrypt {
            ciphertext,
            associated_data: &aad,
        })?;
        let answer = self.ask(&self.path("decrypt"), Some(&body)).await?;
        if answer.status == 400 {
            let said = said(&answer);
            let is_gone = ["not found", "disallowed", "too old", "no such key"]
                .iter()
                .any(|part| said.contains(part));
            return Err(match is_gone {
                true => KeyError::missing(format!("{}: {id}: {said}", self.server())),
                false => damaged(&said),
            });
        }
        let opened: Plaintext = self.data(&answer, "unwrap a key")?;
        let text = Zeroizing::new(opened.plaintext);
        DataKey::try_filled(|dek| {
            // As much as the decoder may want to write, which is a little more than the key.
            let mut bytes = Zeroizing::new([0; KEY_BYTES + 4]);
            match BASE64.decode_slice(text.as_bytes(), &mut bytes[..]) {
                Ok(KEY_BYTES) => dek.copy_from_slice(&bytes[..KEY_BYTES]),
                _ => return Err(damaged("what it holds is not a key of 256 bits")),
            }
            Ok(())
        })
    }

    /// What an answer holds.
    fn data<T: DeserializeOwned>(&self, answer: &Answer, what: &str) -> Result<T, KeyError> {
        if answer.status != 200 {
            return Err(self.refusal(answer, what));
        }
        self.read::<Envelope<T>>(answer)?
            .data
            .ok_or_else(|| self.odd())
    }

    fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, KeyError> {
        serde_json::from_slice(&answer.body).map_err(|_| self.odd())
    }

    fn odd(&self) -> KeyError {
        KeyError::unreachable(format!(
            "{}: its answer is not one of Transit",
            self.server()
        ))
    }

    fn refusal(&self, answer: &Answer, what: &str) -> KeyError {
        let (server, said, status) = (self.server(), said(answer), answer.status);
        let (mount, key) = (&self.settings.mount, &self.settings.key);
        match status {
            401 | 403 => KeyError::denied(format!(
                "{server} refuses to {what}: {said}; check the token or role and its policy for \
                 {mount}/*/{key}"
            )),
            404 => KeyError::missing(format!(
                "{server} has no Transit engine {mount} with key {key}: {said}; check \
                 keys.vault.mount, namespace and key"
            )),
            400 if said.contains("not found") => {
                KeyError::missing(format!("{server}: {mount}/{key}: {said}"))
            }
            // 429, 472, 473 and 503: sealed, standby, too busy.
            _ => KeyError::unreachable(format!("{server} failed to {what} ({status}): {said}")),
        }
    }
}

impl Provider for VaultProvider {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn newest(&self) -> Pending<'_, KekId> {
        Box::pin(async move { self.kek_id(self.version().await?) })
    }

    fn create(&self) -> Pending<'_, KekId> {
        Box::pin(async move { self.kek_id(self.rotate().await?) })
    }

    fn wrap<'a>(&'a self, name: KeyName, dek: &'a DataKey) -> Pending<'a, WrappedKey> {
        Box::pin(self.encrypt(name, dek))
    }

    fn unwrap<'a>(&'a self, wrapped: &'a WrappedKey) -> Pending<'a, DataKey> {
        Box::pin(self.decrypt(wrapped))
    }

    fn health(&self) -> Pending<'_, ()> {
        Box::pin(async move { self.info().await.map(|_| ()) })
    }
}

impl Drop for Auth {
    fn drop(&mut self) {
        self.client_token.zeroize();
    }
}

/// The body of a request, in memory that is wiped and does not grow.
fn json(body: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let written = serde_json::to_writer(&mut *bytes, body);
    written.map_err(|e| KeyError::config(format!("a request cannot be written: {e}")))?;
    Ok(bytes)
}

fn errors(answer: &Answer) -> Vec<String> {
    let read = serde_json::from_slice::<Errors>(&answer.body);
    read.map(|read| read.errors).unwrap_or_default()
}

/// What the server says went wrong.
fn said(answer: &Answer) -> String {
    let errors = errors(answer);
    match errors.is_empty() {
        true => format!("status {}", answer.status),
        false => errors.join("; "),
    }
}
