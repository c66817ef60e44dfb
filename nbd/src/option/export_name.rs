//! `NBD_OPT_EXPORT_NAME`: attach, in the form that has no error reply.

use super::{export_name, ExportQuery, Outcome, QueryForm};
use crate::output::Output;
use crate::wire;

pub(crate) fn run(payload: &[u8]) -> Outcome {
    match export_name(payload) {
        Ok(name) => Outcome::Export(ExportQuery {
            name,
            form: QueryForm::ExportName,
        }),
        Err(why) => Outcome::Close(format!("NBD_OPT_EXPORT_NAME: {why}")),
    }
}

/// Answers with the export's size and flags.
pub(crate) fn answer(output: &mut Output, size_bytes: u64, flags: u16, no_zeroes: bool) {
    output.u64(size_bytes);
    output.u16(flags);
    if !no_zeroes {
        output.zeros(wire::EXPORT_NAME_ZEROES);
    }
}
