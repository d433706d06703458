//! The queue between the connection and its reader. It never delays the connection for long: if the reader is too slow, messages
//! are dropped.

use crate::LinkEvent;
use std::future::pending;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Time for which a full inbox delays the connection, and with it the broker, before messages are dropped.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Inbox {
    reader: mpsc::Sender<LinkEvent>,
    /// Newest `Up` or `Down` that waits for room in the reader's queue.
    owed: Option<LinkEvent>,
    /// Newest `Up` or `Down`, whether it was sent or still waits.
    state: Option<LinkEvent>,
    /// True if the reader took nothing for [`PATIENCE`]. Messages are then dropped at once until it takes one.
    congested: bool,
    dropped: u64,
}

impl Inbox {
    pub(crate) const fn new(reader: mpsc::Sender<LinkEvent>) -> Self {
        Self { reader, owed: None, state: None, congested: false, dropped: 0 }
    }

    /// Queues `Up` or `Down` for the reader, and drops an older one that still waits. Ignores a `Down` that equals the last one.
    pub(crate) fn owe(&mut self, state: LinkEvent) {
        let repeated = matches!(state, LinkEvent::Down { .. }) && self.state.as_ref() == Some(&state);
        if !repeated {
            self.state = Some(state.clone());
            self.owed = Some(state);
        }
    }

    /// Sends the waiting `Up` or `Down` as soon as there is room. Waits forever if there is none. May be cancelled.
    pub(crate) async fn settle(&mut self) {
        if self.owed.is_none() {
            return pending().await;
        }
        if let Ok(room) = self.reader.reserve().await
            && let Some(state) = self.owed.take()
        {
            room.send(state);
        }
        self.owed = None;
    }

    /// Passes on a message, or drops it if the reader takes nothing for [`PATIENCE`].
    pub(crate) async fn message(&mut self, topic: String, payload: Vec<u8>) {
        let patience = if self.congested { Duration::ZERO } else { PATIENCE };
        let handed_on = timeout(patience, async {
            if self.owed.is_some() {
                self.settle().await;
            }
            if let Ok(room) = self.reader.reserve().await {
                room.send(LinkEvent::Message { topic, payload });
            }
        });
        if handed_on.await.is_ok() {
            if std::mem::take(&mut self.congested) {
                tracing::info!(dropped = self.dropped, "the reader takes messages again; some were dropped");
            }
        } else {
            self.dropped += 1;
            if !std::mem::replace(&mut self.congested, true) {
                tracing::warn!(dropped = self.dropped, "dropping messages because the reader does not take them");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(reason: &str) -> LinkEvent {
        LinkEvent::Down { reason: reason.into() }
    }

    fn message(text: &str) -> LinkEvent {
        LinkEvent::Message { topic: text.into(), payload: Vec::new() }
    }

    fn drain(events: &mut mpsc::Receiver<LinkEvent>) -> Vec<LinkEvent> {
        std::iter::from_fn(|| events.try_recv().ok()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_costs_one_wait_and_then_messages() {
        let (sender, mut events) = mpsc::channel(2);
        let mut inbox = Inbox::new(sender);
        let start = tokio::time::Instant::now();
        for text in ["a", "b", "c", "d", "e"] {
            inbox.message(text.into(), Vec::new()).await;
        }
        assert_eq!(start.elapsed(), PATIENCE);
        assert_eq!(inbox.dropped, 3);
        assert_eq!(drain(&mut events), [message("a"), message("b")]);
        inbox.message("f".into(), Vec::new()).await;
        assert_eq!(drain(&mut events), [message("f")]);
        assert!(!inbox.congested);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_newest_state_waits_and_it_comes_before_later_messages() {
        let (sender, mut events) = mpsc::channel(1);
        let mut inbox = Inbox::new(sender);
        inbox.message("old".into(), Vec::new()).await;
        inbox.owe(down("x"));
        inbox.owe(LinkEvent::Up);
        inbox.message("dropped".into(), Vec::new()).await;
        assert_eq!(drain(&mut events), [message("old")]);
        inbox.settle().await;
        assert_eq!(drain(&mut events), [LinkEvent::Up]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_reason_is_told_once_and_up_each_time() {
        let (sender, mut events) = mpsc::channel(8);
        let mut inbox = Inbox::new(sender);
        for state in [down("x"), down("x"), down("y"), LinkEvent::Up, LinkEvent::Up] {
            inbox.owe(state);
            drop(timeout(Duration::ZERO, inbox.settle()).await);
        }
        assert_eq!(drain(&mut events), [down("x"), down("y"), LinkEvent::Up, LinkEvent::Up]);
    }
}
