//! Reads the examples of the next steps while a step runs.

use crate::batch::Form;
use crate::error::TrainerError;
use crate::examples::{Examples, Sequence};
use std::iter::FusedIterator;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, ScopedJoinHandle, scope};

/// Number of batches that are read before they are needed.
const BATCHES: usize = 2;
/// Maximum number of examples read ahead, for any batch size.
const MOST: usize = 8192;

/// Passes the result of `read` for each of `items` to `use_up`, in order. A separate thread reads up to two batches of `batch`
/// items ahead. The thread ends after the first item that cannot be read. When `use_up` returns, the thread finishes its current
/// item and ends.
///
/// # Errors
/// The errors of `use_up`, which receives the errors of `read`; a system that cannot start a thread.
///
/// # Panics
/// If `use_up` panics. If `read` panics, and `use_up` then asks for the missing item.
pub(crate) fn ahead<I, T: Send, R>(
    items: impl Iterator<Item = I> + Send,
    batch: usize,
    read: impl Fn(I) -> Result<T, TrainerError> + Send,
    use_up: impl FnOnce(&mut dyn Iterator<Item = Result<T, TrainerError>>) -> Result<R, TrainerError>,
) -> Result<R, TrainerError> {
    let (sender, received) = sync_channel(batch.saturating_mul(BATCHES).min(MOST));
    scope(|scope| {
        let thread = Builder::new().name("examples".to_owned()).spawn_scoped(scope, move || {
            for item in items {
                let item = read(item);
                let last = item.is_err();
                if sender.send(item).is_err() || last {
                    break;
                }
            }
        });
        let thread = thread.map_err(TrainerError::Thread)?;
        use_up(&mut Ahead { received, thread: Some(thread) })
    })
}

/// Iterator over the items from the thread. The thread ends when it is dropped.
struct Ahead<'scope, T> {
    received: Receiver<T>,
    thread: Option<ScopedJoinHandle<'scope, ()>>,
}

impl<T> Iterator for Ahead<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let next = self.received.recv().ok();
        if next.is_none()
            && let Some(Err(panic)) = self.thread.take().map(ScopedJoinHandle::join)
        {
            resume_unwind(panic);
        }
        next
    }
}

impl<T> FusedIterator for Ahead<'_, T> {}

/// Examples in the order of use.
pub(crate) type Upcoming<'a> = dyn Iterator<Item = Result<Sequence, TrainerError>> + 'a;

/// Reads example `at` and checks that it can be laid out.
pub(crate) fn read_example(examples: &dyn Examples, form: &Form, at: usize) -> Result<Sequence, TrainerError> {
    let failed = |source| TrainerError::Example { example: at + 1, source };
    let sequence = examples.encode(at).map_err(failed)?;
    form.check(&sequence).map_err(|source| failed(source.into()))?;
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn refused(example: usize) -> TrainerError {
        TrainerError::Example { example, source: "refused".into() }
    }

    proptest! {
        #[test]
        fn what_is_brought_is_what_would_have_come_without_a_thread(
            items in proptest::collection::vec(0_usize..50, 0..60), batch in 0_usize..5, taken in 0_usize..70,
        ) {
            let bring = |item: usize| if item == 49 { Err(refused(item)) } else { Ok(3 * item) };
            let all = |brought: &mut dyn Iterator<Item = Result<usize, TrainerError>>| -> Result<Vec<usize>, TrainerError> {
                brought.take(taken).collect()
            };
            let expected = all(&mut items.iter().copied().map(bring));
            let found = ahead(items.iter().copied(), batch, bring, all);
            prop_assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        }

        #[test]
        fn no_more_is_brought_than_two_batches_ahead(batch in 0_usize..6, taken in 0_usize..20) {
            let (begun, asked_for) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let bring = |item: usize| {
                let ahead = begun.fetch_add(1, SeqCst) + 1 - asked_for.load(SeqCst);
                if ahead <= 2 * batch + 1 { Ok(item) } else { Err(refused(item)) }
            };
            let last = ahead(0.., batch, bring, |brought| {
                (0..taken).try_fold(None, |_, _| {
                    asked_for.fetch_add(1, SeqCst);
                    brought.next().transpose()
                })
            });
            prop_assert_eq!(last.unwrap(), taken.checked_sub(1));
        }
    }

    #[test]
    fn the_thread_is_gone_when_the_call_returns_whoever_ended_it() {
        let held = std::sync::Arc::new(());
        let endless = || std::iter::repeat(std::sync::Arc::clone(&held));
        ahead(endless(), 2, Ok, |_| Ok(())).unwrap();
        ahead(endless(), 2, Ok, |brought| brought.nth(9).unwrap()).unwrap();
        ahead(endless(), 2, Ok, |brought| brought.nth(9).map(|_| Err::<(), _>(refused(9))).unwrap()).unwrap_err();
        let panics = || ahead(endless(), 2, Ok, |_| -> Result<(), _> { panic!("as planned") });
        catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }

    #[test]
    fn nothing_is_brought_after_what_cannot_be() {
        let begun = AtomicUsize::new(0);
        let bring = |item: usize| {
            begun.fetch_add(1, SeqCst);
            if item == 3 { Err(refused(item)) } else { Ok(item) }
        };
        let mut found = Vec::new();
        let error = ahead(0.., 10, bring, |brought| {
            for item in brought {
                found.push(item?);
            }
            Ok(())
        });
        assert!(matches!(error, Err(TrainerError::Example { example: 3, .. })));
        assert_eq!((found, begun.into_inner()), (vec![0, 1, 2], 4));
    }

    #[test]
    fn a_panic_comes_where_its_example_is_needed() {
        let mut found = Vec::new();
        let bring = |item: usize| if item == 3 { panic!("as planned") } else { Ok(item) };
        let panic = catch_unwind(AssertUnwindSafe(|| {
            ahead(0.., 10, bring, |brought| {
                found.extend(brought.map(Result::unwrap));
                Ok(())
            })
        }));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&"as planned"));
        assert_eq!(found, [0, 1, 2]);
    }
}
