//! The process that works for the agent. What it hears and says is in [`frames`](skiff_agent::worker::frames).

use crate::examination::examine;
use crate::inventory::look;
use crate::workshop::PackWorkshop;
use anyhow::{Context, bail, ensure};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;
use skiff_agent::worker::frames::{Ask, Tell, receive, send};
use skiff_agent::worker::{Product, Workshop};
use skiff_protocol::messages::WorkSample;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Works for `skiff-agent run`, which starts it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Of the agent that listens.
    agent_version: String,
}

/// Does what is asked for on standard input, until it ends; answers on standard output.
///
/// # Errors
/// What is asked makes no sense, or nobody hears the answers.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        arguments.agent_version == VERSION,
        "skiff-worker {VERSION} was started by skiff-agent {}: install both from one package, and start the agent anew",
        arguments.agent_version
    );
    go_first();
    // What a library prints must not get between the answers: it goes where the log goes.
    let tells = File::from(rustix::io::dup(io::stdout()).context("taking the standard output")?);
    rustix::stdio::dup2_stdout(io::stderr()).context("taking the standard output")?;
    serve(io::stdin().lock(), tells)
}

fn serve(mut asks: impl Read, mut tells: impl Write) -> anyhow::Result<()> {
    let Some(Ask::Open(setup)) = receive(&mut asks).context("reading the set-up")? else {
        bail!("this verb is for skiff-agent itself; to join a fleet: skiff-agent run");
    };
    let mut workshop = PackWorkshop::new(setup.clone());
    while let Some(ask) = receive(&mut asks).context("reading what to do")? {
        match ask {
            Ask::Look => answer(&mut tells, look(&setup)),
            Ask::Examine => answer(&mut tells, Ok(examine(&setup.training))),
            Ask::Work(work) => {
                let done = workshop.carry_out(&work, &mut |sample| step(&mut asks, &mut tells, sample));
                answer(&mut tells, done)
            }
            Ask::Open(_) | Ask::GoOn | Ask::Stop => bail!("told to go on without work in hand"),
        }
        .context("answering")?;
    }
    Ok(())
}

fn step(asks: &mut impl Read, tells: &mut impl Write, sample: Option<WorkSample>) -> ControlFlow<()> {
    match send(tells, &Tell::<Product>::Step(sample)).and_then(|()| receive(asks)) {
        Ok(Some(Ask::GoOn)) => ControlFlow::Continue(()),
        // The next reading or writing says what is wrong, where anything is.
        Ok(_) | Err(_) => ControlFlow::Break(()),
    }
}

fn answer<T: Serialize>(tells: &mut impl Write, done: anyhow::Result<T>) -> io::Result<()> {
    send(tells, &done.map_or_else(|error| Tell::Failed(format!("{error:#}")), Tell::Done))
}

/// Where there is not enough memory this process is the first to go, and it goes when the agent goes. Neither is vital.
fn go_first() {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::debug!(%error, "the worker ends after its step where the agent ends");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!(%error, "where memory runs out the agent may go before its worker");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde::de::DeserializeOwned;
    use skiff_agent::commands::doctor::Finding;
    use skiff_agent::config::{Provider, Training};
    use skiff_agent::device::Inventory;
    use skiff_agent::participant::{Job, Ticket, Work};
    use skiff_agent::worker::frames::Setup;
    use skiff_protocol::messages::{EvaluateOrder, Place};
    use skiff_protocol::{Digest, RunId};

    /// Of a device whose pack is not there.
    fn setup() -> Setup {
        let training = Training {
            pack: "/nowhere/a.pack".into(),
            train: None,
            test: None,
            threads: 1,
            memory: None,
            provider: Provider::Cpu,
            onnxruntime: None,
            protected: Vec::new(),
            place: Place::default(),
        };
        Setup { training, device: "oak".parse().unwrap(), state: "/nowhere".into(), beside_bytes: 0 }
    }

    fn evaluation() -> Work {
        let digest = Digest([0; 32]);
        let order =
            EvaluateOrder { weights: digest, schema: digest, examples: 1, batch: 1, max_tokens: 2, deadline_ms: 1 };
        Work { ticket: Ticket { run: RunId(1), epoch: 1 }, round: 1, job: Job::Evaluate(order), personal: None }
    }

    /// How the process ends after `asks`, and what it answers.
    fn said(asks: &[Ask]) -> (anyhow::Result<()>, Vec<u8>) {
        let (mut heard, mut told) = (Vec::new(), Vec::new());
        asks.iter().for_each(|ask| send(&mut heard, ask).unwrap());
        (serve(heard.as_slice(), &mut told), told)
    }

    fn next<T: DeserializeOwned>(told: &mut &[u8]) -> Tell<T> {
        receive(told).unwrap().unwrap()
    }

    #[test]
    fn what_fails_is_answered_and_the_next_is_asked_for() {
        let (ended, told) = said(&[Ask::Open(setup()), Ask::Work(evaluation()), Ask::Look, Ask::Examine]);
        ended.unwrap();
        let told = &mut told.as_slice();
        assert!(matches!(next::<Product>(told), Tell::Failed(reason) if reason.contains("/nowhere/a.pack")));
        assert!(matches!(next::<Inventory>(told), Tell::Failed(reason) if reason.contains("/nowhere/a.pack")));
        let Tell::Done(findings) = next::<Vec<(String, Finding)>>(told) else { panic!("an examination cannot fail") };
        let pack = findings.iter().find(|(name, _)| name == "pack").unwrap();
        assert!(matches!(&pack.1, Finding::Broken(reason) if reason.contains("/nowhere/a.pack")));
        assert!(told.is_empty());
    }

    #[test]
    fn whoever_calls_it_by_hand_is_told_what_to_call() {
        let (ended, told) = said(&[]);
        assert!(ended.unwrap_err().to_string().contains("skiff-agent run") && told.is_empty());
        assert!(said(&[Ask::Open(setup()), Ask::GoOn]).0.is_err());
    }

    #[test]
    fn an_agent_of_another_version_is_refused() {
        let error = run(&Arguments { agent_version: "0.0.1".to_owned() }).unwrap_err();
        assert!(error.to_string().contains("started by skiff-agent 0.0.1"), "{error}");
    }
}
