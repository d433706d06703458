//! Reads the tensors of a Hugging Face checkpoint folder: `model.safetensors`, or shards and their index.
//!
//! Headers are checked completely. Values are read in pieces, at their position in the file, so that reading a tensor of
//! gigabytes takes only the memory of one piece.

use crate::files;
use crate::tensors::{self, TensorError};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use memmap2::Mmap;
use ndarray::ArrayD;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use skiff_base::foreign::{Foreign, START_BYTES};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

/// An open `safetensors` file with a checked header.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    index: BTreeMap<String, Entry>,
}

#[derive(Clone, PartialEq, Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    /// Position of the values in the file, in bytes.
    begin: u64,
}

/// The tensors of a checkpoint folder.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Index in `files` of each tensor's file.
    index: BTreeMap<String, usize>,
    /// Name of a tensor that the checkpoint lacks, and name of the tensor that replaces it.
    substitute: Option<(&'static str, &'static str)>,
}

/// Reason why a checkpoint's tensors cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The folder has no readable tensors.
    #[error("{folder} has neither model.safetensors nor model.safetensors.index.json{hint}", folder = folder.display())]
    Absent {
        /// The folder.
        folder: PathBuf,
        /// Advice for the user.
        hint: &'static str,
    },
    /// Tensors of the model are missing.
    #[error("{folder} lacks {count} tensors of the model that config.json describes: {names}{hint}", folder = folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// Number of tensors.
        count: usize,
        /// The names of the first tensors.
        names: String,
        /// The work.
        hint: &'static str,
    },
    /// The index of the shards is malformed.
    #[error("reading the index of shards {path}", path = path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// The parser's error, with its position in the file.
        source: serde_json::Error,
    },
    /// The index names a file outside the folder.
    #[error("{path} names the shard {name:?}, which is not the name of a file beside it", path = path.display())]
    Foreign {
        /// The index.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A tensor is missing, misshaped, of another type, or has a value that is not finite; or the file is malformed.
    #[error("{path}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor and the fault.
        source: TensorError,
    },
}

/// Number of values read at a time.
const PIECE: usize = 1 << 20;
/// Maximum size of a checkpoint's JSON file, in bytes.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// Files of a folder without safetensors, and what to do about them.
const ABSENT_HINTS: [(&str, &str); 7] = [
    ("pytorch_model.bin", CONVERT),
    ("pytorch_model.bin.index.json", CONVERT),
    ("tf_model.h5", CONVERT),
    ("flax_model.msgpack", CONVERT),
    (
        "adapter_config.json",
        "; it has adapter_config.json: give this folder as --adapter, and the folder of its base model as --checkpoint",
    ),
    ("config.json", "; it has config.json: download the weights too, for a clone with `git lfs pull`"),
    ("manifest.json", "; it has manifest.json: this is a pack already"),
];
const CONVERT: &str = "; it has weights in an older format: load them with transformers and save them with save_pretrained, which \
                       writes safetensors";

impl TensorFile {
    /// Opens the file at `path` and checks that the tensors in its header fit the file, without overlaps or holes.
    ///
    /// # Errors
    /// A file that cannot be read or has a malformed header.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let read = |source| CheckpointError::Read { path: path.to_owned(), source };
        let file = files::open_regular(path).map_err(read)?;
        #[expect(
            unsafe_code,
            reason = "mapped for its header only; files do not shrink meanwhile on a working machine"
        )]
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        if let Some(foreign) = Foreign::recognise(&map[..map.len().min(START_BYTES)]) {
            return Err(read(io::Error::new(io::ErrorKind::InvalidData, foreign)));
        }
        let tensors = tensors::deserialize(&map).map_err(|error| malformed(path, error))?;
        let start = map.as_ptr().addr();
        let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            let begin = (view.data().as_ptr().addr() - start) as u64;
            (name, Entry { dtype: view.dtype(), shape: view.shape().to_vec(), begin })
        };
        let index = tensors.tensors().into_iter().map(entry).collect();
        Ok(Self { path: path.to_owned(), file, index })
    }

    /// Returns the names of the file's tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Returns true if the file has a tensor of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// Returns the dimensions of a tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.index.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Reads a whole tensor as f32.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, not of floating point, or not finite; a failing disk.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<ArrayD<f32>, CheckpointError> {
        let mut values = Vec::new();
        self.pieces(name, shape, 1, &mut |piece| {
            values.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(ArrayD::from_shape_vec(shape, values).expect("as many values as the shape says"))
    }

    /// Passes a tensor's values to `take` as f32, in order, a few rows of `row` values at a time. F16 and BF16 are widened, which
    /// is exact.
    ///
    /// # Errors
    /// The errors of [`TensorFile::read`] and of `take`.
    pub fn pieces<E: From<CheckpointError>>(
        &self,
        name: &str,
        shape: &[usize],
        row: usize,
        take: &mut dyn FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let fail = |source| malformed(&self.path, source);
        let (entry, width) = self.entry(name, shape)?;
        let total: usize = shape.iter().product();
        let step = (PIECE / row.max(1)).max(1) * row.max(1);
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        for begin in (0..total).step_by(step) {
            let count = step.min(total - begin);
            self.widened(entry, width, begin..begin + count, &mut bytes, &mut values)?;
            // A sum of products with zero is NaN if any value is not finite, and needs no branch for each value.
            if !values.iter().map(|value| value * 0.0).sum::<f32>().is_finite() {
                return Err(fail(TensorError::NotFinite { name: name.to_owned() }).into());
            }
            take(&values)?;
        }
        Ok(())
    }

    /// Reads the values `span` of a tensor as f32, finite or not.
    fn span(&self, name: &str, shape: &[usize], span: Range<usize>) -> Result<Vec<f32>, CheckpointError> {
        let (entry, width) = self.entry(name, shape)?;
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        self.widened(entry, width, span, &mut bytes, &mut values)?;
        Ok(values)
    }

    /// Replaces `values` by the values `span` of a tensor. `bytes` are working memory.
    fn widened(
        &self,
        entry: &Entry,
        width: usize,
        span: Range<usize>,
        bytes: &mut Vec<u8>,
        values: &mut Vec<f32>,
    ) -> Result<(), CheckpointError> {
        bytes.resize(span.len() * width, 0);
        self.file
            .read_exact_at(bytes, entry.begin + (span.start * width) as u64)
            .map_err(|source| CheckpointError::Read { path: self.path.clone(), source })?;
        widen(bytes, entry.dtype, values);
        Ok(())
    }

    /// Checks that the tensor can be read with this shape.
    ///
    /// # Errors
    /// A tensor that is missing, of another shape, or not of floating point.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), CheckpointError> {
        self.entry(name, shape).map(drop)
    }

    /// Returns the tensor's position, and the size of one of its values in bytes.
    fn entry(&self, name: &str, shape: &[usize]) -> Result<(&Entry, usize), CheckpointError> {
        let fail = |source| Err(malformed(&self.path, source));
        let Some(entry) = self.index.get(name) else { return fail(TensorError::Missing { name: name.to_owned() }) };
        if entry.shape != shape {
            let (expected, found) = (shape.to_vec(), entry.shape.clone());
            return fail(TensorError::Shape { name: name.to_owned(), expected, found });
        }
        match width(entry.dtype) {
            Some(width) => Ok((entry, width)),
            None => fail(TensorError::Unsupported {
                name: name.to_owned(),
                found: format!("{:?}", entry.dtype),
                supported: "F32, F16, BF16",
            }),
        }
    }
}

impl Checkpoint {
    /// Opens the tensors in `folder`.
    ///
    /// # Errors
    /// A folder without tensors; a malformed index or header; a shard that is missing or lacks a tensor of the index.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let (whole, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
        if whole.exists() {
            let file = TensorFile::open(&whole)?;
            let index = file.names().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self { folder: folder.to_owned(), files: vec![file], index, substitute: None });
        }
        if index.is_file() {
            return Self::open_shards(folder, &index);
        }
        let hint = ABSENT_HINTS.iter().find(|(name, _)| folder.join(name).exists()).map_or("", |(_, hint)| hint);
        Err(CheckpointError::Absent { folder: folder.to_owned(), hint })
    }

    fn open_shards(folder: &Path, path: &Path) -> Result<Self, CheckpointError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let text = read_bounded(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
        let Index { weight_map } =
            serde_json::from_slice(&text).map_err(|source| CheckpointError::Index { path: path.to_owned(), source })?;
        let mut places = BTreeMap::new();
        let mut files: Vec<TensorFile> = Vec::new();
        let mut index = BTreeMap::new();
        for (name, shard) in weight_map {
            let place = match places.get(&shard) {
                Some(&place) => place,
                None => {
                    let mut parts = Path::new(&shard).components();
                    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                        return Err(CheckpointError::Foreign { path: path.to_owned(), name: shard });
                    }
                    files.push(TensorFile::open(&folder.join(&shard))?);
                    places.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if !files[place].has(&name) {
                return Err(malformed(&files[place].path, TensorError::Missing { name }));
            }
            index.insert(name, place);
        }
        Ok(Self { folder: folder.to_owned(), files, index, substitute: None })
    }

    /// Returns the folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the names of its tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Returns true if the tensor has floating-point values. Other tensors are counters and masks.
    #[must_use]
    pub fn is_trained(&self, name: &str) -> bool {
        let entry = self.index.get(name).and_then(|&place| self.files[place].index.get(name));
        entry.is_some_and(|entry| {
            !matches!(
                entry.dtype,
                Dtype::BOOL
                    | Dtype::U8
                    | Dtype::I8
                    | Dtype::I16
                    | Dtype::U16
                    | Dtype::I32
                    | Dtype::U32
                    | Dtype::I64
                    | Dtype::U64
            )
        })
    }

    /// Uses the tensor `other` in place of the tensor `name`, which the checkpoint lacks.
    pub fn substitute(&mut self, name: &'static str, other: &'static str) {
        self.substitute = Some((name, other));
    }

    /// Returns true if two tensors have the same shape and values; see [`Checkpoint::find`] for `base`.
    ///
    /// # Errors
    /// Values that cannot be read.
    pub fn are_equal(&self, one: &str, other: &str, base: &str) -> Result<bool, CheckpointError> {
        /// Number of rows that are compared at a time.
        const ROWS: usize = 1024;
        let ((file, one), (other_file, other)) = (self.require(one, base)?, self.require(other, base)?);
        let shape = file.shape(one).unwrap_or_default().to_vec();
        if other_file.shape(other) != Some(&shape) {
            return Ok(false);
        }
        file.check(one, &shape)?;
        other_file.check(other, &shape)?;
        let row: usize = shape.iter().skip(1).product();
        let rows = shape.first().copied().unwrap_or(1);
        for first in (0..rows).step_by(ROWS) {
            let span = first * row..(first + ROWS).min(rows) * row;
            if file.span(one, &shape, span.clone())? != other_file.span(other, &shape, span)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Finds the tensor `name` of a model whose names begin with `base`. Returns its file, and its name in the file.
    ///
    /// The checkpoint of a bare model lacks `base`. Old checkpoints name a layer norm's weight and bias `gamma` and `beta`.
    #[must_use]
    pub fn find(&self, name: &str, base: &str) -> Option<(&TensorFile, &str)> {
        let legacy = |name: &str| {
            let renamed = name.strip_suffix("LayerNorm.weight").map(|stem| format!("{stem}LayerNorm.gamma"));
            renamed.or_else(|| name.strip_suffix("LayerNorm.bias").map(|stem| format!("{stem}LayerNorm.beta")))
        };
        let bare = name.strip_prefix(base).map(str::to_owned);
        let names = [Some(name.to_owned()), bare.clone(), legacy(name), bare.as_deref().and_then(legacy)];
        let found = |name: String| self.index.get_key_value(&name);
        let substitute = self.substitute.filter(|(lacking, _)| *lacking == name).map(|(_, other)| other.to_owned());
        let (name, &place) = names.into_iter().chain([substitute]).flatten().find_map(found)?;
        Some((&self.files[place], name))
    }

    /// Fails if the checkpoint lacks one of `names`; see [`Checkpoint::find`]. The error names the first of them.
    ///
    /// # Errors
    /// Missing tensors.
    pub fn require_all<'a>(&self, names: impl Iterator<Item = &'a str>, base: &str) -> Result<(), CheckpointError> {
        /// Number of names that an error shows.
        const SHOWN: usize = 6;
        let missing: Vec<String> =
            names.filter(|name| self.find(name, base).is_none()).map(|name| format!("{name:?}")).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let more = missing.len().saturating_sub(SHOWN);
        let shown = missing[..missing.len() - more].join(", ");
        let names = if more == 0 { shown } else { format!("{shown} and {more} more") };
        let hint = match missing.iter().any(|name| name == "\"lm_head.weight\"") {
            true => {
                "; if the word table also computes the scores of words, set tie_word_embeddings to true in config.json"
            }
            false => "",
        };
        Err(CheckpointError::Missing { folder: self.folder.clone(), count: missing.len(), names, hint })
    }

    /// Same as [`Checkpoint::find`], but a missing tensor is an error that names it.
    ///
    /// # Errors
    /// The tensor is missing.
    pub fn require(&self, name: &str, base: &str) -> Result<(&TensorFile, &str), CheckpointError> {
        self.find(name, base).ok_or_else(|| malformed(&self.folder, TensorError::Missing { name: name.to_owned() }))
    }
}

/// Reads a file of settings of at most 64 MiB.
///
/// # Errors
/// The errors of [`files::read_json_bounded`].
pub(crate) fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    files::read_json_bounded(path, MAX_JSON_BYTES)
}

fn malformed(path: &Path, source: TensorError) -> CheckpointError {
    CheckpointError::Tensor { path: path.to_owned(), source }
}

/// Returns the size in bytes of a value, or `None` for a type that cannot be read.
fn width(dtype: Dtype) -> Option<usize> {
    let widths = [(Dtype::F32, 4), (Dtype::F16, 2), (Dtype::BF16, 2)];
    widths.into_iter().find(|(known, _)| *known == dtype).map(|(_, width)| width)
}

/// Replaces `values` by the values of little-endian `bytes`.
fn widen(bytes: &[u8], dtype: Dtype, values: &mut Vec<f32>) {
    if dtype == Dtype::F32 {
        values.clear();
        values.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        return;
    }
    let words = bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    values.resize(bytes.len() / 2, 0.0);
    if dtype == Dtype::F16 {
        words.map(f16::from_bits).collect::<Vec<_>>().convert_to_f32_slice(values);
    } else {
        words.map(bf16::from_bits).collect::<Vec<_>>().convert_to_f32_slice(values);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;
    use safetensors::tensor::TensorView;
    use serde_json::json;
    use std::fs;

    fn file(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn message(error: &CheckpointError) -> String {
        let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {source}")
    }

    #[test]
    fn half_precision_is_widened_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let values = [1.5f32, -0.25, 3.0e-5, 40_000.0];
        let halves = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        let brains = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
        let path = folder.path().join("model.safetensors");
        file(&path, &[("h", Dtype::F16, &[2, 2], halves), ("b", Dtype::BF16, &[4], brains)]);
        let opened = TensorFile::open(&path).unwrap();
        let found = opened.read("h", &[2, 2]).unwrap();
        assert_eq!(found.into_raw_vec_and_offset().0, values.map(|value| f16::from_f32(value).to_f32()));
        let found = opened.read("b", &[4]).unwrap();
        assert_eq!(found.into_raw_vec_and_offset().0, values.map(|value| bf16::from_f32(value).to_f32()));
    }

    #[test]
    fn bare_and_legacy_names_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let one = || floats(&[1.0]);
        let tensors =
            [("bert.a.LayerNorm.gamma", Dtype::F32, [1].as_slice(), one()), ("b.weight", Dtype::F32, &[1], one())];
        file(&folder.path().join("model.safetensors"), &tensors);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.find("bert.a.LayerNorm.weight", "bert.").unwrap().1, "bert.a.LayerNorm.gamma");
        assert_eq!(checkpoint.find("bert.b.weight", "bert.").unwrap().1, "b.weight");
        assert!(message(&checkpoint.require("bert.c", "bert.").unwrap_err()).contains("\"bert.c\" is missing"));
    }

    #[test]
    fn a_tensor_of_another_shape_or_type_or_not_finite_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors = [
            ("i", Dtype::I32, [1].as_slice(), vec![0; 4]),
            ("n", Dtype::F32, &[2], floats(&[1.0, f32::NAN])),
            ("s", Dtype::F32, &[2], floats(&[1.0, 2.0])),
        ];
        file(&path, &tensors);
        let opened = TensorFile::open(&path).unwrap();
        let error = |name, shape: &[usize]| message(&opened.read(name, shape).unwrap_err());
        assert!(error("i", &[1]).contains("\"i\" has type I32, which is not supported; supported: F32, F16, BF16"));
        assert!(error("n", &[2]).contains("\"n\" holds a value that is not finite"));
        assert!(error("s", &[2, 1]).contains("\"s\" has shape [2], expected [2, 1]"));
    }

    #[test]
    fn every_cut_of_a_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        file(&path, &[("a", Dtype::F32, &[3], floats(&[1.0, 2.0, 3.0]))]);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(Checkpoint::open(folder.path()).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn shards_are_found_through_their_index_which_cannot_reach_outside() {
        let folder = tempfile::tempdir().unwrap();
        file(&folder.path().join("one.safetensors"), &[("a", Dtype::F32, &[1], floats(&[1.0]))]);
        file(&folder.path().join("two.safetensors"), &[("b", Dtype::F32, &[1], floats(&[2.0]))]);
        let index = |map: serde_json::Value| {
            let text = json!({ "metadata": {}, "weight_map": map }).to_string();
            fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
            Checkpoint::open(folder.path())
        };
        let sound = index(json!({"a": "one.safetensors", "b": "two.safetensors"})).unwrap();
        let (file, name) = sound.find("b", "").unwrap();
        assert_eq!(file.read(name, &[1]).unwrap().first(), Some(&2.0));
        for hostile in ["../one.safetensors", "/etc/passwd", "", ".", "..", "x/one.safetensors"] {
            let error = index(json!({ "a": hostile })).unwrap_err();
            assert!(matches!(error, CheckpointError::Foreign { .. }), "{hostile:?}: {error}");
        }
        assert!(message(&index(json!({"b": "one.safetensors"})).unwrap_err()).contains("\"b\" is missing"));
        assert!(matches!(index(json!({"a": "three.safetensors"})), Err(CheckpointError::Read { .. })));
        assert!(matches!(index(json!([1])), Err(CheckpointError::Index { .. })));
    }

    #[test]
    fn a_shard_that_is_no_file_is_refused_without_waiting_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("one.safetensors");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let index = folder.path().join("model.safetensors.index.json");
        fs::write(&index, json!({"weight_map": {"a": "one.safetensors"}}).to_string()).unwrap();
        let error = message(&Checkpoint::open(folder.path()).unwrap_err());
        assert!(error.contains("one.safetensors") && error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_pickled_checkpoint_is_told_how_to_convert() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Checkpoint::open(folder.path()), Err(CheckpointError::Absent { .. })));
        let said = |name: &str| {
            fs::write(folder.path().join(name), "x").unwrap();
            Checkpoint::open(folder.path()).unwrap_err().to_string()
        };
        assert!(said("config.json").contains("git lfs pull"));
        assert!(said("pytorch_model.bin").contains("save_pretrained"));
    }

    #[test]
    fn what_stands_in_the_place_of_weights_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let said = |contents: &[u8]| {
            fs::write(&path, contents).unwrap();
            message(&Checkpoint::open(folder.path()).unwrap_err())
        };
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 470\n";
        for (contents, says) in [
            (pointer.as_bytes(), "a Git LFS pointer, not the file itself, which has 470 bytes"),
            (b"<!doctype html><title>Sign in</title>", "a web page (\"Sign in\")"),
            (b"PK\x03\x04\0\0", "a ZIP archive"),
            (b"", "empty"),
            (&[0; 4096], "zeros"),
        ] {
            let said = said(contents);
            assert!(said.contains(says) && said.contains("model.safetensors"), "{said}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(message(&Checkpoint::open(folder.path()).unwrap_err()).contains("it is a folder"));
    }

    #[test]
    fn half_a_download_is_named_with_both_lengths() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        file(&path, &[("a", Dtype::F32, &[3], floats(&[1.0, 2.0, 3.0]))]);
        let whole = fs::read(&path).unwrap();
        let length = whole.len();
        let said = |contents: &[u8]| {
            fs::write(&path, contents).unwrap();
            message(&Checkpoint::open(folder.path()).unwrap_err())
        };
        assert!(
            said(&whole[..length - 5]).contains(&format!("has {} bytes, and its header says {length}:", length - 5))
        );
        assert!(said(&whole[..20]).contains(&format!("says at least {}", length - 12)), "{}", said(&whole[..20]));
        assert!(said(&[whole.as_slice(), b"x"].concat()).contains(&format!("header says {length}")));
    }
}
