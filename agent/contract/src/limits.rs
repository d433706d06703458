//! The memory that a device may use: the smallest of what its owner, its machine, its control groups and its resource limits allow.
//!
//! Everything here is a function of the contents of small files under `/proc` and `/sys`. [`System::read`] takes them from a root folder,
//! so that a test can simulate a device.
//!
//! | limit | read from |
//! |---|---|
//! | machine | `MemTotal` in `/proc/meminfo` (inside LXC, lxcfs shows the container's memory there) |
//! | control group, v2 | `memory.max` and `memory.high` of every group from the process's own up to the root |
//! | control group, v1 | `memory.limit_in_bytes` of the same groups, and `hierarchical_memory_limit`, which counts groups that cannot be seen |
//! | ulimits | `Max address space` and `Max data size` in `/proc/self/limits` |
//! | free memory | `MemAvailable`, and the group's limit without what it uses, except for cached files |
//!
//! The first four limits are constant while the process lives; the free memory changes. [`System::limit`] is the limit with which
//! a fleet plans. [`System::limit_now`] is the limit of a step that begins now.

mod groups;
mod lesson;

pub use groups::{Group, out_of_memory_kills};
pub use lesson::{Ceiling, Lesson};

use bytesize::ByteSize;
use std::fmt;
use std::path::Path;

/// Maximum number of bytes read from a file.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Cause of a memory limit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The owner's setting.
    Setting,
    /// The machine's memory.
    Machine,
    /// A control group: a container, a unit of systemd, a pod.
    Group {
        /// Path of the group with the smallest limit.
        path: String,
    },
    /// `ulimit -v` (RLIMIT_AS).
    AddressSpace,
    /// `ulimit -d` (RLIMIT_DATA).
    Data,
    /// The memory that other programs leave free at the moment.
    Free,
    /// A lesson: with more memory, the worker was killed.
    Lesson,
    /// The limit is not known.
    Unknown,
}

/// Maximum resident memory of agent and worker together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limit {
    /// The limit in bytes; `u64::MAX` if nothing is known.
    pub bytes: u64,
    /// The quantity from which the limit was computed, in bytes: for example the limit of the control group.
    pub whole: u64,
    /// Kind of the quantity.
    pub cause: Cause,
}

impl Limit {
    /// Returns a limit that the user sets, whatever the system allows.
    #[must_use]
    pub const fn set(bytes: u64) -> Self {
        Self { bytes, whole: bytes, cause: Cause::Setting }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, whole) = (ByteSize(self.bytes).display().si(), ByteSize(self.whole).display().si());
        match &self.cause {
            Cause::Setting => write!(f, "{bytes} (the setting `memory`)"),
            Cause::Machine => write!(f, "{bytes} (the machine has {whole})"),
            Cause::Group { path } => write!(f, "{bytes} (the control group {path} may use {whole})"),
            Cause::AddressSpace => write!(f, "{bytes} (ulimit -v allows {whole})"),
            Cause::Data => write!(f, "{bytes} (ulimit -d allows {whole})"),
            Cause::Free => write!(f, "{bytes} ({whole} are free or in use by Skiff, other programs use the rest)"),
            Cause::Lesson => write!(f, "{bytes} (with more, the worker was killed because memory ran out)"),
            Cause::Unknown => f.write_str("no known limit"),
        }
    }
}

/// The memory that a process uses and may use, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct System {
    /// The machine's memory; 0 if it is unknown.
    pub total: u64,
    /// Memory that is free, or becomes free without swapping.
    pub available: Option<u64>,
    /// The control group with the smallest limit.
    pub group: Option<Group>,
    /// Limit on the address space (RLIMIT_AS).
    pub address_space: Option<u64>,
    /// Limit on private writable memory (RLIMIT_DATA).
    pub data: Option<u64>,
    /// The process itself.
    pub own: Own,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Own {
    /// Resident memory (`VmRSS`).
    pub resident: u64,
    /// Resident memory that belongs to no file (`RssAnon`).
    pub anonymous: u64,
    /// Address space (`VmSize`).
    pub address_space: u64,
    /// Private writable memory (`VmData`).
    pub data: u64,
}

/// Usable share of a quantity, in eighths. The rest is for other programs, and for parts of a step that cannot be predicted.
const SHARE: u64 = 6;
const SHARE_WITH_SETTING: u64 = 7;
const SHARE_OF_FREE: u64 = 7;

impl System {
    /// Reads what the kernel says about this process under `root`, which is `/` on a real device. A missing file means that there
    /// is no such limit.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        Self::of_files(&|path| read(&root.join(path.trim_start_matches('/'))))
    }

    /// Returns the same as [`System::read`], from the contents of files by their absolute paths.
    #[must_use]
    pub fn of_files(read: &dyn Fn(&str) -> Option<String>) -> Self {
        let [meminfo, limits, status] =
            ["/proc/meminfo", "/proc/self/limits", "/proc/self/status"].map(|path| read(path).unwrap_or_default());
        let own = |key| kilobytes(&status, key).unwrap_or(0);
        Self {
            total: kilobytes(&meminfo, "MemTotal:").unwrap_or(0),
            available: kilobytes(&meminfo, "MemAvailable:"),
            group: groups::smallest(read),
            address_space: resource(&limits, "Max address space"),
            data: resource(&limits, "Max data size"),
            own: Own {
                resident: own("VmRSS:"),
                anonymous: own("RssAnon:"),
                address_space: own("VmSize:"),
                data: own("VmData:"),
            },
        }
    }

    /// Returns the limit that is constant while the process lives: the owner's setting, or three quarters of what the system
    /// allows. A setting counts up to seven eighths of what the system allows. `lesson` is the limit that was learned from a
    /// worker's end.
    #[must_use]
    pub fn limit(&self, set: Option<ByteSize>, lesson: Option<Lesson>) -> Limit {
        let share = if set.is_some() { SHARE_WITH_SETTING } else { SHARE };
        let shared = |(whole, cause): (u64, Cause)| Limit { bytes: eighths(whole, share), whole, cause };
        let total = Some((self.total, Cause::Machine)).filter(|(total, _)| *total > 0);
        let group = self.group.as_ref().map(|group| (group.limit, Cause::Group { path: group.path.clone() }));
        let address_space = self.address_space.map(|bytes| (bytes, Cause::AddressSpace));
        let data = self.data.map(|bytes| (bytes, Cause::Data));
        let set = set.map(|set| Limit::set(set.0));
        let system = [total, group, address_space, data].into_iter().flatten().map(shared);
        let limit = smallest(set.into_iter().chain(system));
        match lesson.filter(|lesson| lesson.from == limit.bytes && lesson.bytes < limit.bytes) {
            Some(lesson) => Limit { bytes: lesson.bytes, whole: lesson.from, cause: Cause::Lesson },
            None => limit,
        }
    }

    /// Returns the limit of a step that begins now: [`System::limit`], or less if less memory is free. The agent, whose process
    /// takes `agent_bytes`, counts together with this process.
    #[must_use]
    pub fn limit_now(&self, set: Option<ByteSize>, lesson: Option<Lesson>, agent_bytes: u64) -> Limit {
        let Own { resident, anonymous, address_space, data } = self.own;
        let free = |free: u64| {
            let whole = free.saturating_add(anonymous).saturating_add(agent_bytes);
            Limit { bytes: eighths(whole, SHARE_OF_FREE), whole, cause: Cause::Free }
        };
        // The difference between the limit and the present size may become resident.
        let left = |limit: Option<u64>, used: u64, cause| {
            limit.map(|whole| {
                let more = eighths(whole.saturating_sub(used), SHARE_OF_FREE);
                Limit { bytes: more.saturating_add(resident).saturating_add(agent_bytes), whole, cause }
            })
        };
        let group = self.group.as_ref().and_then(|group| group.free);
        let now = [
            self.available.map(free),
            group.map(free),
            left(self.address_space, address_space, Cause::AddressSpace),
            left(self.data, data, Cause::Data),
        ];
        smallest([self.limit(set, lesson)].into_iter().chain(now.into_iter().flatten()))
    }
}

/// Returns the first of the smallest limits.
fn smallest(limits: impl Iterator<Item = Limit>) -> Limit {
    let unknown = Limit { bytes: u64::MAX, whole: u64::MAX, cause: Cause::Unknown };
    limits.min_by_key(|limit| limit.bytes).unwrap_or(unknown)
}

fn eighths(bytes: u64, share: u64) -> u64 {
    bytes / 8 * share
}

/// Reads a line such as `MemTotal:  16318480 kB`. Returns bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes.saturating_mul(1024))
}

/// Reads the soft limit in a line such as `Max address space  1073741824  unlimited  bytes`.
fn resource(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
