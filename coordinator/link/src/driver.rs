//! Keeps one connection up: connects, subscribes, passes on messages, and after a failure rests and tries again.

use crate::LinkEvent;
use crate::backoff::Backoff;
use crate::config::{Broker, LinkConfig};
use crate::error::LinkError;
use crate::inbox::Inbox;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, Packet, Publish, QoS, StateError, SubAck,
    SubscribeFilter, SubscribeReasonCode,
};
use skiff_protocol::codec::MAX_MESSAGE_BYTES;
use std::error::Error;
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
    subscriptions: Vec<String>,
    client: AsyncClient,
    connection: EventLoop,
    inbox: Inbox,
    closing: oneshot::Receiver<()>,
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
        Ok(Self { broker, subscriptions: config.subscriptions, client, connection, inbox: Inbox::new(inbox), closing })
    }

    pub(crate) fn client(&self) -> AsyncClient {
        self.client.clone()
    }

    /// Runs until the link is closed or dropped.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new();
        loop {
            let (reason, held) = match self.keep_connection().await {
                End::Closed => return,
                End::Lost { reason, held } => (reason, held),
            };
            tracing::debug!(broker = %self.broker, %reason, "not connected");
            if held {
                backoff.reset();
            }
            self.inbox.owe(LinkEvent::Down { reason });
            if self.rest(backoff.rest(draw())).await == Rest::Closed {
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
                    return End::Lost { reason: explain(&self.broker, &error), held: phase == Phase::Held };
                }
            }
        };
        if goodbye && phase != Phase::Connecting {
            self.say_goodbye().await;
        }
        End::Closed
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
        let refused = answer.return_codes.iter().position(|code| *code == SubscribeReasonCode::Failure)?;
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

/// Draws a uniform number. If the system has no random numbers, the rests are only less scattered.
fn draw() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX)
}

/// Describes an error and its remedy for the operator.
fn explain(broker: &Broker, error: &ConnectionError) -> String {
    let who = &broker.who;
    if let ConnectionError::ConnectionRefused(code) = error {
        return match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                format!("the broker {broker} refused {who}: check user and password, and the broker's access list")
            }
            ConnectReturnCode::BadClientId => format!("the broker {broker} refused the client id of {who}"),
            ConnectReturnCode::ServiceUnavailable => format!("the broker {broker} is up but not available"),
            ConnectReturnCode::RefusedProtocolVersion => {
                format!("the broker {broker} does not speak MQTT 3.1.1: enable that version in the broker")
            }
            ConnectReturnCode::Success => format!("the broker {broker} closed the connection"),
        };
    }
    if let ConnectionError::NetworkTimeout = error {
        return format!("the broker {broker} does not answer: check its address, and that no firewall blocks it");
    }
    if let ConnectionError::Tls(_) = error {
        return format!(
            "no TLS connection to {broker}: {}: check that ca_file signs the broker's certificate, that the certificate \
             names this host, and the client certificate",
            root_cause(error)
        );
    }
    if let ConnectionError::Io(_) = error {
        return format!(
            "no connection to the broker {broker}: {}: check that it runs and its address",
            root_cause(error)
        );
    }
    if let ConnectionError::MqttState(StateError::ConnectionAborted) = error {
        return format!("the broker {broker} closed the connection");
    }
    format!("the connection to the broker {broker} broke: {}", root_cause(error))
}

/// Returns the innermost cause, which the outer ones repeat.
fn root_cause(error: &ConnectionError) -> String {
    let mut cause: &dyn Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
