//! `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: which metadata contexts an export
//! offers, and which of them the client wants to ask for with `NBD_CMD_BLOCK_STATUS`.
//!
//! Names are `namespace:leaf`. A list query without a leaf stands for the whole namespace; to select,
//! a query must be a name. Queries that match nothing are ignored, as the protocol demands for
//! unknown namespaces and for leaves of `base:`.

use super::{acknowledge, export_name, refuse, ExportQuery, Outcome, QueryForm, Refusal};
use crate::export::ContextsAsked;
use crate::headers::Headers;
use crate::limits::{CONTEXTS_SELECTED_MAX, META_QUERIES_MAX, STRING_BYTES_MAX};
use crate::output::Output;
use crate::wire::{option, option_reply};
use esker_base::num::to_u32_saturating;
use std::sync::Arc;

/// What a client asks of the contexts of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queries {
    /// Select, rather than list.
    pub select: bool,
    pub queries: Vec<Arc<str>>,
}

/// Payload: name length (32 bits), export name, count (32 bits), and for each query its length
/// (32 bits) and text.
pub(crate) fn run(payload: &[u8], select: bool, headers: Headers) -> Outcome {
    if !headers.chunks() {
        return Outcome::Refuse(Refusal::invalid(
            "metadata contexts need structured replies or extended headers first",
        ));
    }
    match parse(payload) {
        Ok((name, queries)) => Outcome::Export(ExportQuery {
            name,
            form: QueryForm::Contexts(Queries { select, queries }),
        }),
        Err(refusal) => Outcome::Refuse(refusal),
    }
}

fn parse(payload: &[u8]) -> Result<(String, Vec<Arc<str>>), Refusal> {
    const SHORT: Refusal = Refusal::invalid("the option is shorter than its fields");
    let (name, rest) = text(payload).ok_or(SHORT)?;
    let name = export_name(name).map_err(Refusal::invalid)?;
    let (count, mut rest) = rest.split_first_chunk::<4>().ok_or(SHORT)?;
    let count = u32::from_be_bytes(*count);
    // Each takes four bytes at least: a lie about the count is found out before it costs anything.
    if u64::from(count) * 4 > esker_base::num::to_u64(rest.len()) {
        return Err(SHORT);
    }
    let count = usize::try_from(count).map_err(|_| SHORT)?;
    let too_many = count > META_QUERIES_MAX;
    let mut queries = Vec::new();
    for _ in 0..count {
        let (query, after) = text(rest).ok_or(SHORT)?;
        if !too_many {
            queries.push(meta_query(query).map_err(Refusal::invalid)?);
        }
        rest = after;
    }
    if !rest.is_empty() {
        return Err(Refusal::invalid("the option is longer than its queries"));
    }
    if too_many {
        return Err(Refusal {
            kind: option_reply::ERR_TOO_BIG,
            text: "too many queries",
        });
    }
    Ok((name, queries))
}

/// A length (32 bits) and so many bytes, and what follows.
fn text(raw: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = raw.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

fn meta_query(raw: &[u8]) -> Result<Arc<str>, &'static str> {
    if raw.len() > STRING_BYTES_MAX {
        return Err("a query is longer than 4096 bytes");
    }
    let Ok(query) = std::str::from_utf8(raw) else {
        return Err("a query is not UTF-8");
    };
    if !query.contains(':') {
        return Err("a query has no colon, which ends its namespace");
    }
    Ok(Arc::from(query))
}

impl Queries {
    /// The contexts among `offered` that are meant, in the order in which they are offered.
    fn matching<'a>(&'a self, offered: &'a [Arc<str>]) -> impl Iterator<Item = &'a Arc<str>> {
        let all = !self.select && self.queries.is_empty();
        let is_meant = move |name: &str, query: &Arc<str>| {
            let namespace = !self.select && query.ends_with(':');
            **query == *name || (namespace && name.starts_with(&**query))
        };
        offered
            .iter()
            .filter(move |name| all || self.queries.iter().any(|query| is_meant(name, query)))
    }

    /// What must be known of an export's contexts for the answer.
    pub(crate) fn asked(&self) -> ContextsAsked {
        let is_name = |query: &&Arc<str>| self.select || !query.ends_with(':');
        let names: Vec<Arc<str>> = self.queries.iter().filter(is_name).cloned().collect();
        ContextsAsked {
            list: !self.select && (names.len() < self.queries.len() || names.is_empty()),
            names,
            of: None,
        }
    }

    /// Answers with the contexts that are meant; gives those that are selected from now on.
    pub(crate) fn answer(&self, output: &mut Output, offered: &[Arc<str>]) -> Vec<Arc<str>> {
        let code = self.code();
        let meant: Vec<Arc<str>> = self.matching(offered).cloned().collect();
        if self.select && meant.len() > CONTEXTS_SELECTED_MAX {
            let text = "too many metadata contexts at once";
            refuse(output, code, option_reply::ERR_TOO_BIG, text);
            return Vec::new();
        }
        for (name, id) in meant.iter().zip(0u32..) {
            let length = to_u32_saturating(name.len());
            output.option_reply(code, option_reply::META_CONTEXT, 4 + length);
            output.u32(if self.select { id } else { 0 });
            output.bytes(name.as_bytes());
        }
        acknowledge(output, code);
        if self.select {
            meant
        } else {
            Vec::new()
        }
    }

    /// The option that asked.
    pub(crate) fn code(&self) -> u32 {
        if self.select {
            option::SET_META_CONTEXT
        } else {
            option::LIST_META_CONTEXT
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(name: &str, queries: &[&str]) -> Vec<u8> {
        let text = |t: &str| [&to_u32_saturating(t.len()).to_be_bytes()[..], t.as_bytes()].concat();
        let count = to_u32_saturating(queries.len()).to_be_bytes();
        let queries: Vec<u8> = queries.iter().flat_map(|q| text(q)).collect();
        [text(name), count.to_vec(), queries].concat()
    }

    #[test]
    fn every_prefix_and_every_surplus_is_refused() {
        let good = payload("vol", &["base:", "x-y:z"]);
        let queries = vec![Arc::from("base:"), Arc::from("x-y:z")];
        assert_eq!(parse(&good), Ok(("vol".to_owned(), queries)));
        for end in 0..good.len() {
            assert!(parse(&good[..end]).is_err(), "prefix of {end} bytes");
        }
        assert!(parse(&[good.as_slice(), &[0]].concat()).is_err());
    }

    #[test]
    fn lying_counts_and_bad_texts_are_refused() {
        let mut lying = payload("", &[]);
        lying[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(parse(&lying).is_err());
        assert!(parse(&payload("", &["nocolon"])).is_err());
        assert!(parse(&payload("", &[&format!("a:{}", "x".repeat(4095))])).is_err());
        assert!(parse(&payload("", &[&format!("a:{}", "x".repeat(4094))])).is_ok());
        let many = vec!["a:"; META_QUERIES_MAX + 1];
        let refusal = parse(&payload("", &many)).expect_err("too many");
        assert_eq!(refusal.kind, option_reply::ERR_TOO_BIG);
        assert!(parse(&payload("", &many[1..])).is_ok());
    }

    #[test]
    fn namespaces_are_listed_and_only_names_are_selected() {
        let offered: Vec<Arc<str>> = vec!["base:allocation".into(), "x:a".into(), "x:b".into()];
        let table: [(bool, &[&str], usize); 9] = [
            (false, &[], 3),
            (true, &[], 0),
            (false, &["base:"], 1),
            (true, &["base:"], 0),
            (false, &["x:", "x:a"], 2),
            (true, &["x:b", "x:b", "base:allocation"], 2),
            (true, &["base:alloc", "y:a"], 0),
            (false, &["base:alloc"], 0),
            (false, &[":"], 0),
        ];
        for (select, queries, count) in table {
            let queries = queries.iter().copied().map(Arc::from).collect();
            let asked = Queries { select, queries };
            assert_eq!(asked.matching(&offered).count(), count, "{asked:?}");
        }
    }

    #[test]
    fn an_owner_is_told_the_names_that_matter() {
        let table: [(bool, &[&str], &[&str], bool); 6] = [
            (false, &[], &[], true),
            (true, &[], &[], false),
            (false, &["qemu:"], &[], true),
            (true, &["qemu:"], &["qemu:"], false),
            (false, &["qemu:a", "base:"], &["qemu:a"], true),
            (false, &["qemu:a"], &["qemu:a"], false),
        ];
        for (select, queries, names, list) in table {
            let queries = queries.iter().copied().map(Arc::from).collect();
            let asked = Queries { select, queries }.asked();
            let told: Vec<&str> = asked.names.iter().map(|name| &**name).collect();
            assert_eq!((told.as_slice(), asked.list), (names, list), "{asked:?}");
        }
    }
}
