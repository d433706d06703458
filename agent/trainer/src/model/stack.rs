//! Memory for the values that layers keep from the forward to the backward pass.
//!
//! The forward pass takes it from the bottom up, and the end of the step frees it as a whole. It therefore never fragments,
//! whatever the lengths of the batches. ONNX Runtime's arena then holds only values that live within one graph.

use memmap2::MmapMut;
use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValue, TensorElementType};
use std::ptr::NonNull;

/// Alignment of every tensor in bytes, for vector instructions and cache lines.
const ALIGNMENT: usize = 64;
/// Number of bytes requested from the system at a time. Unwritten pages take no memory.
const BLOCK: usize = 64 << 20;

/// The memory of one step. It keeps the size that this step needed for the next one. It comes directly from the system, because
/// the C library's heap does not return freed memory.
#[derive(Default)]
pub(super) struct Stack {
    /// Blocks of memory; all but the last are full.
    blocks: Vec<MmapMut>,
    /// Number of bytes taken in the last block.
    used: usize,
    /// Maximum number of bytes taken at once in this step.
    highest: usize,
}

/// The amount of memory taken from a stack at some time.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    blocks: usize,
    used: usize,
}

impl Stack {
    /// Begins a step. All taken tensors must have been dropped.
    pub(super) fn clear(&mut self) {
        if self.blocks.first().is_some_and(|block| block.len() < self.highest) {
            // One block replaces all; the smaller ones are freed first.
            self.blocks.clear();
            self.blocks.extend(block(self.highest).ok());
        }
        (self.used, self.highest) = (0, 0);
    }

    /// Returns a mark of the memory that is taken now.
    pub(super) fn mark(&self) -> Mark {
        Mark { blocks: self.blocks.len(), used: self.used }
    }

    /// Frees the memory taken after `mark`. Its tensors must have been dropped.
    pub(super) fn release(&mut self, mark: Mark) {
        self.blocks.truncate(mark.blocks);
        self.used = mark.used;
    }

    /// Takes a tensor in this memory, for ONNX Runtime to write to. It must be dropped before [`Stack::clear`], and before
    /// [`Stack::release`] of an earlier mark.
    pub(super) fn tensor(&mut self, dtype: TensorElementType, shape: &[i64]) -> ort::Result<DynValue> {
        let elements = shape.iter().map(|&size| size.max(0) as usize).product::<usize>();
        let bytes = dtype.byte_size(elements).ok_or_else(|| ort::Error::new("a tensor of text has no size"))?;
        let place = self.take(bytes.max(1).next_multiple_of(ALIGNMENT))?;
        tensor_at(place, bytes, dtype, shape)
    }

    fn take(&mut self, bytes: usize) -> ort::Result<NonNull<u8>> {
        let room = self.blocks.last().map_or(0, |block| block.len() - self.used);
        if room < bytes {
            let refused =
                |error| ort::Error::new(format!("the system has no {bytes} bytes for a layer to keep: {error}"));
            self.blocks.push(block(bytes).map_err(refused)?);
            self.used = 0;
        }
        let (last, full) = self.blocks.split_last_mut().expect("an empty stack got a block just now");
        let place = NonNull::from(&mut last[self.used]);
        self.used += bytes;
        self.highest = self.highest.max(full.iter().map(|block| block.len()).sum::<usize>() + self.used);
        Ok(place)
    }
}

fn block(bytes: usize) -> std::io::Result<MmapMut> {
    MmapMut::map_anon(bytes.next_multiple_of(BLOCK))
}

fn tensor_at(place: NonNull<u8>, bytes: usize, dtype: TensorElementType, shape: &[i64]) -> ort::Result<DynValue> {
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
    let mut value = std::ptr::null_mut();
    #[expect(
        unsafe_code,
        reason = "the block has these bytes; the step that took them drops the tensor before they are taken again"
    )]
    unsafe {
        let created = (ort::api().CreateTensorWithDataAsOrtValue)(
            memory.ptr(),
            place.as_ptr().cast(),
            bytes,
            shape.as_ptr(),
            shape.len(),
            dtype.into(),
            &raw mut value,
        );
        ort::Error::result_from_status(created)?;
        let value = NonNull::new(value).ok_or_else(|| ort::Error::new("no tensor was made"))?;
        Ok(DynValue::from_ptr(value, Some(&Allocator::default())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::runtime::Runtime;

    fn numbers(value: &mut DynValue) -> &mut [f32] {
        value.try_extract_tensor_mut::<f32>().unwrap().1
    }

    #[test]
    fn tensors_do_not_overlap_and_the_second_step_takes_one_block() {
        let _runtime = Runtime::load(None, 1).unwrap();
        let mut stack = Stack::default();
        for step in 0..3 {
            stack.clear();
            let mut taken = Vec::new();
            for at in 0..20_u8 {
                let mut tensor = stack.tensor(TensorElementType::Float32, &[i64::from(at), 700_001]).unwrap();
                numbers(&mut tensor).fill(f32::from(at));
                taken.push(tensor);
            }
            for (at, tensor) in (0_u8..).zip(&mut taken) {
                assert!(numbers(tensor).iter().all(|number| number.to_bits() == f32::from(at).to_bits()));
            }
            assert_eq!(stack.blocks.len() == 1, step > 0, "step {step}");
        }
    }

    #[test]
    fn what_was_taken_after_a_mark_is_taken_again() {
        let _runtime = Runtime::load(None, 1).unwrap();
        let mut stack = Stack::default();
        stack.clear();
        drop(stack.tensor(TensorElementType::Float16, &[100]).unwrap());
        let mark = stack.mark();
        for _ in 0..5 {
            for _ in 0..3 {
                drop(stack.tensor(TensorElementType::Float32, &[8 << 20]).unwrap());
            }
            stack.release(mark);
        }
        assert_eq!((stack.blocks.len(), stack.used), (1, 256));
        assert!(stack.blocks[0].len() < stack.highest, "most of it was in blocks that are gone");
        stack.clear();
        assert!(stack.blocks[0].len() > 3 * (32 << 20), "the next step finds it in one");
        drop(stack.tensor(TensorElementType::Float32, &[1000]).unwrap());
        assert_eq!((stack.blocks.len(), stack.highest), (1, 4032));
    }
}
