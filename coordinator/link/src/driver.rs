//! Keeps one connection up: connects, subscribes, passes on messages, and tries again after a rest if that fails.

use crate::LinkEvent;
use crate::backoff::Backoff;
use crate::config::{Broker, LinkConfig};
use crate::error::LinkError;
use crate::inbox::Inbox;
use crate::probe::another_protocol;
use crate::trouble::{explain, explain_protocol, may_be_another_protocol};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Packet, Publish, QoS, SubAck, SubscribeFilter, SubscribeReasonCode,
};
use skiff_protocol::codec::MAX_MESSAGE_BYTES;
use std::pin::pin;
use std::time::Duration;
use tokio::select;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// Maximum time for the broker to acknowledge the subscriptions.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(20);
/// Time after which a connection counts as stable, so that the next rest is a short one.
const HELD_AFTER: Duration = Duration::from_secs(10);
/// Maximum time to send the rest of the queue when the link is closed.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Driver {
    broker: Broker,
    /// Topic filters, first those that the broker must accept.
    subscriptions: Vec<String>,
    /// Number of filters that the broker must accept.
    required: usize,
    client: AsyncClient,
    connection: EventLoop,
    inbox: Inbox,
    closing: oneshot::Receiver<()>,
    /// The last explanation for which the port was probed, and the better explanation that the probe found, if any.
    probed: Option<(String, Option<String>)>,
}

/// Progress of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Subscribing,
    Up,
    Held,
}

impl Phase {
    /// Returns the time limit of the phase, or the time until an established connection counts as stable.
    const fn patience(self) -> Duration {
        match self {
            Self::Connecting | Self::Subscribing => SUBSCRIBE_PATIENCE,
            Self::Up | Self::Held => HELD_AFTER,
        }
    }
}

/// End of a connection.
enum End {
    Closed,
    Lost { reason: String, held: bool },
}

impl Driver {
    pub(crate) fn new(
        config: LinkConfig,
        inbox: mpsc::Sender<LinkEvent>,
        closing: oneshot::Receiver<()>,
    ) -> Result<Self, LinkError> {
        let (broker, client, connection) = config.connect_options()?;
        let inbox = Inbox::new(inbox);
        let (subscriptions, required) = (config.filters().cloned().collect(), config.subscriptions.len());
        Ok(Self { broker, subscriptions, required, client, connection, inbox, closing, probed: None })
    }

    pub(crate) fn client(&self) -> AsyncClient {
        self.client.clone()
    }

    /// Runs until the link is closed or dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new();
        let mut lost = Instant::now();
        loop {
            let (reason, held) = match self.keep_connection().await {
                End::Closed => return,
                End::Lost { reason, held } => (reason, held),
            };
            tracing::debug!(broker = %self.broker, %reason, "not connected");
            if held {
                backoff.reset();
                lost = Instant::now();
            }
            self.inbox.owe(LinkEvent::Down { reason });
            if self.rest(backoff.rest(lost.elapsed(), draw())).await == Rest::Closed {
                return;
            }
        }
    }

    async fn rest(&mut self, rest: Duration) -> Rest {
        let mut rest = pin!(sleep(rest));
        loop {
            select! {
                biased;
                _ = &mut self.closing => return Rest::Closed,
                () = self.inbox.settle() => {}
                () = &mut rest => return Rest::Over,
            }
        }
    }

    /// Runs one connection from the first packet to its end.
    async fn keep_connection(&mut self) -> End {
        let mut phase = Phase::Connecting;
        let mut timer = pin!(sleep(Duration::ZERO));
        let goodbye = 'connection: loop {
            let event = {
                let mut poll = pin!(self.connection.poll());
                loop {
                    select! {
                        biased;
                        goodbye = &mut self.closing => break 'connection goodbye.is_ok(),
                        () = self.inbox.settle() => {}
                        event = &mut poll => break event,
                        () = &mut timer, if matches!(phase, Phase::Subscribing | Phase::Up) => {
                            if phase == Phase::Subscribing {
                                break Err(ConnectionError::NetworkTimeout);
                            }
                            phase = Phase::Held;
                        }
                    }
                }
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    phase = if self.subscriptions.is_empty() { self.up() } else { self.subscribe() };
                    timer.as_mut().reset(Instant::now() + phase.patience());
                }
                Ok(Event::Incoming(Packet::SubAck(answer))) => {
                    if let Some(filter) = self.refused_subscription(&answer) {
                        let reason = format!(
                            "the broker {} refused the subscription {filter}: its access list must let {} read it",
                            self.broker, self.broker.who
                        );
                        self.connection.clean();
                        return End::Lost { reason, held: false };
                    }
                    phase = self.up();
                    timer.as_mut().reset(Instant::now() + phase.patience());
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => self.hand_on(publish).await,
                Ok(_) => {}
                Err(error) => {
                    // A broken connection is cleared already. Clearing without a connection would lose the queue.
                    if self.connection.diagnostics().connected {
                        self.connection.clean();
                    }
                    let mut reason = explain(&self.broker, &error);
                    if phase == Phase::Connecting && may_be_another_protocol(&error) {
                        reason = self.probe(reason).await;
                    }
                    return End::Lost { reason, held: phase == Phase::Held };
                }
            }
        };
        if goodbye && phase != Phase::Connecting {
            self.say_goodbye().await;
        }
        End::Closed
    }

    /// Returns a better explanation than `reason` if the port speaks another protocol. Each reason is probed once.
    async fn probe(&mut self, reason: String) -> String {
        let better = match &self.probed {
            Some((known, better)) if *known == reason => better.clone(),
            Some(_) | None => {
                let better = another_protocol(&self.broker).await.map(|spoken| explain_protocol(&self.broker, spoken));
                self.probed = Some((reason.clone(), better.clone()));
                better
            }
        };
        better.unwrap_or(reason)
    }

    fn up(&mut self) -> Phase {
        tracing::debug!(broker = %self.broker, "connected");
        self.inbox.owe(LinkEvent::Up);
        Phase::Up
    }

    fn subscribe(&self) -> Phase {
        let filters = self.subscriptions.iter().map(|filter| SubscribeFilter::new(filter.clone(), QoS::AtLeastOnce));
        self.client
            .try_subscribe_many(filters)
            .expect("filters were checked at the start, and the control queue is empty on a new connection");
        Phase::Subscribing
    }

    fn refused_subscription(&self, answer: &SubAck) -> Option<&str> {
        let mut required = answer.return_codes.iter().take(self.required);
        let refused = required.position(|code| *code == SubscribeReasonCode::Failure)?;
        Some(self.subscriptions.get(refused).map_or("?", String::as_str))
    }

    async fn hand_on(&mut self, publish: Publish) {
        let payload = &publish.payload[..publish.payload.len().min(MAX_MESSAGE_BYTES + 1)];
        match std::str::from_utf8(&publish.topic) {
            Ok(topic) => self.inbox.message(topic.to_owned(), payload.to_vec()).await,
            Err(_) => tracing::warn!(broker = %self.broker, "ignoring a message whose topic is not UTF-8"),
        }
    }

    /// Sends the rest of the queue and DISCONNECT, within [`DRAIN_PATIENCE`].
    async fn say_goodbye(&mut self) {
        let goodbye = async {
            while !self.all_is_sent() {
                self.connection.poll().await.ok()?;
            }
            self.client.disconnect_now().await.ok()?;
            while self.connection.poll().await.is_ok() {}
            Some(())
        };
        if timeout(DRAIN_PATIENCE, goodbye).await.is_err() {
            tracing::warn!(broker = %self.broker, "the queue could not be sent in time: cutting the connection");
        }
    }

    fn all_is_sent(&self) -> bool {
        let state = self.connection.diagnostics();
        state.queues.pending_len == 0 && state.queues.requests_rx_len == 0 && state.outbound.inflight == 0
    }
}

/// End of a rest.
#[derive(PartialEq, Eq)]
enum Rest {
    Over,
    Closed,
}

/// Draws a uniform number. If the system has no random numbers, the rests of different devices are merely less scattered.
fn draw() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[tokio::test]
    async fn a_refused_subscription_counts_only_if_it_is_required() {
        let config = LinkConfig {
            client_id: "c".into(),
            subscriptions: vec!["a".into(), "b".into()],
            optional_subscriptions: vec!["c".into()],
            ..LinkConfig::default()
        };
        let driver = Driver::new(config, mpsc::channel(1).0, oneshot::channel().1).unwrap();
        let granted = || SubscribeReasonCode::Success(QoS::AtLeastOnce);
        let answer = |codes| SubAck::new(1, codes);
        assert_eq!(driver.subscriptions, ["a", "b", "c"]);
        assert_eq!(
            driver.refused_subscription(&answer(vec![granted(), granted(), SubscribeReasonCode::Failure])),
            None
        );
        let refused = answer(vec![granted(), SubscribeReasonCode::Failure, granted()]);
        assert_eq!(driver.refused_subscription(&refused), Some("b"));
    }
}
