//! Limits on typical devices, and on a fake root folder.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Files of a device and their content.
type Files<'a> = &'a [(&'a str, &'a str)];
/// A device's name and files, and path and limit of the group that counts.
type Case<'a> = (&'a str, Files<'a>, Option<(&'a str, u64)>);

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// `/proc/meminfo` of a machine of 16 GiB, most of it free.
const MACHINE: (&str, &str) =
    ("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   15728640 kB\n");
/// Mounts of version 1 in a container whose folder shows only its own group.
const V1_OWN: &str = "30 22 0:26 /docker/1f2e /sys/fs/cgroup/cpu,cpuacct ro,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/1f2e /sys/fs/cgroup/memory ro,nosuid,nodev,noexec,relatime - cgroup cgroup rw,memory\n";
const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n";
const V2: &str = "31 23 0:28 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw,nsdelegate\n";
const NO_LIMIT_V1: &str = "9223372036854771712\n";

fn system(files: &[(&str, &str)]) -> System {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    System::of_files(&|path| files.get(path).map(|text| (*text).to_owned()))
}

/// Returns the smallest group's path and limit on a machine with these files.
fn group(files: &[(&str, &str)]) -> Option<(String, u64)> {
    system(files).group.map(|group| (group.path, group.limit))
}

#[test]
fn the_group_of_every_kind_of_container_is_found() {
    let mib = |mib: u64| (mib * MIB).to_string();
    let (m128, m256, m512) = (mib(128), mib(256), mib(512));
    let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-containerd-8.scope";
    let pod_folder = format!("/sys/fs/cgroup{pod}");
    let [pod_max, slice_max] =
        [format!("{pod_folder}/memory.max"), "/sys/fs/cgroup/kubepods.slice/memory.max".to_owned()];
    let pod_line = format!("0::{pod}\n");
    let cases: &[Case<'_>] = &[
        (
            "docker, version 1",
            &[
                ("/proc/self/cgroup", "5:memory:/docker/1f2e\n4:cpu,cpuacct:/docker/1f2e\n0::/\n"),
                ("/proc/self/mountinfo", V1_OWN),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", &m256),
            ],
            Some(("/docker/1f2e", 256 * MIB)),
        ),
        (
            "docker, version 1, a group above that the container cannot see",
            &[
                ("/proc/self/cgroup", "5:memory:/docker/1f2e\n"),
                ("/proc/self/mountinfo", V1_OWN),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", NO_LIMIT_V1),
                ("/sys/fs/cgroup/memory/memory.stat", "cache 1\nhierarchical_memory_limit 268435456\n"),
            ],
            Some(("/docker/1f2e", 256 * MIB)),
        ),
        (
            "docker, version 2, a namespace of its own",
            &[
                ("/proc/self/cgroup", "0::/\n"),
                ("/proc/self/mountinfo", V2),
                ("/sys/fs/cgroup/memory.max", &m256),
                ("/sys/fs/cgroup/memory.high", "max\n"),
            ],
            Some(("/", 256 * MIB)),
        ),
        (
            "docker, version 2, the path of the host with the folder of the container",
            &[
                ("/proc/self/cgroup", "0::/system.slice/docker-1f2e.scope\n"),
                ("/proc/self/mountinfo", V2),
                ("/sys/fs/cgroup/memory.max", &m256),
            ],
            Some(("/system.slice/docker-1f2e.scope", 256 * MIB)),
        ),
        (
            "a service in a slice that allows less",
            &[
                ("/proc/self/cgroup", "0::/edge.slice/skiff-agent.service\n"),
                ("/proc/self/mountinfo", V2),
                ("/sys/fs/cgroup/edge.slice/skiff-agent.service/memory.max", &m512),
                ("/sys/fs/cgroup/edge.slice/memory.max", &m128),
                ("/sys/fs/cgroup/cgroup.procs", ""),
            ],
            Some(("/edge.slice", 128 * MIB)),
        ),
        (
            "a service with MemoryHigh=, which slows the process down",
            &[
                ("/proc/self/cgroup", "0::/skiff-agent.service\n"),
                ("/proc/self/mountinfo", V2),
                ("/sys/fs/cgroup/skiff-agent.service/memory.max", "max\n"),
                ("/sys/fs/cgroup/skiff-agent.service/memory.high", &m128),
            ],
            Some(("/skiff-agent.service", 128 * MIB)),
        ),
        (
            "Kubernetes: the pod's container below a slice",
            &[("/proc/self/cgroup", &pod_line), ("/proc/self/mountinfo", V2), (&pod_max, &m512), (&slice_max, &m256)],
            Some(("/kubepods.slice", 256 * MIB)),
        ),
        (
            "LXC with lxcfs: the machine's memory is the container's, and the group is seen too",
            &[
                ("/proc/meminfo", "MemTotal:  524288 kB\nMemAvailable:  400000 kB\n"),
                ("/proc/self/cgroup", "8:memory:/lxc/edge\n"),
                (
                    "/proc/self/mountinfo",
                    "35 31 0:32 /lxc/edge /sys/fs/cgroup/memory/lxc/edge rw - cgroup cgroup rw,memory\n",
                ),
                ("/sys/fs/cgroup/memory/lxc/edge/memory.limit_in_bytes", &m512),
            ],
            Some(("/lxc/edge", 512 * MIB)),
        ),
        (
            "Jetson with version 1 and no limit",
            &[
                ("/proc/self/cgroup", "9:memory:/system.slice/skiff-agent.service\n1:name=systemd:/\n0::/\n"),
                ("/proc/self/mountinfo", V1),
                ("/sys/fs/cgroup/memory/system.slice/skiff-agent.service/memory.limit_in_bytes", NO_LIMIT_V1),
                (
                    "/sys/fs/cgroup/memory/system.slice/skiff-agent.service/memory.stat",
                    "hierarchical_memory_limit 9223372036854771712\n",
                ),
                ("/sys/fs/cgroup/memory/memory.limit_in_bytes", NO_LIMIT_V1),
            ],
            None,
        ),
        (
            "a process outside the part that its namespace shows",
            &[
                ("/proc/self/cgroup", "0::/../other\n"),
                ("/proc/self/mountinfo", &V2.replace(" / /sys", " /.. /sys")),
                ("/sys/fs/cgroup/memory.max", &m256),
            ],
            Some(("/../other", 256 * MIB)),
        ),
        (
            "a mount whose folder has a space in its name",
            &[
                ("/proc/self/cgroup", "0::/a\n"),
                ("/proc/self/mountinfo", "31 23 0:28 / /sys/fs/my\\040groups rw - cgroup2 cgroup rw\n"),
                ("/sys/fs/my groups/a/memory.max", &m256),
            ],
            Some(("/a", 256 * MIB)),
        ),
        ("no control groups at all", &[], None),
    ];
    for (name, files, expected) in cases {
        let expected = expected.map(|(path, limit)| (path.to_owned(), limit));
        assert_eq!(group(files), expected, "{name}");
    }
}

#[test]
fn a_group_counts_like_the_machines_memory_and_is_named() {
    let files = [
        MACHINE,
        ("/proc/self/cgroup", "0::/box\n"),
        ("/proc/self/mountinfo", V2),
        ("/sys/fs/cgroup/box/memory.max", "200000000\n"),
    ];
    let limit = system(&files).limit(None, None);
    assert_eq!(limit.bytes, 150_000_000);
    assert_eq!(limit.to_string(), "150.0 MB (the control group /box may use 200.0 MB)");
    let machine = system(&[MACHINE]).limit(None, None);
    assert_eq!((machine.bytes, machine.cause), (12 * GIB, Cause::Machine));
    assert_eq!(system(&[]).limit(None, None).bytes, u64::MAX);
}

#[test]
fn a_setting_holds_unless_the_system_allows_less() {
    let files = [
        MACHINE,
        ("/proc/self/cgroup", "0::/box\n"),
        ("/proc/self/mountinfo", V2),
        ("/sys/fs/cgroup/box/memory.max", "200000000\n"),
    ];
    let system = system(&files);
    let limit = |megabytes| system.limit(Some(ByteSize::mb(megabytes)), None);
    assert_eq!(limit(170), Limit::set(170_000_000));
    assert_eq!((limit(190).bytes, limit(190).cause), (175_000_000, Cause::Group { path: "/box".to_owned() }));
}

#[test]
fn ulimits_count_and_unlimited_ones_do_not() {
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                  Max data size             800000000            unlimited            bytes     \n\
                  Max address space         400000000            900000000            bytes     \n";
    let status = "VmSize:\t  100000 kB\nVmRSS:\t 20000 kB\nRssAnon:\t 10000 kB\nVmData:\t 30000 kB\n";
    let system = system(&[MACHINE, ("/proc/self/limits", limits), ("/proc/self/status", status)]);
    let limit = system.limit(None, None);
    assert_eq!((limit.bytes, &limit.cause), (300_000_000, &Cause::AddressSpace));
    let now = system.limit_now(None, None, 7);
    let left = (400_000_000 - 102_400_000) / 8 * 7;
    assert_eq!((now.bytes, now.cause), ((left + 20_480_000 + 7).min(300_000_000), Cause::AddressSpace));
    assert_eq!(super::resource("Max data size  unlimited  unlimited  bytes\n", "Max data size"), None);
}

#[test]
fn little_free_memory_bounds_a_step_but_not_the_fleets_plan() {
    let low = ("/proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable:  80000 kB\n");
    let status = ("/proc/self/status", "VmRSS:\t 90000 kB\nRssAnon:\t 20000 kB\n");
    let system = system(&[low, status]);
    assert_eq!(system.limit(None, None).bytes, 12 * GIB);
    let now = system.limit_now(None, None, 0);
    assert_eq!((now.bytes, now.cause), (100_000 * 1024 / 8 * 7, Cause::Free));
}

#[test]
fn what_others_use_in_the_group_is_not_free_but_cached_files_are() {
    let files = [
        MACHINE,
        ("/proc/self/cgroup", "0::/box\n"),
        ("/proc/self/mountinfo", V2),
        ("/sys/fs/cgroup/box/memory.max", "800\n"),
        ("/sys/fs/cgroup/box/memory.current", "700\n"),
        ("/sys/fs/cgroup/box/memory.stat", "anon 100\ninactive_file 200\nactive_file 100\n"),
    ];
    let system = system(&files);
    assert_eq!(system.group.as_ref().unwrap().free, Some(400));
    assert_eq!(system.limit_now(None, None, 0).bytes, 350);
}

#[test]
fn a_lesson_holds_while_its_limit_does() {
    let system = system(&[MACHINE]);
    let lesson = Lesson { bytes: GIB, from: 12 * GIB, at_s: 0 };
    assert_eq!((system.limit(None, Some(lesson)).bytes, system.limit(None, Some(lesson)).cause), (GIB, Cause::Lesson));
    let other = Lesson { from: 11 * GIB, ..lesson };
    assert_eq!(system.limit(None, Some(other)).cause, Cause::Machine);
}

#[test]
fn kills_are_counted_in_every_group_above() {
    let files: BTreeMap<&str, &str> = [
        ("/proc/self/cgroup", "5:memory:/a/b\n0::/\n"),
        ("/proc/self/mountinfo", V1),
        ("/sys/fs/cgroup/memory/a/b/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", NO_LIMIT_V1),
        ("/sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill 3\n"),
        ("/proc/vmstat", "oom_kill 4\n"),
    ]
    .into();
    assert_eq!(out_of_memory_kills(&|path| files.get(path).map(|text| (*text).to_owned())), 9);
}

#[test]
fn files_under_a_fake_root_are_read() {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        MACHINE,
        ("/proc/self/cgroup", "0::/\n"),
        ("/proc/self/mountinfo", V2),
        ("/sys/fs/cgroup/memory.max", "1000000\n"),
    ] {
        let path = root.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    assert_eq!(System::read(root.path()).limit(None, None).bytes, 750_000);
}

/// Tests a real group if the test can make one: as root, with a memory controller. Otherwise tests nothing.
#[test]
fn a_real_group_limits_a_process_that_joins_it() {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let version_1 = own.lines().find_map(|line| line.split_once(":memory:").map(|(_, path)| path));
    let (parent, file) = match (version_1, own.lines().find_map(|line| line.strip_prefix("0::"))) {
        (Some(path), _) => (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes"),
        (None, Some(path)) => (format!("/sys/fs/cgroup{path}"), "memory.max"),
        (None, None) => return,
    };
    let folder = Path::new(&parent).join(format!("skiff-limits-{}", std::process::id()));
    if std::fs::create_dir(&folder).is_err() || std::fs::write(folder.join(file), "201326592").is_err() {
        let _ = std::fs::remove_dir(&folder);
        return;
    }
    let script = "echo $$ > \"$0/cgroup.procs\" && cat /proc/self/cgroup";
    let joined = std::process::Command::new("sh").args(["-c", script]).arg(&folder).output().unwrap();
    let path = String::from_utf8(joined.stdout).unwrap();
    let limit = System::of_files(&|file| match file {
        "/proc/self/cgroup" => Some(path.clone()),
        other => super::read(Path::new(other)),
    });
    std::fs::remove_dir(&folder).unwrap();
    if joined.status.success() {
        assert_eq!(limit.group.map(|group| group.limit), Some(192 * MIB), "{path}");
    }
}

proptest! {
    #[test]
    fn prop_any_content_is_read_and_the_limit_never_exceeds_what_a_file_says(
        max in 1..u64::MAX,
        total_kb in 1..1_u64 << 40,
        noise in "\\PC{0,80}",
    ) {
        let (max_text, meminfo) = (max.to_string(), format!("MemTotal: {total_kb} kB\n{noise}\n"));
        let files = [
            ("/proc/meminfo", meminfo.as_str()),
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/proc/self/mountinfo", V2),
            ("/proc/self/limits", noise.as_str()),
            ("/sys/fs/cgroup/a/memory.max", max_text.as_str()),
            ("/sys/fs/cgroup/a/b/memory.max", noise.as_str()),
            ("/sys/fs/cgroup/a/b/memory.stat", noise.as_str()),
        ];
        let system = system(&files);
        let limit = system.limit(None, None);
        prop_assert!(limit.bytes <= total_kb * 1024);
        prop_assert!(max >= 1 << 60 || limit.bytes <= max);
        prop_assert!(system.limit_now(None, None, 0).bytes <= limit.bytes);
    }

    #[test]
    fn prop_noise_in_every_file_is_no_panic(noise in "[ -~\n]{0,200}") {
        let system = System::of_files(&|_| Some(noise.clone()));
        let _ = (system.limit(None, None), out_of_memory_kills(&|_| Some(noise.clone())));
    }
}
