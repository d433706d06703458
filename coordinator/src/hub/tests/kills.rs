//! A coordinator that is killed at every write of a small run, and started again.

use super::*;
use crate::merge::{Adaptive, Merging, Server};
use crate::store::check::{self, Report};
use crate::store::kills::{Kill, record};

/// Returns settings for three rounds whose merges keep moments. Each round is evaluated; the first one is the best.
fn three_rounds() -> RunSettings {
    let merge = Merging { server: Server::Adam(Adaptive::default()), ..Merging::default() };
    RunSettings { rounds: 3, evaluate_examples: 8, merge, ..settings() }
}

impl World {
    /// Starts the run if it does not exist, and lets both devices work until it has ended.
    fn finish(&mut self, settings: RunSettings) {
        self.birth("a", PACK);
        self.birth("b", PACK);
        if self.hub.store.runs().unwrap().is_empty() {
            let effects = self.hub.start_run(RUN, None, settings, Timestamp(self.now)).unwrap().unwrap();
            self.carry_out(effects);
        }
        let mut read = 0;
        while self.run().phase != progress::Phase::Completed {
            if !self.merges.is_empty() {
                self.merge();
                continue;
            }
            let (to, message) = self.said.get(read).expect("the coordinator says what to do").clone();
            read += 1;
            if let Message::Command(Command { round, order, .. }) = message {
                let name = to.as_str();
                match order {
                    Order::Train(_) => {
                        let way = if name == "a" { 1.0 } else { 2.0 };
                        assert_eq!(self.upload(name, &update(round as f32 * way)), TransferMessage::Done);
                    }
                    Order::Evaluate(_) => self.evaluate(name),
                    Order::Stop => {}
                }
            }
        }
    }

    fn entries(&self) -> Vec<Entry> {
        self.hub.store.entries(RUN).unwrap()
    }

    /// Returns the digests of all blobs that a record names, and counts the others.
    fn blobs(&self) -> (BTreeSet<Digest>, usize) {
        let all: BTreeSet<Digest> = self.hub.blobs.list().unwrap().into_iter().map(|(digest, _)| digest).collect();
        let named: BTreeSet<Digest> =
            all.iter().copied().filter(|&blob| self.hub.store.is_named(blob).unwrap()).collect();
        let others = all.len() - named.len();
        (named, others)
    }
}

fn assert_nothing_is_missing(report: &Report, moment: &str) {
    assert_eq!((&report.faults, &report.notes), (&vec![], &vec![]), "{moment}");
}

#[test]
fn a_coordinator_killed_at_any_write_of_a_run_loses_nothing_and_finishes_it() {
    let folder = TempDir::new().unwrap();
    let state = folder.path().to_owned();
    let (whole, kills) = record(&state, || {
        let mut world = World::of_folder(folder);
        world.finish(three_rounds());
        world
    });
    let (entries, (blobs, _)) = (whole.entries(), whole.blobs());
    let summary = whole.hub.store.runs().unwrap().remove(0).summary;
    let (last, best) = (summary.last.unwrap(), summary.best.unwrap());
    assert!(last.round == 3 && best.round == 1 && best.weights != last.weights && blobs.len() > 2);
    assert!(kills.len() > 60, "{}", kills.len());

    let mut promised = 0;
    for Kill { moment, folder } in kills {
        let has_journal = folder.path().join(crate::store::FILE).exists();
        let report = has_journal.then(|| check::check(folder.path())).and_then(Result::ok);
        if let Some(report) = &report {
            assert_nothing_is_missing(report, &moment);
        }
        let mut world = World::of_folder(folder);
        let mut found = world.entries();
        found.retain(|entry| entry.record != Record::Resumed);
        assert!(entries.starts_with(&found) && found.len() >= promised, "{moment}: {} records", found.len());
        promised = found.len();
        // The next start collects. It removes nothing that the run needs.
        assert_nothing_is_missing(&check::check(world.folder.path()).unwrap(), &moment);
        for needed in world.hub.in_use() {
            assert!(world.hub.blobs.read(needed).is_ok(), "{moment}: {needed} is gone");
        }
        world.finish(three_rounds());
        let end = world.hub.store.runs().unwrap().remove(0).summary;
        assert_eq!((end.last.as_ref(), end.best.as_ref()), (Some(&last), Some(&best)), "{moment}");
        let (named, unknown) = world.blobs();
        assert_eq!((named, unknown), (blobs.clone(), 0), "{moment}");
        assert_nothing_is_missing(&check::check(world.folder.path()).unwrap(), &moment);
    }
    assert_eq!(promised, entries.len());
}

#[test]
fn a_coordinator_killed_while_it_deletes_a_run_removes_the_rest_at_the_next_start() {
    let folder = TempDir::new().unwrap();
    let state = folder.path().to_owned();
    let mut world = World::of_folder(folder);
    world.finish(three_rounds());
    let (deleted, kills) = record(&state, || world.hub.delete_run(RUN).unwrap());
    assert!(deleted.unwrap().removed.len() > 2 && kills.len() > 3);
    for Kill { moment, folder } in kills {
        assert_nothing_is_missing(&check::check(folder.path()).unwrap(), &moment);
        let world = World::of_folder(folder);
        let is_deleted = world.hub.store.runs().unwrap().is_empty();
        assert_eq!(world.hub.blobs.list().unwrap().is_empty(), is_deleted, "{moment}");
    }
}
