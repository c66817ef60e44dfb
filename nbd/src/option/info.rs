//! `NBD_OPT_INFO` and `NBD_OPT_GO`: facts about an export; `GO` attaches as well.

use super::{acknowledge, cut, export_name, ExportQuery, Outcome, QueryForm, Refusal};
use crate::export::Export;
use crate::output::Output;
use crate::wire::{info, option_reply};
use esker_base::num::to_u32_saturating;

/// The facts a client asked for; `NBD_INFO_EXPORT` is always sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub name: bool,
    pub description: bool,
    pub block_size: bool,
}

/// Payload: name length (32 bits), name, count (16 bits), so many fact numbers (16 bits each).
pub(crate) fn run(payload: &[u8], form: fn(Wanted) -> QueryForm) -> Outcome {
    match parse(payload) {
        Ok((name, wanted)) => Outcome::Export(ExportQuery {
            name,
            form: form(wanted),
        }),
        Err(why) => Outcome::Refuse(Refusal::invalid(why)),
    }
}

fn parse(payload: &[u8]) -> Result<(String, Wanted), &'static str> {
    const SHORT: &str = "the option is shorter than its fields";
    let (length, rest) = payload.split_first_chunk::<4>().ok_or(SHORT)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| SHORT)?;
    let (name, rest) = rest.split_at_checked(length).ok_or(SHORT)?;
    let name = export_name(name)?;
    let (count, mut rest) = rest.split_first_chunk::<2>().ok_or(SHORT)?;
    if rest.len() != 2 * usize::from(u16::from_be_bytes(*count)) {
        return Err("the option's length does not match its count of information requests");
    }
    let mut wanted = Wanted::default();
    while let Some((item, after)) = rest.split_first_chunk::<2>() {
        match u16::from_be_bytes(*item) {
            info::NAME => wanted.name = true,
            info::DESCRIPTION => wanted.description = true,
            info::BLOCK_SIZE => wanted.block_size = true,
            _ => {} // `EXPORT` is sent anyway, and unknown ones must be ignored
        }
        rest = after;
    }
    Ok((name, wanted))
}

/// Answers option `code` with the facts and an acknowledgement.
pub(crate) fn answer(
    output: &mut Output,
    code: u32,
    wanted: Wanted,
    export: &Export,
    flags: u16,
    payload_bytes_max: u32,
) {
    output.option_reply(code, option_reply::INFO, 12);
    output.u16(info::EXPORT);
    output.u64(export.size_bytes);
    output.u16(flags);
    if wanted.name {
        text(output, code, info::NAME, &export.name);
    }
    if wanted.description && !export.description.is_empty() {
        text(output, code, info::DESCRIPTION, &export.description);
    }
    if wanted.block_size {
        output.option_reply(code, option_reply::INFO, 14);
        output.u16(info::BLOCK_SIZE);
        output.u32(export.block_size_min);
        output.u32(export.block_size_preferred);
        output.u32(payload_bytes_max);
    }
    acknowledge(output, code);
}

fn text(output: &mut Output, code: u32, fact: u16, text: &str) {
    let text = cut(text).as_bytes();
    output.option_reply(code, option_reply::INFO, to_u32_saturating(text.len()) + 2);
    output.u16(fact);
    output.bytes(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(name_length: u32, name: &[u8], count: u16, items: &[u16]) -> Vec<u8> {
        let mut raw = name_length.to_be_bytes().to_vec();
        raw.extend_from_slice(name);
        raw.extend_from_slice(&count.to_be_bytes());
        raw.extend(items.iter().flat_map(|item| item.to_be_bytes()));
        raw
    }

    #[test]
    fn every_prefix_and_every_surplus_is_refused() {
        let good = payload(3, b"vol", 2, &[3, 1]);
        let wanted = Wanted {
            name: true,
            description: false,
            block_size: true,
        };
        assert_eq!(parse(&good), Ok(("vol".to_owned(), wanted)));
        for end in 0..good.len() {
            assert!(parse(&good[..end]).is_err(), "prefix of {end} bytes");
        }
        assert!(parse(&[good.as_slice(), &[0]].concat()).is_err());
        assert!(parse(&[good.as_slice(), &[0, 0]].concat()).is_err());
    }

    #[test]
    fn lying_lengths_are_refused() {
        assert!(parse(&payload(u32::MAX, b"vol", 0, &[])).is_err());
        assert!(parse(&payload(4, b"vol", 0, &[])).is_err());
        assert!(parse(&payload(3, b"vol", u16::MAX, &[3])).is_err());
        assert!(parse(&payload(2, b"\xff\xfe", 0, &[])).is_err());
        let long = "x".repeat(4097);
        assert!(parse(&payload(4097, long.as_bytes(), 0, &[])).is_err());
        assert!(parse(&payload(4096, &long.as_bytes()[1..], 0, &[])).is_ok());
    }

    #[test]
    fn unknown_and_repeated_facts_are_harmless() {
        let raw = payload(0, b"", 4, &[77, 2, 2, 0]);
        let wanted = Wanted {
            description: true,
            ..Wanted::default()
        };
        assert_eq!(parse(&raw), Ok((String::new(), wanted)));
    }
}
