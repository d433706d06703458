//! Keeps one MQTT connection to the broker up, for an agent or the coordinator.
//!
//! This crate does not know the messages; `skiff-protocol` does. It deliberately promises little: a message may be lost with a
//! connection, because the session is clean and only the broker acknowledges messages. A sender that needs an answer therefore
//! repeats its message until the answer comes.
//!
//! ```text
//!             Link::open
//!                 │
//!                 ▼          CONNACK                  SUBACK
//!   ┌──────► connecting ────────────► subscribing ────────────► up ──► Message ...
//!   │             │ refused, away          │ refused, silent    │ lost
//!   │             ▼                        ▼                    ▼
//!   └────────── resting (Down, bounded exponential back-off with jitter)
//! ```
//! After an outage of up to a minute the link is back within 5 s of the broker; see `backoff` for the rests, and for the load on
//! a broker that returns to a large fleet.
//!
//! [`Link::close`] sends the queue, then DISCONNECT. A link that is dropped, or that cannot send its queue in time, cuts the
//! connection, and the broker publishes the last will.
//!
//! **Bounds.** At most [`QUEUE`] publications wait to be sent; then [`Link::publish`] waits. At most [`INBOX`] events wait for
//! the reader; then the connection waits for half a second, and after that messages are dropped and counted until there is room
//! again. A blocked reader (perhaps in `publish`) can therefore never stop the connection. `Up` and `Down` are not dropped, but
//! if several wait, only the newest is sent.
//!
//! Modules: `settings` (the broker's address and credentials), `address` (its URL), `config` (one link), `driver` (the loop
//! above), `inbox` (the reader's queue), `backoff` (time to rest),
//! `trouble` (reasons in words), `probe` (the protocol of a port), `refusals` (messages that are not accepted).

mod address;
mod backoff;
mod config;
mod driver;
mod error;
mod inbox;
mod probe;
mod prompt;
mod refusals;
mod settings;
mod trouble;

pub use address::without_password;
pub use config::LinkConfig;
pub use error::LinkError;
pub use refusals::{Refusals, Refused};
pub use settings::{BrokerSettings, Secret};

use driver::Driver;
use rumqttc::{ClientError, PublishOptions};
use skiff_protocol::codec::MAX_MESSAGE_BYTES;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Maximum number of publications that wait to be sent. At the limit, [`Link::publish`] waits.
pub const QUEUE: usize = 64;
/// Maximum number of events that wait for the reader. At the limit, messages are dropped.
pub const INBOX: usize = 256;
/// Maximum duration of [`Link::close`].
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// Guarantee that the broker gets a publication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Qos {
    /// Sent once, never repeated.
    AtMostOnce,
    /// Acknowledged by the broker. It may still be lost with the connection.
    AtLeastOnce,
}

/// A message to publish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Topic to publish on.
    pub topic: String,
    /// Content, of at most [`MAX_MESSAGE_BYTES`].
    pub payload: Vec<u8>,
    /// Guarantee of delivery to the broker.
    pub qos: Qos,
    /// True if the broker keeps the message for later subscribers.
    pub retain: bool,
}

/// An event on a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// The link is connected, and the broker has acknowledged every subscription. Publications from before a reconnection
    /// may be lost.
    Up,
    /// The link is not connected and keeps trying. Sent once for each new reason.
    Down {
        /// Text for the operator: the failure, the broker, and what to check.
        reason: String,
    },
    /// A message came. Retained messages may come before `Up`.
    Message {
        /// Topic of the message.
        topic: String,
        /// Content of the message. If it is longer than [`MAX_MESSAGE_BYTES`], it is cut to one byte more than that limit, and
        /// the codec refuses it as oversized.
        payload: Vec<u8>,
    },
}

/// The link ended, because its runtime stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the link to the broker is closed")]
pub struct LinkClosed;

/// The sending end of a connection; see the crate's doc.
#[derive(Debug)]
pub struct Link {
    client: rumqttc::AsyncClient,
    driver: JoinHandle<()>,
    close: oneshot::Sender<()>,
}

impl Link {
    /// Checks `config`, reads the certificates it names, and starts to connect in a task of the current tokio runtime.
    ///
    /// An unreachable broker is not an error: the link sends [`LinkEvent::Down`] and keeps trying.
    ///
    /// # Errors
    /// The configuration is wrong: the URL is invalid, or a certificate or password file cannot be read.
    pub fn open(config: LinkConfig) -> Result<(Self, mpsc::Receiver<LinkEvent>), LinkError> {
        for path in config.broker.exposed() {
            tracing::warn!(file = %path.display(), "every user of this machine can read this secret: run chmod o-rwx on it");
        }
        let (inbox, events) = mpsc::channel(INBOX);
        let (close, closing) = oneshot::channel();
        let driver = Driver::new(config, inbox, closing)?;
        let client = driver.client();
        let driver = tokio::spawn(driver.run());
        Ok((Self { client, driver, close }, events))
    }

    /// Queues `publication`. Waits while [`QUEUE`] others wait, even without a connection.
    ///
    /// Publications keep their order. `Ok` means that the message is queued, not that anybody received it.
    ///
    /// # Errors
    /// [`LinkClosed`].
    ///
    /// # Panics
    /// The payload is larger than [`MAX_MESSAGE_BYTES`] or the topic is invalid. `skiff_protocol` creates neither.
    pub async fn publish(&self, publication: Publication) -> Result<(), LinkClosed> {
        let (topic, payload, options) = unpack(publication);
        self.client.publish(topic, payload, options).await.map_err(|error| closed(&error))
    }

    /// Queues `publication` if there is room. Returns true if it was queued.
    ///
    /// # Errors
    /// [`LinkClosed`].
    ///
    /// # Panics
    /// Same as [`Link::publish`].
    pub fn try_publish(&self, publication: Publication) -> Result<bool, LinkClosed> {
        let (topic, payload, options) = unpack(publication);
        match self.client.try_publish(topic, payload, options) {
            Ok(()) => Ok(true),
            Err(ClientError::RequestChannelFull(_)) => Ok(false),
            Err(error) => Err(closed(&error)),
        }
    }

    /// Sends the queue, then DISCONNECT, so that the broker does not publish the last will. Without a connection, nothing is
    /// sent.
    ///
    /// Takes at most [`CLOSE_PATIENCE`]. If the queue cannot be sent in that time, the connection is cut instead, and the
    /// broker publishes the last will.
    pub async fn close(self) {
        let Self { client: _client, mut driver, close } = self;
        let _ = close.send(());
        if tokio::time::timeout(CLOSE_PATIENCE, &mut driver).await.is_err() {
            driver.abort();
        }
    }
}

fn unpack(publication: Publication) -> (String, Vec<u8>, PublishOptions) {
    let Publication { topic, payload, qos, retain } = publication;
    let bytes = payload.len();
    assert!(bytes <= MAX_MESSAGE_BYTES, "{bytes} bytes for {topic}: a message holds at most {MAX_MESSAGE_BYTES}");
    (topic, payload, PublishOptions::new(qos.into()).retain(retain))
}

/// Turns a client's error into [`LinkClosed`], the only possible cause if there is room and the topic is valid.
fn closed(error: &ClientError) -> LinkClosed {
    if let ClientError::InvalidRequest(request) = error {
        panic!("not a topic to publish on: {request:?}");
    }
    LinkClosed
}

impl From<Qos> for rumqttc::QoS {
    fn from(qos: Qos) -> Self {
        match qos {
            Qos::AtMostOnce => Self::AtMostOnce,
            Qos::AtLeastOnce => Self::AtLeastOnce,
        }
    }
}
