//! Reads a batch from a file of padded tensors, the layout of other training libraries, so that a step can be compared with theirs.

use crate::examples::{Sequence, Target};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors};
use skiff_models::layout::Layout;
use skiff_models::task::Task;

/// Value in `labels` for a row without a target.
const NOTHING: i64 = -100;

/// Reason why a file of tensors is not a batch.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The bytes are not a safetensors file.
    #[error("reading the tensors' header")]
    Header(#[source] SafeTensorError),
    /// A required tensor is missing.
    #[error("tensor {name:?} is missing")]
    Missing {
        /// Name of the tensor.
        name: &'static str,
    },
    /// The elements have another type.
    #[error("tensor {name:?} has type {found}, expected {expected}")]
    Type {
        /// The tensor.
        name: &'static str,
        /// The value that was found.
        found: String,
        /// The expected value.
        expected: &'static str,
    },
    /// The dimensions differ.
    #[error("tensor {name:?} has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor.
        name: &'static str,
        /// The value that was found.
        found: Vec<usize>,
        /// The expected value.
        expected: String,
    },
    /// The rows have more tokens than the model takes.
    #[error("{tokens} tokens, but the model takes at most {most}")]
    Tokens {
        /// Width of the file's tensors.
        tokens: usize,
        /// The layout's maximum.
        most: usize,
    },
    /// The padding is not on the right.
    #[error("attention_mask, row {row}: expected ones (at least one) and then zeros")]
    Padding {
        /// The example.
        row: usize,
    },
    /// The model does not have this token, segment or class.
    #[error("{name}{at:?} is {found}, expected 0 to {most}", most = size - 1)]
    Range {
        /// The tensor.
        name: &'static str,
        /// Index of the value in the tensor.
        at: Vec<usize>,
        /// The value.
        found: i64,
        /// Number of such values in the model.
        size: usize,
    },
    /// A number is NaN or infinite.
    #[error("{name}{at:?} is {found}, expected a finite number")]
    NotFinite {
        /// The tensor.
        name: &'static str,
        /// Index of the number in the tensor.
        at: Vec<usize>,
        /// The value.
        found: f64,
    },
}

/// Reads a padded batch from safetensors bytes.
///
/// | tensor | shape | type | |
/// |---|---|---|---|
/// | `input_ids` | `[B, S]` | I64 or I32 | below the vocabulary |
/// | `attention_mask` | `[B, S]` | I64 or I32 | ones and then zeros |
/// | `token_type_ids` | `[B, S]` | I64 or I32 | may be absent |
/// | `labels`, sequence classification | `[B]` | I64 or I32 | below the classes |
/// | `labels`, regression | `[B, C]`, or `[B]` if `C` is 1 | F32 or F64 | finite |
/// | `labels`, token classification | `[B, S]` | I64 or I32 | below the classes, or -100 for none |
/// | `labels`, causal language model | `[B, S]` | I64 or I32 | a token's own index, or -100; absent: `input_ids` |
///
/// # Errors
/// A tensor that is missing, misshaped, of another type or out of range; the error names it.
pub fn read_batch(bytes: &[u8], layout: &Layout) -> Result<Vec<Sequence>, InputError> {
    let file = SafeTensors::deserialize(bytes).map_err(InputError::Header)?;
    let padded = Padded::read(&file, layout)?;
    let labels = labels(&file, &padded, layout)?;
    padded
        .lengths
        .iter()
        .enumerate()
        .zip(labels)
        .map(|((row, &length), target)| {
            let ids = padded.bounded("input_ids", &padded.ids, row, length, layout.vocabulary)?;
            let types = match layout.segments {
                0 => vec![0; length],
                segments => padded.bounded("token_type_ids", &padded.types, row, length, segments)?,
            };
            Ok(Sequence { ids, types, target })
        })
        .collect()
}

/// The tensors that every task has.
struct Padded {
    width: usize,
    lengths: Vec<usize>,
    ids: Vec<i64>,
    types: Vec<i64>,
}

impl Padded {
    fn read(file: &SafeTensors<'_>, layout: &Layout) -> Result<Self, InputError> {
        let (shape, ids) = integers(file, "input_ids")?;
        let [examples, width] = shape[..] else { return Err(misshaped("input_ids", shape, "[B, S]")) };
        if examples == 0 || width == 0 {
            return Err(misshaped("input_ids", shape, "[B, S], not empty"));
        }
        if width > layout.max_tokens {
            return Err(InputError::Tokens { tokens: width, most: layout.max_tokens });
        }
        let mask = integers_of_shape(file, "attention_mask", &shape)?;
        let types = match has(file, "token_type_ids") {
            true => integers_of_shape(file, "token_type_ids", &shape)?,
            false => vec![0; ids.len()],
        };
        let length = |(row, mask)| right_padded_length(mask).ok_or(InputError::Padding { row });
        let lengths = mask.chunks_exact(width).enumerate().map(length).collect::<Result<_, _>>()?;
        Ok(Self { width, lengths, ids, types })
    }

    /// Returns the values of a row's tokens and checks that all are below `size`.
    fn bounded(
        &self,
        name: &'static str,
        values: &[i64],
        row: usize,
        length: usize,
        size: usize,
    ) -> Result<Vec<u32>, InputError> {
        let values = values.iter().skip(row * self.width).take(length).enumerate();
        values.map(|(at, &value)| Ok(below(name, &[row, at], value, size)? as u32)).collect()
    }
}

fn labels(file: &SafeTensors<'_>, padded: &Padded, layout: &Layout) -> Result<Vec<Target>, InputError> {
    let examples = padded.lengths.len();
    let by_row = |row: usize| row * padded.width..row * padded.width + padded.lengths[row];
    let tokens = |values: &[i64], size: usize| -> Result<Vec<Vec<Option<usize>>>, InputError> {
        let one = |row: usize, at: usize, value: i64| match value {
            NOTHING => Ok(None),
            _ => below("labels", &[row, at], value, size).map(Some),
        };
        let row = |row: usize| values[by_row(row)].iter().enumerate().map(|(at, &value)| one(row, at, value)).collect();
        (0..examples).map(row).collect()
    };
    Ok(match layout.task {
        Task::SequenceClassification => {
            let classes = integers_of_shape(file, "labels", &[examples])?;
            let class = |(row, &value): (usize, &i64)| below("labels", &[row], value, layout.classes);
            classes.iter().enumerate().map(|label| class(label).map(Target::Class)).collect::<Result<_, _>>()?
        }
        Task::Regression => {
            let (shape, values) = numbers(file, "labels")?;
            if shape != [examples, layout.classes] && !(shape == [examples] && layout.classes == 1) {
                return Err(misshaped("labels", shape, &format!("[{examples}, {}]", layout.classes)));
            }
            if let Some((at, &found)) = values.iter().enumerate().find(|(_, value)| !(**value as f32).is_finite()) {
                let at = vec![at / layout.classes, at % layout.classes];
                return Err(InputError::NotFinite { name: "labels", at, found });
            }
            let row = |row: &[f64]| Target::Numbers(row.iter().map(|&value| value as f32).collect());
            values.chunks_exact(layout.classes.max(1)).map(row).collect()
        }
        Task::TokenClassification => {
            let values = integers_of_shape(file, "labels", &[examples, padded.width])?;
            tokens(&values, layout.classes)?.into_iter().map(Target::Tokens).collect()
        }
        Task::CausalLm => {
            let values = match has(file, "labels") {
                true => integers_of_shape(file, "labels", &[examples, padded.width])?,
                false => padded.ids.clone(),
            };
            let narrow = |label: Option<usize>| label.map(|id| id as u32);
            let row = |row: Vec<Option<usize>>| Target::Next(row.into_iter().map(narrow).collect());
            tokens(&values, layout.vocabulary)?.into_iter().map(row).collect()
        }
    })
}

fn below(name: &'static str, at: &[usize], found: i64, size: usize) -> Result<usize, InputError> {
    let size = size.min(u32::MAX as usize);
    let value = usize::try_from(found).ok().filter(|&value| value < size);
    value.ok_or_else(|| InputError::Range { name, at: at.to_vec(), found, size: size.max(1) })
}

fn right_padded_length(mask: &[i64]) -> Option<usize> {
    let length = mask.iter().take_while(|&&bit| bit == 1).count();
    (length > 0 && mask[length..].iter().all(|&bit| bit == 0)).then_some(length)
}

fn has(file: &SafeTensors<'_>, name: &str) -> bool {
    file.names().contains(&name)
}

fn misshaped(name: &'static str, found: Vec<usize>, expected: &str) -> InputError {
    InputError::Shape { name, found, expected: expected.to_owned() }
}

fn integers_of_shape(file: &SafeTensors<'_>, name: &'static str, shape: &[usize]) -> Result<Vec<i64>, InputError> {
    let (found, values) = integers(file, name)?;
    if found == shape { Ok(values) } else { Err(misshaped(name, found, &format!("{shape:?}"))) }
}

fn integers(file: &SafeTensors<'_>, name: &'static str) -> Result<(Vec<usize>, Vec<i64>), InputError> {
    let view = file.tensor(name).map_err(|_| InputError::Missing { name })?;
    let values = if view.dtype() == Dtype::I64 {
        view.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    } else if view.dtype() == Dtype::I32 {
        view.data().as_chunks::<4>().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect()
    } else {
        return Err(InputError::Type { name, found: format!("{:?}", view.dtype()), expected: "I64 or I32" });
    };
    Ok((view.shape().to_vec(), values))
}

fn numbers(file: &SafeTensors<'_>, name: &'static str) -> Result<(Vec<usize>, Vec<f64>), InputError> {
    let view = file.tensor(name).map_err(|_| InputError::Missing { name })?;
    let values = if view.dtype() == Dtype::F64 {
        view.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
    } else if view.dtype() == Dtype::F32 {
        view.data().as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
    } else {
        return Err(InputError::Type { name, found: format!("{:?}", view.dtype()), expected: "F32 or F64" });
    };
    Ok((view.shape().to_vec(), values))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    fn layout(task: Task) -> Layout {
        Layout {
            task,
            classes: 3,
            heads: 1,
            key_heads: 1,
            vocabulary: 20,
            segments: 2,
            first_position: 0,
            max_tokens: 4,
            window: None,
            relative: None,
        }
    }

    /// A file of tensors that a test changes before reading it.
    struct Draft(Vec<(&'static str, Dtype, Vec<usize>, Vec<u8>)>);

    impl Draft {
        /// Two rows, of three tokens and of one.
        fn sound() -> Self {
            let mut draft = Self(Vec::new());
            draft.integers("input_ids", &[2, 3], &[5, 6, 7, 8, 0, 0]);
            draft.integers("attention_mask", &[2, 3], &[1, 1, 1, 1, 0, 0]);
            draft
        }

        fn with_labels(shape: &[usize], labels: &[i64]) -> Self {
            let mut draft = Self::sound();
            draft.integers("labels", shape, labels);
            draft
        }

        fn integers(&mut self, name: &'static str, shape: &[usize], values: &[i64]) {
            self.put(name, Dtype::I64, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect());
        }

        fn numbers(&mut self, name: &'static str, shape: &[usize], values: &[f32]) {
            self.put(name, Dtype::F32, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect());
        }

        fn put(&mut self, name: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
            self.0.retain(|(known, ..)| *known != name);
            self.0.push((name, dtype, shape.to_vec(), bytes));
        }

        fn bytes(&self) -> Vec<u8> {
            let view = |(name, dtype, shape, bytes)| (name, TensorView::new(dtype, shape, bytes).unwrap());
            let views = self.0.iter().map(|(name, dtype, shape, bytes)| view((*name, *dtype, shape.clone(), &**bytes)));
            safetensors::serialize(views, None).unwrap()
        }

        fn read(&self, task: Task) -> Result<Vec<Sequence>, InputError> {
            read_batch(&self.bytes(), &layout(task))
        }

        fn targets(&self, task: Task) -> Vec<Target> {
            self.read(task).unwrap().into_iter().map(|sequence| sequence.target).collect()
        }

        fn refusal(&self, task: Task) -> String {
            self.read(task).unwrap_err().to_string()
        }
    }

    #[test]
    fn padding_is_cut_off_and_segments_may_be_absent() {
        let mut draft = Draft::with_labels(&[2], &[2, 0]);
        let read = draft.read(Task::SequenceClassification).unwrap();
        let expected = [(vec![5, 6, 7], vec![0; 3], 2), (vec![8], vec![0], 0)];
        let expected = expected.map(|(ids, types, class)| Sequence { ids, types, target: Target::Class(class) });
        assert_eq!(read, expected);
        draft.integers("token_type_ids", &[2, 3], &[0, 1, 1, 0, 0, 0]);
        assert_eq!(draft.read(Task::SequenceClassification).unwrap()[0].types, [0, 1, 1]);
    }

    #[test]
    fn every_task_has_its_labels() {
        let tokens = Draft::with_labels(&[2, 3], &[-100, 2, 0, 1, -100, -100]);
        let expected = [vec![None, Some(2), Some(0)], vec![Some(1)]].map(Target::Tokens);
        assert_eq!(tokens.targets(Task::TokenClassification), expected);
        let expected = [vec![None, Some(2), Some(0)], vec![Some(1)]].map(Target::Next);
        assert_eq!(tokens.targets(Task::CausalLm), expected);
        let expected = [vec![Some(5), Some(6), Some(7)], vec![Some(8)]].map(Target::Next);
        assert_eq!(Draft::sound().targets(Task::CausalLm), expected);
        let mut numbers = Draft::sound();
        numbers.numbers("labels", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let expected = [vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]].map(Target::Numbers);
        assert_eq!(numbers.targets(Task::Regression), expected);
    }

    #[test]
    fn one_number_for_each_example_needs_no_second_dimension() {
        let mut draft = Draft::sound();
        draft.numbers("labels", &[2], &[1.5, -1.0]);
        let read = read_batch(&draft.bytes(), &Layout { classes: 1, ..layout(Task::Regression) }).unwrap();
        assert_eq!(read[1].target, Target::Numbers(vec![-1.0]));
        assert!(draft.refusal(Task::Regression).contains("[2, 3]"));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let task = Task::SequenceClassification;
        let refused = |change: fn(&mut Draft)| {
            let mut draft = Draft::with_labels(&[2], &[0, 1]);
            change(&mut draft);
            draft.refusal(task)
        };
        assert!(refused(|d| d.integers("input_ids", &[2, 3], &[5, 6, 20, 8, 0, 0])).contains("input_ids[0, 2] is 20"));
        assert!(refused(|d| d.integers("labels", &[2], &[0, -1])).contains("labels[1] is -1, expected 0 to 2"));
        assert!(refused(|d| d.integers("labels", &[2, 1], &[0, 1])).contains("[2, 1]"));
        assert!(refused(|d| d.numbers("labels", &[2], &[0.0, 1.0])).contains("expected I64 or I32"));
        assert!(
            refused(|d| d.integers("attention_mask", &[2, 3], &[1, 0, 1, 1, 0, 0])).contains("attention_mask, row 0")
        );
        assert!(refused(|d| d.integers("attention_mask", &[2, 3], &[1, 1, 1, 0, 0, 0])).contains("row 1"));
        assert!(refused(|d| d.integers("token_type_ids", &[2, 3], &[2; 6])).contains("token_type_ids[0, 0] is 2"));
        assert!(refused(|d| d.integers("input_ids", &[2, 5], &[1; 10])).contains("5 tokens"));
        assert!(refused(|d| d.integers("input_ids", &[0, 3], &[])).contains("not empty"));
        assert!(refused(|d| d.0.retain(|(name, ..)| *name != "labels")).contains("\"labels\" is missing"));
    }

    #[test]
    fn numbers_are_finite() {
        let mut draft = Draft::sound();
        draft.numbers("labels", &[2, 3], &[0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]);
        assert!(draft.refusal(Task::Regression).contains("labels[1, 1] is NaN"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(at in 0usize..2000, byte: u8, cut in 0usize..2000) {
            let mut bytes = Draft::with_labels(&[2], &[0, 1]).bytes();
            let length = bytes.len();
            bytes[at % length] = byte;
            for task in Task::ALL {
                let _ = read_batch(&bytes, &layout(task));
                let _ = read_batch(&bytes[..cut % length], &layout(task));
            }
        }
    }
}
