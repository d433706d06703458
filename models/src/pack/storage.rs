//! The writer of the file of frozen tensors.
//!
//! ```text
//! header, padded to a page │ embed │ layer 0 │ layer 1 │ ... │ head        each begins a page; within each: f32, f16, int8
//! ```
//! The pages of a layer therefore hold nothing of another layer, and every value is aligned to its size. `safetensors` allows
//! no holes, so a tensor of zeros named `.filler.N` fills each.

use crate::checkpoint::{CheckpointError, TensorFile};
use crate::stage::FrozenTensor;
use crate::storage::Storage;
use half::f16;
use half::slice::HalfFloatSliceExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Rounding errors of matrices that are stored with fewer bits.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounding {
    /// `sqrt(sum (w' - w)^2 / sum w^2)` over all matrices.
    pub relative_rms: f64,
    /// The largest `|w' - w|`.
    pub largest: f64,
    /// The matrix with the largest relative error.
    pub worst: String,
    /// The largest relative error of a matrix.
    pub worst_relative_rms: f64,
}

/// A tensor to write, and the source of its values.
pub(super) struct Piece<'a> {
    pub(super) tensor: &'a FrozenTensor,
    pub(super) values: Values<'a>,
}

pub(super) enum Values<'a> {
    Given(Vec<f32>),
    File(&'a TensorFile, &'a str),
}

/// Reason why the file of frozen tensors cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file cannot be written.
    #[error("writing {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A value is too large for 16 bits.
    #[error("tensor {name:?} holds {value}, which 16-bit floating point cannot; store the weights as f32 or int8")]
    Overflow {
        /// The tensor.
        name: String,
        /// The value.
        value: f32,
    },
}

const PAGE: usize = 4096;
/// Prefix of the names of filler tensors.
pub(super) const FILLER: &str = ".filler.";
/// Suffix of the name of a tensor's scales.
const SCALE: &str = ".scale";
/// The largest finite 16-bit floating point number.
const LARGEST_F16: f32 = 65_504.0;

/// Writes the file of `pieces`. Reports the finished and the total bytes to `progress`. The same tensors give the same bytes.
pub(super) fn write(
    path: &Path,
    pieces: &[Piece<'_>],
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Rounding>, StorageError> {
    let places = Places::of(pieces);
    let header = places.header();
    let failed = |source| StorageError::Write { path: path.to_owned(), source };
    let file = File::create(path).map_err(failed)?;
    file.write_all_at(&header, 0).map_err(failed)?;
    let total = (header.len() + places.bytes) as u64;
    file.set_len(total).map_err(failed)?;
    let mut out = Out { path, file, data: header.len() as u64, done: header.len() as u64, total, progress };
    let mut errors = Errors::default();
    for (piece, place) in pieces.iter().zip(&places.tensors) {
        out.tensor(piece, place, &mut errors)?;
    }
    out.file.sync_all().map_err(failed)?;
    Ok(errors.report())
}

/// The place of each tensor in the file's data.
struct Places {
    tensors: Vec<Place>,
    /// Name, type, shape and start of every entry in the header.
    entries: Vec<(String, &'static str, Vec<usize>, [usize; 2])>,
    bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Place {
    values: usize,
    scales: usize,
}

impl Places {
    fn of(pieces: &[Piece<'_>]) -> Self {
        let mut places = Self { tensors: vec![Place::default(); pieces.len()], entries: Vec::new(), bytes: 0 };
        let mut begin = 0;
        for run in pieces.chunk_by(|a, b| a.tensor.layer == b.tensor.layer) {
            places.fill_page();
            for storage in [Storage::F32, Storage::F16, Storage::Int8] {
                for (at, FrozenTensor { name, shape, storage: own, .. }) in (begin..).zip(run.iter().map(|p| p.tensor))
                {
                    if storage == Storage::F32 && *own == Storage::Int8 {
                        let scales = vec![shape[0]];
                        places.tensors[at].scales = places.push(format!("{name}{SCALE}"), Storage::F32, scales);
                    }
                    if *own == storage {
                        places.tensors[at].values = places.push(name.clone(), storage, shape.clone());
                    }
                }
            }
            begin += run.len();
        }
        places
    }

    fn push(&mut self, name: String, storage: Storage, shape: Vec<usize>) -> usize {
        let begin = self.bytes;
        self.bytes += shape.iter().product::<usize>() * storage.width();
        self.entries.push((name, storage.in_header(), shape, [begin, self.bytes]));
        begin
    }

    fn fill_page(&mut self) {
        let begin = self.bytes;
        let gap = begin.next_multiple_of(PAGE) - begin;
        if gap > 0 {
            self.bytes += gap;
            let name = format!("{FILLER}{}", self.entries.len());
            self.entries.push((name, "U8", vec![gap], [begin, self.bytes]));
        }
    }

    fn header(&self) -> Vec<u8> {
        let entry = |(name, dtype, shape, offsets): &(String, &str, Vec<usize>, [usize; 2])| {
            (name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }))
        };
        let entries: serde_json::Map<_, _> = self.entries.iter().map(entry).collect();
        let mut text = serde_json::to_vec(&entries).expect("JSON has string keys only");
        text.resize((text.len() + 8).next_multiple_of(PAGE) - 8, b' ');
        [(text.len() as u64).to_le_bytes().as_slice(), &text].concat()
    }
}

struct Out<'a> {
    path: &'a Path,
    file: File,
    /// Position of the data in the file, in bytes.
    data: u64,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Out<'_> {
    fn tensor(&mut self, piece: &Piece<'_>, place: &Place, errors: &mut Errors) -> Result<(), StorageError> {
        let FrozenTensor { name, shape, storage, .. } = piece.tensor;
        let row = if *storage == Storage::Int8 { shape[1..].iter().product() } else { 1 };
        let (mut at, mut scales, mut encoded) = (place.values, Vec::new(), Vec::new());
        let mut error = MatrixError::default();
        let mut take = |values: &[f32]| {
            encoded.clear();
            match storage {
                Storage::F32 => encoded.extend(values.iter().flat_map(|value| value.to_le_bytes())),
                Storage::F16 => halves(name, values, &mut encoded, &mut error)?,
                Storage::Int8 => quantised(values, row, &mut encoded, &mut scales, &mut error),
            }
            self.put(&encoded, at)?;
            at += encoded.len();
            Ok::<_, StorageError>(())
        };
        match &piece.values {
            Values::Given(values) => take(values)?,
            Values::File(file, name) => file.pieces(name, shape, row, &mut take)?,
        }
        if *storage == Storage::Int8 {
            let bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            self.put(&bytes, place.scales)?;
        }
        if *storage != Storage::F32 {
            errors.add(name, &error);
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8], at: usize) -> Result<(), StorageError> {
        let failed = |source| StorageError::Write { path: self.path.to_owned(), source };
        self.file.write_all_at(bytes, self.data + at as u64).map_err(failed)?;
        self.done += bytes.len() as u64;
        (self.progress)(self.done, self.total);
        Ok(())
    }
}

fn halves(name: &str, values: &[f32], into: &mut Vec<u8>, error: &mut MatrixError) -> Result<(), StorageError> {
    let mut rounded = vec![f16::ZERO; values.len()];
    rounded.convert_from_f32_slice(values);
    if let Some(&value) = values.iter().find(|value| f16::from_f32(**value).is_infinite()) {
        debug_assert!(value.abs() > LARGEST_F16, "only those overflow");
        return Err(StorageError::Overflow { name: name.to_owned(), value });
    }
    error.add(values.iter().zip(&rounded).map(|(&value, half)| (value, half.to_f32())));
    into.extend(rounded.iter().flat_map(|half| half.to_le_bytes()));
    Ok(())
}

fn quantised(values: &[f32], row: usize, into: &mut Vec<u8>, scales: &mut Vec<f32>, error: &mut MatrixError) {
    for row in values.chunks(row.max(1)) {
        let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let scale = if largest > 0.0 { (largest / 127.0).max(f32::MIN_POSITIVE) } else { 1.0 };
        let level = |value: f32| (value / scale).round_ties_even().clamp(-127.0, 127.0);
        into.extend(row.iter().map(|&value| (level(value) as i8).cast_unsigned()));
        error.add(row.iter().map(|&value| (value, level(value) * scale)));
        scales.push(scale);
    }
}

/// Sums over one matrix.
#[derive(Default)]
struct MatrixError {
    squares: f64,
    errors: f64,
    largest: f64,
}

impl MatrixError {
    fn add(&mut self, pairs: impl Iterator<Item = (f32, f32)>) {
        // In f64, where no square of an f32 overflows.
        for (value, stored) in pairs {
            let (value, error) = (f64::from(value), f64::from(stored) - f64::from(value));
            self.squares += value * value;
            self.errors += error * error;
            self.largest = self.largest.max(error.abs());
        }
    }

    fn relative(&self) -> f64 {
        if self.squares > 0.0 { (self.errors / self.squares).sqrt() } else { 0.0 }
    }
}

#[derive(Default)]
struct Errors {
    all: MatrixError,
    worst: Option<(String, f64)>,
}

impl Errors {
    fn add(&mut self, name: &str, error: &MatrixError) {
        self.all.squares += error.squares;
        self.all.errors += error.errors;
        self.all.largest = self.all.largest.max(error.largest);
        let relative = error.relative();
        if self.worst.as_ref().is_none_or(|(_, worst)| relative > *worst) {
            self.worst = Some((name.to_owned(), relative));
        }
    }

    fn report(self) -> Option<Rounding> {
        let (worst, worst_relative_rms) = self.worst?;
        Some(Rounding { relative_rms: self.all.relative(), largest: self.all.largest, worst, worst_relative_rms })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use crate::pack::Frozen;
    use crate::stage::{Extent, FrozenSource};
    use proptest::prelude::*;

    fn tensor(name: &str, shape: &[usize], storage: Storage, layer: Option<usize>) -> FrozenTensor {
        let source = FrozenSource::Checkpoint;
        let (name, shape) = (name.to_owned(), shape.to_vec());
        FrozenTensor { name, shape, storage, layer, source, extent: Extent::Whole }
    }

    fn written(
        tensors: &[(FrozenTensor, Vec<f32>)],
    ) -> (tempfile::TempDir, PathBuf, Result<Option<Rounding>, StorageError>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("frozen.safetensors");
        let pieces: Vec<Piece<'_>> =
            tensors.iter().map(|(tensor, values)| Piece { tensor, values: Values::Given(values.clone()) }).collect();
        let result = write(&path, &pieces, &mut |_, _| {});
        (folder, path, result)
    }

    proptest! {
        #[test]
        fn what_is_read_is_within_the_rounding_of_what_was_written(
            rows in 1..9usize, columns in 1..9usize, kind in 0..3usize, scale in 1e-3f32..1e3,
        ) {
            let storage = [Storage::F32, Storage::F16, Storage::Int8][kind];
            let values: Vec<f32> = (0..rows * columns).map(|at| scale * (at as f32 * 0.7).sin()).collect();
            let vector = (tensor("v", &[3], Storage::F32, Some(0)), vec![1.0, 2.0, 3.0]);
            let matrix = (tensor("m", &[rows, columns], storage, Some(1)), values.clone());
            let (_folder, path, report) = written(&[vector, matrix]);
            prop_assert_eq!(report.unwrap().is_some(), storage != Storage::F32);
            let frozen = Frozen::open(&path).unwrap();
            let found = frozen.values("m").unwrap();
            for (row, (found, values)) in found.chunks(columns).zip(values.chunks(columns)).enumerate() {
                let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
                let bound = match storage {
                    Storage::F32 => 0.0,
                    Storage::F16 => largest / 2048.0,
                    Storage::Int8 => largest / 254.0 * 1.001,
                };
                for (found, value) in found.iter().zip(values) {
                    prop_assert!((found - value).abs() <= bound, "row {}: {} for {}", row, found, value);
                }
            }
        }
    }

    #[test]
    fn a_layer_begins_a_page_and_shares_it_with_no_other() {
        let tensors: Vec<_> = (0..3)
            .flat_map(|layer| {
                let name = |part: &str| format!("{layer}.{part}");
                [
                    (tensor(&name("q"), &[5, 3], Storage::Int8, Some(layer)), vec![0.5; 15]),
                    (tensor(&name("b"), &[5], Storage::F32, Some(layer)), vec![0.5; 5]),
                ]
            })
            .collect();
        let (_folder, path, report) = written(&tensors);
        assert!(report.unwrap().unwrap().largest < 1e-6);
        let frozen = Frozen::open(&path).unwrap();
        let page = |name: &str| frozen.tensor(name).unwrap().bytes.as_ptr().addr() / PAGE;
        let pages: Vec<[usize; 3]> =
            (0..3).map(|layer| ["q", "q.scale", "b"].map(|part| page(&format!("{layer}.{part}")))).collect();
        assert!(pages.iter().all(|[q, scale, b]| q == scale && q == b));
        assert!(pages.windows(2).all(|pair| pair[0][0] < pair[1][0]));
        assert_eq!(frozen.tensors().count(), 9, "fillers are not tensors");
    }

    #[test]
    fn a_value_beyond_sixteen_bits_is_named() {
        let (_folder, _path, result) = written(&[(tensor("big", &[1, 2], Storage::F16, None), vec![1.0, 1e6])]);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("\"big\"") && error.contains("1000000") && error.contains("int8"), "{error}");
    }

    #[test]
    fn the_errors_of_huge_values_are_finite_numbers() {
        let values = vec![3e38, -1e38, 2e38, 1e30];
        let (_folder, _, rounding) = written(&[(tensor("m", &[2, 2], Storage::Int8, None), values)]);
        let rounding = rounding.unwrap().unwrap();
        assert!(rounding.relative_rms > 0.0 && rounding.relative_rms < 0.01, "{rounding:?}");
    }

    #[test]
    fn a_row_of_zeros_and_one_of_tiny_values_are_stored() {
        let values = vec![0.0, 0.0, 1e-44, -1e-44];
        let (_folder, path, _) = written(&[(tensor("m", &[2, 2], Storage::Int8, None), values)]);
        assert!(Frozen::open(&path).unwrap().values("m").unwrap().iter().all(|value| value.abs() < 1e-37));
    }
}
