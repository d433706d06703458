//! A journal in memory, for simulations. It obeys the laws of [`Store`], but is lost when the process ends.

use super::journal::{self, RecordFault};
use super::{Finding, RunRow, Store, StoreError, Summary, Traffic};
use crate::run::Entry;
use skiff_api::removal::Removal;
use skiff_protocol::{DeviceId, Digest, RunId};
use std::collections::{BTreeMap, BTreeSet};

/// A journal in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    /// The runs, oldest first.
    runs: Vec<Kept>,
    named: BTreeSet<(Digest, RunId)>,
    removals: Vec<Removal>,
}

#[derive(Clone, Debug)]
struct Kept {
    run: RunId,
    entries: Vec<journal::Entry>,
    traffic: BTreeMap<u32, Traffic>,
    summary: Summary,
    damage: Option<String>,
}

impl MemoryStore {
    fn run(&self, run: RunId) -> Option<&Kept> {
        self.runs.iter().find(|kept| kept.run == run)
    }

    fn made(&mut self, run: RunId) -> &mut Kept {
        let at = self.runs.iter().position(|kept| kept.run == run).unwrap_or_else(|| {
            let (entries, traffic, summary) = (Vec::new(), BTreeMap::new(), Summary::default());
            self.runs.push(Kept { run, entries, traffic, summary, damage: None });
            self.runs.len() - 1
        });
        &mut self.runs[at]
    }
}

impl Store for MemoryStore {
    fn append(&mut self, run: RunId, entries: &[Entry], round: u32, traffic: Traffic) -> Result<(), StoreError> {
        for entry in entries.iter().map(journal::Entry::from) {
            self.named.extend(entry.names().into_iter().map(|(blob, _)| (blob, run)));
            let kept = self.made(run);
            kept.summary.add(&entry);
            kept.entries.push(entry);
        }
        *self.made(run).traffic.entry(round).or_default() += traffic;
        Ok(())
    }

    fn runs(&self) -> Result<Vec<RunRow>, StoreError> {
        let row = |kept: &Kept| {
            let mut traffic = Traffic::default();
            kept.traffic.values().for_each(|&travelled| traffic += travelled);
            let (summary, damage) = (kept.summary.clone(), kept.damage.clone());
            RunRow { run: kept.run, records: kept.entries.len() as u64, summary, traffic, damage }
        };
        Ok(self.runs.iter().map(row).collect())
    }

    fn entries(&self, run: RunId) -> Result<Vec<Entry>, StoreError> {
        let entries = self.run(run).map_or(&[][..], |kept| &kept.entries).iter().cloned().zip(0..);
        let read =
            |(entry, at)| Entry::try_from(entry).map_err(|source: RecordFault| StoreError::Record { run, at, source });
        entries.map(read).collect()
    }

    fn traffic(&self, run: RunId) -> Result<BTreeMap<u32, Traffic>, StoreError> {
        Ok(self.run(run).map(|kept| kept.traffic.clone()).unwrap_or_default())
    }

    fn stop_damaged(&mut self, run: RunId, reason: &str) -> Result<(), StoreError> {
        let kept = self.made(run);
        kept.summary.stop(reason);
        kept.damage = Some(reason.to_owned());
        Ok(())
    }

    fn delete(&mut self, run: RunId) -> Result<(), StoreError> {
        self.runs.retain(|kept| kept.run != run);
        Ok(())
    }

    fn add_removal(&mut self, removal: &Removal) -> Result<(), StoreError> {
        self.removals.push(removal.clone());
        Ok(())
    }

    fn mark_cleared(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError> {
        for removal in self.removals.iter_mut().filter(|removal| removal.device == *device) {
            removal.cleared_ms.get_or_insert(at_ms);
        }
        Ok(())
    }

    fn mark_returned(&mut self, device: &DeviceId, at_ms: u64) -> Result<(), StoreError> {
        for removal in self.removals.iter_mut().filter(|removal| removal.device == *device) {
            removal.returned_ms.get_or_insert(at_ms);
        }
        Ok(())
    }

    fn removals(&self) -> Result<Vec<Removal>, StoreError> {
        Ok(self.removals.clone())
    }

    fn kept(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let is_damaged = |run: RunId| self.run(run).is_some_and(|kept| kept.damage.is_some());
        let of_damaged = self.named.iter().filter(|(_, run)| is_damaged(*run)).map(|(blob, _)| *blob);
        Ok(self.runs.iter().flat_map(|kept| kept.summary.kept()).chain(of_damaged).collect())
    }

    fn is_named(&self, blob: Digest) -> Result<bool, StoreError> {
        Ok(self.named.range((blob, RunId(0))..=(blob, RunId(u64::MAX))).next().is_some())
    }

    fn findings(&self) -> &[Finding] {
        &[]
    }
}
