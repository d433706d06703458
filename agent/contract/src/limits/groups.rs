//! The memory limits of control groups, in both versions of the kernel's interface.
//!
//! `/proc/self/cgroup` names the group of the process, and `/proc/self/mountinfo` the folder that shows the groups. In a
//! container the two may not match: the folder may show only the container's own group, whatever the path of the process is. The
//! folder itself is then the process's group.

/// The control group that allows the least memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Path of the group, as in `/proc/self/cgroup`.
    pub path: String,
    /// Memory limit of the group, in bytes.
    pub limit: u64,
    /// Part of the limit that is unused or holds cached files, in bytes; `None` if it is unknown.
    pub free: Option<u64>,
}

/// Number from which a limit counts as unlimited: version 1 writes "unlimited" as 9223372036854771712, the largest multiple of a
/// page.
const UNLIMITED: u64 = 1 << 60;

type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Version of the interface.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Returns the group with the smallest limit, among the process's own group and all groups above it.
pub(super) fn smallest(read: Read<'_>) -> Option<Group> {
    chains(read).into_iter().flat_map(|chain| chain.limits(read)).min_by_key(|group| group.limit)
}

/// Returns how often the kernel killed a process of the group, or of a group above it, because memory ran out. Returns 0 on a
/// system that does not count this.
#[must_use]
pub fn out_of_memory_kills(read: Read<'_>) -> u64 {
    let of_group = |version: Version, folder: &str| {
        let file = if version == Version::Two { "memory.events" } else { "memory.oom_control" };
        read(&format!("{folder}/{file}")).and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
    };
    let groups: u64 = chains(read)
        .iter()
        .flat_map(|chain| chain.folders().into_iter().map(|(folder, _)| of_group(chain.version, &folder)))
        .sum();
    let machine = read("/proc/vmstat").and_then(|text| field(&text, "oom_kill")).unwrap_or(0);
    groups.saturating_add(machine)
}

/// The process's own group and the visible groups above it.
struct Chain {
    version: Version,
    /// Folder of the highest group.
    mount: String,
    /// Path of the highest group in `/proc/self/cgroup`.
    root: String,
    /// Path of the process's group below the highest one; empty, or with a slash in front.
    below: String,
}

fn chains(read: Read<'_>) -> Vec<Chain> {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let mut chains = Vec::new();
    for (version, mount, root) in mounts.lines().filter_map(mount) {
        let Some(path) = groups.lines().find_map(|line| path(version, line)) else { continue };
        let inside =
            path.strip_prefix(root.trim_end_matches('/')).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let below = inside.unwrap_or(path).trim_end_matches('/');
        let is_there = |below: &str| {
            let files = if version == Version::Two {
                ["memory.max", "cgroup.procs"]
            } else {
                ["memory.limit_in_bytes", "tasks"]
            };
            files.iter().any(|file| read(&format!("{mount}{below}/{file}")).is_some())
        };
        let is_inside = !below.split('/').any(|part| part == "..") && is_there(below);
        let (root, below) = if is_inside { (root, below.to_owned()) } else { (path.to_owned(), String::new()) };
        chains.push(Chain { version, mount, root, below });
    }
    chains
}

/// Reads the path of the memory group from a line of `/proc/self/cgroup`: `4:memory:/docker/1f` or `0::/docker/1f`.
fn path(version: Version, line: &str) -> Option<&str> {
    let (hierarchy, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let is_ours = match version {
        Version::One => controllers.split(',').any(|controller| controller == "memory"),
        Version::Two => hierarchy == "0" && controllers.is_empty(),
    };
    is_ours.then_some(path).filter(|path| path.starts_with('/'))
}

/// Reads a line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`). Returns the folder and the group that the folder shows.
fn mount(line: &str) -> Option<(Version, String, String)> {
    let (fields, kind) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(3);
    let (root, folder) = (unescaped(fields.next()?), unescaped(fields.next()?));
    let mut kind = kind.split(' ');
    let version = match (kind.next()?, kind.nth(1)) {
        ("cgroup2", _) => Version::Two,
        ("cgroup", Some(options)) if options.split(',').any(|option| option == "memory") => Version::One,
        _ => return None,
    };
    let folder = folder.trim_end_matches('/').to_owned();
    Some((version, folder, if root.starts_with('/') { root } else { "/".to_owned() }))
}

/// Replaces escapes such as `\040`, with which mountinfo writes spaces, tabs, line ends and backslashes.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

impl Chain {
    /// Lists folder and path of each group, the process's own first.
    fn folders(&self) -> Vec<(String, String)> {
        let mut below = self.below.as_str();
        let mut folders = Vec::new();
        loop {
            let root = self.root.trim_end_matches('/');
            let path = format!("{root}{below}");
            folders.push((format!("{}{below}", self.mount), if path.is_empty() { "/".to_owned() } else { path }));
            match below.rsplit_once('/') {
                Some((above, _)) => below = above,
                None => return folders,
            }
        }
    }

    fn limits(&self, read: Read<'_>) -> Vec<Group> {
        let number = |folder: &str, file: &str| read(&format!("{folder}/{file}"))?.trim().parse::<u64>().ok();
        let is_limit = |limit: &u64| (1..UNLIMITED).contains(limit);
        let mut groups = Vec::new();
        for (folder, path) in self.folders() {
            let stat = read(&format!("{folder}/memory.stat")).unwrap_or_default();
            let (limit, used, cached) = match self.version {
                Version::One => {
                    let own = number(&folder, "memory.limit_in_bytes").filter(is_limit);
                    // Groups above count here, also those that a container does not see.
                    let above = field(&stat, "hierarchical_memory_limit").filter(is_limit);
                    let cached =
                        ["total_inactive_file", "total_active_file"].map(|name| field(&stat, name).unwrap_or(0));
                    (own.into_iter().chain(above).min(), number(&folder, "memory.usage_in_bytes"), cached)
                }
                Version::Two => {
                    let files = ["memory.max", "memory.high"].map(|file| number(&folder, file).filter(is_limit));
                    let cached = ["inactive_file", "active_file"].map(|name| field(&stat, name).unwrap_or(0));
                    (files.into_iter().flatten().min(), number(&folder, "memory.current"), cached)
                }
            };
            let Some(limit) = limit else { continue };
            let cached: u64 = cached.into_iter().fold(0, u64::saturating_add);
            let free = used.map(|used| limit.saturating_sub(used.saturating_sub(cached)));
            groups.push(Group { path, limit, free });
        }
        groups
    }
}

/// Reads the number in a line such as `oom_kill 3`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}
