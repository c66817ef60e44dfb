//! The `kmip` provider: KEKs are symmetric keys on a KMIP server, reached over mutual TLS.
//!
//! KEKs are AES keys of 256 bits in an object group; they are named GROUP.1, GROUP.2, … and the one with
//! the highest number is the newest. DEKs are wrapped here: the KEK is fetched for it and wiped
//! afterwards. Speaks KMIP 1.2 (Create, Activate, Locate, Get Attributes, Get), which newer servers
//! answer as well. Each call makes a connection of its own.

use crate::error::KeyError;
use crate::private;
use crate::provider::{KeyName, Pending, Provider};
use crate::random;
use crate::tls::{connect, io_error, Stream, TlsFiles};
use crate::ttlv::{message_bytes, Item, Value, HEAD_BYTES};
use esker_crypto::{DataKey, KekId, KeyEncryptionKey, WrappedKey, KEY_BYTES};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use zeroize::Zeroizing;

/// What the names of its KEKs begin with.
pub const KIND: &str = "kmip";
/// KEKs of one group that are looked at; servers list the newest first, so older ones are left out, which
/// only looking for the newest notices.
const KEKS_MAX: usize = 256;

/// Numbers of KMIP: tags, operations, and values of enumerations (KMIP 1.2, section 9.1.3).
mod number {
    pub(super) const ATTRIBUTE: u32 = 0x42_0008;
    pub(super) const ATTRIBUTE_NAME: u32 = 0x42_000a;
    pub(super) const ATTRIBUTE_VALUE: u32 = 0x42_000b;
    pub(super) const AUTHENTICATION: u32 = 0x42_000c;
    pub(super) const BATCH_COUNT: u32 = 0x42_000d;
    pub(super) const BATCH_ITEM: u32 = 0x42_000f;
    pub(super) const CREDENTIAL: u32 = 0x42_0023;
    pub(super) const CREDENTIAL_TYPE: u32 = 0x42_0024;
    pub(super) const CREDENTIAL_VALUE: u32 = 0x42_0025;
    pub(super) const KEY_BLOCK: u32 = 0x42_0040;
    pub(super) const KEY_FORMAT_TYPE: u32 = 0x42_0042;
    pub(super) const KEY_MATERIAL: u32 = 0x42_0043;
    pub(super) const KEY_VALUE: u32 = 0x42_0045;
    pub(super) const MAXIMUM_ITEMS: u32 = 0x42_004f;
    pub(super) const NAME_TYPE: u32 = 0x42_0054;
    pub(super) const NAME_VALUE: u32 = 0x42_0055;
    pub(super) const OBJECT_TYPE: u32 = 0x42_0057;
    pub(super) const OPERATION: u32 = 0x42_005c;
    pub(super) const PASSWORD: u32 = 0x42_00a1;
    pub(super) const PROTOCOL_VERSION: u32 = 0x42_0069;
    pub(super) const VERSION_MAJOR: u32 = 0x42_006a;
    pub(super) const VERSION_MINOR: u32 = 0x42_006b;
    pub(super) const REQUEST_HEADER: u32 = 0x42_0077;
    pub(super) const REQUEST: u32 = 0x42_0078;
    pub(super) const REQUEST_PAYLOAD: u32 = 0x42_0079;
    pub(super) const RESPONSE: u32 = 0x42_007b;
    pub(super) const RESPONSE_PAYLOAD: u32 = 0x42_007c;
    pub(super) const RESULT_MESSAGE: u32 = 0x42_007d;
    pub(super) const RESULT_REASON: u32 = 0x42_007e;
    pub(super) const RESULT_STATUS: u32 = 0x42_007f;
    pub(super) const SYMMETRIC_KEY: u32 = 0x42_008f;
    pub(super) const TEMPLATE: u32 = 0x42_0091;
    pub(super) const UNIQUE_ID: u32 = 0x42_0094;
    pub(super) const USERNAME: u32 = 0x42_0099;

    pub(super) const CREATE: u32 = 1;
    pub(super) const LOCATE: u32 = 8;
    pub(super) const GET: u32 = 10;
    pub(super) const GET_ATTRIBUTES: u32 = 11;
    pub(super) const ACTIVATE: u32 = 18;

    pub(super) const OBJECT_SYMMETRIC_KEY: u32 = 2;
    pub(super) const FORMAT_RAW: u32 = 1;
    pub(super) const ALGORITHM_AES: u32 = 3;
    pub(super) const NAME_TEXT: u32 = 1;
    pub(super) const CREDENTIAL_PASSWORD: u32 = 1;
    /// Encrypt and decrypt.
    pub(super) const USAGE: i32 = 0x4 | 0x8;
    /// States in which a key is used for new work: not active yet, active.
    pub(super) const STATES: [u32; 2] = [1, 2];

    pub(super) const NOT_FOUND: u32 = 1;
    pub(super) const AUTHENTICATION_FAILED: u32 = 3;
    pub(super) const PERMISSION_DENIED: u32 = 12;
}
use number as n;

/// Where the server is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KmipSettings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: TlsFiles,
    /// The object group that the KEKs belong to.
    pub(crate) group: String,
    /// User name, and the file with the password.
    pub(crate) login: Option<(String, PathBuf)>,
    pub(crate) timeout: Duration,
}

/// KEKs on a KMIP server.
pub struct KmipProvider {
    settings: KmipSettings,
    server: String,
}

/// A KEK as the server lists it.
struct Listed {
    unique_id: String,
    number: u64,
    is_usable: bool,
}

impl KmipProvider {
    pub(crate) fn new(settings: KmipSettings) -> Self {
        let server = format!("KMIP server {}:{}", settings.host, settings.port);
        Self { settings, server }
    }

    /// Runs `work` on a connection of its own, within the time-out.
    async fn within<T, F>(&self, work: impl FnOnce(Session) -> F) -> Result<T, KeyError>
    where
        F: std::future::Future<Output = Result<T, KeyError>>,
    {
        let settings = &self.settings;
        let whole = async {
            let tls = Some(&settings.tls);
            let stream = connect(&self.server, &settings.host, settings.port, tls).await?;
            let login = match &settings.login {
                Some((user, file)) => {
                    let password = private::secret_text("keys.kmip.password_file", file)?;
                    Some((user.clone(), password))
                }
                None => None,
            };
            work(Session {
                server: self.server.clone(),
                stream,
                login,
            })
            .await
        };
        let done = tokio::time::timeout(settings.timeout, whole).await;
        done.unwrap_or_else(|_| {
            let (server, ms) = (&self.server, settings.timeout.as_millis());
            Err(KeyError::unreachable(format!(
                "{server} did not answer within {ms} ms"
            )))
        })
    }

    /// The newest KEK, made when there is none.
    async fn newest_in(&self, session: &mut Session) -> Result<String, KeyError> {
        let newest = session.newest(&self.settings.group).await?;
        match newest {
            (_, Some(unique_id)) => Ok(unique_id),
            (number, None) => session.create(&self.settings.group, number + 1).await,
        }
    }

    fn kek_id(&self, unique_id: &str) -> Result<KekId, KeyError> {
        let odd = || {
            let server = &self.server;
            KeyError::config(format!(
                "{server}: names its keys in a way that is not supported"
            ))
        };
        KekId::new(&format!("{KIND}:{unique_id}")).ok_or_else(odd)
    }
}

impl Provider for KmipProvider {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn newest(&self) -> Pending<'_, KekId> {
        Box::pin(async move {
            let found =
                self.within(|mut session| async move { self.newest_in(&mut session).await });
            self.kek_id(&found.await?)
        })
    }

    fn create(&self) -> Pending<'_, KekId> {
        Box::pin(async move {
            let group = &self.settings.group;
            let made = self.within(|mut session| async move {
                let (number, _) = session.newest(group).await?;
                session.create(group, number + 1).await
            });
            self.kek_id(&made.await?)
        })
    }

    fn wrap<'a>(&'a self, name: KeyName, dek: &'a DataKey) -> Pending<'a, WrappedKey> {
        Box::pin(async move {
            let got = self.within(|mut session| async move {
                let unique_id = self.newest_in(&mut session).await?;
                let kek = session.get(&unique_id).await?;
                Ok((unique_id, kek))
            });
            let (unique_id, kek) = got.await?;
            let (id, nonce) = (self.kek_id(&unique_id)?, random::array()?);
            Ok(WrappedKey::seal(
                &kek,
                id,
                dek,
                name.volume,
                name.key,
                nonce,
            ))
        })
    }

    fn unwrap<'a>(&'a self, wrapped: &'a WrappedKey) -> Pending<'a, DataKey> {
        Box::pin(async move {
            let id = wrapped.kek().as_str();
            let unique_id = id.strip_prefix("kmip:").unwrap_or(id);
            let kek = self.within(|mut session| async move { session.get(unique_id).await });
            let kek = kek.await?;
            wrapped.open(&kek).map_err(|e| {
                let (volume, server) = (wrapped.volume(), &self.server);
                KeyError::damaged(format!("the key of volume {volume}, {server}, {id}: {e}"))
            })
        })
    }

    fn health(&self) -> Pending<'_, ()> {
        Box::pin(async move {
            let group = &self.settings.group;
            self.within(|mut session| async move { session.locate(group).await.map(|_| ()) })
                .await
        })
    }
}

/// A connection and what is sent with each request.
struct Session {
    server: String,
    stream: Box<dyn Stream>,
    login: Option<(String, Zeroizing<String>)>,
}

impl Session {
    /// Sends one operation and returns the payload of its answer.
    async fn ask(&mut self, operation: u32, payload: Vec<Item>) -> Result<Item, KeyError> {
        let bytes = self.request(operation, payload).encode();
        let server = &self.server;
        let failed = |e| io_error(server, &e);
        self.stream.write_all(&bytes).await.map_err(failed)?;
        self.stream.flush().await.map_err(failed)?;
        let mut head = [0; HEAD_BYTES];
        self.stream.read_exact(&mut head).await.map_err(failed)?;
        let odd = |e| KeyError::unreachable(format!("{server}: {e}"));
        let mut answer = Zeroizing::new(vec![0; message_bytes(&head).map_err(odd)?]);
        answer[..HEAD_BYTES].copy_from_slice(&head);
        let rest = self.stream.read_exact(&mut answer[HEAD_BYTES..]).await;
        rest.map_err(failed)?;
        let answer = Item::decode(&answer).map_err(odd)?;
        payload_of(server, &answer)
    }

    fn request(&self, operation: u32, payload: Vec<Item>) -> Item {
        let version = vec![
            Item::integer(n::VERSION_MAJOR, 1),
            Item::integer(n::VERSION_MINOR, 2),
        ];
        let mut header = vec![Item::structure(n::PROTOCOL_VERSION, version)];
        if let Some((user, password)) = &self.login {
            let login = vec![
                Item::text(n::USERNAME, user),
                Item::text(n::PASSWORD, password),
            ];
            let credential = vec![
                Item::enumeration(n::CREDENTIAL_TYPE, n::CREDENTIAL_PASSWORD),
                Item::structure(n::CREDENTIAL_VALUE, login),
            ];
            let credential = Item::structure(n::CREDENTIAL, credential);
            header.push(Item::structure(n::AUTHENTICATION, vec![credential]));
        }
        header.push(Item::integer(n::BATCH_COUNT, 1));
        let batch = vec![
            Item::enumeration(n::OPERATION, operation),
            Item::structure(n::REQUEST_PAYLOAD, payload),
        ];
        let parts = vec![
            Item::structure(n::REQUEST_HEADER, header),
            Item::structure(n::BATCH_ITEM, batch),
        ];
        Item::structure(n::REQUEST, parts)
    }

    /// The ids of the group's keys.
    async fn locate(&mut self, group: &str) -> Result<Vec<String>, KeyError> {
        let most = i32::try_from(KEKS_MAX).unwrap_or(i32::MAX);
        let kind = Value::Enumeration(n::OBJECT_SYMMETRIC_KEY);
        let payload = vec![
            Item::integer(n::MAXIMUM_ITEMS, most),
            attribute("Object Type", kind),
            attribute("Object Group", Value::Text(group.to_owned())),
        ];
        let answer = self.ask(n::LOCATE, payload).await?;
        let ids = answer
            .items()
            .iter()
            .filter(|item| item.tag == n::UNIQUE_ID);
        let ids = ids.filter_map(|item| match &item.value {
            Value::Text(id) => Some(id.clone()),
            _ => None,
        });
        Ok(ids.take(KEKS_MAX).collect())
    }

    /// The highest number of the group, 0 if it has no key; the key to use, if there is one.
    async fn newest(&mut self, group: &str) -> Result<(u64, Option<String>), KeyError> {
        let mut all = Vec::new();
        for unique_id in self.locate(group).await? {
            all.push(self.listed(group, unique_id).await?);
        }
        let highest = all.iter().map(|kek| kek.number).max().unwrap_or(0);
        let usable = all.into_iter().filter(|kek| kek.is_usable);
        // Two nodes may have made the same number at once: all choose the same of them.
        let newest = usable.max_by(|a, b| (a.number, &a.unique_id).cmp(&(b.number, &b.unique_id)));
        Ok((highest, newest.map(|kek| kek.unique_id)))
    }

    async fn listed(&mut self, group: &str, unique_id: String) -> Result<Listed, KeyError> {
        let payload = vec![
            Item::text(n::UNIQUE_ID, &unique_id),
            Item::text(n::ATTRIBUTE_NAME, "Name"),
            Item::text(n::ATTRIBUTE_NAME, "State"),
        ];
        let answer = self.ask(n::GET_ATTRIBUTES, payload).await?;
        let (mut number, mut state) = (0, None);
        for attribute in answer
            .items()
            .iter()
            .filter(|item| item.tag == n::ATTRIBUTE)
        {
            let name = attribute.get(n::ATTRIBUTE_NAME).map(|item| &item.value);
            let Some(value) = attribute.get(n::ATTRIBUTE_VALUE) else {
                continue;
            };
            match (name, &value.value) {
                (Some(Value::Text(name)), Value::Enumeration(value)) if name == "State" => {
                    state = Some(*value);
                }
                (Some(Value::Text(name)), Value::Structure(_)) if name == "Name" => {
                    let text = value.get(n::NAME_VALUE).map(|item| &item.value);
                    if let Some(Value::Text(text)) = text {
                        number = number.max(number_of(group, text).unwrap_or(0));
                    }
                }
                _ => {}
            }
        }
        Ok(Listed {
            unique_id,
            number,
            is_usable: state.is_none_or(|state| n::STATES.contains(&state)),
        })
    }

    /// Makes the KEK with this number.
    async fn create(&mut self, group: &str, number: u64) -> Result<String, KeyError> {
        let name = vec![
            Item::text(n::NAME_VALUE, &format!("{group}.{number}")),
            Item::enumeration(n::NAME_TYPE, n::NAME_TEXT),
        ];
        let bits = i32::try_from(8 * KEY_BYTES).unwrap_or(i32::MAX);
        let attributes = vec![
            attribute(
                "Cryptographic Algorithm",
                Value::Enumeration(n::ALGORITHM_AES),
            ),
            attribute("Cryptographic Length", Value::Integer(bits)),
            attribute("Cryptographic Usage Mask", Value::Integer(n::USAGE)),
            attribute("Name", Value::Structure(name)),
            attribute("Object Group", Value::Text(group.to_owned())),
        ];
        let payload = vec![
            Item::enumeration(n::OBJECT_TYPE, n::OBJECT_SYMMETRIC_KEY),
            Item::structure(n::TEMPLATE, attributes),
        ];
        let answer = self.ask(n::CREATE, payload).await?;
        let Some(Value::Text(unique_id)) = answer.get(n::UNIQUE_ID).map(|item| &item.value) else {
            let server = &self.server;
            return Err(KeyError::unreachable(format!(
                "{server} made a key and does not name it"
            )));
        };
        let payload = vec![Item::text(n::UNIQUE_ID, unique_id)];
        self.ask(n::ACTIVATE, payload).await?;
        Ok(unique_id.clone())
    }

    /// Fetches a KEK.
    async fn get(&mut self, unique_id: &str) -> Result<KeyEncryptionKey, KeyError> {
        let payload = vec![
            Item::text(n::UNIQUE_ID, unique_id),
            Item::enumeration(n::KEY_FORMAT_TYPE, n::FORMAT_RAW),
        ];
        let answer = self.ask(n::GET, payload).await?;
        let path = [
            n::SYMMETRIC_KEY,
            n::KEY_BLOCK,
            n::KEY_VALUE,
            n::KEY_MATERIAL,
        ];
        let found = path.iter().try_fold(&answer, |item, tag| item.get(*tag));
        let server = &self.server;
        let odd = || KeyError::damaged(format!("{server}: key {unique_id} is not 256 bits of AES"));
        match found.map(|item| &item.value) {
            Some(Value::Bytes(bytes)) if bytes.0.len() == KEY_BYTES => {
                Ok(KeyEncryptionKey::filled(|key| {
                    key.copy_from_slice(&bytes.0)
                }))
            }
            _ => Err(odd()),
        }
    }
}

fn attribute(name: &str, value: Value) -> Item {
    let value = Item {
        tag: n::ATTRIBUTE_VALUE,
        value,
    };
    Item::structure(
        n::ATTRIBUTE,
        vec![Item::text(n::ATTRIBUTE_NAME, name), value],
    )
}

/// The number in a KEK's name.
fn number_of(group: &str, name: &str) -> Option<u64> {
    let number = name.strip_prefix(group)?.strip_prefix('.')?;
    number.parse().ok().filter(|number| *number < u64::MAX)
}

/// The payload of an answer, or the error that it tells.
fn payload_of(server: &str, answer: &Item) -> Result<Item, KeyError> {
    let odd = || KeyError::unreachable(format!("{server}: its answer is not one of KMIP"));
    if answer.tag != n::RESPONSE {
        return Err(odd());
    }
    let batch = answer.get(n::BATCH_ITEM).ok_or_else(odd)?;
    let number = |tag| match batch.get(tag).map(|item| &item.value) {
        Some(Value::Enumeration(number)) => Some(*number),
        _ => None,
    };
    if number(n::RESULT_STATUS) == Some(0) {
        let empty = Item::structure(n::RESPONSE_PAYLOAD, Vec::new());
        return Ok(batch.get(n::RESPONSE_PAYLOAD).cloned().unwrap_or(empty));
    }
    let said = match batch.get(n::RESULT_MESSAGE).map(|item| &item.value) {
        Some(Value::Text(text)) => text.as_str(),
        _ => "no reason",
    };
    Err(match number(n::RESULT_REASON) {
        Some(n::NOT_FOUND) => KeyError::missing(format!(
            "{server} does not have the key, or does not let this certificate see it: {said}"
        )),
        Some(n::AUTHENTICATION_FAILED | n::PERMISSION_DENIED) => KeyError::denied(format!(
            "{server} refuses: {said}; check this node's certificate, user and permissions there"
        )),
        reason => {
            let reason = reason.unwrap_or(0);
            KeyError::unreachable(format!("{server} failed: {said} (reason {reason:#x})"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::KeyErrorKind;

    #[test]
    fn numbers_are_read_from_names_of_the_group_only() {
        assert_eq!(number_of("esker", "esker.12"), Some(12));
        for name in [
            "esker",
            "esker.",
            "esker.x",
            "other.1",
            "esker.18446744073709551615",
        ] {
            assert_eq!(number_of("esker", name), None, "{name}");
        }
    }

    fn answer(status: u32, reason: u32, said: &str) -> Item {
        let batch = vec![
            Item::enumeration(n::RESULT_STATUS, status),
            Item::enumeration(n::RESULT_REASON, reason),
            Item::text(n::RESULT_MESSAGE, said),
        ];
        Item::structure(n::RESPONSE, vec![Item::structure(n::BATCH_ITEM, batch)])
    }

    #[test]
    fn reasons_become_kinds() {
        let kind = |reason| payload_of("s", &answer(1, reason, "no")).unwrap_err().kind;
        assert_eq!(kind(1), KeyErrorKind::KeyMissing);
        assert_eq!(kind(3), KeyErrorKind::Denied);
        assert_eq!(kind(12), KeyErrorKind::Denied);
        assert_eq!(kind(0x100), KeyErrorKind::Unreachable);
        let other = Item::structure(n::REQUEST, Vec::new());
        assert!(payload_of("s", &other).is_err());
        assert!(payload_of("s", &answer(0, 0, "")).is_ok());
    }
}
