//! `skiff-agent work`: the worker's process, for the agent itself. What it hears and says is in [`frames`](crate::worker::frames).

use crate::worker::Workshop;
use crate::worker::frames::{Ask, Tell, receive, send};
use crate::workshop::PackWorkshop;
use anyhow::{Context, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use skiff_protocol::messages::WorkSample;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::ControlFlow;

/// Does what is asked for on standard input, until it ends; answers on standard output.
///
/// # Errors
/// What is asked makes no sense, or nobody hears the answers.
pub fn run() -> anyhow::Result<()> {
    go_first();
    // What a library prints must not get between the answers: it goes where the log goes.
    let tells = File::from(rustix::io::dup(std::io::stdout()).context("taking the standard output")?);
    rustix::stdio::dup2_stdout(std::io::stderr()).context("taking the standard output")?;
    serve(std::io::stdin().lock(), tells)
}

fn serve(mut asks: impl Read, mut tells: impl Write) -> anyhow::Result<()> {
    let Some(Ask::Open(setup)) = receive(&mut asks).context("reading the set-up")? else {
        bail!("this verb is for skiff-agent itself; to join a fleet: skiff-agent run");
    };
    let mut workshop = PackWorkshop::new(setup);
    while let Some(ask) = receive(&mut asks).context("reading what to do")? {
        let Ask::Work(work) = ask else { bail!("told to go on without work in hand") };
        let mut step = |sample: Option<WorkSample>| match send(&mut tells, &Tell::Step(sample))
            .and_then(|()| receive(&mut asks))
        {
            Ok(Some(Ask::GoOn)) => ControlFlow::Continue(()),
            // The next reading or writing says what is wrong, where anything is.
            Ok(_) | Err(_) => ControlFlow::Break(()),
        };
        let told = match workshop.carry_out(&work, &mut step) {
            Ok(product) => Tell::Done(product),
            Err(error) => Tell::Failed(format!("{error:#}")),
        };
        send(&mut tells, &told).context("answering")?;
    }
    Ok(())
}

/// Where there is not enough memory this process is the first to go, and it goes when the agent goes. Neither is vital.
fn go_first() {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::debug!(%error, "the worker ends after its step where the agent ends");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!(%error, "where memory runs out the agent may go before its worker");
    }
    // As it is named in the system's log and in `top`.
    if let Err(error) = rustix::thread::set_name(c"skiff-worker") {
        tracing::debug!(%error, "the worker has its program's name");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::worker::samples::{setup, work};

    fn said(asks: &[Ask]) -> (anyhow::Result<()>, Vec<Tell>) {
        let (mut heard, mut told) = (Vec::new(), Vec::new());
        asks.iter().for_each(|ask| send(&mut heard, ask).unwrap());
        let ended = serve(heard.as_slice(), &mut told);
        let mut told = told.as_slice();
        (ended, std::iter::from_fn(|| receive(&mut told).unwrap()).collect())
    }

    #[test]
    fn work_that_fails_is_answered_and_the_next_is_asked_for() {
        let (ended, told) = said(&[Ask::Open(setup()), Ask::Work(work(1)), Ask::Work(work(2))]);
        ended.unwrap();
        assert_eq!(told.len(), 2);
        for tell in told {
            assert!(matches!(&tell, Tell::Failed(reason) if reason.contains("/nowhere/a.pack")), "{tell:?}");
        }
    }

    #[test]
    fn whoever_calls_it_by_hand_is_told_what_to_call() {
        let (ended, told) = said(&[]);
        assert!(ended.unwrap_err().to_string().contains("skiff-agent run") && told.is_empty());
        assert!(said(&[Ask::Open(setup()), Ask::GoOn]).0.is_err());
    }
}
