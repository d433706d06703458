//! One MQTT connection, kept up: the road between an agent, the broker and the coordinator.
//!
//! It knows nothing of what the messages say; `skiff-protocol` does. It promises little, on purpose: a message may be
//! lost with a connection (the session is clean, MQTT's acknowledgement is the broker's), so whoever needs an answer
//! repeats the question.
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
//! `Link::close` sends what is queued, then DISCONNECT; a link that is dropped, or cannot send the rest in time, just cuts
//! the connection, and the last will speaks for it.
//!
//! **Bounds.** [`QUEUE`] publications wait to be sent; then [`Link::publish`] waits. [`INBOX`] events wait to be taken; then
//! the broker is held back for half a second, and after that messages are dropped and counted until there is room again,
//! so a reader that stands still (perhaps in `publish`) can never stop the connection. `Up` and `Down` are not dropped, but
//! where several wait only the newest is told.
//!
//! Rooms: `settings` (the broker's address and credentials), `address` (its URL), `config` (one link), `driver` (the loop
//! above), `inbox` (the reader's queue), `backoff` (how long to rest),
//! `refusals` (messages that are not accepted).

mod address;
mod backoff;
mod config;
mod driver;
mod error;
mod inbox;
mod prompt;
mod refusals;
mod settings;

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

/// Publications that wait to be sent before [`Link::publish`] waits itself.
pub const QUEUE: usize = 64;
/// Events that wait to be taken before messages are dropped.
pub const INBOX: usize = 256;
/// The longest that [`Link::close`] takes.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// How sure the broker is to have a publication.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Qos {
    /// Sent once, never repeated.
    AtMostOnce,
    /// The broker acknowledges it; lost with the connection all the same.
    AtLeastOnce,
}

/// A message on its way out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publication {
    /// Where to.
    pub topic: String,
    /// At most [`MAX_MESSAGE_BYTES`].
    pub payload: Vec<u8>,
    /// How sure.
    pub qos: Qos,
    /// The broker keeps it for those who subscribe later.
    pub retain: bool,
}

/// What happens on a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// Connected, and every subscription acknowledged: again, where the link was up before. Publications of the connection
    /// before may be lost.
    Up,
    /// Not connected; the link goes on trying. Told once for each new reason.
    Down {
        /// For the operator: what failed, with which broker, and what to look at.
        reason: String,
    },
    /// A publication of somebody. One of the broker's may overtake `Up`.
    Message {
        /// Where it was published.
        topic: String,
        /// What was published; one above [`MAX_MESSAGE_BYTES`] comes cut to a byte more than that, which the codec
        /// refuses as oversized.
        payload: Vec<u8>,
    },
}

/// The link came to an end: its task was lost with the runtime.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the link to the broker is closed")]
pub struct LinkClosed;

/// The sending end of a connection; see the crate's text.
#[derive(Debug)]
pub struct Link {
    client: rumqttc::AsyncClient,
    driver: JoinHandle<()>,
    close: oneshot::Sender<()>,
}

impl Link {
    /// Checks `config`, reads the certificates it names and starts to connect, in a task of the current tokio runtime.
    ///
    /// A broker that is away is no error: [`LinkEvent::Down`] tells of it and the link goes on trying.
    ///
    /// # Errors
    /// What cannot become right by trying again: an URL that is none, certificates that cannot be read.
    pub fn open(config: LinkConfig) -> Result<(Self, mpsc::Receiver<LinkEvent>), LinkError> {
        let (inbox, events) = mpsc::channel(INBOX);
        let (close, closing) = oneshot::channel();
        let driver = Driver::new(config, inbox, closing)?;
        let client = driver.client();
        let driver = tokio::spawn(driver.run());
        Ok((Self { client, driver, close }, events))
    }

    /// Queues `publication`; waits where [`QUEUE`] others wait already, be it for a connection.
    ///
    /// Publications keep their order. `Ok` says that the queue took it, not that anybody has it.
    ///
    /// # Errors
    /// [`LinkClosed`].
    ///
    /// # Panics
    /// Where the payload is larger than [`MAX_MESSAGE_BYTES`] or the topic is not one: `skiff_protocol` makes neither.
    pub async fn publish(&self, publication: Publication) -> Result<(), LinkClosed> {
        let (topic, payload, options) = unpack(publication);
        self.client.publish(topic, payload, options).await.map_err(|error| closed(&error))
    }

    /// Queues `publication` if there is room, and says whether there was: for what is not worth waiting for.
    ///
    /// # Errors
    /// [`LinkClosed`].
    ///
    /// # Panics
    /// As [`Link::publish`].
    pub fn try_publish(&self, publication: Publication) -> Result<bool, LinkClosed> {
        let (topic, payload, options) = unpack(publication);
        match self.client.try_publish(topic, payload, options) {
            Ok(()) => Ok(true),
            Err(ClientError::RequestChannelFull(_)) => Ok(false),
            Err(error) => Err(closed(&error)),
        }
    }

    /// Sends what is queued, then DISCONNECT, so that the last will stays unsaid. Without a connection nothing is sent.
    ///
    /// Takes at most [`CLOSE_PATIENCE`]. Where the rest cannot be sent in that time the connection is cut instead, and the
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

/// What remains of the client's errors when there is room.
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
