//! Devices that an operator removed from the fleet. The broker is asked to drop their retained messages, so that they do not come back
//! by themselves at the next start, and a device that does come back is a new member.
//!
//! ```text
//! remove ─► journal ─► clear the retained message ─► the broker echoes an empty one ─► cleared
//!                        ▲ again after 10 s, at most 3 times for each connection
//!                        └ again after the last will of a device that was removed while it was online
//! ```

use super::{Effect, Hub, HubError};
use crate::fleet::Device;
use crate::run::Event;
use skiff_api::progress::Presence;
use skiff_api::removal::{MAX_TEXT, Removal};
use skiff_api::request::RemoveDevice;
use skiff_protocol::messages::Birth;
use skiff_protocol::{DeviceId, FleetId, Timestamp, Topic};
use skiff_screen::dates::date;
use std::collections::BTreeMap;

/// Time that the broker has to drop a retained message, in milliseconds.
const PATIENCE_MS: u64 = 10_000;
/// Maximum number of requests to drop a message, for each connection to the broker.
const TRIES: u32 = 3;

/// The removed devices that have not come back.
#[derive(Debug, Default)]
pub(super) struct Removals {
    away: BTreeMap<DeviceId, Away>,
    /// Facts that are not in the journal yet.
    marks: Vec<(DeviceId, Fact)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fact {
    Cleared,
    Returned,
}

#[derive(Debug)]
struct Away {
    removal: Removal,
    /// Present if the broker has not dropped the retained message yet.
    clearing: Option<Clearing>,
}

/// Requests to the broker to drop a message, on the present connection.
#[derive(Clone, Copy, Debug, Default)]
struct Clearing {
    tries: u32,
    /// Time of the next request; `None` if nobody asks until the next connection.
    due: Option<Timestamp>,
}

/// Meaning of a removed device's birth.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Return {
    /// The device was not removed.
    Member,
    /// The broker still has the birth that the device sent before its removal.
    Stale,
    /// The device has come back after this removal.
    Back(Removal),
}

impl Removals {
    /// Returns the devices that are away according to the journal.
    pub(super) fn new(journal: Vec<Removal>) -> Self {
        let mut away = BTreeMap::new();
        for removal in journal {
            if removal.returned_ms.is_some() {
                away.remove(&removal.device);
                continue;
            }
            let clearing = removal.cleared_ms.is_none().then(Clearing::default);
            away.insert(removal.device.clone(), Away { removal, clearing });
        }
        Self { away, marks: Vec::new() }
    }

    /// Returns the time of the next request to the broker.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        self.away.values().filter_map(|away| away.clearing?.due).min()
    }

    /// Returns a warning for each message that the broker keeps although it was asked to drop it.
    pub(super) fn warnings(&self, fleet: &FleetId) -> Vec<String> {
        let is_kept =
            |away: &Away| away.clearing.is_some_and(|clearing| clearing.tries >= TRIES && clearing.due.is_none());
        let kept = self.away.iter().filter(|(_, away)| is_kept(away));
        kept.map(|(device, _)| {
            format!(
                "the broker keeps the last message of {device}, which was removed: let the coordinator's account write to {}",
                Topic::Birth(device.clone()).text(fleet)
            )
        })
        .collect()
    }

    /// Begins to ask the broker again, over a new connection.
    fn connect(&mut self, now: Timestamp) {
        for away in self.away.values_mut() {
            away.clearing = away.clearing.map(|_| Clearing { tries: 0, due: Some(now) });
        }
    }

    /// Returns the devices whose message the broker must drop now. After the last try nobody asks any more.
    fn due(&mut self, now: Timestamp) -> Vec<DeviceId> {
        let mut asked = Vec::new();
        for (device, away) in &mut self.away {
            let Some(clearing) = away.clearing.as_mut().filter(|clearing| clearing.due.is_some_and(|due| now >= due))
            else {
                continue;
            };
            if clearing.tries >= TRIES {
                clearing.due = None;
                tracing::warn!(%device, "the broker keeps the last message of a removed device");
            } else {
                *clearing = Clearing { tries: clearing.tries + 1, due: Some(now.plus_millis(PATIENCE_MS)) };
                asked.push(device.clone());
            }
        }
        asked
    }

    /// Records that the broker has dropped the message of a device.
    fn cleared(&mut self, device: &DeviceId) {
        if let Some(away) = self.away.get_mut(device)
            && away.clearing.take().is_some()
        {
            tracing::debug!(%device, "the broker dropped the removed device's last message");
            self.marks.push((device.clone(), Fact::Cleared));
        }
    }

    /// Takes a device back if the birth is not the one from before its removal.
    fn birth(&mut self, device: &DeviceId, birth: &Birth) -> Return {
        let Some(Away { removal, clearing }) = self.away.get(device) else { return Return::Member };
        // A device that was offline has left a farewell at the broker, so its birth is new.
        if removal.was_online && clearing.is_some() && removal.boot == Some(birth.boot.0) {
            return Return::Stale;
        }
        self.cleared(device);
        self.marks.push((device.clone(), Fact::Returned));
        self.away.remove(device).map_or(Return::Member, |away| Return::Back(away.removal))
    }
}

impl Hub {
    /// Removes a device from the fleet. The inner result says what is wrong with the request.
    ///
    /// # Errors
    /// The disk failed, and the coordinator must stop.
    pub fn remove_device(
        &mut self,
        request: RemoveDevice,
        now: Timestamp,
    ) -> Result<Result<(Removal, Vec<Effect>), String>, HubError> {
        let removal = match self.removal(request, now) {
            Ok(removal) => removal,
            Err(reason) => return Ok(Err(reason)),
        };
        self.store.add_removal(&removal)?;
        let Removal { device, by, reason, was_online, .. } = removal.clone();
        tracing::info!(%device, by, reason, was_online, "device removed from the fleet");
        self.fleet.remove(&device);
        self.arrivals.forget(&device);
        self.unanswered.end(&device);
        let steps = self.transfers.forget(&device, now);
        self.follow(steps, now);
        let clearing = Some(Clearing { tries: 0, due: Some(now) });
        self.removals.away.insert(device.clone(), Away { removal: removal.clone(), clearing });
        self.clear_retained(now);
        self.feed(Event::DeviceRemoved(device), now);
        let effects = self.settle(now)?;
        Ok(Ok((removal, effects)))
    }

    pub(super) fn removal(&self, request: RemoveDevice, now: Timestamp) -> Result<Removal, String> {
        let RemoveDevice { device, by, reason, force } = request;
        for text in [&by, &reason] {
            if text.chars().count() > MAX_TEXT || text.chars().any(char::is_control) {
                return Err(format!(
                    "the reason and the operator's name may have up to {MAX_TEXT} characters on one line"
                ));
            }
        }
        let Some(known) = self.fleet.get(&device) else {
            return Err(match self.removals.away.get(&device) {
                Some(Away { removal: Removal { at_ms, by, .. }, .. }) => {
                    format!("{device} was removed on {} by {by}, and has not come back", date(*at_ms))
                }
                None => format!("no device of the fleet is called {device}; `skiff device list` lists all devices"),
            });
        };
        let was_online = is_online(known);
        if was_online && !force {
            return Err(format!(
                "{device} is online: end its agent first (on the device: `skiff-agent leave`), or use --force to remove it all the same"
            ));
        }
        let boot = known.birth.as_ref().map(|birth| birth.boot.0);
        Ok(Removal { device, boot, at_ms: now.0, by, reason, was_online, cleared_ms: None, returned_ms: None })
    }

    /// Handles a new connection: the broker may have kept messages that it was asked to drop.
    pub(super) fn clear_on_connection(&mut self, now: Timestamp) {
        self.removals.connect(now);
        self.clear_retained(now);
    }

    /// Asks the broker to drop the retained messages that are due.
    pub(super) fn clear_retained(&mut self, now: Timestamp) {
        for device in self.removals.due(now) {
            self.publish(self.writer.cleared(&device));
        }
    }

    /// Handles an empty message in the place of a birth, which the broker sends when it drops the retained one.
    pub(super) fn take_cleared(&mut self, device: &DeviceId) {
        self.removals.cleared(device);
    }

    /// Returns a note on the device if its birth counts; `None` if the broker kept it from before the device's removal. The note is empty
    /// unless the device has come back.
    pub(super) fn takes_birth(&mut self, device: &DeviceId, birth: &Birth) -> Option<String> {
        match self.removals.birth(device, birth) {
            Return::Member => Some(String::new()),
            Return::Stale => None,
            Return::Back(Removal { at_ms, by, .. }) => {
                let note = format!("is a new member: it came back after {by} removed it on {}", date(at_ms));
                tracing::warn!(%device, "{note}");
                Some(note)
            }
        }
    }

    /// Returns true if a farewell comes from a removed device. The broker is then asked to drop it.
    pub(super) fn drops_farewell(&mut self, device: &DeviceId, now: Timestamp) -> bool {
        let Some(away) = self.removals.away.get_mut(device) else { return false };
        away.clearing = Some(Clearing { tries: 0, due: Some(now) });
        self.clear_retained(now);
        true
    }

    /// Returns true if the device was removed and has not come back.
    pub(super) fn is_removed(&self, device: &DeviceId) -> bool {
        self.removals.away.contains_key(device)
    }

    /// Tells the run which devices it need not wait for, because they were removed.
    pub(super) fn leave_out_removed(&mut self, now: Timestamp) {
        let removed: Vec<Event> = self.removals.away.keys().cloned().map(Event::DeviceRemoved).collect();
        self.feed_all(removed, now);
    }

    /// Writes to the journal which removed devices came back, and which messages the broker dropped.
    pub(super) fn write_marks(&mut self, now: Timestamp) -> Result<(), HubError> {
        for (device, fact) in std::mem::take(&mut self.removals.marks) {
            match fact {
                Fact::Cleared => self.store.mark_cleared(&device, now.0)?,
                Fact::Returned => self.store.mark_returned(&device, now.0)?,
            }
        }
        Ok(())
    }
}

fn is_online(known: &Device) -> bool {
    matches!(known.presence, Presence::Here | Presence::WrongPack)
}
