//! The process that trains. It runs a separate program, so the agent survives its crashes, and the agent's program contains
//! nothing that only training needs.
//!
//! If the system runs out of memory or a library crashes, the process ends and the agent reports that the work failed. If memory
//! ran out, the next work is planned with less ([`MemoryRanOut`]). When the process is no longer needed, the agent kills it,
//! which frees all its memory. It may be killed at any moment: it reads the agent's blobs, and writes only to its pipe and a note
//! that is replaced as a whole.
//!
//! The agent and its worker may come from different builds. They exchange a [`greeting`](skiff_contract::greeting) first, and if they
//! do not belong together, every piece of work fails with a reason that names both versions.

use super::memory::{self, MemoryRanOut};
use anyhow::anyhow;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use skiff_contract::frames::{Reply, Request, receive, send};
use skiff_contract::greeting::{Greeting, Mismatch};
use skiff_contract::memory::{own_memory, process_memory};
use skiff_contract::work::{Product, Watch, Work, Workshop};
use skiff_contract::{Finding, Inventory, Setup};
use std::env;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read};
use std::ops::ControlFlow;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// File name of the worker's program, in the agent's folder.
const FILE: &str = "skiff-worker";
/// The verb of `skiff-worker` that serves the agent. The agent's version and the version of its frames follow it.
const VERB: &str = "work";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Name of the variable with a command that starts this device's programs, as words between spaces. It is needed if the system cannot
/// start them itself, for example under an emulator.
const LAUNCHER: &str = "SKIFF_LAUNCHER";
/// Time between two checks during a step, of the worker's memory and for a cancellation.
const LOOK: Duration = Duration::from_millis(250);
/// Time for which a cancelled step may continue. The longest steps take some seconds.
const STEP_PATIENCE: Duration = Duration::from_secs(60);

/// Process id of the worker, shared with the telemetry, which counts the worker's resources with the agent's.
#[derive(Clone, Debug, Default)]
pub struct Pid(Arc<AtomicU32>);

impl Pid {
    /// Returns the process id, if there is a process.
    #[must_use]
    pub fn get(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }
}

/// The command that starts the worker's program.
#[derive(Clone, Debug)]
pub struct Program(Vec<OsString>);

impl Program {
    /// Finds the worker beside this program, and remembers its present path, because an upgrade may replace the file later.
    ///
    /// # Errors
    /// The system does not know the path of this program.
    pub fn beside_this() -> io::Result<Self> {
        let launcher = env::var(LAUNCHER).unwrap_or_default();
        let launcher = launcher.split_whitespace().map(OsString::from);
        Ok(Self(launcher.chain([env::current_exe()?.with_file_name(FILE).into()]).collect()))
    }

    /// Replaces this process by the worker's program with these arguments. Returns only if that fails.
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
        let command = words.join(" ");
        let remedy = if error.kind() == ErrorKind::NotFound {
            format!(": install the package of skiff-agent again (in the source tree: cargo build -p {FILE})")
        } else if error.kind() == ErrorKind::PermissionDenied {
            ": this user may not execute it, see its mode and the mount options".to_owned()
        } else {
            String::new()
        };
        let text = format!("starting {command}{remedy}");
        anyhow::Error::new(error).context(text)
    }
}

/// A [`Workshop`] in a separate process. The process starts with the first request, and again if it has ended.
#[derive(Debug)]
pub struct WorkerProcess {
    program: Program,
    /// Time for which a cancelled step may continue.
    patience: Duration,
    setup: Setup,
    /// Memory of the smallest step in bytes, below which no plan can go.
    least_bytes: u64,
    pid: Pid,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
    /// Whether the worker has sent its greeting and received its setup.
    ready: bool,
    /// Largest measured resident memory, in bytes.
    seen_bytes: u64,
    /// Number of processes that the kernel had killed for memory before this one started.
    kills_before: u64,
}

/// Reason why a process can no longer be used.
enum Broken {
    /// The process ended.
    Ended,
    /// The process did not stop in time.
    Hung,
    /// The process belongs to a build with other frames.
    Mismatch(Mismatch),
    /// The agent cannot send requests to the process.
    Unsayable(io::Error),
    /// The replies cannot be read.
    Unreadable(io::Error),
}

impl WorkerProcess {
    /// Returns a workshop whose process will be set up with `setup`; `pid` is kept current.
    #[must_use]
    pub const fn new(program: Program, setup: Setup, pid: Pid) -> Self {
        Self { program, patience: STEP_PATIENCE, setup, least_bytes: 0, pid, running: None }
    }

    /// Sets the memory of the smallest step. If memory runs out, the device plans with less memory, but at least with this much.
    #[must_use]
    pub const fn with_smallest_step(mut self, bytes: u64) -> Self {
        self.least_bytes = bytes;
        self
    }

    /// Asks for the inventory of the pack and the examples.
    ///
    /// # Errors
    /// A broken pack; examples that cannot be read or do not fit the pack; a process that ends, or is of another build.
    pub fn take_inventory(&mut self) -> anyhow::Result<Inventory> {
        self.ask(&Request::TakeInventory, &mut |_| ControlFlow::Continue(()))
    }

    /// Asks for problems that keep this device from training. Returns names and findings.
    ///
    /// # Errors
    /// A process that ends, or is of another build.
    pub fn examine(&mut self) -> anyhow::Result<Vec<(String, Finding)>> {
        self.ask(&Request::Examine, &mut |_| ControlFlow::Continue(()))
    }

    /// Sends a request and waits for its last reply.
    fn ask<T: DeserializeOwned>(&mut self, request: &Request, step: &mut Watch<'_>) -> anyhow::Result<T> {
        memory::forget_old(&self.setup.state);
        let setup = Setup { agent_bytes: own_memory(Path::new("/")).resident_bytes, ..self.setup.clone() };
        let patience = self.patience;
        let running = self.running()?;
        let reply = running.get_ready(setup, patience, step).and_then(|()| running.converse(request, patience, step));
        match reply {
            Ok(Err(reason)) if memory::is_allocation_failure(&reason) => {
                let seen = self.seen_bytes();
                self.end();
                Err(self.ran_out(seen, reason).into())
            }
            Ok(reply) => reply.map_err(|reason| anyhow!(reason)),
            Err(broken) => Err(self.give_up(broken)),
        }
    }

    /// Returns the process, and starts it if none is alive.
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
        let kills_before = memory::kills();
        let mut command = self.program.command();
        command.args([VERB, VERSION, &Greeting::current(VERSION).frames.to_string()]);
        // Ctrl-C is for the agent, which then ends the process.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are piped")
        };
        self.pid.0.store(child.id(), Ordering::Relaxed);
        Ok(Running { child, requests, replies, ready: false, seen_bytes: 0, kills_before })
    }

    /// Ends the process and returns the reason for the operator.
    fn give_up(&mut self, broken: Broken) -> anyhow::Error {
        let greeted = self.running.as_ref().is_some_and(|running| running.ready);
        let kills_before = self.running.as_ref().map_or(0, |running| running.kills_before);
        let seen = self.seen_bytes();
        let ended = self.end();
        match broken {
            Broken::Ended if let Some(end) = ended.and_then(|ended| killed_for_memory(ended, kills_before)) => {
                self.ran_out(seen, format!("the worker's process ended {end}")).into()
            }
            Broken::Ended => {
                let how = ended.map_or_else(|| "in an unknown way".to_owned(), |ended| described(ended, greeted));
                anyhow!("the worker's process ended {how}")
            }
            Broken::Hung => anyhow!("the worker's process was killed because its step did not end in time"),
            Broken::Mismatch(mismatch) => mismatch.into(),
            Broken::Unsayable(error) => {
                anyhow::Error::new(error).context("sending the worker its settings and its work")
            }
            Broken::Unreadable(error) => {
                anyhow::Error::new(error).context("the worker's process was killed because its reply cannot be read")
            }
        }
    }

    /// Returns the largest measured memory of agent and worker, in bytes; 0 if the worker's was not measured.
    fn seen_bytes(&self) -> u64 {
        let worker = self.running.as_ref().map_or(0, |running| running.seen_bytes);
        if worker == 0 { 0 } else { worker.saturating_add(own_memory(Path::new("/")).resident_bytes) }
    }

    fn ran_out(&self, seen: u64, end: String) -> MemoryRanOut {
        memory::learn(&self.setup, seen, self.least_bytes, end)
    }

    /// Kills the process, if there is one. Returns its exit status.
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
        let product = self.ask(&Request::Work(work.clone()), step)?;
        Ok(with_agent_memory(product, own_memory(Path::new("/")).peak_bytes))
    }
}

impl Running {
    /// Reads the greeting of a process that has just started, and sets it up if its frames are the agent's.
    fn get_ready(&mut self, setup: Setup, patience: Duration, step: &mut Watch<'_>) -> Result<(), Broken> {
        if self.ready {
            return Ok(());
        }
        let own = Greeting::current(VERSION);
        let greeting = Greeting::read(&mut self.replies(patience, step)).map_err(Broken::reading)?;
        if greeting.frames != own.frames {
            return Err(Broken::Mismatch(Mismatch {
                agent: own.program,
                agent_frames: own.frames.to_string(),
                worker: greeting.program,
                worker_frames: greeting.frames.to_string(),
            }));
        }
        self.send(&Request::Open(setup))?;
        self.ready = true;
        Ok(())
    }

    /// Sends a request and returns its last reply: the product, or the reason of a failure.
    fn converse<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        patience: Duration,
        step: &mut Watch<'_>,
    ) -> Result<Result<T, String>, Broken> {
        self.send(request)?;
        loop {
            match receive(&mut self.replies(patience, &mut *step)).map_err(Broken::reading)? {
                Some(Reply::Step(sample)) => {
                    self.send(if step(sample).is_continue() { &Request::Continue } else { &Request::Stop })?;
                }
                Some(Reply::Done(done)) => return Ok(Ok(done)),
                Some(Reply::Failed(reason)) => return Ok(Err(reason)),
                None => return Err(Broken::Ended),
            }
        }
    }

    fn replies<'a, 'b>(&'a mut self, patience: Duration, step: &'a mut Watch<'b>) -> Patient<'a, 'b> {
        Patient { pid: self.child.id(), seen_bytes: &mut self.seen_bytes, replies: &mut self.replies, patience, step }
    }

    /// Sends a request. If the process has ended, this returns no error; the next read reports it.
    fn send(&mut self, request: &Request) -> Result<(), Broken> {
        match send(&mut self.requests, request) {
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(Broken::Unsayable(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Broken {
    /// Distinguishes a process that ended, perhaps in the middle of a frame, from one that hangs or sent unreadable bytes.
    fn reading(error: io::Error) -> Self {
        if error.kind() == ErrorKind::UnexpectedEof {
            Self::Ended
        } else if error.kind() == ErrorKind::TimedOut {
            Self::Hung
        } else {
            Self::Unreadable(error)
        }
    }
}

/// Reads a process's replies. While it waits for a reply, it asks `step` whether to continue. It times out after `patience`
/// without a reply.
struct Patient<'a, 'b> {
    pid: u32,
    /// Largest measured resident memory of the process, in bytes.
    seen_bytes: &'a mut u64,
    replies: &'a mut ChildStdout,
    patience: Duration,
    step: &'a mut Watch<'b>,
}

impl Read for Patient<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let look = Timespec { tv_sec: LOOK.as_secs() as i64, tv_nsec: LOOK.subsec_nanos().into() };
        loop {
            let memory = process_memory(Path::new("/"), &self.pid.to_string());
            *self.seen_bytes = memory.peak_bytes.max(*self.seen_bytes);
            match poll(&mut [PollFd::new(self.replies, PollFlags::IN)], Some(&look)) {
                Ok(0) if (self.step)(None).is_continue() => {}
                Ok(0) if self.patience.is_zero() => return Err(ErrorKind::TimedOut.into()),
                Ok(0) => self.patience = self.patience.saturating_sub(LOOK),
                Ok(_) => return self.replies.read(into),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Adds the agent's own memory to the product's report, which describes the whole device.
fn with_agent_memory(mut product: Product, agent_bytes: u64) -> Product {
    let peak = match &mut product {
        Product::Trained(trained) => &mut trained.report.peak_rss_bytes,
        Product::Evaluated(report) => &mut report.peak_rss_bytes,
    };
    *peak = peak.saturating_add(agent_bytes);
    product
}

/// Describes the end of a process if it ended because memory ran out, or most likely did so. Before the process started, the
/// kernel had killed `kills_before` processes for that reason.
fn killed_for_memory(ended: ExitStatus, kills_before: u64) -> Option<&'static str> {
    const SIGABRT: i32 = 6;
    const SIGKILL: i32 = 9;
    match ended.signal() {
        Some(SIGKILL) if memory::kills() > kills_before => {
            Some("by signal 9, which the kernel sends when memory runs out, as its counters confirm")
        }
        Some(SIGKILL) => Some("by signal 9, which the kernel sends when memory runs out (see its log)"),
        Some(SIGABRT) if memory::has_ulimit() => Some("by signal 6, as programs do when `ulimit` denies them memory"),
        Some(_) | None => None,
    }
}

/// Describes how a process ended, for the operator.
fn described(ended: ExitStatus, greeted: bool) -> String {
    match (ended.signal(), ended.code().unwrap_or_default()) {
        (Some(signal), _) => format!("by signal {signal}; the agent's log may say where"),
        (None, status) if greeted => format!("with status {status}; the agent's log says why"),
        (None, status) => format!(
            "with status {status} before it named its version: install skiff-agent {VERSION} and skiff-worker from one package, or \
             see the agent's log"
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::executor::samples::work;
    use skiff_contract::greeting::FramesId;
    use skiff_contract::limits::Lesson;
    use skiff_contract::{Provider, samples};
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    /// Returns a worker process that runs a shell script instead of the program.
    fn process(script: &str) -> WorkerProcess {
        let program = Program(["sh", "-c", script].map(OsString::from).to_vec());
        let mut process = WorkerProcess::new(program, samples::setup(Provider::Cpu), Pid::default());
        process.patience = Duration::ZERO;
        process
    }

    /// Returns a script that writes these bytes, then runs `rest`.
    fn writing(bytes: &[u8], rest: &str) -> WorkerProcess {
        let octal: String = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect();
        process(&format!("printf '{octal}'; {rest}"))
    }

    fn frame(reply: &Reply<Product>) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut bytes, reply).unwrap();
        bytes
    }

    fn greeting() -> Vec<u8> {
        let mut bytes = Vec::new();
        Greeting::current(VERSION).write(&mut bytes).unwrap();
        bytes
    }

    fn failure(process: &mut WorkerProcess, cancelled: bool) -> String {
        let next = if cancelled { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let error = process.carry_out(&work(1), &mut |_| next).unwrap_err();
        assert_eq!(process.pid.get(), None, "the process is gone");
        format!("{error:#}")
    }

    #[test]
    fn the_end_of_the_process_is_described_and_the_next_work_has_a_new_one() {
        let mut killed = process("kill -9 $$");
        for _ in 0..2 {
            let message = failure(&mut killed, false);
            assert!(message.contains("signal 9") && message.contains("memory runs out"), "{message}");
        }
        let message = failure(&mut writing(&[greeting(), b"ab".to_vec()].concat(), "kill -9 $$"), false);
        assert!(message.contains("signal 9"), "in the middle of a frame: {message}");
        let message = failure(&mut process("kill -6 $$"), false);
        assert!(message.contains("signal 6"), "{message}");
        let message = failure(&mut writing(&greeting(), "exit 3"), false);
        assert!(message.contains("status 3; the agent's log"), "{message}");
    }

    #[test]
    fn a_worker_that_memory_ended_leaves_a_smaller_limit_behind() {
        let folder = tempfile::tempdir().unwrap();
        let failed = [greeting(), frame(&Reply::<Product>::Failed("training: std::bad_alloc".to_owned()))].concat();
        for script in [writing(&greeting(), "kill -9 $$"), writing(&failed, "exec sleep 1000")] {
            let mut process = script.with_smallest_step(5 << 20);
            process.setup.state = folder.path().to_owned();
            process.setup.training.memory = Some(bytesize::ByteSize::mib(64));
            let error = process.carry_out(&work(1), &mut |_| ControlFlow::Continue(())).unwrap_err();
            let limit = error.downcast_ref::<MemoryRanOut>().unwrap().limit_bytes;
            assert!((5 << 20..64 << 20).contains(&limit), "{limit}");
            assert_eq!(Lesson::read(folder.path()).unwrap().bytes, limit);
            std::fs::remove_file(Lesson::file(folder.path())).unwrap();
        }
    }

    #[test]
    fn a_worker_that_ends_without_a_greeting_may_be_of_another_package() {
        let message = failure(&mut process("exit 2"), false);
        assert!(message.contains("status 2") && message.contains("from one package"), "{message}");
        assert_eq!(skiff_protocol::messages::short_reason(&message), message, "it fits into a refusal");
    }

    #[test]
    fn a_worker_with_other_frames_is_refused_in_words_and_told_nothing() {
        for frames in [FramesId { version: 99, digest: 1 }, FramesId { digest: 1, ..FramesId::current() }] {
            let mut bytes = Vec::new();
            Greeting { program: "9.9.9".to_owned(), frames }.write(&mut bytes).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let heard = folder.path().join("heard");
            let message = failure(&mut writing(&bytes, &format!("cat > {}", heard.display())), false);
            let expected = format!(
                "skiff-agent {VERSION} (frames {}) cannot use skiff-worker 9.9.9 (frames {frames})",
                FramesId::current()
            );
            assert!(message.starts_with(&expected) && message.contains("from one package"), "{message}");
            assert_eq!(std::fs::read(&heard).unwrap_or_default(), b"");
        }
    }

    #[test]
    fn a_worker_with_the_same_frames_is_heard() {
        let mut bytes = greeting();
        let report = samples::evaluation_report();
        send(&mut bytes, &Reply::Done(Product::Evaluated(report.clone()))).unwrap();
        let mut process = writing(&bytes, "exec sleep 1000");
        let product = process.carry_out(&work(1), &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(matches!(product, Product::Evaluated(found) if found.correct == report.correct));
    }

    #[test]
    fn a_process_that_writes_nonsense_is_killed() {
        let message = failure(&mut writing(&[0xff; 8], "exec sleep 1000"), false);
        assert!(message.contains("does not greet"), "{message}");
        let message = failure(&mut writing(&[greeting(), vec![0xff; 4]].concat(), "exec sleep 1000"), false);
        assert!(message.contains("cannot be read") && message.contains("too large"), "{message}");
    }

    #[test]
    fn a_cancelled_step_that_does_not_end_is_ended() {
        failure(&mut process("exec sleep 1000"), true);
        failure(&mut writing(&greeting(), "exec sleep 1000"), true);
        failure(&mut writing(&[greeting(), b"ab".to_vec()].concat(), "exec sleep 1000"), true);
    }

    #[test]
    fn a_path_that_is_not_utf_8_is_the_reason_given() {
        let mut process = writing(&greeting(), "exec sleep 1000");
        process.setup.training.pack = PathBuf::from(OsString::from_vec(b"/\xff".to_vec()));
        let message = failure(&mut process, false);
        assert!(message.contains("sending the worker its settings"), "{message}");
    }

    #[test]
    fn a_program_that_cannot_start_is_named_with_the_remedy() {
        let nowhere = Program(vec!["/nowhere/skiff-worker".into()]);
        let message = failure(&mut WorkerProcess::new(nowhere, samples::setup(Provider::Cpu), Pid::default()), false);
        assert!(
            message.contains("starting /nowhere/skiff-worker: install") && message.contains("No such file"),
            "{message}"
        );
        let folder = Program(vec!["/".into()]);
        let message = failure(&mut WorkerProcess::new(folder, samples::setup(Provider::Cpu), Pid::default()), false);
        assert!(message.contains("may not execute it") && !message.contains("cargo"), "{message}");
    }

    #[test]
    fn a_workshop_that_is_dropped_leaves_no_process() {
        let mut process = process("exec sleep 1000");
        process.running().unwrap();
        let pid = process.pid.clone();
        let folder = PathBuf::from(format!("/proc/{}", pid.get().unwrap()));
        assert!(folder.is_dir());
        drop(process);
        assert!(!folder.is_dir() && pid.get().is_none());
    }
}
