//! The lesson that a device learns if memory runs out: the next plan uses less memory, even after a restart of the agent.

use bytesize::ByteSize;
use skiff_base::files::{Access, replace};
use skiff_contract::Setup;
use skiff_contract::limits::{Ceiling, Lesson, System, out_of_memory_kills};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The worker ended, or failed, because memory ran out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{end}; the next round is planned with at most {}", ByteSize(*limit_bytes).display().si())]
pub struct MemoryRanOut {
    /// Description of how the worker ended or failed.
    pub end: String,
    /// The limit of the next plan, in bytes.
    pub limit_bytes: u64,
}

/// Parts of error texts with which libraries report that an allocation failed.
const ALLOCATION_FAILURES: [&str; 5] =
    ["bad_alloc", "failed to allocate memory", "cannot allocate memory", "memory allocation of", "(os error 12)"];

/// Returns true if the reason for a failure is a failed allocation.
pub(super) fn is_allocation_failure(reason: &str) -> bool {
    let reason = reason.to_lowercase();
    ALLOCATION_FAILURES.iter().any(|text| reason.contains(text))
}

/// Returns how often the kernel killed a process of this device or container because memory ran out.
pub(super) fn kills() -> u64 {
    out_of_memory_kills(&|path| fs::read_to_string(path).ok())
}

/// Returns true if a ulimit bounds this process's memory. An abort is then most likely a failed allocation.
pub(super) fn has_ulimit() -> bool {
    let system = System::read(Path::new("/"));
    system.address_space.or(system.data).is_some()
}

/// Computes the lesson of a worker's end and stores it in the state folder. `seen` is the largest measured memory of both
/// processes in bytes; the smallest step takes `least` bytes.
pub(super) fn learn(setup: &Setup, seen: u64, least: u64, end: String) -> MemoryRanOut {
    let system = System::read(Path::new("/"));
    let (from, planned) = (system.limit(setup.training.memory, None).bytes, limit(&system, setup));
    let lesson = Lesson::of_end(Ceiling { from, planned, seen, least }, now_s());
    if let Err(error) = replace(&Lesson::file(&setup.state), lesson.text().as_bytes(), Access::Owner) {
        tracing::warn!(%error, "the smaller memory limit cannot be kept: the next round is planned as this one");
    }
    MemoryRanOut { end, limit_bytes: lesson.bytes }
}

/// Removes a lesson that is no longer valid.
pub(super) fn forget_old(state: &Path) {
    if Lesson::read(state).is_some_and(|lesson| !lesson.holds(now_s())) {
        // If the file cannot be removed, the lesson stays in force until the next attempt, before the next work.
        let _ = fs::remove_file(Lesson::file(state));
    }
}

fn limit(system: &System, setup: &Setup) -> u64 {
    system.limit(setup.training.memory, Lesson::read(&setup.state)).bytes
}

fn now_s() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the lesson has to outlive this process, so it needs the time of day"
    )]
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use skiff_contract::{Provider, samples};

    #[test]
    fn every_end_makes_the_plan_smaller_down_to_the_smallest_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut setup = samples::setup(Provider::Cpu);
        setup.state = folder.path().to_owned();
        setup.training.memory = Some(ByteSize::mib(8));
        let learned = |seen_mib: u64| learn(&setup, seen_mib << 20, 3 << 20, "it ended".to_owned());
        assert_eq!(learned(0).limit_bytes, 4 << 20);
        let second = learned(0);
        assert_eq!(second.limit_bytes, 3 << 20);
        assert_eq!(second.to_string(), "it ended; the next round is planned with at most 3.1 MB");
        assert_eq!(learned(100).limit_bytes, 3 << 20);
        let lesson = Lesson::read(folder.path()).unwrap();
        assert_eq!((lesson.bytes, lesson.from), (3 << 20, 8 << 20));
        forget_old(folder.path());
        assert_eq!(Lesson::read(folder.path()), Some(lesson));
        fs::write(Lesson::file(folder.path()), Lesson { at_s: 0, ..lesson }.text()).unwrap();
        forget_old(folder.path());
        assert_eq!(Lesson::read(folder.path()), None);
    }

    #[test]
    fn texts_of_failed_allocations_are_recognised() {
        for text in
            ["training: std::bad_alloc", "Failed to allocate memory for requested buffer of size 9", "x (os error 12)"]
        {
            assert!(is_allocation_failure(text), "{text}");
        }
        assert!(!is_allocation_failure("the memory limit is 3 MB: the process takes 4 MB"));
    }
}
