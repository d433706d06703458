//! Facts that must hold after every event, checked without the tested code.

use crate::coordinator::{Coordinator, FLEET};
use crate::disk::Journal;
use skiff_blobs::Blobs;
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::merge::{Merging, Rule};
use skiff_coordinator::run::{Entry, Ledger, MergeJob, Merged, Phase, Record};
use skiff_link::Publication;
use skiff_models::tensors::NamedTensors;
use skiff_protocol::codec::{self, Message};
use skiff_protocol::messages::{Command, Order};
use skiff_protocol::transfer::{Offer, TransferId, TransferMessage};
use skiff_protocol::{DeviceId, Digest, FleetId, RunId, Topic};
use std::collections::BTreeMap;
use std::sync::PoisonError;

/// Largest difference between two ways of computing the same mean, as a part of the value.
const TOLERANCE: f64 = 1e-5;

/// Messages seen so far, and the number of checks of each kind.
#[derive(Default)]
pub(crate) struct Checks {
    journal: Journal,
    offers: BTreeMap<(DeviceId, TransferId), Offer>,
    /// Number of updates that the coordinator confirmed.
    pub(crate) confirmed: u32,
    /// Number of orders to train that were compared with the journal.
    pub(crate) orders: u32,
    /// Number of merges that were computed again.
    pub(crate) merges: u32,
    /// Number of starts of the coordinator after which the journal was compared.
    pub(crate) replays: u32,
}

impl Checks {
    pub(crate) fn new(journal: Journal) -> Self {
        Self { journal, ..Self::default() }
    }

    fn entries(&self, run: RunId) -> Vec<Entry> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).get(&run).cloned().unwrap_or_default()
    }

    /// Remembers the updates that devices offer.
    pub(crate) fn said_by_device(&mut self, publication: &Publication) {
        if let Some((Topic::UpTransfer(device, id), Message::Transfer(TransferMessage::Offer(offer)))) =
            read(publication)
        {
            self.offers.insert((device, id), offer);
        }
    }

    /// Checks that the coordinator promises nothing that is not in the journal, and orders what the journal says.
    pub(crate) fn said_by_coordinator(&mut self, publication: &Publication) {
        match read(publication) {
            Some((Topic::DownTransfer(device, id), Message::Transfer(TransferMessage::Done))) => {
                let Some(offer) = self.offers.get(&(device.clone(), id)) else { return };
                let skiff_protocol::transfer::Purpose::Update { run, .. } = offer.purpose else { return };
                let is_stored = self.entries(run).iter().any(|entry| {
                    matches!(&entry.record, Record::UpdateStored { device: by, update, .. } if *by == device && *update == offer.digest)
                });
                assert!(
                    is_stored,
                    "{device} was told that its update {} is stored, which no record says",
                    offer.digest
                );
                self.confirmed += 1;
            }
            Some((Topic::Command(device), Message::Command(command))) => self.ordered(&device, &command),
            _ => {}
        }
    }

    fn ordered(&mut self, device: &DeviceId, command: &Command) {
        let Order::Train(order) = &command.order else { return };
        let entries = self.entries(command.run);
        let journalled = entries.iter().find_map(|entry| match &entry.record {
            Record::TrainingStarted { epoch, assignments } if *epoch == command.epoch => assignments.get(device),
            _ => None,
        });
        let journalled =
            journalled.unwrap_or_else(|| panic!("no record orders {device} to train at {}", command.epoch));
        assert_eq!(order.rates, journalled.choice.rates.to_vec(), "{device} trains at other rates than journalled");
        assert_eq!(order.sharing, journalled.share.plan, "{device} shares other layers than journalled");
        self.orders += 1;
    }

    /// Computes a merge again: which updates belong to it, and their mean.
    pub(crate) fn merged(&mut self, model: &Model, blobs: &dyn Blobs, job: &MergeJob, merged: &Merged) {
        let expected = collected(&self.entries(job.run));
        let mut found: Vec<(DeviceId, Digest)> =
            job.updates.iter().map(|input| (input.device.clone(), input.update)).collect();
        found.sort();
        assert_eq!(found, expected, "the merge does not take each stored update once");
        if job.merging != Merging::default() || job.updates.iter().any(|input| input.stale.is_some()) {
            return;
        }
        assert_eq!(job.merging.rule, Rule::Mean);
        let read = |digest| model.schema.read(&blobs.read(digest).expect("weights on disk")).expect("whole weights");
        let (base, result) = (read(job.base), read(merged.weights));
        let mut sums: BTreeMap<String, (f64, Vec<f64>)> = BTreeMap::new();
        for input in &job.updates {
            let bytes = blobs.read(input.update).expect("a stored update");
            let update = safetensors::SafeTensors::deserialize(&bytes).expect("a stored update holds tensors");
            for (name, tensor) in update.iter() {
                let (weight, sum) = sums.entry(name.to_owned()).or_default();
                let values = tensor
                    .data()
                    .chunks_exact(4)
                    .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                sum.resize(tensor.data().len() / 4, 0.0);
                *weight += input.examples as f64;
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += input.examples as f64 * f64::from(value));
            }
        }
        compare(&base, &result, &sums);
        self.merges += 1;
    }

    /// Checks that a starting coordinator finds every committed record and no other.
    pub(crate) fn restarted(&mut self, coordinator: &Coordinator) {
        let Some(ledger) = coordinator.hub.ledger() else { return };
        let entries = self.entries(ledger.start.run);
        let replayed = Ledger::replay(&entries).expect("records that follow from each other");
        assert_eq!(&replayed, ledger, "the coordinator's state is not what its records say");
        self.replays += 1;
    }

    /// Checks the facts about the coordinator that hold between two events.
    pub(crate) fn between_events(coordinator: &Coordinator) {
        let Some(ledger) = coordinator.hub.ledger() else { return };
        let waits = !matches!(ledger.phase, Phase::Merge(_) | Phase::Ended(_));
        assert!(!waits || coordinator.hub.deadline().is_some(), "{:?} waits without a deadline", ledger.phase);
    }

    /// Returns the kinds of records that name a blob.
    pub(crate) fn naming(&self, run: RunId, blob: Digest) -> Vec<String> {
        let names = |entry: &Entry| match &entry.record {
            Record::RunStarted(start) if start.weights == blob => Some("initial weights".to_owned()),
            Record::UpdateStored { device, update, .. } if *update == blob => Some(format!("update of {device}")),
            Record::Merged(merged) if merged.weights == blob => Some("merged weights".to_owned()),
            Record::Merged(merged) if merged.moments == Some(blob) => Some("moments".to_owned()),
            _ => None,
        };
        self.entries(run).iter().filter_map(names).collect()
    }

    /// Checks that no phase of the run lasted longer than its settings allow.
    pub(crate) fn phases_kept_their_deadlines(&self, run: RunId) {
        const SLACK_MS: u64 = 5_000;
        let entries = self.entries(run);
        let Some(Record::RunStarted(start)) = entries.first().map(|entry| &entry.record) else { return };
        let settings = &start.settings;
        let most_ms = settings.gather_ms.max(settings.train_ms).max(settings.evaluate_ms) + SLACK_MS;
        let mut began_ms = entries[0].at_ms;
        for entry in &entries {
            match entry.record {
                Record::UpdateStored { .. } | Record::DeviceOut { .. } | Record::PolicySet(_) => {}
                Record::Resumed => began_ms = entry.at_ms,
                _ => {
                    let took_ms = entry.at_ms - began_ms;
                    assert!(took_ms <= most_ms, "a phase lasted {took_ms} ms until {:?}", entry.record);
                    began_ms = entry.at_ms;
                }
            }
        }
    }
}

/// Returns the updates that the last merge of a journal takes, by device.
fn collected(entries: &[Entry]) -> Vec<(DeviceId, Digest)> {
    let mut waiting: Vec<(DeviceId, Digest)> = Vec::new();
    let mut batch: Option<Vec<(DeviceId, Digest)>> = None;
    for entry in entries {
        match &entry.record {
            Record::UpdateStored { device, update, .. } => waiting.push((device.clone(), *update)),
            Record::Collected => batch = Some(std::mem::take(&mut waiting)),
            Record::Merged(_) => batch = None,
            // A failed merge loses its updates. A round with too few updates loses them too.
            Record::Skipped { .. } if batch.take().is_none() => waiting.clear(),
            _ => {}
        }
    }
    let mut batch = batch.expect("a merge after updates were collected");
    batch.sort();
    batch
}

/// Compares merged weights with the mean of the updates; tensors that nobody shared stay the same.
fn compare(base: &NamedTensors, result: &NamedTensors, sums: &BTreeMap<String, (f64, Vec<f64>)>) {
    for (name, values) in result {
        match sums.get(name) {
            None => assert_eq!(values, &base[name], "{name} changed although nobody shared it"),
            Some((weight, sum)) => {
                for (value, sum) in values.iter().zip(sum) {
                    let (value, mean) = (f64::from(*value), sum / weight);
                    assert!(
                        (value - mean).abs() <= TOLERANCE * mean.abs().max(1.0),
                        "{name}: {value} instead of {mean}"
                    );
                }
            }
        }
    }
}

fn read(publication: &Publication) -> Option<(Topic, Message)> {
    let fleet: FleetId = FLEET.parse().expect("a name");
    let topic = Topic::parse(&fleet, &publication.topic)?;
    let (message, _) = codec::open(&publication.payload, &publication.topic, None).ok()?;
    Some((topic, message))
}
