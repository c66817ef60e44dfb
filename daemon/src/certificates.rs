//! When the certificates of this node end: for metrics, and for the log in good time.

use crate::tls::Slot;
use esker_keys::ca::first_end;
use esker_keys::KeysConfig;
use std::path::PathBuf;

/// A certificate that ends sooner is warned of, in seconds.
pub const WARN_SECONDS: i64 = 14 * 86_400;

/// When a file with certificates ends: with the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateEnd {
    /// The setting that names the file.
    pub setting: &'static str,
    /// Last second of its validity, since the Unix epoch.
    pub until_unix: i64,
}

impl CertificateEnd {
    /// What there is to say of it now, if anything.
    #[must_use]
    pub fn warning(&self, now_unix: i64) -> Option<String> {
        let (setting, left) = (self.setting, self.until_unix.saturating_sub(now_unix));
        match left {
            ..0 => Some(format!("the certificate of {setting} has ended; renew it")),
            0..WARN_SECONDS => Some(format!(
                "the certificate of {setting} ends in {} days; renew it in time",
                left / 86_400
            )),
            _ => None,
        }
    }
}

/// Where the ends of all certificates can be asked for.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    in_use: Slot<Vec<CertificateEnd>>,
    keys: Vec<(&'static str, PathBuf)>,
}

impl Certificates {
    /// Of the node's sockets, those in use, and of its key providers.
    #[must_use]
    pub fn new(in_use: Slot<Vec<CertificateEnd>>, keys: &KeysConfig) -> Self {
        let keys = keys.certificates();
        Self { in_use, keys }
    }

    /// The ends as they are now. Files of key providers are read, for providers read them whenever they
    /// connect; one that cannot be read is left out.
    #[must_use]
    pub fn ends(&self) -> Vec<CertificateEnd> {
        let mut all = self.in_use.get().unwrap_or_default();
        all.extend(self.keys.iter().filter_map(|(setting, path)| {
            Some(CertificateEnd {
                setting,
                until_unix: first_end(path).ok()?,
            })
        }));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_warned_in_time_can_renew() {
        let end = CertificateEnd {
            setting: "tls_cert",
            until_unix: 100 * 86_400,
        };
        let on_day = |day: i64| end.warning(day * 86_400);
        assert_eq!(on_day(86), None);
        assert!(on_day(87).unwrap().contains("tls_cert ends in 13 days"));
        assert!(on_day(100).unwrap().contains("ends in 0 days"));
        assert!(on_day(101).unwrap().contains("has ended"));
    }
}
