//! The device's resources: CPU, memory, load, temperatures, and the agent's own share.
//!
//! Machine-wide figures come from `sysinfo`. Sensors and the agent's own figures are read from `/proc` and `/sys` under a root
//! folder given as a parameter, so that a test can simulate a device. Figures that cannot be read are zero or left out: a missing
//! sensor is not an error.
//!
//! A sample taken while the broker is away waits in a bounded [`Backlog`]. If that is full, the oldest sample is dropped, and
//! the sequence numbers show the gap.

use skiff_contract::memory::{OwnMemory, own_memory, process_memory};
use skiff_protocol::BootId;
use skiff_protocol::messages::{AgentState, Battery, Machine, Telemetry, WorkSample};
use skiff_protocol::time::Timestamp;
use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Maximum number of sensors in a sample.
pub const MAX_SENSORS: usize = 16;
/// Maximum length of a sensor's name, in bytes.
const MAX_SENSOR_NAME: usize = 64;
/// Maximum length of a system's name, in bytes.
const MAX_SYSTEM_NAME: usize = 200;
/// Name of this process in `/proc`.
const SELF: &str = "self";
/// Maximum number of bytes read from a file under `/proc` or `/sys`.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Returns the machine's architecture, system, cores and memory.
#[must_use]
pub fn machine() -> Machine {
    use sysinfo::System;
    let memory_bytes = System::new().map_or(0, |mut system| {
        system.refresh_memory();
        system.total_memory()
    });
    Machine {
        arch: std::env::consts::ARCH.to_owned(),
        os: shortened(System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()), MAX_SYSTEM_NAME),
        cores: std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX)),
        memory_bytes,
    }
}

/// Takes samples from the agent's start to its end.
#[derive(Debug)]
pub struct Sampler {
    root: PathBuf,
    boot: BootId,
    started: Timestamp,
    sequence: u64,
    /// Source of the machine's figures; `None` if `sysinfo` does not support the system.
    system: Option<sysinfo::System>,
    cpu: Option<(Timestamp, u64)>,
    peak_bytes: u64,
}

impl Sampler {
    /// Returns a sampler whose first sequence number is 0. `root` is `/` on a real device.
    #[must_use]
    pub fn new(root: PathBuf, boot: BootId, now: Timestamp) -> Self {
        let mut system = sysinfo::System::new().ok();
        if let Some(system) = &mut system {
            system.refresh_cpu_usage();
        }
        let cpu = cpu_ticks(&root, SELF).map(|ticks| (now, ticks));
        Self { cpu, root, boot, started: now, sequence: 0, system, peak_bytes: 0 }
    }

    /// Takes a sample at `now`. The process `worker` is counted as part of the agent. CPU figures are means since the last sample.
    pub fn sample(
        &mut self,
        state: AgentState,
        work: Option<WorkSample>,
        worker: Option<u32>,
        now: Timestamp,
    ) -> Telemetry {
        let machine = self.machine();
        let own = own_memory(&self.root);
        let worker = worker.map(|pid| pid.to_string());
        let working = worker.as_deref().map_or_else(OwnMemory::default, |pid| process_memory(&self.root, pid));
        // An upper bound: the two peaks may have been at different times.
        self.peak_bytes = self.peak_bytes.max(own.peak_bytes.saturating_add(working.peak_bytes));
        let sequence = self.sequence;
        self.sequence += 1;
        Telemetry {
            boot: self.boot,
            sequence,
            uptime_ms: now.0.saturating_sub(self.started.0),
            state,
            cpu_percent: machine.cpu_percent,
            agent_cpu_percent: self.agent_cpu_percent(worker.as_deref(), now),
            memory_bytes: machine.memory_bytes,
            memory_available_bytes: machine.memory_available_bytes,
            load_1m: sysinfo::System::load_average().map_or(0.0, |load| load.one as f32),
            temperatures: temperatures(&self.root),
            battery: battery(&self.root),
            agent_rss_bytes: own.resident_bytes.saturating_add(working.resident_bytes),
            agent_peak_rss_bytes: self.peak_bytes,
            work,
        }
    }

    fn machine(&mut self) -> MachineSample {
        let Some(system) = &mut self.system else { return MachineSample::default() };
        system.refresh_cpu_usage();
        system.refresh_memory();
        MachineSample {
            cpu_percent: system.global_cpu_usage().clamp(0.0, 100.0),
            memory_bytes: system.total_memory(),
            memory_available_bytes: system.available_memory(),
        }
    }

    fn agent_cpu_percent(&mut self, worker: Option<&str>, now: Timestamp) -> f32 {
        let Some(own) = cpu_ticks(&self.root, SELF) else { return 0.0 };
        let ticks = own.saturating_add(worker.and_then(|pid| cpu_ticks(&self.root, pid)).unwrap_or(0));
        let before = self.cpu.replace((now, ticks));
        let Some((then, ticks_then)) = before else { return 0.0 };
        let wall_ms = now.0.saturating_sub(then.0);
        if wall_ms == 0 {
            return 0.0;
        }
        let cpu_ms = ticks.saturating_sub(ticks_then) * 1000 / rustix::param::clock_ticks_per_second().max(1);
        cpu_ms as f32 * 100.0 / wall_ms as f32
    }
}

/// Figures of the whole machine, from `sysinfo`.
#[derive(Default)]
struct MachineSample {
    cpu_percent: f32,
    memory_bytes: u64,
    memory_available_bytes: u64,
}

/// Reads the user and system time of a process and of its ended children, in clock ticks.
fn cpu_ticks(root: &Path, process: &str) -> Option<u64> {
    let stat = read(&root.join("proc").join(process).join("stat"))?;
    // The second field is the program's name in brackets and may hold anything, brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    (0..4).try_fold(0_u64, |sum, _| sum.checked_add(fields.next()?.parse().ok()?))
}

/// Reads the sensors under `root`: names and degrees Celsius, at most [`MAX_SENSORS`].
///
/// The kernel shows most thermal zones a second time, as a `hwmon` chip. The chip's device is the zone, or the chip has the
/// zone's name, with `_` instead of characters that a chip's name may not have. Such a sensor is read once, from its chip. Power
/// chips and disabled zones report fixed numbers, so they are left out.
#[must_use]
pub fn temperatures(root: &Path) -> Vec<(String, f32)> {
    let zones = zones(&root.join("sys/class/thermal"));
    let mut found: Vec<(String, f32)> = Vec::new();
    let mut chips: Vec<Chip> = Vec::new();
    for folder in numbered(&root.join("sys/class/hwmon"), "hwmon") {
        let Some(name) = read_name(&folder.join("name")) else { continue };
        let chip = Chip { name: chip_name(&name), device: folder.join("device").canonicalize().ok() };
        let mut own_zones = zones.iter().filter(|zone| chip.shows(zone)).peekable();
        let is_fixed = own_zones.peek().is_some() && own_zones.all(|zone| zone.is_fixed);
        // One chip under two numbers has one device. Two chips of a kind have a device each.
        if is_fixed || chips.iter().any(|other| other.device.is_some() && *other == chip) {
            continue;
        }
        let before = found.len();
        for input in numbered(&folder, "temp") {
            let Some(sensor) = input.file_name().and_then(|name| name.to_str()?.strip_suffix("_input")) else {
                continue;
            };
            let Some(celsius) = read_celsius(&input) else { continue };
            let label = read_name(&folder.join(format!("{sensor}_label"))).unwrap_or_else(|| sensor.to_owned());
            found.push((shortened(format!("{name} {label}"), MAX_SENSOR_NAME), celsius));
        }
        if found.len() > before {
            chips.push(chip);
        }
    }
    for zone in zones.iter().filter(|zone| !zone.is_fixed && !chips.iter().any(|chip| chip.shows(zone))) {
        if let Some(celsius) = read_celsius(&zone.folder.join("temp")) {
            found.push((shortened(zone.name.clone(), MAX_SENSOR_NAME), celsius));
        }
    }
    found.truncate(MAX_SENSORS);
    found
}

/// A `hwmon` chip: its name as the kernel writes it, and its device.
#[derive(PartialEq, Eq)]
struct Chip {
    name: String,
    device: Option<PathBuf>,
}

impl Chip {
    /// Returns true if the chip shows the same sensor as the zone.
    fn shows(&self, zone: &Zone) -> bool {
        self.name == chip_name(&zone.name) || (zone.path.is_some() && self.device == zone.path)
    }
}

/// A thermal zone.
struct Zone {
    folder: PathBuf,
    /// Folder of the zone, without symbolic links.
    path: Option<PathBuf>,
    name: String,
    /// Whether the zone reports a fixed number.
    is_fixed: bool,
}

/// Reads the thermal zones, each once.
fn zones(class: &Path) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    for folder in numbered(class, "thermal_zone") {
        let Some(name) = read_name(&folder.join("type")) else { continue };
        let path = folder.canonicalize().ok();
        if path.is_some() && zones.iter().any(|zone| zone.path == path) {
            continue;
        }
        let is_off = read_name(&folder.join("mode")).is_some_and(|mode| mode == "disabled");
        zones.push(Zone { is_fixed: is_off || name.starts_with("PMIC"), folder, path, name });
    }
    zones
}

/// Returns a name as the kernel would write it for a chip (`hwmon_sanitize_name` in `linux/hwmon.h`).
fn chip_name(name: &str) -> String {
    name.replace(|c: char| matches!(c, '-' | '*') || c.is_whitespace(), "_")
}

/// Reads the first battery of the device under `root`. Batteries of mice and pens are ignored.
#[must_use]
pub fn battery(root: &Path) -> Option<Battery> {
    let mut supplies: Vec<PathBuf> = std::fs::read_dir(root.join("sys/class/power_supply"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    supplies.sort();
    supplies.into_iter().find_map(|supply| {
        let matches = |file: &str, value: &str| read_name(&supply.join(file)).is_some_and(|found| found == value);
        if !matches("type", "Battery") || matches("scope", "Device") {
            return None;
        }
        let percent = charge_percent(&supply)?;
        let charging = !matches("status", "Discharging");
        Some(Battery { percent, charging })
    })
}

/// Reads the charge of a battery in percent. Some drivers report no `capacity`, but the energy (µWh) or the charge (µAh) that is left.
fn charge_percent(supply: &Path) -> Option<f32> {
    let number = |file: &str| read_name(&supply.join(file))?.parse::<u64>().ok();
    if let Some(percent) = number("capacity") {
        return Some(percent.min(100) as f32);
    }
    ["energy", "charge"].into_iter().find_map(|unit| {
        let now = number(&format!("{unit}_now"))?;
        let maximum = |file: &str| number(&format!("{unit}_{file}")).filter(|full| *full > 0);
        let full = maximum("full").or_else(|| maximum("full_design"))?;
        Some((now as f32 / full as f32 * 100.0).min(100.0))
    })
}

/// Lists the entries of `folder` that begin with `prefix`, ordered by the number that follows: 2 before 10.
fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut numbered: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let rest = path.file_name()?.to_str()?.strip_prefix(prefix)?;
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            Some((rest[..digits].parse().ok()?, path))
        })
        .collect();
    numbered.sort();
    numbered.into_iter().map(|(_, path)| path).collect()
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(MAX_FILE_BYTES).read_to_string(&mut text).ok()?;
    Some(text)
}

fn read_name(path: &Path) -> Option<String> {
    let text: String = read(path)?.chars().filter(|c| !c.is_control()).collect();
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// Reads millidegrees and returns degrees; `None` if no sensor of a working device can be that hot or cold.
fn read_celsius(path: &Path) -> Option<f32> {
    let millidegrees: i32 = read(path)?.trim().parse().ok()?;
    (-55_000..=200_000).contains(&millidegrees).then(|| millidegrees as f32 / 1000.0)
}

/// Returns the first `most_bytes` bytes of a name, whole characters only.
fn shortened(mut name: String, most_bytes: usize) -> String {
    name.truncate(name.floor_char_boundary(most_bytes));
    name
}

/// Samples that wait for the broker. A full backlog drops the oldest.
#[derive(Debug, Default)]
pub struct Backlog {
    samples: VecDeque<Telemetry>,
}

impl Backlog {
    /// Maximum number of waiting samples.
    pub const CAPACITY: usize = 120;

    /// Adds a sample.
    pub fn push(&mut self, sample: Telemetry) {
        if self.samples.len() == Self::CAPACITY {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// Takes all waiting samples, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Telemetry> {
        self.samples.drain(..)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests; the numbers are exact")]
    use super::*;

    fn device(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn stat(user: u64, system: u64) -> String {
        format!("7 (a) b) S 1 1 1 0 -1 4194304 90 0 0 0 {user} {system} 0 0 20 0 3 0 100 1 1")
    }

    #[test]
    fn sensors_are_named_ordered_and_plausible() {
        let root = device(&[
            ("sys/class/hwmon/hwmon10/name", "nvme\n"),
            ("sys/class/hwmon/hwmon10/temp1_input", "41850\n"),
            ("sys/class/hwmon/hwmon2/name", "coretemp\n"),
            ("sys/class/hwmon/hwmon2/temp1_input", "55000\n"),
            ("sys/class/hwmon/hwmon2/temp1_label", "Package id 0\n"),
            ("sys/class/hwmon/hwmon2/temp2_input", "-274000\n"),
            ("sys/class/hwmon/hwmon2/temp3_input", "warm\n"),
            ("sys/class/hwmon/hwmon3/temp1_input", "20000\n"),
            ("sys/class/thermal/thermal_zone0/type", "CPU-therm\n"),
            ("sys/class/thermal/thermal_zone0/temp", "48500\n"),
            ("sys/class/thermal/thermal_zone1/type", "nvme\n"),
            ("sys/class/thermal/thermal_zone1/temp", "41850\n"),
            ("sys/class/thermal/thermal_zone2/type", "PMIC-Die\n"),
            ("sys/class/thermal/thermal_zone2/temp", "100000\n"),
            ("sys/class/thermal/thermal_zone3/type", "GPU-therm\n"),
            ("sys/class/thermal/thermal_zone3/mode", "disabled\n"),
            ("sys/class/thermal/thermal_zone3/temp", "30000\n"),
        ]);
        let expected =
            [("coretemp Package id 0".into(), 55.0), ("nvme temp1".into(), 41.85), ("CPU-therm".into(), 48.5)];
        assert_eq!(temperatures(root.path()), expected);
    }

    #[test]
    fn a_zone_that_is_shown_as_a_chip_too_is_read_once() {
        let nine: Vec<(String, String)> = (0..9)
            .flat_map(|n| {
                let (chip, zone) = (format!("sys/class/hwmon/hwmon{n}"), format!("sys/class/thermal/thermal_zone{n}"));
                [
                    (format!("{chip}/name"), format!("soc{n}_thermal")),
                    (format!("{chip}/temp1_input"), format!("4{n}000")),
                    (format!("{zone}/type"), format!("soc{n}-thermal")),
                    (format!("{zone}/temp"), format!("4{n}000")),
                ]
            })
            .collect();
        let files: Vec<(&str, &str)> = nine.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let found = temperatures(device(&files).path());
        let expected: Vec<(String, f32)> = (0..9).map(|n| (format!("soc{n}_thermal temp1"), (40 + n) as f32)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_link_to_a_zone_counts_more_than_the_name_and_two_disks_stay_two() {
        let root = device(&[
            ("sys/devices/virtual/thermal/thermal_zone0/type", "x86_pkg_temp\n"),
            ("sys/devices/virtual/thermal/thermal_zone0/temp", "51000\n"),
            ("sys/class/hwmon/hwmon0/name", "pkg\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "51000\n"),
            ("sys/class/hwmon/hwmon1/name", "nvme\n"),
            ("sys/class/hwmon/hwmon1/temp1_input", "30000\n"),
            ("sys/class/hwmon/hwmon2/name", "nvme\n"),
            ("sys/class/hwmon/hwmon2/temp1_input", "31000\n"),
            ("sys/class/hwmon/hwmon3/name", "nvme\n"),
            ("sys/class/hwmon/hwmon3/temp1_input", "31000\n"),
            ("sys/class/hwmon/hwmon4/name", "PMIC_Die\n"),
            ("sys/class/hwmon/hwmon4/temp1_input", "100000\n"),
            ("sys/class/thermal/thermal_zone1/type", "PMIC-Die\n"),
            ("sys/class/thermal/thermal_zone1/temp", "100000\n"),
            ("sys/devices/nvme0/x", ""),
            ("sys/devices/nvme1/x", ""),
        ]);
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(root.path().join(to), root.path().join(at)).unwrap();
        link("sys/devices/virtual/thermal/thermal_zone0", "sys/class/thermal/thermal_zone0");
        link("sys/devices/virtual/thermal/thermal_zone0", "sys/class/hwmon/hwmon0/device");
        link("sys/devices/nvme0", "sys/class/hwmon/hwmon1/device");
        link("sys/devices/nvme1", "sys/class/hwmon/hwmon2/device");
        link("sys/devices/nvme1", "sys/class/hwmon/hwmon3/device");
        let expected = [("pkg temp1".into(), 51.0), ("nvme temp1".into(), 30.0), ("nvme temp1".into(), 31.0)];
        assert_eq!(temperatures(root.path()), expected);
    }

    #[test]
    fn a_chip_that_cannot_be_read_leaves_its_zone() {
        let root = device(&[
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("sys/class/hwmon/hwmon0/temp1_input", "no data\n"),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", "48000\n"),
        ]);
        assert_eq!(temperatures(root.path()), [("cpu-thermal".into(), 48.0)]);
    }

    /// Files of a battery and their content.
    type Files<'a> = &'a [(&'a str, &'a str)];

    #[test]
    fn a_battery_counts_by_its_energy_or_charge_where_no_capacity_is_reported() {
        let cases: &[(Files<'_>, Option<f32>)] = &[
            (&[("capacity", "57\n"), ("energy_now", "1"), ("energy_full", "2")], Some(57.0)),
            (&[("energy_now", "30000000\n"), ("energy_full", "40000000\n")], Some(75.0)),
            (&[("charge_now", "1000000"), ("charge_full", "4000000"), ("charge_full_design", "8000000")], Some(25.0)),
            (&[("charge_now", "2000000"), ("charge_full_design", "8000000")], Some(25.0)),
            (&[("charge_now", "9000000"), ("charge_full", "8000000")], Some(100.0)),
            (&[("capacity", "unknown"), ("energy_now", "1"), ("energy_full", "2")], Some(50.0)),
            (&[("energy_now", "1"), ("energy_full", "0")], None),
            (&[("energy_now", "-1"), ("energy_full", "5")], None),
            (&[], None),
        ];
        for (files, expected) in cases {
            let supply = "sys/class/power_supply/BAT0";
            let files: Vec<(String, &str)> =
                files.iter().map(|(file, text)| (format!("{supply}/{file}"), *text)).collect();
            let mut all = vec![
                ("sys/class/power_supply/BAT0/type", "Battery\n"),
                ("sys/class/power_supply/BAT0/status", "Discharging\n"),
            ];
            all.extend(files.iter().map(|(path, text)| (path.as_str(), *text)));
            let expected = expected.map(|percent| Battery { percent, charging: false });
            assert_eq!(battery(device(&all).path()), expected, "{all:?}");
        }
    }

    #[test]
    fn no_more_than_sixteen_sensors_are_named() {
        let zones: Vec<(String, String)> = (0..40)
            .flat_map(|n| {
                let folder = format!("sys/class/thermal/thermal_zone{n}");
                [(format!("{folder}/type"), "x".repeat(500)), (format!("{folder}/temp"), format!("{n}000"))]
            })
            .collect();
        let files: Vec<(&str, &str)> = zones.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let found = temperatures(device(&files).path());
        assert_eq!(found.len(), MAX_SENSORS);
        assert!(found.iter().all(|(name, _)| name.len() == MAX_SENSOR_NAME));
        assert_eq!(found[15].1, 15.0);
    }

    #[test]
    fn own_memory_and_cpu_are_read_from_proc() {
        let first = stat(100, 20);
        let root = device(&[
            ("proc/self/status", "Name:\tx\nVmHWM:\t    9000 kB\nVmRSS:\t    8000 kB\n"),
            ("proc/self/stat", &first),
        ]);
        let mut sampler = Sampler::new(root.path().to_owned(), BootId(7), Timestamp(1000));
        let ticks = rustix::param::clock_ticks_per_second();
        std::fs::write(root.path().join("proc/self/stat"), stat(100 + ticks, 20 + ticks / 2)).unwrap();
        let sample = sampler.sample(AgentState::Idle, None, None, Timestamp(2000));
        assert_eq!((sample.agent_rss_bytes, sample.agent_peak_rss_bytes), (8000 * 1024, 9000 * 1024));
        assert_eq!(sample.agent_cpu_percent, 150.0);
        assert_eq!((sample.sequence, sample.uptime_ms, sample.boot), (0, 1000, BootId(7)));
        assert_eq!(sampler.sample(AgentState::Idle, None, None, Timestamp(2000)).sequence, 1);
    }

    #[test]
    fn the_worker_counts_with_the_agent_and_its_peak_stays() {
        let ticks = rustix::param::clock_ticks_per_second();
        let (own, working, both) =
            (stat(10, 0), stat(ticks, 0), stat(10, 0).replace("10 0 0 0", &format!("10 0 {ticks} 0")));
        let root = device(&[
            ("proc/self/status", "VmHWM:\t 9 kB\nVmRSS:\t 8 kB\n"),
            ("proc/self/stat", &own),
            ("proc/42/status", "VmHWM:\t 70 kB\nVmRSS:\t 60 kB\n"),
            ("proc/42/stat", &working),
        ]);
        let mut sampler = Sampler::new(root.path().to_owned(), BootId(7), Timestamp(0));
        let sample = sampler.sample(AgentState::Training, None, Some(42), Timestamp(1000));
        assert_eq!((sample.agent_rss_bytes, sample.agent_peak_rss_bytes), (68 * 1024, 79 * 1024));
        assert_eq!(sample.agent_cpu_percent, 100.0);
        // The worker has ended: its processor time now counts among the children's.
        std::fs::write(root.path().join("proc/self/stat"), both).unwrap();
        let sample = sampler.sample(AgentState::Idle, None, None, Timestamp(2000));
        assert_eq!((sample.agent_rss_bytes, sample.agent_peak_rss_bytes), (8 * 1024, 79 * 1024));
        assert_eq!(sample.agent_cpu_percent, 0.0);
    }

    #[test]
    fn an_empty_root_gives_a_sample_without_sensors() {
        let root = device(&[]);
        let sample = Sampler::new(root.path().to_owned(), BootId(1), Timestamp(0)).sample(
            AgentState::Training,
            None,
            None,
            Timestamp(5),
        );
        assert_eq!(sample.temperatures, []);
        assert_eq!((sample.agent_rss_bytes, sample.agent_cpu_percent), (0, 0.0));
        assert!(sample.memory_bytes > 0 && sample.memory_available_bytes <= sample.memory_bytes);
        assert!((0.0..=100.0).contains(&sample.cpu_percent));
    }

    #[test]
    fn hostile_proc_files_are_no_figures() {
        let root = device(&[("proc/self/stat", "7 (")]);
        assert_eq!(cpu_ticks(root.path(), SELF), None);
    }

    #[test]
    fn a_full_backlog_gives_up_the_oldest() {
        let mut sampler = Sampler::new("/nowhere".into(), BootId(1), Timestamp(0));
        let mut backlog = Backlog::default();
        for _ in 0..Backlog::CAPACITY + 3 {
            backlog.push(sampler.sample(AgentState::Idle, None, None, Timestamp(0)));
        }
        let sequences: Vec<u64> = backlog.drain().map(|sample| sample.sequence).collect();
        assert_eq!(sequences, (3..Backlog::CAPACITY as u64 + 3).collect::<Vec<_>>());
        assert_eq!(backlog.drain().count(), 0);
    }
}
