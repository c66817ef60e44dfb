//! What a client may know of: TLS as a listener wants it, and the exports a client may open.

use std::sync::Arc;

/// What a listener does with `NBD_OPT_STARTTLS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsPolicy {
    /// TLS is not offered.
    #[default]
    Off,
    /// Clients may ask for it (the protocol's SELECTIVETLS, for all exports alike).
    Allow,
    /// Until there is TLS, no option but it and `NBD_OPT_ABORT` is served (the protocol's FORCEDTLS).
    Require,
}

/// The exports that a client may see and open: all, or those of volumes that match a pattern. In a
/// pattern `*` stands for any characters, also for none; all others for themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access(Option<Arc<[String]>>);

impl Access {
    /// To every export.
    #[must_use]
    pub fn all() -> Self {
        Self(None)
    }

    /// To exports of volumes that match one of these patterns; to none when there are no patterns.
    #[must_use]
    pub fn only(patterns: impl IntoIterator<Item = String>) -> Self {
        Self(Some(patterns.into_iter().collect()))
    }

    /// Whether an export may be opened: of its name the part before the first `@` or `:` counts, which is the
    /// volume's. The empty name stands for a volume that is not known yet, and needs access to all.
    #[must_use]
    pub fn permits(&self, export: &str) -> bool {
        let Some(patterns) = &self.0 else {
            return true;
        };
        let volume = export.split(['@', ':']).next().unwrap_or_default();
        let mut patterns = patterns.iter();
        match volume.is_empty() {
            true => patterns.any(|pattern| pattern == "*"),
            false => patterns.any(|pattern| matches(pattern.as_bytes(), volume.as_bytes())),
        }
    }
}

/// Whether a pattern covers a text. Takes time in proportion to the product of their lengths at most: a
/// later star needs no return to an earlier one.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_whole_names() {
        for (pattern, yes, no) in [
            ("vol", &["vol"][..], &["vol2", "avol", "vo", "v*l"][..]),
            ("vm-*", &["vm-", "vm-1", "vm-1-2"], &["vm", "xvm-1"]),
            ("*", &["a", "b.c"], &[]),
            ("*-db-*", &["a-db-b", "-db-", "a-db-db-"], &["a-db", "db-b"]),
            ("a*b*c", &["abc", "aXbYc", "abbcbc"], &["ab", "acb", "abcd"]),
            ("", &[], &["a"]),
        ] {
            for name in yes {
                assert!(
                    matches(pattern.as_bytes(), name.as_bytes()),
                    "{pattern} {name}"
                );
            }
            for name in no {
                assert!(
                    !matches(pattern.as_bytes(), name.as_bytes()),
                    "{pattern} {name}"
                );
            }
        }
    }

    #[test]
    fn a_snapshot_goes_with_its_volume_and_the_default_needs_all() {
        let some = Access::only(["vm-*".into(), "db".into()]);
        assert!(
            some.permits("vm-1")
                && some.permits("vm-1@monday")
                && some.permits("db@a@b")
                && some.permits("db:7")
        );
        assert!(
            !some.permits("")
                && !some.permits("x")
                && !some.permits("x@vm-1")
                && !some.permits("x:vm-1")
                && !some.permits("@db")
        );
        assert!(Access::only(["*".into()]).permits(""));
        assert!(Access::all().permits("") && Access::all().permits("x"));
        let none = Access::only([]);
        assert!(!none.permits("") && !none.permits("vm-1"));
    }
}
