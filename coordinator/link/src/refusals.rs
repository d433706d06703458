//! Counts refused messages by label and logs them, for the coordinator and for agents.

use skiff_protocol::Timestamp;
use skiff_protocol::codec::Refusal;
use std::collections::BTreeMap;

/// Minimum time between two log lines with the same label, in milliseconds.
const QUIET_MS: u64 = 60_000;

/// The reason why a message is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// Label of the refusal in one word, by which refusals are counted.
    pub label: &'static str,
    /// Reason in words, for the operator.
    pub reason: String,
}

impl Refused {
    /// Refuses a message on a topic that is not one of Skiff's.
    #[must_use]
    pub fn unknown_topic() -> Self {
        Self { label: "unknown_topic", reason: "the topic is not one of Skiff's".to_owned() }
    }

    /// Refuses a message that belongs on another topic.
    #[must_use]
    pub fn wrong_topic() -> Self {
        Self { label: "wrong_topic", reason: "the message does not belong on its topic".to_owned() }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { label: refusal.label(), reason: refusal.to_string() }
    }
}

/// The counter of refused messages. It logs a label at most once a minute.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: BTreeMap<&'static str, Count>,
}

#[derive(Debug)]
struct Count {
    messages: u64,
    logged: Timestamp,
}

impl Refusals {
    /// Counts a refused message that came on `topic`. Returns true if it was also logged.
    pub fn add(&mut self, refused: &Refused, topic: &str, now: Timestamp) -> bool {
        let Refused { label, reason } = refused;
        let is_new = !self.counts.contains_key(label);
        let count = self.counts.entry(label).or_insert(Count { messages: 0, logged: now });
        count.messages += 1;
        let is_due = is_new || now.millis_since(count.logged) >= QUIET_MS;
        if is_due {
            count.logged = now;
            tracing::warn!(label, topic, reason, count = count.messages, "message refused");
        }
        is_due
    }

    /// Returns the number of refused messages by label.
    #[must_use]
    pub fn by_label(&self) -> BTreeMap<String, u64> {
        self.counts.iter().map(|(label, count)| ((*label).to_owned(), count.messages)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_always_and_logged_once_a_minute() {
        let mut refusals = Refusals::default();
        let (unknown, wrong) = (Refused::unknown_topic(), Refused::wrong_topic());
        let times = [0, 10, 59_999, 60_000, 60_001];
        let logged: Vec<bool> = times.into_iter().map(|at| refusals.add(&unknown, "t", Timestamp(at))).collect();
        assert_eq!(logged, [true, false, false, true, false]);
        assert!(refusals.add(&wrong, "t", Timestamp(60_002)), "another label");
        let expected = [("unknown_topic".to_owned(), 5), ("wrong_topic".to_owned(), 1)];
        assert_eq!(refusals.by_label(), BTreeMap::from(expected));
    }
}
