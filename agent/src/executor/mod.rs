//! Work on this device: the process that does it, and a thread that waits for the process.
//!
//! One piece of [`Work`](skiff_contract::Work) is in hand at a time. [`Queue::begin`] cancels the previous work, which ends at
//! its next step and reports nothing more. After some time without work, the thread ends the process; the next work starts a new
//! one.

mod memory;
pub mod process;
pub mod queue;

pub use memory::MemoryRanOut;
pub use process::{Pid, Program, WorkerProcess};
pub use queue::Queue;

/// Values for the tests of both files.
#[cfg(test)]
pub(crate) mod samples {
    use skiff_contract::{Job, Ticket, Work, samples};
    use skiff_protocol::RunId;

    /// Returns an evaluation with this epoch.
    pub(crate) fn work(epoch: u64) -> Work {
        let work = samples::work(Job::Evaluate(samples::evaluate_order()));
        Work { ticket: Ticket { run: RunId(1), epoch }, ..work }
    }
}
