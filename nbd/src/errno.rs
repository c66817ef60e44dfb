//! The error numbers of the protocol: the only place that knows them.

use crate::request::RequestError;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

/// The number that stands for `error` on the wire.
pub(crate) const fn number(error: RequestError) -> u32 {
    match error {
        RequestError::ReadOnly => EPERM,
        RequestError::Io => EIO,
        RequestError::NoMemory => ENOMEM,
        RequestError::Invalid => EINVAL,
        RequestError::NoSpace => ENOSPC,
        RequestError::TooBig => EOVERFLOW,
        RequestError::NotSupported => ENOTSUP,
        RequestError::Shutdown => ESHUTDOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_protocol() {
        let table = [
            (RequestError::ReadOnly, 1),
            (RequestError::Io, 5),
            (RequestError::NoMemory, 12),
            (RequestError::Invalid, 22),
            (RequestError::NoSpace, 28),
            (RequestError::TooBig, 75),
            (RequestError::NotSupported, 95),
            (RequestError::Shutdown, 108),
        ];
        for (error, expected) in table {
            assert_eq!(number(error), expected, "{error:?}");
            assert!(!error.to_string().is_empty());
        }
    }
}
