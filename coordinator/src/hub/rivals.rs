//! Other coordinators of the same fleet, as their messages of presence show them.
//!
//! The coordinator reads its own topic of presence. Messages that come before its own message belong to a former life of this
//! coordinator. Later messages of another life belong to a second coordinator. Only one farewell may still be a former life's
//! last will.
//!
//! Both coordinators have the same name at the broker, so a new connection of one ends the connection of the other. The broker
//! then publishes a last will. A second farewell of one life therefore shows that it connects again and again.

use skiff_protocol::messages::Presence;
use skiff_protocol::{BootId, FleetId, Timestamp};

/// Time in milliseconds for which another coordinator is shown after its last message.
const SHOWN_MS: u64 = 120_000;
/// Shortest time in milliseconds between two repetitions of this coordinator's presence.
const RESTATED_MS: u64 = 1_000;

/// Other coordinators, as the topic of presence shows them.
#[derive(Debug)]
pub(super) struct Rivals {
    own: BootId,
    /// True if this coordinator has read its own message.
    is_heard: bool,
    newest: Option<Rival>,
    restated: Option<Timestamp>,
}

/// Another life that sent a message of presence.
#[derive(Clone, Copy, Debug)]
struct Rival {
    boot: BootId,
    has_our_key: bool,
    seen: Timestamp,
    /// True if it cannot be a former life of this coordinator.
    is_certain: bool,
}

/// Meaning of a message of presence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sign {
    /// Another coordinator has appeared.
    pub(super) has_appeared: bool,
    /// The message replaced this coordinator's retained presence, which must be published again.
    pub(super) has_replaced: bool,
}

impl Rivals {
    /// Knows no other coordinator. `own` is the present life of this one.
    pub(super) const fn new(own: BootId) -> Self {
        Self { own, is_heard: false, newest: None, restated: None }
    }

    /// Reads a message of presence. `has_our_key` says that this coordinator's key signed it.
    pub(super) fn read(&mut self, presence: &Presence, has_our_key: bool, now: Timestamp) -> Sign {
        let Presence { boot, online } = *presence;
        if boot == self.own {
            self.is_heard = true;
            return Sign::default();
        }
        if !self.is_heard {
            return Sign::default();
        }
        let before = self.recent(now);
        let is_known = before.is_some_and(|rival| rival.boot == boot);
        let is_certain = online || is_known;
        let has_appeared = is_certain && !before.is_some_and(|rival| rival.boot == boot && rival.is_certain);
        self.newest = Some(Rival { boot, has_our_key, seen: now, is_certain });
        // Devices would take a farewell for this coordinator's. The limit keeps two coordinators from answering each other for ever.
        let has_replaced = !online && self.restated.is_none_or(|at| now.millis_since(at) >= RESTATED_MS);
        if has_replaced {
            self.restated = Some(now);
        }
        Sign { has_appeared, has_replaced }
    }

    /// Returns the warning about another coordinator, if one was online recently.
    pub(super) fn warning(&self, fleet: &FleetId, now: Timestamp) -> Option<String> {
        let rival = self.recent(now).filter(|rival| rival.is_certain)?;
        let text = if rival.has_our_key {
            format!(
                "another coordinator of fleet {fleet} connects with the same key, so devices obey both: stop one of the two \
                 `skiff serve`"
            )
        } else {
            format!(
                "another coordinator of fleet {fleet} connects with another key: stop one of the two `skiff serve`, or give it \
                 another fleet"
            )
        };
        Some(text)
    }

    fn recent(&self, now: Timestamp) -> Option<Rival> {
        self.newest.filter(|rival| now.millis_since(rival.seen) <= SHOWN_MS)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    const NOTHING: Sign = Sign { has_appeared: false, has_replaced: false };
    const APPEARED: Sign = Sign { has_appeared: true, has_replaced: false };
    const REPLACED: Sign = Sign { has_appeared: false, has_replaced: true };

    fn heard() -> Rivals {
        let mut rivals = Rivals::new(BootId(1));
        assert_eq!(read(&mut rivals, 1, true, 0), NOTHING);
        rivals
    }

    fn read(rivals: &mut Rivals, boot: u64, online: bool, at: u64) -> Sign {
        rivals.read(&Presence { boot: BootId(boot), online }, boot != 2, Timestamp(at))
    }

    fn warning(rivals: &Rivals, at: u64) -> Option<String> {
        rivals.warning(&"home".parse().unwrap(), Timestamp(at))
    }

    #[test]
    fn a_former_life_of_this_coordinator_is_no_other_coordinator() {
        let mut rivals = Rivals::new(BootId(1));
        assert_eq!(read(&mut rivals, 9, true, 0), NOTHING);
        read(&mut rivals, 1, true, 1);
        assert_eq!(read(&mut rivals, 9, false, 3), REPLACED, "its last will came late");
        assert_eq!(warning(&rivals, 4), None);
    }

    #[test]
    fn another_coordinator_is_named_until_it_is_silent() {
        let mut rivals = heard();
        assert_eq!(read(&mut rivals, 2, true, 10), APPEARED);
        assert_eq!(read(&mut rivals, 2, true, 20), NOTHING);
        assert!(warning(&rivals, 30).unwrap().contains("another key"));
        assert_eq!(warning(&rivals, 21 + SHOWN_MS), None);
        assert_eq!(read(&mut rivals, 3, true, 30 + SHOWN_MS), APPEARED);
        assert!(warning(&rivals, 40 + SHOWN_MS).unwrap().contains("same key"));
    }

    #[test]
    fn a_life_that_leaves_twice_is_another_coordinator() {
        let mut rivals = heard();
        assert_eq!(read(&mut rivals, 7, false, 0), REPLACED);
        assert_eq!(warning(&rivals, 0), None);
        assert_eq!(read(&mut rivals, 7, false, 5_000), Sign { has_appeared: true, has_replaced: true });
        assert!(warning(&rivals, 5_000).is_some());
        assert_eq!(read(&mut rivals, 7, false, 9_000), REPLACED, "it is already known");
    }

    #[test]
    fn farewells_in_a_row_are_answered_once_a_second() {
        let mut rivals = heard();
        let signs = [0, 1, 999, 1_000].map(|at| read(&mut rivals, 7, false, at).has_replaced);
        assert_eq!(signs, [true, false, false, true]);
    }
}
