//! TTLV, the encoding of KMIP: tag, type, length, value (KMIP 1.2, section 9.1).
//!
//! An item is a tag of 3 bytes, a type of 1, a length of 4, and the value, filled up with zeros to 8
//! bytes; all big-endian. A structure's value is items.

use thiserror::Error;
use zeroize::Zeroizing;

/// Longest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Structures within structures.
pub const DEPTH_MAX: usize = 16;
/// Items of one message.
pub const ITEMS_MAX: usize = 16 << 10;
/// Bytes in front of a value.
pub const HEAD_BYTES: usize = 8;

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a KMIP message: {0}")]
pub struct TtlvError(pub &'static str);

/// A value with its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Items.
    Structure(Vec<Item>),
    /// 32 bits.
    Integer(i32),
    /// 64 bits.
    LongInteger(i64),
    /// A number of any length, a multiple of 8 bytes, in two's complement.
    BigInteger(Vec<u8>),
    /// One of a list.
    Enumeration(u32),
    /// Yes or no.
    Boolean(bool),
    /// UTF-8.
    Text(String),
    /// Any bytes; wiped, for keys come this way.
    Bytes(Secret),
    /// Seconds since the Unix epoch.
    DateTime(i64),
    /// Seconds.
    Interval(u32),
}

/// Bytes that are not printed and wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// A tag and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The tag: 24 bits.
    pub tag: u32,
    /// The value.
    pub value: Value,
}

impl Item {
    /// A structure.
    #[must_use]
    pub fn structure(tag: u32, items: Vec<Item>) -> Self {
        let value = Value::Structure(items);
        Self { tag, value }
    }

    /// A 32-bit number.
    #[must_use]
    pub fn integer(tag: u32, value: i32) -> Self {
        let value = Value::Integer(value);
        Self { tag, value }
    }

    /// One of a list.
    #[must_use]
    pub fn enumeration(tag: u32, value: u32) -> Self {
        let value = Value::Enumeration(value);
        Self { tag, value }
    }

    /// Text.
    #[must_use]
    pub fn text(tag: u32, value: &str) -> Self {
        let value = Value::Text(value.to_owned());
        Self { tag, value }
    }

    /// The items of a structure; none of anything else.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        match &self.value {
            Value::Structure(items) => items,
            _ => &[],
        }
    }

    /// The first item with this tag in a structure.
    #[must_use]
    pub fn get(&self, tag: u32) -> Option<&Item> {
        self.items().iter().find(|item| item.tag == tag)
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // As much as there is in all, at once: growing would leave copies of keys in freed memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.encoded_bytes()));
        self.append(&mut bytes);
        bytes
    }

    fn value_bytes(&self) -> usize {
        match &self.value {
            Value::Structure(items) => items.iter().map(Item::encoded_bytes).sum(),
            Value::Integer(_) | Value::Enumeration(_) | Value::Interval(_) => 4,
            Value::LongInteger(_) | Value::Boolean(_) | Value::DateTime(_) => 8,
            Value::BigInteger(bytes) => bytes.len(),
            Value::Text(text) => text.len(),
            Value::Bytes(bytes) => bytes.0.len(),
        }
    }

    fn encoded_bytes(&self) -> usize {
        HEAD_BYTES + self.value_bytes().next_multiple_of(8)
    }

    fn append(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.encoded_bytes();
        out.extend_from_slice(&self.tag.to_be_bytes()[1..]);
        out.push(self.value.kind());
        let length = esker_base::num::to_u32_saturating(self.value_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        match &self.value {
            Value::Structure(items) => items.iter().for_each(|item| item.append(out)),
            Value::Integer(value) => out.extend_from_slice(&value.to_be_bytes()),
            Value::Enumeration(value) | Value::Interval(value) => {
                out.extend_from_slice(&value.to_be_bytes());
            }
            Value::LongInteger(value) | Value::DateTime(value) => {
                out.extend_from_slice(&value.to_be_bytes());
            }
            Value::Boolean(value) => out.extend_from_slice(&u64::from(*value).to_be_bytes()),
            Value::BigInteger(bytes) => out.extend_from_slice(bytes),
            Value::Text(text) => out.extend_from_slice(text.as_bytes()),
            Value::Bytes(bytes) => out.extend_from_slice(&bytes.0),
        }
        out.resize(end, 0);
    }

    /// Reads a message. All of `bytes` must belong to it.
    ///
    /// # Errors
    /// When it is malformed or past a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, TtlvError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(TtlvError("it is too long"));
        }
        let mut budget = ITEMS_MAX;
        let (item, rest) = decode(bytes, DEPTH_MAX, &mut budget)?;
        match rest.is_empty() {
            true => Ok(item),
            false => Err(TtlvError("something follows it")),
        }
    }
}

/// Length of the whole message whose first bytes these are.
///
/// # Errors
/// When it is past the limit.
pub fn message_bytes(head: &[u8; HEAD_BYTES]) -> Result<usize, TtlvError> {
    let [.., a, b, c, d] = *head;
    let length = esker_base::num::to_usize(u32::from_be_bytes([a, b, c, d]).into());
    let whole = HEAD_BYTES + length.next_multiple_of(8);
    match whole <= MESSAGE_BYTES_MAX {
        true => Ok(whole),
        false => Err(TtlvError("it is too long")),
    }
}

fn decode<'a>(
    bytes: &'a [u8],
    depth: usize,
    budget: &mut usize,
) -> Result<(Item, &'a [u8]), TtlvError> {
    let cut = TtlvError("it ends within an item");
    *budget = budget
        .checked_sub(1)
        .ok_or(TtlvError("it has too many items"))?;
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(cut)?;
    let [t0, t1, t2, kind, l0, l1, l2, l3] = *head;
    let length = esker_base::num::to_usize(u32::from_be_bytes([l0, l1, l2, l3]).into());
    let (padded, rest) = rest
        .split_at_checked(length.next_multiple_of(8))
        .ok_or(cut)?;
    let (value, padding) = padded.split_at(length);
    if padding.iter().any(|byte| *byte != 0) {
        return Err(TtlvError("padding is not zero"));
    }
    let item = Item {
        tag: u32::from_be_bytes([0, t0, t1, t2]),
        value: Value::decode(kind, value, depth, budget)?,
    };
    Ok((item, rest))
}

impl Value {
    fn kind(&self) -> u8 {
        match self {
            Self::Structure(_) => 1,
            Self::Integer(_) => 2,
            Self::LongInteger(_) => 3,
            Self::BigInteger(_) => 4,
            Self::Enumeration(_) => 5,
            Self::Boolean(_) => 6,
            Self::Text(_) => 7,
            Self::Bytes(_) => 8,
            Self::DateTime(_) => 9,
            Self::Interval(_) => 10,
        }
    }

    fn decode(kind: u8, bytes: &[u8], depth: usize, budget: &mut usize) -> Result<Self, TtlvError> {
        let four = || <[u8; 4]>::try_from(bytes).map_err(|_| TtlvError("a number has 4 bytes"));
        let eight = || <[u8; 8]>::try_from(bytes).map_err(|_| TtlvError("a number has 8 bytes"));
        Ok(match kind {
            1 => {
                let depth = depth.checked_sub(1).ok_or(TtlvError("it is too deep"))?;
                let (mut items, mut rest) = (Vec::new(), bytes);
                while !rest.is_empty() {
                    let (item, behind) = decode(rest, depth, budget)?;
                    items.push(item);
                    rest = behind;
                }
                Self::Structure(items)
            }
            2 => Self::Integer(i32::from_be_bytes(four()?)),
            3 => Self::LongInteger(i64::from_be_bytes(eight()?)),
            4 if bytes.len().is_multiple_of(8) => Self::BigInteger(bytes.to_vec()),
            4 => return Err(TtlvError("a big number has a multiple of 8 bytes")),
            5 => Self::Enumeration(u32::from_be_bytes(four()?)),
            6 => match u64::from_be_bytes(eight()?) {
                0 => Self::Boolean(false),
                1 => Self::Boolean(true),
                _ => return Err(TtlvError("neither yes nor no")),
            },
            7 => match std::str::from_utf8(bytes) {
                Ok(text) => Self::Text(text.to_owned()),
                Err(_) => return Err(TtlvError("text is not UTF-8")),
            },
            8 => Self::Bytes(Secret(Zeroizing::new(bytes.to_vec()))),
            9 => Self::DateTime(i64::from_be_bytes(eight()?)),
            10 => Self::Interval(u32::from_be_bytes(four()?)),
            _ => return Err(TtlvError("no such type")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let text: String = text
            .chars()
            .filter(|c| !c.is_whitespace() && *c != '|')
            .collect();
        let pairs = text.as_bytes().chunks(2);
        pairs
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    }

    /// The examples of KMIP 1.2, section 9.1.2, all under the tag 42 00 20.
    #[test]
    fn meets_the_examples_of_the_specification() {
        let item = |tag, value| Item { tag, value };
        let examples = [
            ("420020 02 00000004 00000008 00000000", Value::Integer(8)),
            (
                "420020 03 00000008 01B69B4BA5749200",
                Value::LongInteger(123_456_789_000_000_000),
            ),
            (
                "420020 04 00000010 0000000003FD35EB6BC2DF4618080000",
                Value::BigInteger(hex("0000000003FD35EB6BC2DF4618080000")),
            ),
            (
                "420020 05 00000004 000000FF 00000000",
                Value::Enumeration(255),
            ),
            ("420020 06 00000008 0000000000000001", Value::Boolean(true)),
            (
                "420020 07 0000000B 48656C6C6F20576F726C640000000000",
                Value::Text("Hello World".into()),
            ),
            (
                "420020 08 00000003 0102030000000000",
                Value::Bytes(Secret(Zeroizing::new(vec![1, 2, 3]))),
            ),
            (
                "420020 09 00000008 0000000047DA67F8",
                Value::DateTime(1_205_495_800),
            ),
            (
                "420020 0A 00000004 000D2F00 00000000",
                Value::Interval(864_000),
            ),
            (
                "420020 01 00000020 420004 05 00000004 000000FE 00000000 \
                 420005 02 00000004 000000FF 00000000",
                Value::Structure(vec![
                    item(0x42_0004, Value::Enumeration(254)),
                    item(0x42_0005, Value::Integer(255)),
                ]),
            ),
        ];
        for (bytes, value) in examples {
            let (bytes, item) = (hex(bytes), item(0x42_0020, value));
            assert_eq!(Item::decode(&bytes).as_ref(), Ok(&item));
            assert_eq!(item.encode()[..], bytes);
        }
    }

    /// An item has one encoding: what stands behind a value is zero, and yes is one.
    #[test]
    fn other_encodings_of_the_same_are_refused() {
        for bytes in [
            "420020 02 00000004 00000008 00000001",
            "420020 07 00000003 4142430000000100",
            "420020 06 00000008 0000000000000002",
            "420020 02 00000008 0000000000000008",
            "420020 09 00000004 47DA67F8 00000000",
            "420020 04 00000004 00000001 00000000",
            "420020 07 00000001 FF00000000000000",
            "420020 0B 00000004 00000008 00000000",
            "420020 01 00000004 00000000 00000000",
            "420020 02 00000004 00000008 0000000000",
        ] {
            assert!(Item::decode(&hex(bytes)).is_err(), "{bytes}");
        }
    }

    #[test]
    fn limits_hold() {
        let mut deep = Item::integer(1, 1);
        for _ in 0..DEPTH_MAX {
            deep = Item::structure(2, vec![deep]);
        }
        assert!(Item::decode(&deep.encode()).is_ok());
        deep = Item::structure(2, vec![deep]);
        assert!(Item::decode(&deep.encode()).is_err());
        let many = Item::structure(2, vec![Item::integer(1, 1); ITEMS_MAX]);
        assert!(Item::decode(&many.encode()).is_err());
        let head = [0x42, 0, 0x7b, 1, 0xff, 0xff, 0xff, 0xff];
        assert!(message_bytes(&head).is_err());
        assert_eq!(message_bytes(&[0x42, 0, 0x7b, 1, 0, 0, 0, 9]), Ok(24));
    }

    #[test]
    fn keys_are_not_printed() {
        let secret = Value::Bytes(Secret(Zeroizing::new(vec![0xa5; 32])));
        assert_eq!(format!("{secret:?}"), "Bytes(Secret(32 bytes))");
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i32>().prop_map(Value::Integer),
            any::<i64>().prop_map(Value::LongInteger),
            any::<u32>().prop_map(Value::Enumeration),
            any::<bool>().prop_map(Value::Boolean),
            ".{0,20}".prop_map(Value::Text),
            proptest::collection::vec(any::<u8>(), 0..40)
                .prop_map(|bytes| Value::Bytes(Secret(Zeroizing::new(bytes)))),
            any::<i64>().prop_map(Value::DateTime),
            any::<u32>().prop_map(Value::Interval),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            let item = (0u32..1 << 24, inner).prop_map(|(tag, value)| Item { tag, value });
            proptest::collection::vec(item, 0..8).prop_map(Value::Structure)
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(tag in 0u32..1 << 24, value in value()) {
            let item = Item { tag, value };
            prop_assert_eq!(Item::decode(&item.encode()), Ok(item));
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(item) = Item::decode(&bytes) {
                prop_assert_eq!(&item.encode()[..], &bytes[..]);
            }
        }
    }
}
