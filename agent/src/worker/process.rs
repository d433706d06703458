//! The process that works: this program started anew, so that what happens to it does not happen to the agent.
//!
//! Where the system runs out of memory, or a library crashes, the process ends and the agent says that the work failed. When
//! it is not needed any more it is killed, and all its memory is the device's again. It reads the agent's blobs and writes
//! nothing but its pipe, so it may be killed at any moment.

use super::frames::{Ask, Setup, Tell, receive, send};
use super::{Product, Watch, Workshop};
use crate::participant::Work;
use crate::telemetry::own_memory;
use anyhow::{Context, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::env;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The verb by which this program works.
pub const VERB: &str = "work";
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

/// A [`Workshop`] in a process of its own; started at the first work, and again where it ended.
#[derive(Debug)]
pub struct WorkerProcess {
    command: fn() -> io::Result<Command>,
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
    pub const fn new(setup: Setup, pid: Pid) -> Self {
        Self { command: this_program, patience: STEP_PATIENCE, setup, pid, running: None }
    }

    /// The process, started where there is none that lives.
    fn running(&mut self) -> io::Result<&mut Running> {
        let lives = |running: &mut Running| running.child.try_wait().is_ok_and(|ended| ended.is_none());
        let running = match self.running.take_if(lives) {
            Some(running) => running,
            None => {
                self.end();
                self.start()?
            }
        };
        Ok(self.running.insert(running))
    }

    fn start(&self) -> io::Result<Running> {
        let mut command = (self.command)()?;
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
        let patience = self.patience;
        let running = self.running().context("starting the worker's process")?;
        let told = match converse(running, work, patience, step) {
            Ok(Some(told)) => told,
            Ok(None) => {
                let ended = self.end().map_or_else(|| "in an unknown way".to_owned(), described);
                bail!("the worker's process ended {ended}");
            }
            Err(error) => {
                self.end();
                return Err(error).context("the worker's process was killed, for it could not be understood");
            }
        };
        match told {
            Tell::Done(product) => Ok(beside(product, own_memory(Path::new("/")).peak_bytes)),
            Tell::Failed(reason) => Err(anyhow!(reason)),
            Tell::Step(_) => unreachable!("a step is not the end of work"),
        }
    }
}

/// The last word about `work`; `None` where the process ended without, or was killed because it did not stop.
fn converse(running: &mut Running, work: &Work, patience: Duration, step: &mut Watch<'_>) -> io::Result<Option<Tell>> {
    // Ignored: a process that is gone has closed its pipe, which the next lines see.
    let _ = send(&mut running.asks, &Ask::Work(work.clone()));
    loop {
        match receive(&mut Patient { tells: &mut running.tells, patience, step: &mut *step }) {
            Ok(Some(Tell::Step(sample))) => {
                let next = if step(sample).is_continue() { Ask::GoOn } else { Ask::Stop };
                let _ = send(&mut running.asks, &next);
            }
            // In the middle of a word, or silent: it is ended all the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::TimedOut) => {
                return Ok(None);
            }
            last => return last,
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

/// `/proc/self/exe` is this program also where an upgrade has removed its file.
fn this_program() -> io::Result<Command> {
    let launcher = env::var(LAUNCHER).unwrap_or_default();
    let mut words = launcher.split_whitespace();
    let mut command = match words.next() {
        Some(program) => {
            let mut command = Command::new(program);
            command.args(words).arg(env::current_exe()?);
            command
        }
        None => {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("skiff-agent");
            command
        }
    };
    command.arg(VERB);
    Ok(command)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::worker::samples::{setup, work};
    use std::ops::ControlFlow;
    use std::path::PathBuf;

    fn process(command: fn() -> io::Result<Command>) -> WorkerProcess {
        let mut process = WorkerProcess::new(setup(), Pid::default());
        (process.command, process.patience) = (command, Duration::ZERO);
        process
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn failure(process: &mut WorkerProcess, cancelled: bool) -> String {
        let next = if cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let error = process.carry_out(&work(1), &mut |_| next).unwrap_err();
        assert_eq!(process.pid.get(), None, "it is gone");
        format!("{error:#}")
    }

    #[test]
    fn how_the_process_ended_is_said_and_the_next_work_has_a_new_one() {
        let mut killed = process(|| Ok(shell("kill -9 $$")));
        for _ in 0..2 {
            let message = failure(&mut killed, false);
            assert!(message.contains("signal 9") && message.contains("memory runs out"), "{message}");
        }
        let message = failure(&mut process(|| Ok(shell("printf ab; kill -9 $$"))), false);
        assert!(message.contains("signal 9"), "in the middle of a frame: {message}");
        let message = failure(&mut process(|| Ok(shell("kill -6 $$"))), false);
        assert!(message.contains("signal 6"), "{message}");
        let message = failure(&mut process(|| Ok(shell("exit 3"))), false);
        assert!(message.contains("status 3"), "{message}");
    }

    #[test]
    fn a_process_that_talks_nonsense_is_killed() {
        let message = failure(&mut process(|| Ok(shell(r"printf '\377\377\377\377'; exec sleep 1000"))), false);
        assert!(message.contains("could not be understood") && message.contains("too large"), "{message}");
    }

    #[test]
    fn a_cancelled_step_that_does_not_end_is_ended() {
        failure(&mut process(|| Ok(shell("exec sleep 1000"))), true);
        failure(&mut process(|| Ok(shell("printf ab; exec sleep 1000"))), true);
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let message = failure(&mut process(|| Ok(Command::new("/nowhere/skiff-agent"))), false);
        assert!(message.contains("starting the worker's process"), "{message}");
    }

    #[test]
    fn a_workshop_that_is_given_up_leaves_no_process() {
        let mut process = process(|| Ok(shell("exec sleep 1000")));
        process.running().unwrap();
        let pid = process.pid.clone();
        let folder = PathBuf::from(format!("/proc/{}", pid.get().unwrap()));
        assert!(folder.is_dir());
        drop(process);
        assert!(!folder.is_dir() && pid.get().is_none());
    }
}
