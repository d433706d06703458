//! Largest sizes of lists and texts in messages.
//!
//! Lists are bounded while they are read, so that a claimed length allocates nothing.

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// Largest number of layers in a model.
pub(crate) const LAYERS: usize = 512;
/// Largest number of temperature sensors in a sample.
pub(crate) const SENSORS: usize = 16;
/// Largest number of labels of a device.
pub(crate) const LABELS: usize = 16;
/// Largest length of a name, in bytes.
pub(crate) const NAME_BYTES: usize = 64;
/// Largest length of a reason or a description, in bytes.
pub(crate) const TEXT_BYTES: usize = 200;

/// Reads a list of at most `N` items. Memory is allocated only as items arrive.
pub(crate) fn at_most<'de, const N: usize, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<const N: usize, T>(PhantomData<T>);
    impl<'de, const N: usize, T: Deserialize<'de>> Visitor<'de> for Items<N, T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {N} items")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut read = Vec::new();
            while let Some(item) = items.next_element()? {
                if read.len() == N {
                    return Err(A::Error::invalid_length(N + 1, &self));
                }
                read.push(item);
            }
            Ok(read)
        }
    }
    deserializer.deserialize_seq(Items::<N, T>(PhantomData))
}

/// Writes and reads bytes as one piece. Reading copies them at once and never allocates more than arrived.
pub(crate) mod bytes {
    use super::{Deserializer, Error, Visitor, fmt};
    use serde::Serializer;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}
