//! A broker in memory: subscriptions, retained messages and last wills. It keeps the order within a topic, and no other order.
//! Sessions are clean: a message to a client whose connection ends is lost.

use crate::faults::Faults;
use skiff_base::random::Random;
use skiff_link::{Publication, Qos};
use std::collections::BTreeMap;

/// A client of the broker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Client {
    /// The coordinator.
    Coordinator,
    /// The device with this number.
    Device(usize),
}

/// A message on its way to a client.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Delivery {
    /// The client.
    pub(crate) to: Client,
    /// The connection on which it travels. The message is lost if the client has another connection on its arrival.
    pub(crate) connection: u64,
    /// Time of the arrival, in milliseconds.
    pub(crate) at_ms: u64,
    /// Topic of the message.
    pub(crate) topic: String,
    /// Content of the message.
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    filters: Vec<String>,
    will: Publication,
}

/// The broker.
#[derive(Debug, Default)]
pub(crate) struct Broker {
    connections: BTreeMap<Client, Connection>,
    retained: BTreeMap<String, Vec<u8>>,
    /// Last arrival of a message on each topic, for each client.
    last_ms: BTreeMap<(Client, String), u64>,
    connected: u64,
}

impl Broker {
    /// Connects a client and returns the retained messages on their way to it. An older connection of it ends.
    pub(crate) fn connect(
        &mut self,
        client: Client,
        filters: Vec<String>,
        will: Publication,
        now_ms: u64,
        random: &mut Random,
    ) -> Vec<Delivery> {
        self.connected += 1;
        let connection = Connection { number: self.connected, filters, will };
        let retained: Vec<(String, Vec<u8>)> = self
            .retained
            .iter()
            .filter(|(topic, _)| connection.filters.iter().any(|filter| matches(filter, topic)))
            .map(|(topic, payload)| (topic.clone(), payload.clone()))
            .collect();
        self.connections.insert(client, connection);
        self.last_ms.retain(|(known, _), _| *known != client);
        let sent = retained.into_iter().map(|(topic, payload)| self.send(client, topic, payload, now_ms, 1, random));
        sent.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    /// Ends a client's connection. Returns its last will.
    pub(crate) fn cut(&mut self, client: Client) -> Option<Publication> {
        self.connections.remove(&client).map(|connection| connection.will)
    }

    /// Ends every connection, and forgets retained messages unless `keeps` is true. Last wills are lost.
    pub(crate) fn restart(&mut self, keeps: bool) {
        self.connections.clear();
        if !keeps {
            self.retained.clear();
        }
    }

    /// Returns the number of a client's present connection.
    pub(crate) fn connection(&self, client: Client) -> Option<u64> {
        self.connections.get(&client).map(|connection| connection.number)
    }

    /// Returns the deliveries of a publication.
    pub(crate) fn publish(
        &mut self,
        Publication { topic, payload, qos, retain }: Publication,
        now_ms: u64,
        faults: &Faults,
        random: &mut Random,
    ) -> Vec<Delivery> {
        if retain {
            self.retained.insert(topic.clone(), payload.clone());
        }
        let wants = |connection: &Connection| connection.filters.iter().any(|filter| matches(filter, &topic));
        let clients: Vec<Client> =
            self.connections.iter().filter(|(_, connection)| wants(connection)).map(|(client, _)| *client).collect();
        let mut sent = Vec::new();
        for client in clients {
            if random.chance(faults.lost) {
                continue;
            }
            let delay_ms = if random.chance(faults.late) { 10_000 } else { 60 };
            let doubled = qos == Qos::AtLeastOnce && random.chance(faults.doubled);
            for _ in 0..=u32::from(doubled) {
                sent.extend(self.send(client, topic.clone(), payload.clone(), now_ms, delay_ms, random));
            }
        }
        sent
    }

    fn send(
        &mut self,
        to: Client,
        topic: String,
        payload: Vec<u8>,
        now_ms: u64,
        delay_ms: usize,
        random: &mut Random,
    ) -> Option<Delivery> {
        let connection = self.connections.get(&to)?.number;
        let drawn = now_ms + 1 + random.below(delay_ms) as u64;
        let last = self.last_ms.entry((to, topic.clone())).or_default();
        *last = drawn.max(*last);
        Some(Delivery { to, connection, at_ms: *last, topic, payload })
    }
}

/// Returns true if the topic matches the filter of a subscription.
fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for part in filter.split('/') {
        match (part, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (part, Some(level)) if part == level => {}
            (_, _) => return false,
        }
    }
    levels.next().is_none()
}
