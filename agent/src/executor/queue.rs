//! The thread that waits for the worker, so that the agent can process messages meanwhile.

use super::memory::MemoryRanOut;
use crate::participant::Event;
use skiff_contract::work::{Product, Work, Workshop};
use skiff_protocol::messages::WorkSample;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};
use tokio::sync::mpsc;

/// A piece of work with its flag for cancellation.
type Entry = (Work, Arc<AtomicBool>);

/// A queue with one place, and the thread that serves it. The thread ends when the queue is dropped, after the current step.
#[derive(Debug)]
pub struct Queue {
    /// The next work. New work cancels and replaces it.
    next: Arc<Mutex<Option<Entry>>>,
    wake: SyncSender<()>,
    in_hand: Option<Arc<AtomicBool>>,
}

impl Queue {
    /// Starts the thread. It calls `open` if there is work and no workshop, sends the results to `reports`, and drops the workshop
    /// after `idle` without work.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start<W: Workshop>(
        open: impl Fn() -> W + Send + 'static,
        idle: Duration,
        reports: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let next = Arc::new(Mutex::new(None));
        let (wake, woken) = sync_channel(1);
        let queue = Arc::clone(&next);
        thread::Builder::new().name("executor".to_owned()).spawn(move || {
            let mut workshop = None;
            loop {
                match woken.recv_timeout(idle) {
                    Ok(()) => {
                        // Taken in a separate statement: the place must be free during the work.
                        let entry = place(&queue).take();
                        if let Some((work, cancelled)) = entry {
                            do_work(&mut workshop, &open, &work, &cancelled, &reports);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => workshop = None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        })?;
        Ok(Self { next, wake, in_hand: None })
    }

    /// Begins `work` and cancels the previous work.
    pub fn begin(&mut self, work: Work) {
        self.cancel();
        let cancelled = Arc::new(AtomicBool::new(false));
        self.in_hand = Some(Arc::clone(&cancelled));
        *place(&self.next) = Some((work, cancelled));
        if let Err(TrySendError::Disconnected(())) = self.wake.try_send(()) {
            unreachable!("the thread ends only after its queue");
        }
    }

    /// Cancels the work in hand, if there is any. It ends at its next step and reports nothing more.
    pub fn cancel(&mut self) {
        if let Some(cancelled) = self.in_hand.take() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn place(next: &Mutex<Option<Entry>>) -> MutexGuard<'_, Option<Entry>> {
    next.lock().unwrap_or_else(PoisonError::into_inner)
}

fn do_work<W: Workshop>(
    workshop: &mut Option<W>,
    open: &impl Fn() -> W,
    work: &Work,
    cancelled: &AtomicBool,
    reports: &mpsc::Sender<Event>,
) {
    let is_cancelled = || cancelled.load(Ordering::Relaxed);
    if is_cancelled() {
        return;
    }
    let ticket = work.ticket;
    let mut step = |sample: Option<WorkSample>| {
        if let Some(sample) = sample {
            // A sample that does not fit into the channel may be lost: the next one is newer.
            let _ = reports.try_send(Event::Stepped { ticket, sample });
        }
        if is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let done = workshop.get_or_insert_with(open).carry_out(work, &mut step);
    if is_cancelled() {
        return;
    }
    let event = match done {
        Ok(Product::Trained(trained)) => Event::Trained { ticket, trained },
        Ok(Product::Evaluated(report)) => Event::Evaluated { ticket, report },
        Err(error) => {
            if let Some(MemoryRanOut { limit_bytes, .. }) = error.downcast_ref() {
                // Nobody receives it if the agent is ending.
                let _ = reports.blocking_send(Event::MemoryLimited { limit_bytes: *limit_bytes });
            }
            let reason = format!("{error:#}");
            tracing::error!(reason, "work failed");
            Event::WorkFailed { ticket, reason }
        }
    };
    // Nobody receives it if the agent is ending.
    let _ = reports.blocking_send(event);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::executor::samples::work;
    use skiff_contract::samples;
    use skiff_contract::work::{Ticket, Watch};

    /// A workshop that does steps until it is told to end (epoch 1), runs out of memory (2), fails (3), or succeeds at once
    /// (other epochs).
    struct Fake;

    impl Workshop for Fake {
        fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product> {
            match work.ticket.epoch {
                1 => while step(Some(samples::work_sample())).is_continue() {},
                2 => return Err(MemoryRanOut { end: "it ended".to_owned(), limit_bytes: 77 }.into()),
                3 => anyhow::bail!("no luck"),
                _ => {}
            }
            Ok(Product::Evaluated(samples::evaluation_report()))
        }
    }

    #[test]
    fn failing_work_is_reported_and_the_next_is_done() {
        let (reports, mut reported) = mpsc::channel(8);
        let mut queue = Queue::start(|| Fake, Duration::from_secs(60), reports).unwrap();
        let mut outcome = |epoch| {
            queue.begin(work(epoch));
            reported.blocking_recv().unwrap()
        };
        assert!(matches!(outcome(3), Event::WorkFailed { reason, .. } if reason == "no luck"));
        assert!(matches!(outcome(4), Event::Evaluated { ticket: Ticket { epoch: 4, .. }, .. }));
    }

    #[test]
    fn the_smaller_limit_is_reported_before_the_failure() {
        let (reports, mut reported) = mpsc::channel(8);
        let mut queue = Queue::start(|| Fake, Duration::from_secs(60), reports).unwrap();
        queue.begin(work(2));
        assert_eq!(reported.blocking_recv(), Some(Event::MemoryLimited { limit_bytes: 77 }));
        assert!(
            matches!(reported.blocking_recv(), Some(Event::WorkFailed { reason, .. }) if reason.starts_with("it ended"))
        );
    }

    #[test]
    fn cancelled_work_ends_and_reports_nothing_more() {
        let (reports, mut reported) = mpsc::channel(1);
        let mut queue = Queue::start(|| Fake, Duration::from_secs(60), reports).unwrap();
        queue.begin(work(1));
        assert!(matches!(reported.blocking_recv().unwrap(), Event::Stepped { .. }));
        queue.begin(work(5));
        let last =
            std::iter::from_fn(|| reported.blocking_recv()).find(|event| !matches!(event, Event::Stepped { .. }));
        assert!(matches!(last, Some(Event::Evaluated { ticket: Ticket { epoch: 5, .. }, .. })), "{last:?}");
    }

    #[test]
    fn only_the_newest_work_that_waits_is_done() {
        /// Reports each piece of work that it begins, and waits for permission to continue.
        struct Gated(std::sync::mpsc::Sender<u64>, Arc<Mutex<std::sync::mpsc::Receiver<()>>>);
        impl Workshop for Gated {
            fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product> {
                self.0.send(work.ticket.epoch)?;
                self.1.lock().unwrap().recv()?;
                Fake.carry_out(work, step)
            }
        }
        let (doing, done) = std::sync::mpsc::channel();
        let (gate, gated) = std::sync::mpsc::channel();
        let gated = Arc::new(Mutex::new(gated));
        let (reports, mut reported) = mpsc::channel(8);
        let open = move || Gated(doing.clone(), Arc::clone(&gated));
        let mut queue = Queue::start(open, Duration::from_secs(60), reports).unwrap();
        queue.begin(work(4));
        assert_eq!(done.recv().unwrap(), 4);
        (5..100).for_each(|epoch| queue.begin(work(epoch)));
        gate.send(()).unwrap();
        assert_eq!(done.recv().unwrap(), 99);
        gate.send(()).unwrap();
        assert!(matches!(reported.blocking_recv(), Some(Event::Evaluated { ticket: Ticket { epoch: 99, .. }, .. })));
    }

    #[test]
    fn an_idle_workshop_is_dropped_and_opened_again() {
        /// A workshop that reports when it is dropped.
        struct Closing(std::sync::mpsc::Sender<()>);
        impl Drop for Closing {
            fn drop(&mut self) {
                self.0.send(()).unwrap();
            }
        }
        impl Workshop for Closing {
            fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product> {
                Fake.carry_out(work, step)
            }
        }
        let (closing, closed) = std::sync::mpsc::channel();
        let (reports, mut reported) = mpsc::channel(8);
        let mut queue = Queue::start(move || Closing(closing.clone()), Duration::ZERO, reports).unwrap();
        for epoch in [4, 5] {
            queue.begin(work(epoch));
            assert!(matches!(reported.blocking_recv(), Some(Event::Evaluated { .. })));
            closed.recv().unwrap();
        }
    }
}
