//! The thread that works, so that the agent goes on listening meanwhile.
//!
//! One [`Work`] is in hand at a time; [`Worker::begin`] cancels the one before. Cancelled work ends at its next step and
//! says nothing more. The workshop of a worker that had nothing to do for a while is given up, and the next work gets a new
//! one. On a device the workshop is a [`process`] of its own, which [`frames`] are exchanged with; its memory goes when it goes.

pub mod frames;
pub mod process;

use crate::participant::{Event, Trained, Work};
use serde::{Deserialize, Serialize};
use skiff_protocol::messages::{EvaluationReport, WorkSample};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, TrySendError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{io, thread};
use tokio::sync::mpsc;

/// What work comes to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Product {
    /// Of a training.
    Trained(Trained),
    /// Of an evaluation.
    Evaluated(EvaluationReport),
}

/// Called after each step, with a sample where there is something to tell; says whether to go on.
pub type Watch<'a> = dyn FnMut(Option<WorkSample>) -> ControlFlow<()> + 'a;

/// Where work is done.
pub trait Workshop {
    /// Does `work`. Where `step` breaks, the product is of no interest.
    ///
    /// # Errors
    /// For the operator, with its causes.
    fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product>;
}

/// Work, and whether it is cancelled.
type Job = (Work, Arc<AtomicBool>);

/// The thread; see the module's text. It ends when this is dropped, after the step in hand.
#[derive(Debug)]
pub struct Worker {
    /// The next work. It has one place: whoever begins other work cancels what waits there.
    next: Arc<Mutex<Option<Job>>>,
    wake: std::sync::mpsc::SyncSender<()>,
    in_hand: Option<Arc<AtomicBool>>,
}

impl Worker {
    /// Starts the thread. It calls `open` when there is work and no workshop, says what becomes of work in `reports`, and
    /// gives the workshop up after `idle` without work.
    ///
    /// # Errors
    /// Where the system has no thread to give.
    pub fn start<W: Workshop>(
        open: impl Fn() -> W + Send + 'static,
        idle: Duration,
        reports: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let next = Arc::new(Mutex::new(None));
        let (wake, woken) = std::sync::mpsc::sync_channel(1);
        let queue = Arc::clone(&next);
        thread::Builder::new().name("worker".to_owned()).spawn(move || {
            let mut workshop = None;
            loop {
                match woken.recv_timeout(idle) {
                    Ok(()) => {
                        // Taken in a statement of its own: the place must be free while the work lasts.
                        let job = place(&queue).take();
                        if let Some((work, cancelled)) = job {
                            work_on(&mut workshop, &open, &work, &cancelled, &reports);
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => workshop = None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        })?;
        Ok(Self { next, wake, in_hand: None })
    }

    /// Begins `work`.
    pub fn begin(&mut self, work: Work) {
        self.cancel();
        let cancelled = Arc::new(AtomicBool::new(false));
        self.in_hand = Some(Arc::clone(&cancelled));
        *place(&self.next) = Some((work, cancelled));
        if let Err(TrySendError::Disconnected(())) = self.wake.try_send(()) {
            unreachable!("the thread ends only after its worker");
        }
    }

    /// Ends the work in hand, where there is any.
    pub fn cancel(&mut self) {
        if let Some(cancelled) = self.in_hand.take() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn place(next: &Mutex<Option<Job>>) -> MutexGuard<'_, Option<Job>> {
    next.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work_on<W: Workshop>(
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
            // One that finds the queue full is not missed: the next one says more.
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
            let reason = format!("{error:#}");
            tracing::error!(reason, "work failed");
            Event::WorkFailed { ticket, reason }
        }
    };
    // Where nobody listens any more the agent is ending.
    let _ = reports.blocking_send(event);
}

/// What the tests of the worker's rooms begin with.
#[cfg(test)]
pub(crate) mod samples {
    use super::Work;
    use super::frames::Setup;
    use crate::config::{Provider, Training};
    use crate::participant::{Job, Ticket};
    use skiff_protocol::messages::{EvaluateOrder, Place};
    use skiff_protocol::{Digest, RunId};
    use std::path::PathBuf;

    /// Of a device whose pack is not there.
    pub(crate) fn setup() -> Setup {
        let training = Training {
            pack: PathBuf::from("/nowhere/a.pack"),
            train: None,
            test: None,
            threads: 1,
            memory: None,
            provider: Provider::Cpu,
            onnxruntime: None,
            protected: Vec::new(),
            place: Place::default(),
        };
        let device = "oak".parse().expect("a device's name");
        Setup { training, device, state: PathBuf::from("/nowhere"), beside_bytes: 0 }
    }

    pub(crate) fn work(epoch: u64) -> Work {
        let digest = Digest([0; 32]);
        let order =
            EvaluateOrder { weights: digest, schema: digest, examples: 1, batch: 1, max_tokens: 2, deadline_ms: 1 };
        Work { ticket: Ticket { run: RunId(1), epoch }, round: 1, job: Job::Evaluate(order), personal: None }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::samples::work;
    use super::*;
    use crate::participant::Ticket;
    use skiff_protocol::RunId;

    /// Steps until it is told to end (epoch 1), fails (3), or finds nothing wrong.
    struct Fake;

    impl Workshop for Fake {
        fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product> {
            match work.ticket.epoch {
                1 => while step(Some(sample())).is_continue() {},
                3 => anyhow::bail!("no luck"),
                _ => {}
            }
            let report = EvaluationReport { examples: 2, correct: 1, loss_sum: 0.5, evaluate_ms: 1, peak_rss_bytes: 1 };
            Ok(Product::Evaluated(report))
        }
    }

    fn sample() -> WorkSample {
        WorkSample {
            run: RunId(1),
            round: 1,
            step: 1,
            steps: 2,
            step_ms: 1.0,
            tokens_per_second: 1.0,
            active_layers: 1,
            loss: 1.0,
        }
    }

    #[test]
    fn failing_work_is_reported_and_the_next_is_done() {
        let (reports, mut said) = mpsc::channel(8);
        let mut worker = Worker::start(|| Fake, Duration::from_secs(60), reports).unwrap();
        let mut outcome = |epoch| {
            worker.begin(work(epoch));
            said.blocking_recv().unwrap()
        };
        assert!(matches!(outcome(3), Event::WorkFailed { reason, .. } if reason == "no luck"));
        assert!(matches!(outcome(4), Event::Evaluated { ticket: Ticket { epoch: 4, .. }, .. }));
    }

    #[test]
    fn cancelled_work_ends_and_says_nothing_more() {
        let (reports, mut said) = mpsc::channel(1);
        let mut worker = Worker::start(|| Fake, Duration::from_secs(60), reports).unwrap();
        worker.begin(work(1));
        assert!(matches!(said.blocking_recv().unwrap(), Event::Stepped { .. }));
        worker.begin(work(5));
        let last = std::iter::from_fn(|| said.blocking_recv()).find(|event| !matches!(event, Event::Stepped { .. }));
        assert!(matches!(last, Some(Event::Evaluated { ticket: Ticket { epoch: 5, .. }, .. })), "{last:?}");
    }

    #[test]
    fn of_work_that_waits_only_the_newest_is_done() {
        /// Says which work it does, and waits to be let on.
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
        let (reports, mut said) = mpsc::channel(8);
        let open = move || Gated(doing.clone(), Arc::clone(&gated));
        let mut worker = Worker::start(open, Duration::from_secs(60), reports).unwrap();
        worker.begin(work(4));
        assert_eq!(done.recv().unwrap(), 4);
        (5..100).for_each(|epoch| worker.begin(work(epoch)));
        gate.send(()).unwrap();
        assert_eq!(done.recv().unwrap(), 99);
        gate.send(()).unwrap();
        assert!(matches!(said.blocking_recv(), Some(Event::Evaluated { ticket: Ticket { epoch: 99, .. }, .. })));
    }

    #[test]
    fn an_idle_workshop_is_given_up_and_opened_again() {
        /// Says when it is given up.
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
        let (reports, mut said) = mpsc::channel(8);
        let mut worker = Worker::start(move || Closing(closing.clone()), Duration::ZERO, reports).unwrap();
        for epoch in [4, 5] {
            worker.begin(work(epoch));
            assert!(matches!(said.blocking_recv(), Some(Event::Evaluated { .. })));
            closed.recv().unwrap();
        }
    }
}
