//! Rules that compare one number over all devices: the trimmed mean and the median of each coordinate.
//!
//! Each update is written to a folder, each tensor to its own file, and read back a block of columns at a time. Memory is
//! therefore bounded by [`BLOCK_BYTES`] and the model, for any number of devices. Values are sorted before they are summed, so
//! the order of arrival changes nothing.

use super::{AggregateError, check};
use ndarray::ArrayD;
use skiff_models::tensors::{NamedTensors, Schema};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use tempfile::TempDir;

/// Number of bytes of a tensor, over all devices, that are read at a time; at least one column is read.
pub const BLOCK_BYTES: usize = 16 << 20;

/// Updates on disk, tensor by tensor. They are removed when this value is dropped.
#[derive(Debug)]
pub struct Ordered<'a> {
    schema: &'a Schema,
    folder: TempDir,
    /// Number of devices that shared each tensor.
    shared: BTreeMap<String, usize>,
    block_bytes: usize,
}

/// Reason why updates were not merged.
#[derive(Debug, thiserror::Error)]
pub enum OrderedError {
    /// An update cannot be merged.
    #[error(transparent)]
    Update(#[from] AggregateError),
    /// The disk failed.
    #[error("keeping updates on disk while they are merged")]
    Disk(#[from] io::Error),
}

impl<'a> Ordered<'a> {
    /// Creates a folder for the updates, in the system's temporary folder.
    ///
    /// # Errors
    /// A folder that cannot be created.
    pub fn new(schema: &'a Schema) -> Result<Self, OrderedError> {
        Ok(Self { schema, folder: TempDir::new()?, shared: BTreeMap::new(), block_bytes: BLOCK_BYTES })
    }

    /// Adds an update.
    ///
    /// # Errors
    /// Tensors that cannot be merged (then nothing is added), or a disk that fails.
    pub fn add(&mut self, update: &NamedTensors) -> Result<(), OrderedError> {
        check(self.schema, update)?;
        for (name, tensor) in update {
            let bytes: Vec<u8> = tensor.iter().flat_map(|value| value.to_le_bytes()).collect();
            OpenOptions::new().create(true).append(true).open(self.path(name))?.write_all(&bytes)?;
            *self.shared.entry(name.clone()).or_default() += 1;
        }
        Ok(())
    }

    /// Combines the devices' values of each number by `rule`, which gets them in ascending order. Returns the tensors that some
    /// device shared.
    ///
    /// # Errors
    /// A disk that fails.
    pub fn finish(self, rule: impl Fn(&[f32]) -> f32) -> Result<NamedTensors, OrderedError> {
        let mut merged = NamedTensors::new();
        for (name, &devices) in &self.shared {
            let Some(spec) = self.schema.find(name) else { continue };
            let columns: usize = spec.shape.iter().product();
            let at_once = (self.block_bytes / (4 * devices)).clamp(1, columns.max(1));
            let mut file = File::open(self.path(name))?;
            let mut values = Vec::with_capacity(columns);
            for first in (0..columns).step_by(at_once) {
                let width = at_once.min(columns - first);
                let mut block = vec![vec![0f32; devices]; width];
                let mut row = vec![0u8; 4 * width];
                for device in 0..devices {
                    file.seek(SeekFrom::Start(4 * (device * columns + first) as u64))?;
                    file.read_exact(&mut row)?;
                    for (column, bytes) in block.iter_mut().zip(row.as_chunks::<4>().0) {
                        column[device] = f32::from_le_bytes(*bytes);
                    }
                }
                for column in &mut block {
                    column.sort_unstable_by(f32::total_cmp);
                    values.push(rule(column));
                }
            }
            if let Ok(tensor) = ArrayD::from_shape_vec(spec.shape.clone(), values) {
                merged.insert(name.clone(), tensor);
            }
        }
        Ok(merged)
    }

    /// Returns the file of a tensor. It is named by its position in the schema, because a tensor's name may hold any character.
    fn path(&self, name: &str) -> std::path::PathBuf {
        let at = self.schema.tensors.iter().position(|spec| spec.name == name).unwrap_or(self.schema.tensors.len());
        self.folder.path().join(at.to_string())
    }
}

/// Returns the mean of ascending values without the first and the last `share` of them, rounded down; in f64.
#[must_use]
pub fn trimmed_mean(values: &[f32], share: f32) -> f32 {
    let cut = (f64::from(share) * values.len() as f64) as usize;
    let kept = &values[cut..values.len() - cut];
    (kept.iter().map(|&value| f64::from(value)).sum::<f64>() / kept.len() as f64) as f32
}

/// Returns the median of ascending values; for an even number of them, the mean of the two in the middle.
#[must_use]
pub fn median(values: &[f32]) -> f32 {
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        return values[middle];
    }
    ((f64::from(values[middle - 1]) + f64::from(values[middle])) / 2.0) as f32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests fail by panicking, and compare bit for bit")]
    use super::*;
    use ndarray::Array1;
    use proptest::prelude::*;
    use skiff_models::tensors::TensorSpec;

    const COLUMNS: usize = 5;

    fn schema() -> Schema {
        let spec = |name: &str, layer| TensorSpec { name: name.to_owned(), shape: vec![COLUMNS], layer };
        Schema { tensors: vec![spec("a", Some(0)), spec("b/../b", Some(1))] }
    }

    fn merged(updates: &[NamedTensors], block_bytes: usize, rule: impl Fn(&[f32]) -> f32) -> NamedTensors {
        let schema = schema();
        let mut ordered = Ordered { block_bytes, ..Ordered::new(&schema).unwrap() };
        updates.iter().for_each(|update| ordered.add(update).unwrap());
        ordered.finish(rule).unwrap()
    }

    fn update() -> impl Strategy<Value = NamedTensors> {
        let tensor = || proptest::option::of(proptest::collection::vec(-10.0f32..10.0, COLUMNS));
        (tensor(), tensor()).prop_map(|(a, b)| {
            let named = [("a", a), ("b/../b", b)].into_iter();
            named.filter_map(|(name, values)| Some((name.to_owned(), Array1::from(values?).into_dyn()))).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn prop_blocks_and_order_of_arrival_change_no_bit_and_an_outlier_little(
            (updates, shuffled) in proptest::collection::vec(update(), 1..9).prop_flat_map(|u| (Just(u.clone()), Just(u).prop_shuffle())),
            block_bytes in 1usize..400,
        ) {
            for share in [0.0, 0.2, 0.4] {
                let trimmed = |values: &[f32]| trimmed_mean(values, share);
                prop_assert_eq!(merged(&updates, BLOCK_BYTES, trimmed), merged(&shuffled, block_bytes, trimmed));
            }
            let middle = merged(&updates, block_bytes, median);
            prop_assert_eq!(&middle, &merged(&shuffled, BLOCK_BYTES, median));
            prop_assert!(middle.values().flatten().all(|value| value.abs() <= 10.0));
        }
    }

    #[test]
    fn rules_are_those_of_their_definitions() {
        let values = [1.0, 2.0, 3.0, 4.0, 100.0];
        assert_eq!(median(&values), 3.0);
        assert_eq!(median(&values[..4]), 2.5);
        assert_eq!(trimmed_mean(&values, 0.2), 3.0);
        assert_eq!(trimmed_mean(&values, 0.19), 22.0);
        assert_eq!(trimmed_mean(&values[..1], 0.49), 1.0);
    }

    #[test]
    fn what_cannot_be_merged_is_refused() {
        let schema = schema();
        let mut ordered = Ordered::new(&schema).unwrap();
        let bad = NamedTensors::from([("a".to_owned(), Array1::from_elem(COLUMNS, f32::NAN).into_dyn())]);
        assert!(matches!(ordered.add(&bad), Err(OrderedError::Update(AggregateError::OutOfRange { .. }))));
        assert!(ordered.finish(median).unwrap().is_empty());
    }
}
