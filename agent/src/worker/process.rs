//! The process that works, of a program of its own: what happens to it does not happen to the agent, and what only it needs is
//! not in the agent.
//!
//! Where the system runs out of memory, or a library crashes, the process ends and the agent says that the work failed. When
//! it is not needed any more it is killed, and all its memory is the device's again. It reads the agent's blobs and writes
//! nothing but its pipe and a note that is replaced as a whole, so it may be killed at any moment.

use super::frames::{Ask, Setup, Tell, receive, send};
use super::{Product, Watch, Workshop};
use crate::commands::doctor::Finding;
use crate::device::Inventory;
use crate::participant::Work;
use crate::telemetry::own_memory;
use anyhow::{Context, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use std::env;
use std::ffi::OsString;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The file of the program, beside the agent's.
const FILE: &str = "skiff-worker";
/// The verb by which it works for the agent whose version comes next.
const VERB: &str = "work";
/// Names a command that starts programs of this device, with its arguments between spaces, where the system does not start them by
/// itself: an emulator's.
const LAUNCHER: &str = "SKIFF_LAUNCHER";
/// How often it is asked whether the work is cancelled, while no step ends.
const LOOK: Duration = Duration::from_secs(1);
/// The longest steps take some seconds; this is more.
const STEP_PATIENCE: Duration = Duration::from_secs(60);

/// Whose resources are to be counted with the agent's.
#[derive(Clone, Debug, Default)]
pub struct Pid(Arc<AtomicU32>);

impl Pid {
    /// The process, while there is one.
    #[must_use]
    pub fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}

/// The worker's program, after what starts it.
#[derive(Clone, Debug)]
pub struct Program(Vec<OsString>);

impl Program {
    /// The one beside this program, as its file is called now: an upgrade may take the file away later.
    ///
    /// # Errors
    /// The system does not say where this program is.
    pub fn beside_this() -> io::Result<Self> {
        let launcher = env::var(LAUNCHER).unwrap_or_default();
        let launcher = launcher.split_whitespace().map(OsString::from);
        Ok(Self(launcher.chain([env::current_exe()?.with_file_name(FILE).into()]).collect()))
    }

    /// This process becomes the worker's program, with `arguments`; returns only where that fails.
    pub fn become_it(&self, arguments: impl Iterator<Item = OsString>) -> anyhow::Error {
        self.not_started(self.command().args(arguments).exec())
    }

    fn command(&self) -> Command {
        let mut words = self.0.iter();
        let mut command = Command::new(words.next().map_or_else(|| FILE.as_ref(), OsString::as_os_str));
        command.args(words);
        command
    }

    fn not_started(&self, error: io::Error) -> anyhow::Error {
        let words: Vec<_> = self.0.iter().map(|word| word.to_string_lossy()).collect();
        let text = format!(
            "starting {}; it is installed with the agent, and built by: cargo build -p {FILE}",
            words.join(" ")
        );
        anyhow::Error::new(error).context(text)
    }
}

/// A [`Workshop`] in a process of its own; started when it is first asked for something, and again where it ended.
#[derive(Debug)]
pub struct WorkerProcess {
    program: Program,
    /// How long a cancelled step may still take.
    patience: Duration,
    setup: Setup,
    pid: Pid,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    asks: ChildStdin,
    tells: ChildStdout,
}

impl WorkerProcess {
    /// One that will be set up like this; `pid` is kept current.
    #[must_use]
    pub const fn new(program: Program, setup: Setup, pid: Pid) -> Self {
        Self { program, patience: STEP_PATIENCE, setup, pid, running: None }
    }

    /// Looks at what there is to train.
    ///
    /// # Errors
    /// A broken pack, examples that cannot be read or are not the pack's, a process that ends or talks nonsense.
    pub fn look(&mut self) -> anyhow::Result<Inventory> {
        self.ask(&Ask::Look, &mut |_| ControlFlow::Continue(()))
    }

    /// What keeps this device from training, thing by thing.
    ///
    /// # Errors
    /// A process that ends or talks nonsense.
    pub fn examine(&mut self) -> anyhow::Result<Vec<(String, Finding)>> {
        self.ask(&Ask::Examine, &mut |_| ControlFlow::Continue(()))
    }

    /// Has the process do something to its end.
    fn ask<T: DeserializeOwned>(&mut self, ask: &Ask, step: &mut Watch<'_>) -> anyhow::Result<T> {
        let patience = self.patience;
        match converse(self.running()?, ask, patience, step) {
            Ok(Some(last)) => last.map_err(|reason| anyhow!(reason)),
            Ok(None) => {
                let ended = self.end().map_or_else(|| "in an unknown way".to_owned(), described);
                bail!("the worker's process ended {ended}");
            }
            Err(error) => {
                self.end();
                Err(error).context("the worker's process was killed, for it could not be understood")
            }
        }
    }

    /// The process, started where there is none that lives.
    fn running(&mut self) -> anyhow::Result<&mut Running> {
        let lives = |running: &mut Running| running.child.try_wait().is_ok_and(|ended| ended.is_none());
        let running = match self.running.take_if(lives) {
            Some(running) => running,
            None => {
                self.end();
                self.start().map_err(|error| self.program.not_started(error))?
            }
        };
        Ok(self.running.insert(running))
    }

    fn start(&self) -> io::Result<Running> {
        let mut command = self.program.command();
        command.args([VERB, env!("CARGO_PKG_VERSION")]);
        // Ctrl-C is for the agent, which then ends the process.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (Some(asks), Some(tells)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped")
        };
        self.pid.0.store(child.id(), Ordering::Relaxed);
        let mut running = Running { child, asks, tells };
        let setup = Setup { beside_bytes: own_memory(Path::new("/")).resident_bytes, ..self.setup.clone() };
        // Where it has ended already, the first work finds out how.
        let _ = send(&mut running.asks, &Ask::Open(setup));
        Ok(running)
    }

    /// Kills the process, where there is one, and says how it ended if it had ended before.
    fn end(&mut self) -> Option<ExitStatus> {
        let Running { mut child, .. } = self.running.take()?;
        let _ = child.kill();
        let ended = child.wait();
        self.pid.0.store(0, Ordering::Relaxed);
        ended.ok()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.end();
    }
}

impl Workshop for WorkerProcess {
    fn carry_out(&mut self, work: &Work, step: &mut Watch<'_>) -> anyhow::Result<Product> {
        let product = self.ask(&Ask::Work(work.clone()), step)?;
        Ok(beside(product, own_memory(Path::new("/")).peak_bytes))
    }
}

/// The last word about `ask`, or why it failed; `None` where the process ended without, or was killed because it did not stop.
fn converse<T: DeserializeOwned>(
    running: &mut Running,
    ask: &Ask,
    patience: Duration,
    step: &mut Watch<'_>,
) -> io::Result<Option<Result<T, String>>> {
    // Ignored: a process that is gone has closed its pipe, which the next lines see.
    let _ = send(&mut running.asks, ask);
    loop {
        match receive(&mut Patient { tells: &mut running.tells, patience, step: &mut *step }) {
            Ok(Some(Tell::Step(sample))) => {
                let next = if step(sample).is_continue() { Ask::GoOn } else { Ask::Stop };
                let _ = send(&mut running.asks, &next);
            }
            Ok(Some(Tell::Done(done))) => return Ok(Some(Ok(done))),
            Ok(Some(Tell::Failed(reason))) => return Ok(Some(Err(reason))),
            Ok(None) => return Ok(None),
            // In the middle of a word, or silent: it is ended all the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the process tells, read with patience: it times out where the process is to stop and does not.
struct Patient<'a, 'b> {
    tells: &'a mut ChildStdout,
    patience: Duration,
    step: &'a mut Watch<'b>,
}

impl Read for Patient<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let look = Timespec { tv_sec: LOOK.as_secs() as i64, tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(self.tells, PollFlags::IN)], Some(&look)) {
                Ok(0) if (self.step)(None).is_continue() => {}
                Ok(0) if self.patience.is_zero() => return Err(io::ErrorKind::TimedOut.into()),
                Ok(0) => self.patience = self.patience.saturating_sub(LOOK),
                Ok(_) => return self.tells.read(into),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The report is of the device: with what the agent itself took.
fn beside(mut product: Product, own_bytes: u64) -> Product {
    let peak = match &mut product {
        Product::Trained(trained) => &mut trained.report.peak_rss_bytes,
        Product::Evaluated(report) => &mut report.peak_rss_bytes,
    };
    *peak = peak.saturating_add(own_bytes);
    product
}

/// How, for the operator.
fn described(ended: ExitStatus) -> String {
    const SIGKILL: i32 = 9;
    match (ended.signal(), ended.code()) {
        (Some(SIGKILL), _) => {
            "by signal 9, as the system does when memory runs out (see its log); set a smaller `memory` in \
            agent.toml, or leave more to the agent"
                .to_owned()
        }
        (Some(signal), _) => format!("by signal {signal}; the agent's log says where, if it could be said"),
        (None, code) => format!("with status {}; the agent's log says why", code.unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::worker::samples::{setup, work};
    use std::path::PathBuf;

    /// A shell's script in place of the program.
    fn process(script: &str) -> WorkerProcess {
        let program = Program(["sh", "-c", script].map(OsString::from).to_vec());
        let mut process = WorkerProcess::new(program, setup(), Pid::default());
        process.patience = Duration::ZERO;
        process
    }

    fn failure(process: &mut WorkerProcess, cancelled: bool) -> String {
        let next = if cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let error = process.carry_out(&work(1), &mut |_| next).unwrap_err();
        assert_eq!(process.pid.get(), None, "it is gone");
        format!("{error:#}")
    }

    #[test]
    fn how_the_process_ended_is_said_and_the_next_work_has_a_new_one() {
        let mut killed = process("kill -9 $$");
        for _ in 0..2 {
            let message = failure(&mut killed, false);
            assert!(message.contains("signal 9") && message.contains("memory runs out"), "{message}");
        }
        let message = failure(&mut process("printf ab; kill -9 $$"), false);
        assert!(message.contains("signal 9"), "in the middle of a frame: {message}");
        let message = failure(&mut process("kill -6 $$"), false);
        assert!(message.contains("signal 6"), "{message}");
        let message = failure(&mut process("exit 3"), false);
        assert!(message.contains("status 3"), "{message}");
    }

    #[test]
    fn a_process_that_talks_nonsense_is_killed() {
        let message = failure(&mut process(r"printf '\377\377\377\377'; exec sleep 1000"), false);
        assert!(message.contains("could not be understood") && message.contains("too large"), "{message}");
    }

    #[test]
    fn a_cancelled_step_that_does_not_end_is_ended() {
        failure(&mut process("exec sleep 1000"), true);
        failure(&mut process("printf ab; exec sleep 1000"), true);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let nowhere = Program(vec!["/nowhere/skiff-worker".into()]);
        let message = failure(&mut WorkerProcess::new(nowhere, setup(), Pid::default()), false);
        assert!(message.contains("starting /nowhere/skiff-worker") && message.contains("No such file"), "{message}");
    }

    #[test]
    fn a_workshop_that_is_given_up_leaves_no_process() {
        let mut process = process("exec sleep 1000");
        process.running().unwrap();
        let pid = process.pid.clone();
        let folder = PathBuf::from(format!("/proc/{}", pid.get().unwrap()));
        assert!(folder.is_dir());
        drop(process);
        assert!(!folder.is_dir() && pid.get().is_none());
    }
}
