//! The known devices: their connections, their properties, and their last reports. Their number is bounded. Reads no clock.

use crate::run::configurator::Pace;
use crate::run::{Condition, Here};
use skiff_api::progress::Presence;
use skiff_protocol::messages::{Birth, Gone, Place, Telemetry};
use skiff_protocol::{BootId, DeviceId, Digest, Timestamp, Version};
use std::collections::{BTreeMap, BTreeSet};

/// The devices of one fleet.
#[derive(Debug)]
pub struct Fleet {
    pack: Digest,
    most: usize,
    devices: BTreeMap<DeviceId, Device>,
    /// Devices that changed since [`Fleet::take_changed`], including removed ones.
    changed: BTreeSet<DeviceId>,
    /// Devices whose name two agents use, with the time of the last birth that showed it.
    twice: BTreeMap<DeviceId, Timestamp>,
}

/// Facts about a known device.
#[derive(Debug)]
pub struct Device {
    /// Whether the device is connected and can train.
    pub presence: Presence,
    /// Last birth of the device.
    pub birth: Option<Birth>,
    /// Time of the last change of presence.
    pub since: Timestamp,
    /// Last telemetry, with the time of its arrival.
    pub telemetry: Option<(Timestamp, Telemetry)>,
    /// Reason for the last refusal, by the device or of its message, or a fault of its birth, such as a name that two agents use.
    pub note: Option<String>,
    /// Description of a transfer of the device that does not move.
    pub stall: Option<String>,
    /// Life of the device before the present one.
    before: Option<BootId>,
}

/// Note on a device whose name two agents use.
const TWICE: &str = "two agents use this name in turn: give each device a name of its own (`device` in agent.toml)";

/// Time in milliseconds for which a device whose name two agents use is shown as such.
const TWICE_MS: u64 = 600_000;

/// The consequence of a birth or a farewell for a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The device is connected and can train.
    Here(Here),
    /// The device is offline, or has another pack.
    Gone,
    /// Nothing changes.
    Nothing,
}

/// A reason why a device's message is refused. It is counted by [`Unwelcome::label`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unwelcome {
    /// The fleet already has the maximum number of devices.
    #[error("the fleet is full")]
    FleetFull,
    /// The telemetry comes from a device, or a life of it, whose birth is not known.
    #[error("telemetry of an unknown life of the device")]
    UnknownLife,
    /// The telemetry is not newer than the last sample.
    #[error("telemetry that is not newer than the last sample")]
    Overtaken,
}

impl Unwelcome {
    /// Returns the label to count the refusal by.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::FleetFull => "fleet_full",
            Self::UnknownLife => "unknown_life",
            Self::Overtaken => "overtaken",
        }
    }
}

impl Fleet {
    /// Makes an empty fleet of at most `most` devices. Only devices with `pack` can train.
    #[must_use]
    pub fn new(pack: Digest, most: usize) -> Self {
        Self { pack, most, devices: BTreeMap::new(), changed: BTreeSet::new(), twice: BTreeMap::new() }
    }

    /// Records the birth of a device. A device with another pack gets a note and never trains.
    ///
    /// # Errors
    /// The fleet is full, and it has no offline device that can be removed to make room.
    pub fn birth(&mut self, device: &DeviceId, birth: Birth, now: Timestamp) -> Result<Change, Unwelcome> {
        let pack = self.pack;
        let is_twice = self.is_used_twice(device, &birth, now);
        let known = self.room_for(device, now)?;
        let was_here = known.presence == Presence::Here;
        if known.only_learns_versions(&birth) {
            known.birth = Some(birth);
            return Ok(Change::Nothing);
        }
        let is_same_life = known.birth.as_ref().is_some_and(|before| before.boot == birth.boot);
        if !is_same_life {
            known.telemetry = None;
            known.before = known.birth.as_ref().map(|birth| birth.boot);
        }
        let here = here(&birth);
        let is_fit = birth.pack == pack;
        (known.presence, known.note) = if is_fit && is_twice {
            (Presence::Here, Some(TWICE.to_owned()))
        } else if is_fit {
            // A device says its birth again when the link or the coordinator returns. What is known about this life stays.
            (Presence::Here, known.note.take().filter(|_| is_same_life))
        } else {
            let note = format!("holds pack {:?}, this fleet trains {pack:?}: install the same pack", birth.pack);
            (Presence::WrongPack, Some(note))
        };
        known.since = now;
        known.birth = Some(birth);
        Ok(match (is_fit, was_here) {
            (true, _) => Change::Here(here),
            (false, true) => Change::Gone,
            (false, false) => Change::Nothing,
        })
    }

    /// Records the farewell of a device. The farewell of an older life changes nothing.
    ///
    /// # Errors
    /// The fleet is full.
    pub fn gone(&mut self, device: &DeviceId, gone: &Gone, now: Timestamp) -> Result<Change, Unwelcome> {
        let known = self.room_for(device, now)?;
        if known.birth.as_ref().is_some_and(|birth| birth.boot != gone.boot) {
            return Ok(Change::Nothing);
        }
        known.presence = if gone.clean { Presence::Left } else { Presence::Lost };
        known.since = now;
        Ok(Change::Gone)
    }

    /// Records a sample of a device's resources.
    ///
    /// # Errors
    /// The device or its life is unknown, or the sample is not newer than the last one.
    pub fn telemetry(&mut self, device: &DeviceId, sample: Telemetry, now: Timestamp) -> Result<(), Unwelcome> {
        let known = self.devices.get_mut(device).ok_or(Unwelcome::UnknownLife)?;
        if known.birth.as_ref().is_none_or(|birth| birth.boot != sample.boot) {
            return Err(Unwelcome::UnknownLife);
        }
        if known.telemetry.as_ref().is_some_and(|(_, last)| last.sequence >= sample.sequence) {
            return Err(Unwelcome::Overtaken);
        }
        known.telemetry = Some((now, sample));
        self.mark(device);
        Ok(())
    }

    /// Removes a device, and everything that is known about it.
    pub fn remove(&mut self, device: &DeviceId) {
        if self.devices.remove(device).is_some() {
            self.twice.remove(device);
            self.mark(device);
        }
    }

    /// Records that a transfer of the device does not move, or that it moves again.
    pub fn set_stall(&mut self, device: &DeviceId, stall: Option<String>) {
        if let Some(known) = self.devices.get_mut(device) {
            known.stall = stall;
            self.mark(device);
        }
    }

    /// Returns the time of the next [`Fleet::tick`]; `None` if nothing is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.twice.values().min().map(|at| at.plus_millis(TWICE_MS))
    }

    /// Removes the note of each device whose name two agents have not used for [`TWICE_MS`].
    pub fn tick(&mut self, now: Timestamp) {
        if self.deadline().is_none_or(|due| now < due) {
            return;
        }
        let (over, used) =
            std::mem::take(&mut self.twice).into_iter().partition(|(_, at)| now.millis_since(*at) >= TWICE_MS);
        self.twice = used;
        let over: BTreeMap<DeviceId, Timestamp> = over;
        for device in over.into_keys() {
            if let Some(known) = self.devices.get_mut(&device)
                && known.note.as_deref() == Some(TWICE)
            {
                known.note = None;
                self.mark(&device);
            }
        }
    }

    /// Records why a device was refused, or why it refused work.
    pub fn note(&mut self, device: &DeviceId, note: &str) {
        if let Some(known) = self.devices.get_mut(device) {
            // The note may come from a device and is shown on terminals.
            known.note = Some(note.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect());
            self.mark(device);
        }
    }

    /// Returns the newest version of the protocol that the coordinator and the device both speak; the oldest if the device is
    /// unknown.
    #[must_use]
    pub fn version(&self, device: &DeviceId) -> Version {
        let birth = self.devices.get(device).and_then(|known| known.birth.as_ref());
        birth.and_then(|birth| Version::newest_common(birth.speaks)).unwrap_or(Version::OLDEST)
    }

    /// Returns the connected devices that can train.
    pub fn here(&self) -> impl Iterator<Item = (&DeviceId, Here)> {
        self.devices.iter().filter_map(|(device, known)| match (known.presence, &known.birth) {
            (Presence::Here, Some(birth)) => Some((device, here(birth))),
            _ => None,
        })
    }

    /// Returns the place of each known device, as its owner set it, even if the device has another pack.
    pub fn places(&self) -> impl Iterator<Item = (&DeviceId, &Place)> {
        self.devices.iter().filter_map(|(device, known)| Some((device, &known.birth.as_ref()?.place)))
    }

    /// Returns the facts about a device; `None` if the device is unknown or was removed.
    #[must_use]
    pub fn get(&self, device: &DeviceId) -> Option<&Device> {
        self.devices.get(device)
    }

    /// Returns the names of all known devices.
    pub fn names(&self) -> impl Iterator<Item = &DeviceId> {
        self.devices.keys()
    }

    /// Marks a device as changed.
    pub fn mark(&mut self, device: &DeviceId) {
        if !self.changed.contains(device) {
            self.changed.insert(device.clone());
        }
    }

    /// Marks every device as changed.
    pub fn mark_all(&mut self) {
        self.changed.extend(self.devices.keys().cloned());
    }

    /// Removes up to `most` devices from those that changed, and returns them.
    pub fn take_changed(&mut self, most: usize) -> Vec<DeviceId> {
        std::iter::from_fn(|| self.changed.pop_first()).take(most).collect()
    }

    /// Returns true if a device changed since [`Fleet::take_changed`].
    #[must_use]
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns true if two agents use the name of the device, by this birth or a recent one.
    fn is_used_twice(&mut self, device: &DeviceId, birth: &Birth, now: Timestamp) -> bool {
        let known = self.devices.get(device);
        let present = known.and_then(|known| known.birth.as_ref()).map(|present| present.boot);
        // A new life never has the number of an earlier one. Only a second agent can bring an earlier one back.
        let is_back = present != Some(birth.boot) && known.and_then(|known| known.before) == Some(birth.boot);
        if is_back && self.twice.insert(device.clone(), now).is_none() {
            tracing::warn!(%device, "{TWICE}");
        }
        self.twice.contains_key(device)
    }

    fn room_for(&mut self, device: &DeviceId, now: Timestamp) -> Result<&mut Device, Unwelcome> {
        if !self.devices.contains_key(device) && self.devices.len() >= self.most {
            let is_away = |known: &Device| matches!(known.presence, Presence::Left | Presence::Lost);
            let away = self.devices.iter().filter(|(_, known)| is_away(known)).min_by_key(|(_, known)| known.since);
            let forgotten = away.map(|(device, _)| device.clone()).ok_or(Unwelcome::FleetFull)?;
            self.devices.remove(&forgotten);
            self.twice.remove(&forgotten);
            self.mark(&forgotten);
        }
        self.mark(device);
        Ok(self.devices.entry(device.clone()).or_insert_with(|| Device::new(Presence::Lost, now)))
    }
}

fn here(birth: &Birth) -> Here {
    let Birth { boot, train_examples, test_examples, ref place, memory, .. } = *birth;
    Here { boot, train_examples, test_examples, place: place.clone(), memory }
}

/// Returns the condition of a device by its last sample.
#[must_use]
pub fn condition(sample: &Telemetry) -> Condition {
    let hottest = sample.temperatures.iter().map(|(_, celsius)| *celsius).filter(|celsius| celsius.is_finite());
    let battery = sample.battery.filter(|battery| !battery.charging && battery.percent.is_finite());
    let work = sample.work.as_ref().filter(|work| work.step_ms.is_finite() && work.step_ms > 0.0);
    Condition {
        celsius: hottest.reduce(f32::max),
        battery_percent: battery.map(|battery| battery.percent),
        pace: work.map(|work| Pace {
            step_ms: work.step_ms.into(),
            active_layers: work.active_layers.into(),
            other_ms: 0.0,
        }),
    }
}

impl Device {
    /// Returns a device of which nothing but its presence is known.
    pub(crate) fn new(presence: Presence, since: Timestamp) -> Self {
        Self { presence, birth: None, since, telemetry: None, note: None, stall: None, before: None }
    }

    /// Returns true if the birth of a connected device adds only the versions that it speaks. A device first sends its birth in
    /// version 2, and sends it again in a newer version once it knows that the coordinator reads that version.
    fn only_learns_versions(&self, birth: &Birth) -> bool {
        let is_there = matches!(self.presence, Presence::Here | Presence::WrongPack);
        let is_same = |before: &Birth| {
            before.speaks != birth.speaks && Birth { speaks: birth.speaks, ..before.clone() } == *birth
        };
        is_there && self.birth.as_ref().is_some_and(is_same)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_protocol::messages::{AgentState, Machine, Place, StepMemory};
    use skiff_protocol::{BootId, VersionRange};

    const PACK: Digest = Digest([1; 32]);

    fn device(name: &str) -> DeviceId {
        name.parse().unwrap()
    }

    fn birth(boot: u64, pack: Digest) -> Birth {
        let machine = Machine { arch: "aarch64".into(), os: "Debian 12".into(), cores: 4, memory_bytes: 1 << 32 };
        let (place, memory) = (Place::default(), StepMemory::default());
        Birth {
            speaks: skiff_protocol::VersionRange::OURS,
            boot: BootId(boot),
            agent_version: "0.1.0".into(),
            pack,
            train_examples: 10,
            test_examples: 5,
            machine,
            place,
            memory,
        }
    }

    fn sample(boot: u64, sequence: u64) -> Telemetry {
        Telemetry {
            boot: BootId(boot),
            sequence,
            uptime_ms: 1,
            state: AgentState::Training,
            cpu_percent: 50.0,
            agent_cpu_percent: 90.0,
            memory_bytes: 100,
            memory_available_bytes: 50,
            load_1m: 1.0,
            temperatures: vec![("cpu".into(), 50.0), ("gpu".into(), 61.5)],
            battery: None,
            agent_rss_bytes: 20,
            agent_peak_rss_bytes: 30,
            work: None,
        }
    }

    #[test]
    fn a_device_with_another_pack_is_seen_but_not_fit() {
        let mut fleet = Fleet::new(PACK, 10);
        let change = fleet.birth(&device("a"), birth(1, Digest([2; 32])), Timestamp(0));
        assert_eq!(change, Ok(Change::Nothing));
        assert_eq!(fleet.here().count(), 0);
        let seen = fleet.get(&device("a")).unwrap();
        assert_eq!(seen.presence, Presence::WrongPack);
        assert!(seen.note.as_ref().unwrap().contains("install the same pack"));
        assert!(matches!(fleet.birth(&device("a"), birth(2, PACK), Timestamp(1)), Ok(Change::Here(_))));
        assert_eq!(fleet.birth(&device("a"), birth(3, Digest([2; 32])), Timestamp(2)), Ok(Change::Gone));
    }

    #[test]
    fn a_birth_that_is_said_again_in_a_newer_version_is_the_same_life() {
        let mut fleet = Fleet::new(PACK, 10);
        let in_version_2 = |boot| Birth { speaks: VersionRange::only(Version::V2), ..birth(boot, PACK) };
        assert_eq!(fleet.version(&device("a")), Version::V2, "nothing is known of it");
        assert!(matches!(fleet.birth(&device("a"), in_version_2(1), Timestamp(0)), Ok(Change::Here(_))));
        assert_eq!(fleet.version(&device("a")), Version::V2);
        assert_eq!(fleet.birth(&device("a"), birth(1, PACK), Timestamp(1)), Ok(Change::Nothing));
        assert_eq!(fleet.version(&device("a")), Version::V3);
        let again = fleet.birth(&device("a"), birth(1, PACK), Timestamp(2));
        assert!(matches!(again, Ok(Change::Here(_))), "it is back on the link");
        let other = Birth { train_examples: 11, ..in_version_2(1) };
        assert!(matches!(fleet.birth(&device("a"), other, Timestamp(3)), Ok(Change::Here(_))), "something changed");
        let downgraded = fleet.birth(&device("a"), in_version_2(2), Timestamp(4));
        assert!(matches!(downgraded, Ok(Change::Here(_))));
        assert_eq!(fleet.version(&device("a")), Version::V2);
    }

    #[test]
    fn a_life_that_comes_back_shows_that_two_agents_use_one_name() {
        let mut fleet = Fleet::new(PACK, 10);
        let note = |fleet: &mut Fleet, boot, at| {
            fleet.birth(&device("pi"), birth(boot, PACK), Timestamp(at)).unwrap();
            fleet.get(&device("pi")).unwrap().note.clone()
        };
        for (boot, at) in [(1, 0), (1, 1), (2, 2), (3, 3)] {
            assert_eq!(note(&mut fleet, boot, at), None, "it was only started again");
        }
        assert!(note(&mut fleet, 2, 4).unwrap().contains("two agents"));
        assert!(note(&mut fleet, 3, 5).unwrap().contains("two agents"));
        assert_eq!(fleet.deadline(), Some(Timestamp(5 + TWICE_MS)));
        fleet.tick(Timestamp(4 + TWICE_MS));
        assert!(fleet.get(&device("pi")).unwrap().note.is_some());
        fleet.tick(Timestamp(5 + TWICE_MS));
        assert_eq!(fleet.get(&device("pi")).unwrap().note, None, "only one agent has used the name for a while");
        assert_eq!((fleet.deadline(), note(&mut fleet, 4, 6 + TWICE_MS)), (None, None));
    }

    #[test]
    fn a_note_stays_with_its_life() {
        let mut fleet = Fleet::new(PACK, 2);
        let note = |fleet: &Fleet| fleet.get(&device("a")).unwrap().note.clone();
        fleet.birth(&device("a"), birth(1, PACK), Timestamp(0)).unwrap();
        fleet.note(&device("a"), "is a new member");
        fleet.birth(&device("a"), birth(1, PACK), Timestamp(1)).unwrap();
        assert_eq!(note(&fleet).as_deref(), Some("is a new member"));
        fleet.birth(&device("a"), birth(2, PACK), Timestamp(2)).unwrap();
        assert_eq!(note(&fleet), None);
    }

    #[test]
    fn a_farewell_of_an_older_life_changes_nothing() {
        let mut fleet = Fleet::new(PACK, 10);
        fleet.birth(&device("a"), birth(2, PACK), Timestamp(0)).unwrap();
        let gone = |boot| Gone { boot: BootId(boot), clean: false };
        assert_eq!(fleet.gone(&device("a"), &gone(1), Timestamp(1)), Ok(Change::Nothing));
        assert_eq!(fleet.gone(&device("a"), &gone(2), Timestamp(1)), Ok(Change::Gone));
        assert_eq!(fleet.get(&device("a")).unwrap().presence, Presence::Lost);
        assert_eq!(fleet.gone(&device("b"), &gone(5), Timestamp(1)), Ok(Change::Gone), "retained, before any birth");
    }

    #[test]
    fn telemetry_counts_for_the_known_life_and_forwards_only() {
        let mut fleet = Fleet::new(PACK, 10);
        assert_eq!(fleet.telemetry(&device("a"), sample(1, 0), Timestamp(0)), Err(Unwelcome::UnknownLife));
        fleet.birth(&device("a"), birth(1, PACK), Timestamp(0)).unwrap();
        assert_eq!(fleet.telemetry(&device("a"), sample(2, 0), Timestamp(0)), Err(Unwelcome::UnknownLife));
        assert_eq!(fleet.telemetry(&device("a"), sample(1, 4), Timestamp(10)), Ok(()));
        assert_eq!(fleet.telemetry(&device("a"), sample(1, 4), Timestamp(11)), Err(Unwelcome::Overtaken));
        let last = |fleet: &Fleet| fleet.get(&device("a")).unwrap().telemetry.as_ref().map(|(at, _)| *at);
        assert_eq!(last(&fleet), Some(Timestamp(10)));
        fleet.birth(&device("a"), birth(2, PACK), Timestamp(30)).unwrap();
        assert_eq!(last(&fleet), None, "a new life has said nothing yet");
    }

    #[test]
    fn what_changes_a_device_marks_it_once() {
        let mut fleet = Fleet::new(PACK, 2);
        fleet.birth(&device("a"), birth(1, PACK), Timestamp(0)).unwrap();
        fleet.gone(&device("b"), &Gone { boot: BootId(1), clean: true }, Timestamp(1)).unwrap();
        assert_eq!(fleet.take_changed(1), [device("a")]);
        assert_eq!(fleet.take_changed(9), [device("b")]);
        assert!(!fleet.has_changed());
        assert!(fleet.telemetry(&device("a"), sample(2, 0), Timestamp(2)).is_err());
        assert!(!fleet.has_changed(), "a refused sample changes nothing");
        fleet.telemetry(&device("a"), sample(1, 1), Timestamp(3)).unwrap();
        fleet.note(&device("a"), "on battery");
        assert_eq!(fleet.take_changed(9), [device("a")]);
        fleet.birth(&device("c"), birth(1, PACK), Timestamp(4)).unwrap();
        assert_eq!(fleet.take_changed(9), [device("b"), device("c")], "the forgotten device too");
    }

    #[test]
    fn a_full_fleet_forgets_the_longest_absent_and_nobody_else() {
        let mut fleet = Fleet::new(PACK, 2);
        fleet.birth(&device("a"), birth(1, PACK), Timestamp(0)).unwrap();
        fleet.birth(&device("b"), birth(1, PACK), Timestamp(1)).unwrap();
        assert_eq!(fleet.birth(&device("c"), birth(1, PACK), Timestamp(2)), Err(Unwelcome::FleetFull));
        fleet.gone(&device("a"), &Gone { boot: BootId(1), clean: true }, Timestamp(3)).unwrap();
        fleet.birth(&device("c"), birth(1, PACK), Timestamp(4)).unwrap();
        assert!(fleet.devices.keys().eq([&device("b"), &device("c")]));
    }
}
