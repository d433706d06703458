//! `skiff-worker work`: does the agent's work. The two processes exchange [`frames`](skiff_contract::frames).

use crate::examination::examine;
use crate::inventory::look;
use crate::workshop::PackWorkshop;
use anyhow::{Context, bail};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::Serialize;
use skiff_contract::frames::{Reply, Request, receive, send};
use skiff_contract::greeting::{Greeting, Mismatch};
use skiff_contract::work::{Product, Workshop};
use skiff_protocol::messages::WorkSample;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Works for `skiff-agent run`, which starts it.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Version of the agent.
    agent_version: String,
    /// Version and digest of the agent's frames.
    frames: Option<String>,
}

/// Carries out the requests on standard input until the input ends, and replies on standard output.
///
/// # Errors
/// The agent's frames differ; a request cannot be read; the output is closed.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    go_first();
    // Libraries that print must not write between the replies: their output goes where the log goes.
    let mut replies = File::from(rustix::io::dup(io::stdout()).context("taking the standard output")?);
    rustix::stdio::dup2_stdout(io::stderr()).context("taking the standard output")?;
    greet(arguments, &mut replies)?;
    serve(io::stdin().lock(), replies)
}

/// Tells the agent the version of this program and its frames, and refuses an agent with other frames.
fn greet(arguments: &Arguments, replies: &mut impl Write) -> anyhow::Result<()> {
    let own = Greeting::current(VERSION);
    let mismatch = Mismatch {
        agent: arguments.agent_version.clone(),
        agent_frames: arguments.frames.clone().unwrap_or_else(|| "without a version".to_owned()),
        worker: own.program.clone(),
        worker_frames: own.frames.to_string(),
    };
    match &arguments.frames {
        // Agents from before the greeting read this frame as the reason of a failure, and give it to the coordinator.
        None => send(replies, &Reply::<()>::Failed(mismatch.to_string())).context("refusing the agent")?,
        Some(frames) => {
            own.write(replies).context("greeting the agent")?;
            if *frames == mismatch.worker_frames {
                return Ok(());
            }
        }
    }
    Err(mismatch.into())
}

fn serve(mut requests: impl Read, mut replies: impl Write) -> anyhow::Result<()> {
    let Some(Request::Open(setup)) = receive(&mut requests).context("reading the setup")? else {
        bail!("this verb is for skiff-agent itself; to join a fleet: skiff-agent run");
    };
    let mut workshop = PackWorkshop::new(setup.clone());
    while let Some(request) = receive(&mut requests).context("reading a request")? {
        match request {
            Request::TakeInventory => reply(&mut replies, look(&setup)),
            Request::Examine => reply(&mut replies, Ok(examine(&setup))),
            Request::Work(work) => {
                let done = workshop.carry_out(&work, &mut |sample| step(&mut requests, &mut replies, sample));
                reply(&mut replies, done)
            }
            Request::Open(_) | Request::Continue | Request::Stop => {
                bail!("the agent sent {request:?} without work in hand")
            }
        }
        .context("replying")?;
    }
    Ok(())
}

/// Reports a step and returns whether the agent allows the next one.
fn step(requests: &mut impl Read, replies: &mut impl Write, sample: Option<WorkSample>) -> ControlFlow<()> {
    match send(replies, &Reply::<Product>::Step(sample)).and_then(|()| receive(requests)) {
        Ok(Some(Request::Continue)) => ControlFlow::Continue(()),
        // If the pipes are broken, the next read or write fails.
        Ok(_) | Err(_) => ControlFlow::Break(()),
    }
}

fn reply<T: Serialize>(replies: &mut impl Write, done: anyhow::Result<T>) -> io::Result<()> {
    send(replies, &done.map_or_else(|error| Reply::Failed(format!("{error:#}")), Reply::Done))
}

/// Asks the kernel to kill this process first if memory runs out, and to kill it when the agent ends. Errors are ignored.
fn go_first() {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::debug!(%error, "if the agent is killed, the worker ends only after its step");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!(%error, "if memory runs out, the agent may be killed before its worker");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde::de::DeserializeOwned;
    use skiff_contract::greeting::FramesId;
    use skiff_contract::{Finding, Inventory, Job, Provider, samples};

    /// Sends these requests. Returns how the process ends, and its replies.
    fn served(requests: &[Request]) -> (anyhow::Result<()>, Vec<u8>) {
        let (mut input, mut output) = (Vec::new(), Vec::new());
        requests.iter().for_each(|request| send(&mut input, request).unwrap());
        (serve(input.as_slice(), &mut output), output)
    }

    fn next<T: DeserializeOwned>(replies: &mut &[u8]) -> Reply<T> {
        receive(replies).unwrap().unwrap()
    }

    fn open() -> Request {
        Request::Open(samples::setup(Provider::Cpu))
    }

    #[test]
    fn a_failure_is_replied_and_the_next_request_is_read() {
        let work = samples::work(Job::Evaluate(samples::evaluate_order()));
        let (ended, output) = served(&[open(), Request::Work(work), Request::TakeInventory, Request::Examine]);
        ended.unwrap();
        let replies = &mut output.as_slice();
        assert!(matches!(next::<Product>(replies), Reply::Failed(reason) if reason.contains("/nowhere/a.pack")));
        assert!(matches!(next::<Inventory>(replies), Reply::Failed(reason) if reason.contains("/nowhere/a.pack")));
        let Reply::Done(findings) = next::<Vec<(String, Finding)>>(replies) else {
            panic!("an examination cannot fail")
        };
        let pack = findings.iter().find(|(name, _)| name == "pack").unwrap();
        assert!(matches!(&pack.1, Finding::Broken(reason) if reason.contains("/nowhere/a.pack")));
        assert!(replies.is_empty());
    }

    #[test]
    fn a_user_who_calls_the_verb_by_hand_learns_what_to_call() {
        let (ended, output) = served(&[]);
        assert!(ended.unwrap_err().to_string().contains("skiff-agent run") && output.is_empty());
        assert!(served(&[open(), Request::Continue]).0.is_err());
    }

    fn greeted(frames: Option<&str>) -> (anyhow::Result<()>, Vec<u8>) {
        let arguments = Arguments { agent_version: "0.0.1".to_owned(), frames: frames.map(str::to_owned) };
        let mut output = Vec::new();
        (greet(&arguments, &mut output), output)
    }

    #[test]
    fn an_agent_with_other_frames_is_greeted_and_refused() {
        let own = FramesId::current().to_string();
        let (ended, output) = greeted(Some(&own));
        ended.unwrap();
        assert_eq!(Greeting::read(&mut output.as_slice()).unwrap(), Greeting::current(VERSION));
        let (ended, output) = greeted(Some("1-00000000"));
        let reason = ended.unwrap_err().to_string();
        assert!(reason.contains("skiff-agent 0.0.1 (frames 1-00000000)") && reason.contains(&own), "{reason}");
        assert_eq!(Greeting::read(&mut output.as_slice()).unwrap(), Greeting::current(VERSION));
    }

    #[test]
    fn an_agent_from_before_the_greeting_reads_the_refusal_as_a_failure() {
        let (ended, output) = greeted(None);
        assert!(ended.is_err());
        let Reply::Failed(reason) = next::<Product>(&mut output.as_slice()) else { panic!("not a failure") };
        assert!(reason.contains("skiff-agent 0.0.1 (frames without a version)"), "{reason}");
    }
}
