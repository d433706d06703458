#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
use super::*;
use crate::run::configurator::{Bandit, Choice, DropoutRates, Pace, Rates, Schedule, Shape};
use crate::run::explain::explain;
use crate::store::journal;
use proptest::prelude::*;
use skiff_api::policy::Policy;
use skiff_api::progress;
use skiff_protocol::messages::{Answer, Command, Order, Outcome, Place, Probe, StepMemory, TrainOrder, TrainReport};
use skiff_protocol::{BootId, Digest, RunId, samples};
use std::collections::BTreeSet;

const RUN: RunId = RunId(7);
const LAYERS: u32 = 4;

fn device(index: usize) -> DeviceId {
    format!("dev{index}").parse().unwrap()
}

fn settings() -> RunSettings {
    RunSettings {
        rounds: 2,
        devices: 3,
        quorum: 2,
        steps: 10,
        batch: 8,
        evaluate_examples: 60,
        final_examples: 80,
        gather_ms: 10_000,
        train_ms: 60_000,
        evaluate_ms: 30_000,
        grace_ms: 3_000,
        ..RunSettings::default()
    }
}

fn begin(settings: RunSettings) -> Start {
    let digest = |byte| Digest([byte; 32]);
    Start {
        run: RUN,
        name: None,
        settings: Box::new(settings),
        layers: LAYERS,
        pack: digest(1),
        schema: digest(2),
        weights: digest(3),
        task: None,
    }
}

fn report(examples: u64) -> TrainReport {
    TrainReport {
        examples,
        tokens: examples * 50,
        steps: 10,
        shared_layers: (0..LAYERS).collect(),
        importance: vec![1.0; LAYERS as usize],
        mean_active_layers: 3.0,
        train_ms: 900,
        step_ms: 90.0,
        probe: Some(Probe { examples: 32, loss_before: 1.0, loss_after: 0.9, correct_before: 10, correct_after: 12 }),
        ..samples::train_report()
    }
}

/// A simple model of a device: it does what the newest command says, when the test tells it to.
#[derive(Clone, Default, Debug)]
struct Twin {
    boot: u64,
    present: bool,
    gone_since: Option<u64>,
    newest: Option<Command>,
    last_sent_ms: Option<u64>,
}

/// A run with its journal and fleet, checked after each step.
struct World {
    run: Run,
    journal: Vec<Entry>,
    now: u64,
    fleet: Vec<Twin>,
    merges: Vec<MergeJob>,
    sent: Vec<(usize, Command)>,
    confirmed: Vec<usize>,
    refused: Vec<(usize, String)>,
    offers: Vec<usize>,
}

impl World {
    fn new(settings: RunSettings, devices: usize) -> Self {
        let (run, actions) = Run::start(begin(settings), Timestamp(1_000)).unwrap();
        let fleet = vec![Twin::default(); devices];
        let mut world = Self {
            run,
            journal: vec![],
            now: 1_000,
            fleet,
            merges: vec![],
            sent: vec![],
            confirmed: vec![],
            refused: vec![],
            offers: vec![],
        };
        world.carry_out(actions);
        world
    }

    fn with_everybody(settings: RunSettings, devices: usize) -> Self {
        let mut world = Self::new(settings, devices);
        (0..devices).for_each(|index| world.arrive(index));
        world
    }

    fn index(device: &DeviceId) -> usize {
        device.as_str()[3..].parse().unwrap()
    }

    fn step(&mut self, event: Event) {
        let actions = self.run.handle(event, Timestamp(self.now));
        self.carry_out(actions);
        self.check();
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut promised = false;
        for action in actions {
            match action {
                Action::Journal(entry) => {
                    assert!(!promised, "a record after a promise");
                    self.journal.push(entry);
                    continue;
                }
                Action::SendCommand(device, command) => self.deliver(Self::index(&device), command),
                Action::OfferWeights(device, weights) => {
                    let ordered = self.run.ordered(&device);
                    assert_eq!(weights, ordered.map_or(self.run.ledger.weights, |ordered| ordered.weights));
                    self.offers.push(Self::index(&device));
                }
                Action::ConfirmUpdate(device, _) => self.confirmed.push(Self::index(&device)),
                Action::RefuseUpdate(device, _, reason) => self.refused.push((Self::index(&device), reason)),
                Action::Merge(job) => {
                    let settings = &self.run.ledger.start.settings;
                    assert!(job.updates.len() >= settings.quorum as usize);
                    assert!(job.updates.len() <= (settings.devices + settings.over_selection) as usize);
                    self.merges.push(job);
                }
            }
            promised = true;
        }
    }

    fn deliver(&mut self, index: usize, command: Command) {
        let twin = &mut self.fleet[index];
        assert!(twin.present, "a command for a device that is not there");
        let repeats = twin.newest.as_ref() == Some(&command);
        if let Some(newest) = twin.newest.as_ref().filter(|_| !repeats) {
            assert!(command.epoch > newest.epoch, "{command:?} does not supersede {newest:?}");
        }
        if let (true, Some(last)) = (repeats, twin.last_sent_ms) {
            assert!(self.now - last >= REPEAT_MS, "repeated too soon");
        }
        if let (Order::Train(_), Phase::Train(training)) = (&command.order, &self.run.ledger.phase) {
            assert!(!training.updates.contains_key(&device(index)), "a stored update is asked for again");
        }
        twin.last_sent_ms = Some(self.now);
        twin.newest = Some(command.clone());
        self.sent.push((index, command));
    }

    /// Checks the invariants that hold after each step.
    fn check(&self) {
        assert_eq!(Ledger::replay(&self.journal).unwrap(), self.run.ledger, "the journal tells another story");
        if let Some(deadline) = self.run.deadline() {
            assert!(deadline.0 > self.now, "a deadline that has passed: {deadline} at {}", self.now);
        }
        let ledger = &self.run.ledger;
        assert!(ledger.closed.iter().map(|closed| closed.round).eq(1..=ledger.closed.len() as u32));
        assert!(ledger.is_ended() || ledger.deadline_ms().is_some() || matches!(ledger.phase, Phase::Merge(_)));
        if let Phase::Train(training) = &ledger.phase {
            let settings = &ledger.start.settings;
            let waited_for = |device: &DeviceId| {
                let gone = self.fleet[Self::index(device)].gone_since;
                gone.is_none_or(|since| self.now < since + settings.grace_ms)
            };
            let quorum = training.updates.len() >= settings.quorum as usize;
            assert!(training.updates.len() < settings.devices as usize, "enough, and still training");
            assert!(!quorum || training.pending().any(waited_for), "nobody to wait for, and still training");
            assert!(self.now < ledger.phase_ms + settings.train_ms, "late, and still training");
        }
    }

    fn arrive(&mut self, index: usize) {
        let twin = &mut self.fleet[index];
        twin.last_sent_ms = twin.last_sent_ms.filter(|_| twin.present);
        twin.present = true;
        twin.gone_since = None;
        let here = Here {
            boot: BootId(twin.boot),
            train_examples: 500,
            test_examples: 20 + 20 * index as u64,
            place: Place::default(),
            memory: StepMemory::default(),
        };
        self.step(Event::DeviceHere(device(index), here));
    }

    fn reboot(&mut self, index: usize) {
        self.fleet[index].boot += 1;
        self.fleet[index].last_sent_ms = None;
        self.arrive(index);
    }

    fn leave(&mut self, index: usize) {
        self.fleet[index].present = false;
        self.fleet[index].gone_since.get_or_insert(self.now);
        self.step(Event::DeviceGone(device(index)));
    }

    /// Removes a device from the fleet: nobody waits for it any more.
    fn remove(&mut self, index: usize) {
        let grace_ms = self.run.ledger.start.settings.grace_ms;
        self.fleet[index].present = false;
        self.fleet[index].gone_since = Some(self.now.saturating_sub(grace_ms));
        self.step(Event::DeviceRemoved(device(index)));
        let Run { ledger, reports, .. } = &self.run;
        assert!(!ledger.awaited(|device| reports.contains_key(device)).contains(&&device(index)), "still awaited");
    }

    fn answer(&mut self, index: usize, outcome: Outcome) {
        if let Some(command) = self.fleet[index].newest.clone() {
            let Command { run, round, epoch, .. } = command;
            let boot = BootId(self.fleet[index].boot);
            self.step(Event::Answered(device(index), Answer { boot, run, round, epoch, outcome }));
        }
    }

    /// Lets the device carry out its newest command.
    fn finish(&mut self, index: usize) {
        let Some(command) = self.fleet[index].newest.clone() else { return };
        match command.order {
            Order::Train(_) => {
                let verdict =
                    self.run.judge_offer(&device(index), command.run, command.round, command.epoch, &report(80));
                if verdict == Verdict::Wanted {
                    let update = Digest([index as u8 + 100; 32]);
                    let (device, epoch) = (device(index), command.epoch);
                    self.step(Event::UpdateStored { device, epoch, update, report: report(80), distance: 1.0 });
                }
            }
            Order::Evaluate(order) => {
                let correct = order.examples / 2;
                let report = EvaluationReport {
                    examples: order.examples,
                    correct,
                    loss_sum: 1.5 * order.examples as f64,
                    evaluate_ms: 10,
                    peak_rss_bytes: 1,
                    metrics: skiff_protocol::metrics::TaskMetrics::Unknown,
                };
                self.answer(index, Outcome::Evaluated(report));
            }
            Order::Stop => self.answer(index, Outcome::Stopped),
        }
    }

    fn merge(&mut self) {
        if let (Some(job), Phase::Merge(_)) = (self.merges.last().cloned(), &self.run.ledger.phase) {
            let weights = Digest::of(&job.epoch.to_le_bytes());
            self.step(Event::MergeEnded {
                run: job.run,
                epoch: job.epoch,
                merged: Ok(Merged { weights, moments: None }),
            });
        }
    }

    fn crash(&mut self) {
        let (run, actions) = Run::resume(&self.journal, Timestamp(self.now)).unwrap();
        self.run = run;
        self.fleet.iter_mut().for_each(|twin| {
            twin.gone_since = None;
            twin.last_sent_ms = None;
        });
        self.carry_out(actions);
        for index in 0..self.fleet.len() {
            if self.fleet[index].present { self.arrive(index) } else { self.leave(index) }
        }
    }

    fn advance(&mut self, millis: u64) {
        self.now += millis;
        self.step(Event::Tick);
    }

    fn everybody_finishes(&mut self) {
        (0..self.fleet.len()).for_each(|index| self.finish(index));
    }

    fn outcomes(&self) -> Vec<Option<&str>> {
        self.run.ledger.closed.iter().map(|closed| closed.skipped.as_deref()).collect()
    }
}

#[test]
fn a_run_goes_from_evaluation_to_evaluation() {
    let mut world = World::with_everybody(settings(), 3);
    assert!(matches!(world.run.ledger.phase, Phase::Evaluate(_)));
    world.everybody_finishes();
    for _ in 0..2 {
        assert!(matches!(world.run.ledger.phase, Phase::Train(_)));
        world.advance(1_500);
        world.everybody_finishes();
        world.merge();
        world.everybody_finishes();
    }
    assert_eq!(world.run.ledger.phase, Phase::Ended(None));
    assert_eq!(world.outcomes(), [None, None]);
    let view = crate::views::current_run(&world.run, &BTreeMap::new(), Timestamp(world.now));
    assert_eq!((view.accuracy_before, view.accuracy_after), (Some(0.5), Some(0.5)));
    assert_eq!((view.phase, view.elapsed_ms), (progress::Phase::Completed, 3_000));
    assert_eq!(view.closed[0].train_ms, 1_500);
    assert_eq!(view.closed[0].evaluated_examples, 60);
    assert_eq!(view.closed[1].evaluated_examples, 80);
    assert_eq!(world.run.ledger.totals[&device(0)].mean_active_layers(), Some(3.0));
    assert_eq!(world.run.deadline(), None);
}

#[test]
fn without_evaluations_a_run_only_trains() {
    let mut world = World::with_everybody(RunSettings { evaluate_examples: 0, final_examples: 0, ..settings() }, 3);
    for _ in 0..2 {
        world.everybody_finishes();
        world.merge();
    }
    assert_eq!(world.run.ledger.phase, Phase::Ended(None));
    assert!(world.sent.iter().all(|(_, command)| matches!(command.order, Order::Train(_))));
}

/// Returns a world in the training of the first round.
fn training(devices: usize) -> World {
    let mut world =
        World::with_everybody(RunSettings { final_examples: 0, evaluate_examples: 0, ..settings() }, devices);
    assert!(matches!(world.run.ledger.phase, Phase::Train(_)));
    world.sent.clear();
    world
}

#[test]
fn a_lost_device_is_not_waited_for_beyond_its_grace_once_the_quorum_is_there() {
    let mut world = training(3);
    world.leave(2);
    world.finish(0);
    world.advance(10_000);
    assert!(matches!(world.run.ledger.phase, Phase::Train(_)), "no quorum yet");
    world.finish(1);
    assert!(matches!(world.run.ledger.phase, Phase::Merge(_)));
    let mut world = training(3);
    world.finish(0);
    world.finish(1);
    world.leave(2);
    world.advance(2_999);
    assert!(matches!(world.run.ledger.phase, Phase::Train(_)), "within its grace");
    assert_eq!(world.run.deadline(), Some(Timestamp(world.now + 1)));
    world.advance(1);
    assert!(matches!(world.run.ledger.phase, Phase::Merge(_)));
}

#[test]
fn a_device_that_comes_back_is_sent_its_open_command_at_once() {
    let mut world = training(3);
    let before = world.fleet[1].newest.clone();
    world.answer(1, Outcome::Accepted { has_weights: true });
    world.leave(1);
    world.advance(100);
    world.reboot(1);
    assert_eq!(world.sent.last().map(|(index, command)| (*index, Some(command.clone()))), Some((1, before)));
    let sent = world.sent.len();
    world.arrive(1);
    assert_eq!(world.sent.len(), sent, "the same birth again changes nothing");
}

#[test]
fn only_those_who_are_here_or_waited_for_are_remembered() {
    let mut world = training(4);
    let stranger = (0..4).find(|&index| !world.run.ledger.selected.contains(&device(index))).unwrap();
    world.leave(stranger);
    (10..1_000).for_each(|index| world.step(Event::DeviceGone(device(index))));
    assert_eq!(world.run.attendance.len(), 3);
    let lost = World::index(world.run.ledger.selected.first().unwrap());
    world.leave(lost);
    assert_eq!(world.run.grace_ends_ms(&device(lost)), Some(world.now + 3_000));
}

#[test]
fn a_command_is_repeated_until_answered_and_seldom_after() {
    let mut world = training(3);
    world.answer(0, Outcome::Accepted { has_weights: false });
    assert_eq!(world.offers, [0]);
    for _ in 0..9 {
        world.advance(1_000);
    }
    let count = |world: &World, index| world.sent.iter().filter(|(to, _)| *to == index).count();
    assert_eq!((count(&world, 0), count(&world, 1)), (0, 4));
    world.advance(1_000);
    assert_eq!(count(&world, 0), 1);
}

#[test]
fn a_stored_update_is_confirmed_again_and_counted_once() {
    let mut world = training(3);
    let epoch = world.run.ledger.epoch;
    let event =
        Event::UpdateStored { device: device(0), epoch, update: Digest([9; 32]), report: report(80), distance: 1.0 };
    world.step(event.clone());
    world.step(event);
    assert_eq!(world.confirmed, [0, 0]);
    assert_eq!(world.run.judge_offer(&device(0), RUN, 1, epoch, &report(80)), Verdict::Stored);
    assert_eq!(world.run.ledger.totals[&device(0)].updates, 1);
}

#[test]
fn what_was_not_ordered_is_refused_with_the_reason() {
    let world = training(3);
    let epoch = world.run.ledger.epoch;
    let judge = |index, run, round, epoch, report: &TrainReport| match world.run.judge_offer(
        &device(index),
        run,
        round,
        epoch,
        report,
    ) {
        Verdict::Refused(reason) => reason,
        verdict @ (Verdict::Wanted | Verdict::Stored) => panic!("{verdict:?}"),
    };
    assert!(judge(0, RunId(8), 1, epoch, &report(80)).contains("run 0000000000000008 is over"));
    assert!(judge(0, RUN, 1, epoch - 2, &report(80)).contains("closed"));
    assert!(judge(5, RUN, 1, epoch, &report(80)).contains("not selected"));
    assert!(judge(0, RUN, 1, epoch, &report(81)).contains("expected 1 to 80"));
}

#[test]
fn a_late_update_is_refused_and_its_device_told_to_stop() {
    let mut world = training(3);
    let epoch = world.run.ledger.epoch;
    world.answer(2, Outcome::Accepted { has_weights: true });
    world.finish(0);
    world.finish(1);
    world.advance(60_000);
    assert!(matches!(world.run.ledger.phase, Phase::Merge(_)));
    let (index, stop) = world.sent.last().cloned().unwrap();
    assert_eq!((index, stop.epoch, stop.order), (2, epoch + 1, Order::Stop));
    world.step(Event::UpdateStored {
        device: device(2),
        epoch,
        update: Digest([9; 32]),
        report: report(80),
        distance: 1.0,
    });
    assert_eq!(world.refused.len(), 1);
    assert!(world.refused[0].1.contains("closed"), "{:?}", world.refused);
    for _ in 0..20 {
        world.advance(REPEAT_MS);
    }
    let stops = world.sent.iter().filter(|(_, command)| command.order == Order::Stop).count();
    assert_eq!(stops, MAX_STOPS as usize, "told so often, and no more");
}

#[test]
fn over_selection_closes_with_the_updates_that_were_wanted() {
    let settings = RunSettings { over_selection: 1, final_examples: 0, evaluate_examples: 0, ..settings() };
    let mut world = World::new(settings, 5);
    // The first three would do; a fourth is taken where it is there in time.
    for index in 0..5 {
        world.step(Event::Tick);
        world.fleet[index].present = true;
    }
    let here = Here {
        boot: BootId(0),
        train_examples: 5,
        test_examples: 5,
        place: Place::default(),
        memory: StepMemory::default(),
    };
    (0..5).for_each(|index| world.step(Event::DeviceHere(device(index), here.clone())));
    let first: BTreeSet<usize> = world.run.ledger.selected.iter().map(World::index).collect();
    assert_eq!(first, BTreeSet::from([0, 1, 2]));
    first.iter().for_each(|&index| world.finish(index));
    world.merge();
    let second: Vec<usize> = world.run.ledger.selected.iter().map(World::index).collect();
    assert_eq!(second.len(), 4);
    second.iter().take(3).for_each(|&index| world.finish(index));
    assert!(matches!(world.run.ledger.phase, Phase::Merge(_)));
    assert_eq!(world.merges.last().unwrap().updates.len(), 3);
}

#[test]
fn a_round_without_quorum_is_skipped_and_the_next_one_tried() {
    let mut world = training(3);
    world.finish(0);
    world.leave(1);
    world.leave(2);
    world.advance(60_000);
    assert!(world.outcomes()[0].unwrap().contains("1 of 3 updates at the deadline, the quorum is 2"));
    assert_eq!(world.run.ledger.round, 2);
    world.advance(10_000);
    assert!(world.outcomes()[1].unwrap().contains("only 1 devices were online, the quorum is 2"));
    let reason = "no update was merged in 2 rounds; only 1 devices were online, the quorum is 2";
    assert_eq!(world.run.ledger.phase, Phase::Ended(Some(reason.into())));
    assert!(world.run.ledger.has_failed());
}

#[test]
fn a_run_without_a_merged_update_fails_with_the_reason_of_each_device() {
    for max_skipped in [1, 10] {
        let mut world = World::with_everybody(
            RunSettings { final_examples: 0, evaluate_examples: 0, max_skipped, ..settings() },
            3,
        );
        let rounds = max_skipped.min(2);
        for _ in 0..rounds {
            (0..3).for_each(|index| world.answer(index, Outcome::Refused { reason: format!("no data {index}") }));
        }
        let view = crate::views::current_run(&world.run, &BTreeMap::new(), Timestamp(world.now));
        assert_eq!(view.phase, progress::Phase::Failed, "{view:?}");
        let reason = view.reason.unwrap();
        let start = format!("no update was merged in {rounds} round");
        assert!(reason.starts_with(&start) && reason.contains("dev0: no data 0; dev1: no data 1"), "{reason}");
    }
}

#[test]
fn a_run_that_the_operator_stops_is_stopped_and_one_that_merged_something_is_completed() {
    let mut stopped = training(3);
    stopped.step(Event::StopRequested { reason: "stopped by the operator".into() });
    assert!(!stopped.run.ledger.has_failed());
    let mut merged = training(3);
    merged.everybody_finishes();
    merged.merge();
    (0..3).for_each(|index| merged.answer(index, Outcome::Refused { reason: "on battery".into() }));
    assert_eq!(merged.run.ledger.phase, Phase::Ended(None));
    assert!(!merged.run.ledger.has_failed());
}

#[test]
fn a_round_whose_devices_refuse_is_skipped_at_once() {
    let mut world = training(3);
    world.answer(0, Outcome::Refused { reason: "on battery".into() });
    assert!(matches!(world.run.ledger.phase, Phase::Train(_)), "two are left");
    let epoch = world.run.ledger.epoch;
    world.step(Event::UpdateUnfit { device: device(1), epoch, reason: "not finite".into() });
    let reason = world.outcomes()[0].unwrap();
    assert!(reason.contains("dev0: on battery; dev1: not finite"), "{reason}");
}

#[test]
fn a_failed_merge_skips_the_round_and_keeps_the_weights() {
    let mut world = training(3);
    let (before, epoch) = (world.run.ledger.weights, world.run.ledger.epoch);
    world.everybody_finishes();
    let run = world.run.ledger.start.run;
    world.step(Event::MergeEnded {
        run,
        epoch: epoch - 2,
        merged: Ok(Merged { weights: Digest([8; 32]), moments: None }),
    });
    world.step(Event::MergeEnded {
        run: RunId(run.0 + 1),
        epoch,
        merged: Ok(Merged { weights: Digest([8; 32]), moments: None }),
    });
    assert!(matches!(world.run.ledger.phase, Phase::Merge(_)), "the end of another merge");
    world.step(Event::MergeEnded { run, epoch, merged: Err("disk full".into()) });
    assert_eq!(world.outcomes(), [Some("disk full")]);
    assert_eq!(world.run.ledger.weights, before);
}

#[test]
fn an_evaluation_without_answers_ends_at_its_deadline() {
    let mut world = World::with_everybody(settings(), 3);
    (1..3).for_each(|index| world.answer(index, Outcome::Accepted { has_weights: true }));
    world.finish(0);
    world.advance(30_000);
    assert_eq!(world.run.ledger.accuracy_before, Some(0.5), "on what one device found");
    assert!(matches!(world.run.ledger.phase, Phase::Train(_)));
}

/// Two devices answer, and one never does: it costs each round at most 30 s, and the next rounds nothing.
#[test]
fn a_device_that_never_answers_is_out_and_rests_longer_each_time() {
    let mut world = World::with_everybody(RunSettings { rounds: 9, ..settings() }, 3);
    let started = world.now;
    world.finish(0);
    world.finish(1);
    world.advance(ANSWER_MS);
    assert!(matches!(world.run.ledger.phase, Phase::Train(_)), "the evaluation ended without it");
    let trains = |world: &World| world.run.ledger.order_of(&device(2)).is_some();
    assert!(!trains(&world), "it gets no order for a while");
    for _ in 0..2 {
        world.finish(0);
        world.finish(1);
        world.merge();
        world.finish(0);
        world.finish(1);
    }
    assert_eq!(world.now, started + ANSWER_MS, "the other rounds did not wait");
    let is_silent = |world: &World| world.run.attendance.is_silent(&device(2), world.now);
    assert!(is_silent(&world));
    (0..2).for_each(|index| world.answer(index, Outcome::Accepted { has_weights: true }));
    world.advance(60_000);
    assert!(!is_silent(&world), "its pause is over");
}

#[test]
fn a_report_that_cannot_be_is_not_counted() {
    let mut world = World::with_everybody(settings(), 3);
    let lie = EvaluationReport {
        examples: 10_000,
        correct: 10_000,
        loss_sum: 0.0,
        evaluate_ms: 1,
        peak_rss_bytes: 1,
        metrics: skiff_protocol::metrics::TaskMetrics::Unknown,
    };
    world.answer(0, Outcome::Evaluated(lie));
    world.finish(1);
    world.finish(2);
    assert_eq!(world.run.ledger.accuracy_before, Some(0.5));
}

#[test]
fn the_same_round_goes_on_after_a_crash_and_asks_only_for_what_is_missing() {
    let mut world = training(3);
    world.finish(0);
    let ledger = world.run.ledger.clone();
    world.sent.clear();
    world.now += 500;
    world.crash();
    assert_eq!((world.run.ledger.round, world.run.ledger.epoch), (ledger.round, ledger.epoch));
    let asked: Vec<usize> = world.sent.iter().map(|(index, _)| *index).collect();
    assert_eq!(asked, [1, 2]);
    world.finish(1);
    world.finish(2);
    assert_eq!(world.merges.last().unwrap().updates.len(), 3);
    let job = world.merges.pop().unwrap();
    world.crash();
    assert_eq!(world.merges.last(), Some(&job), "an interrupted merge is ordered again");
}

#[test]
fn the_time_without_a_coordinator_does_not_count() {
    let mut world = training(3);
    world.advance(50_000);
    world.now += 3_600_000;
    world.crash();
    assert!(matches!(world.run.ledger.phase, Phase::Train(_)));
    assert_eq!(world.run.ledger.deadline_ms(), Some(world.now + 60_000));
}

#[test]
fn a_stopped_run_tells_its_devices() {
    let mut world = training(3);
    world.step(Event::StopRequested { reason: "enough".into() });
    assert_eq!(world.run.ledger.phase, Phase::Ended(Some("enough".into())));
    assert_eq!(world.sent.iter().filter(|(_, command)| command.order == Order::Stop).count(), 3);
    world.everybody_finishes();
    assert_eq!(world.run.deadline(), None, "everybody has stopped");
}

#[test]
fn a_bandit_learns_from_the_journal_as_it_did_live() {
    let rates =
        Rates::Bandit(Bandit { means: vec![0.0, 0.5], epsilon: 0.1, shapes: vec![Shape::Normal], ..Bandit::default() });
    let mut world = World::with_everybody(RunSettings { rounds: 6, rates, ..settings() }, 3);
    world.everybody_finishes();
    for _ in 0..6 {
        (0..3).for_each(|index| {
            world.advance(700);
            world.finish(index);
        });
        world.merge();
        world.everybody_finishes();
    }
    let reasons: Vec<&str> = world
        .journal
        .iter()
        .filter_map(|entry| {
            if let Record::TrainingStarted { assignments, .. } = &entry.record { Some(assignments) } else { None }
        })
        .flat_map(|assignments| assignments.values().map(|assigned| assigned.choice.reason.as_str()))
        .collect();
    assert!(reasons[..3].iter().any(|reason| reason.contains("no device has tried it yet")), "{reasons:?}");
    assert!(reasons[..3].iter().any(|reason| reason.contains("enough other devices do")), "a budget: {reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("best expected gain")), "{reasons:?}");

    let told = explain(&world.journal, Some(&device(1)), Some(2)).unwrap();
    assert_eq!(told.len(), 1);
    let text = told[0].to_string();
    assert!(text.starts_with("round 2, dev1\n  choice"), "{text}");
    assert!(text.contains("update after 1.40 s") && text.contains("measured gain 0.1000 nats of loss"), "{text}");
    assert!(text.contains("\n    mean 0.5, normal: 0.0"), "{text}");
    assert_eq!(explain(&world.journal, None, None).unwrap().len(), 18, "every order of the run");
}

#[test]
fn what_came_of_an_order_is_told_also_where_it_was_nothing() {
    let mut world = training(3);
    world.finish(0);
    world.answer(1, Outcome::Refused { reason: "no memory".to_owned() });
    let told = explain(&world.journal, None, Some(1)).unwrap();
    let texts: Vec<String> = told.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("update after"), "{texts:?}");
    assert!(texts[1].contains("left the round") && texts[1].contains("no memory"), "{texts:?}");
    assert!(texts[2].contains("result: none yet"), "{texts:?}");
}

#[test]
fn a_device_without_room_for_a_layer_is_not_asked_and_one_with_little_room_drops() {
    let mut world = World::new(RunSettings { evaluate_examples: 0, final_examples: 0, quorum: 1, ..settings() }, 3);
    for (index, limit_bytes) in [(0, 20 << 20), (1, 130 << 20), (2, 0)] {
        world.fleet[index].present = true;
        // Of texts as long as the settings have them.
        let memory = StepMemory { limit_bytes, process_bytes: 10 << 20, step_bytes: 20 << 20, layer_bytes: 50 << 20 };
        let place = Place::default();
        let here = Here { boot: BootId(0), train_examples: 500, test_examples: 20, place, memory };
        world.step(Event::DeviceHere(device(index), here));
    }
    world.advance(10_000);
    let Phase::Train(training) = &world.run.ledger.phase else { panic!("{:?}", world.run.ledger.phase) };
    let most: Vec<_> =
        training.assignments.iter().map(|(d, assigned)| (d.as_str(), assigned.assignment.choice.most_active)).collect();
    assert_eq!(most, [("dev1", 2), ("dev2", 4)]);
    let sent = world.sent.iter().find(|(to, _)| *to == 1).map(|(_, command)| command.order.clone());
    let Some(Order::Train(order)) = sent else { panic!("{sent:?}") };
    assert_eq!((order.most_active, order.rates), (2, lower_half()));
}

#[test]
fn an_update_far_out_is_refused_with_a_reason_once_there_is_something_to_compare_it_with() {
    let rounds = RunSettings { rounds: 9, evaluate_examples: 0, final_examples: 0, ..settings() };
    let mut world = World::with_everybody(rounds, 3);
    for _ in 0..3 {
        world.everybody_finishes();
        world.merge();
    }
    let epoch = world.run.ledger.epoch;
    let event =
        Event::UpdateStored { device: device(0), epoch, update: Digest([9; 32]), report: report(80), distance: 10.5 };
    world.step(event);
    assert!(
        matches!(&world.refused[..], [(0, reason)] if reason.contains("away from the weights it started from")),
        "{:?}",
        world.refused
    );
    let Phase::Train(training) = &world.run.ledger.phase else { panic!("{:?}", world.run.ledger.phase) };
    assert!(training.out.contains_key(&device(0)));
}

#[test]
fn a_device_too_slow_to_deliver_is_known_by_the_pace_of_its_steps() {
    let quiet =
        RunSettings { evaluate_examples: 0, final_examples: 0, steps: 10, train_ms: 10_000, quorum: 1, ..settings() };
    let mut world = World::with_everybody(quiet, 2);
    let pace = Some(Pace { step_ms: 1_600.0, active_layers: 4.0, other_ms: 0.0 });
    world.run.set_condition(&device(0), Condition { pace, ..Condition::default() });
    // A sample between two steps says nothing of it.
    world.run.set_condition(&device(0), Condition { celsius: Some(30.0), ..Condition::default() });
    world.advance(10_000);
    world.finish(1);
    world.advance(10_000);
    world.merge();
    let Phase::Train(training) = &world.run.ledger.phase else { panic!("{:?}", world.run.ledger.phase) };
    let Choice { rates, reason, .. } = &training.assignments[&device(0)].assignment.choice;
    assert!(reason.contains("the deadline allows 2.0 layers per step"), "{reason}");
    assert!((rates.expected_active() - 2.0).abs() < 1e-3, "{rates:?}");
}

#[test]
fn another_policy_holds_from_the_next_order_on_and_is_in_the_journal() {
    let mut world = training(3);
    let policy = |sharing| Policy { sharing, ..Policy::default() };
    let plan = |world: &World| {
        let Phase::Train(training) = &world.run.ledger.phase else { panic!("{:?}", world.run.ledger.phase) };
        training.assignments[&device(0)].assignment.share.plan.clone()
    };
    world.step(Event::PolicySet(policy(skiff_api::policy::Sharing::LeastImportant(99))));
    assert_eq!(world.run.ledger.policy, Policy::default(), "a policy that the model cannot keep");
    world.step(Event::PolicySet(policy(skiff_api::policy::Sharing::LeastImportant(2))));
    assert_eq!(plan(&world), skiff_protocol::messages::SharingPlan::All, "an order stays as it was given");
    world.everybody_finishes();
    world.merge();
    world.crash();
    assert_eq!(plan(&world), skiff_protocol::messages::SharingPlan::LeastImportant { k: 2 });
}

/// Returns the rates that drop the lower half of four layers first.
fn lower_half() -> Vec<f32> {
    crate::run::configurator::arms::rates(0.5, Shape::Decreasing, 4, &[]).to_vec()
}

#[test]
fn a_group_has_its_plan_and_a_hot_device_is_spared() {
    let group = skiff_api::policy::Group {
        name: "small".into(),
        class: Some("tx2".into()),
        sharing: Some(skiff_api::policy::Sharing::LeastImportant(2)),
        rank: 3,
        ..skiff_api::policy::Group::default()
    };
    let quiet = RunSettings { evaluate_examples: 0, final_examples: 0, groups: vec![group], devices: 2, ..settings() };
    let mut world = World::new(quiet, 2);
    for index in 0..2 {
        world.fleet[index].present = true;
        let place = Place { class: if index == 0 { "tx2".into() } else { String::new() }, ..Place::default() };
        let memory = StepMemory::default();
        let here = Here { boot: BootId(0), train_examples: 500, test_examples: 20, place, memory };
        if index == 1 {
            world.run.set_condition(&device(0), Condition { celsius: Some(90.0), ..Condition::default() });
        }
        world.step(Event::DeviceHere(device(index), here));
    }
    let orders: Vec<TrainOrder> = world
        .sent
        .iter()
        .filter_map(|(_, command)| if let Order::Train(order) = &command.order { Some(order.clone()) } else { None })
        .collect();
    assert_eq!(
        (&orders[0].sharing, orders[0].rank),
        (&skiff_protocol::messages::SharingPlan::LeastImportant { k: 2 }, 3)
    );
    assert_eq!((&orders[1].sharing, orders[1].rank), (&skiff_protocol::messages::SharingPlan::All, 0));
    assert_eq!((orders[0].rates.clone(), orders[1].rates.clone()), (lower_half(), vec![0.0; 4]));
    let epoch = world.run.ledger.epoch;
    let mut shared = report(80);
    assert!(matches!(world.run.judge_offer(&device(0), RUN, 1, epoch, &shared), Verdict::Refused(_)));
    shared.shared_layers = vec![1, 3];
    assert_eq!(world.run.judge_offer(&device(0), RUN, 1, epoch, &shared), Verdict::Wanted);
}

/// Returns a world in its second round, in which two updates close a round and four devices train at a time.
fn asynchronous(max_staleness: u32) -> World {
    let (rounds, devices, over_selection) = (5, 2, 2);
    let settings = RunSettings { rounds, devices, over_selection, max_staleness, asynchronous: true, ..settings() };
    let mut world = World::with_everybody(RunSettings { final_examples: 0, evaluate_examples: 0, ..settings }, 4);
    world.everybody_finishes();
    world.merge();
    assert_eq!(epochs(&world), [4; 4]);
    (world.merges, world.confirmed) = (vec![], vec![]);
    world
}

fn epochs(world: &World) -> Vec<u64> {
    world.fleet.iter().map(|twin| twin.newest.as_ref().map_or(0, |command| command.epoch)).collect()
}

#[test]
fn asynchronous_devices_train_on_while_rounds_close() {
    let mut world = asynchronous(20);
    let initial = world.run.ledger.weights;
    world.advance(500);
    (0..2).for_each(|index| world.finish(index));
    assert!(world.merges[0].updates.iter().all(|input| input.stale.is_none()));
    // One more comes while the others are being merged, under the order that it has.
    world.finish(2);
    assert_eq!(world.confirmed, [0, 1, 2]);
    world.merge();
    assert_eq!(epochs(&world), [6, 6, 4, 4], "who delivered is ordered anew, the others are not stopped");
    assert_eq!(world.run.ledger.phase_ms, world.now);
    world.finish(2);
    assert_eq!(world.confirmed.len(), 3, "its update counts once");
    world.crash();
    world.advance(500);
    world.finish(0);
    let stale: Vec<_> = world.merges[1].updates.iter().map(|input| (input.device.as_str(), input.stale)).collect();
    assert_eq!(stale, [("dev0", None), ("dev2", Some((initial, 1)))]);
    let told = explain(&world.journal, Some(&device(2)), Some(2)).unwrap();
    assert!(told[0].to_string().contains("update after 0.50 s"), "{}", told[0]);
    assert!(world.run.ledger.needed().contains(&initial), "the last one still trains from it");
    world.merge();
    (0..4).for_each(|_| {
        (0..3).for_each(|index| world.finish(index));
        world.merge();
    });
    assert_eq!(world.outcomes(), [None; 5]);
    assert_eq!(world.run.ledger.phase, Phase::Ended(None));
    assert_eq!(world.fleet[3].newest.as_ref().map(|newest| &newest.order), Some(&Order::Stop), "the run is over");
}

#[test]
fn an_asynchronous_device_that_is_too_far_behind_is_stopped() {
    let mut world = asynchronous(0);
    (0..2).for_each(|index| world.finish(index));
    world.merge();
    assert!(matches!(world.fleet[3].newest.as_ref().unwrap().order, Order::Stop));
    let told = explain(&world.journal, Some(&device(3)), Some(2)).unwrap();
    assert!(told[0].to_string().contains("its weights are more than 0 merges behind"), "{}", told[0]);
}

#[test]
fn a_journal_out_of_order_is_named() {
    let mut world = training(3);
    world.everybody_finishes();
    let mut journal = world.journal.clone();
    journal.remove(1);
    let error = Ledger::replay(&journal).unwrap_err();
    assert_eq!(error.at, 1);
    assert!(error.to_string().contains("record 1 (UpdateStored"), "{error}");
    assert!(Ledger::replay(&journal[1..]).unwrap_err().to_string().contains("record 0"));
    assert!(Ledger::replay(&[]).unwrap_err().to_string().contains("missing"));
    // Rates for another number of layers than the model has.
    let mut short = world.journal.clone();
    let Record::TrainingStarted { assignments, .. } = &mut short[1].record else { panic!("{:?}", short[1]) };
    assignments.values_mut().for_each(|order| order.choice.rates = DropoutRates::new(vec![0.0]).unwrap());
    assert_eq!(Ledger::replay(&short).unwrap_err().at, 1);
}

#[derive(Clone, Debug)]
enum Op {
    Arrive(usize),
    Reboot(usize),
    Leave(usize),
    Remove(usize),
    Accept(usize, bool),
    Finish(usize),
    Refuse(usize),
    OldAnswer(usize, u64),
    Unfit(usize),
    Merge,
    MergeFails,
    Crash,
    Advance(u64),
}

const DEVICES: usize = 5;

fn op() -> impl Strategy<Value = Op> {
    let index = || 0..DEVICES;
    prop_oneof![
        4 => index().prop_map(Op::Arrive),
        1 => index().prop_map(Op::Reboot),
        2 => index().prop_map(Op::Leave),
        1 => index().prop_map(Op::Remove),
        3 => (index(), any::<bool>()).prop_map(|(index, has)| Op::Accept(index, has)),
        12 => index().prop_map(Op::Finish),
        1 => index().prop_map(Op::Refuse),
        1 => (index(), 0u64..20).prop_map(|(index, epoch)| Op::OldAnswer(index, epoch)),
        1 => index().prop_map(Op::Unfit),
        4 => Just(Op::Merge),
        1 => Just(Op::MergeFails),
        2 => Just(Op::Crash),
        3 => prop_oneof![1u64..100, 1_000u64..4_000, 10_000u64..70_000].prop_map(Op::Advance),
    ]
}

fn apply(world: &mut World, op: Op) {
    match op {
        Op::Arrive(index) => world.arrive(index),
        Op::Reboot(index) => world.reboot(index),
        Op::Leave(index) => world.leave(index),
        Op::Remove(index) => world.remove(index),
        Op::Accept(index, has_weights) => world.answer(index, Outcome::Accepted { has_weights }),
        Op::Finish(index) => world.finish(index),
        Op::Refuse(index) => world.answer(index, Outcome::Refused { reason: "busy".into() }),
        Op::OldAnswer(index, epoch) => {
            let before = world.run.ledger.clone();
            let report = EvaluationReport {
                examples: 1,
                correct: 1,
                loss_sum: 0.1,
                evaluate_ms: 1,
                peak_rss_bytes: 1,
                metrics: skiff_protocol::metrics::TaskMetrics::Unknown,
            };
            let (boot, epoch) = (BootId(0), before.epoch.saturating_sub(2 + epoch));
            let answer = Answer { boot, run: RUN, round: 0, epoch, outcome: Outcome::Evaluated(report) };
            world.step(Event::Answered(device(index), answer));
            assert_eq!(world.run.ledger, before);
        }
        Op::Unfit(index) => {
            let epoch = world.run.ledger.epoch;
            world.step(Event::UpdateUnfit { device: device(index), epoch, reason: "NaN".into() });
        }
        Op::Merge => world.merge(),
        Op::MergeFails => {
            let (run, epoch) = (world.run.ledger.start.run, world.run.ledger.epoch);
            world.step(Event::MergeEnded { run, epoch, merged: Err("disk full".into()) });
        }
        Op::Crash => world.crash(),
        Op::Advance(millis) => world.advance(millis),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Checks that [`World::check`] holds after each step whatever happens, and that deadlines alone bring the run to its end.
    #[test]
    fn prop_a_run_survives_anything_and_ends(
        ops in proptest::collection::vec(op(), 0..80), over_selection in 0u32..2, quorum in 1u32..=3, evaluates in any::<bool>(),
        asynchronous in any::<bool>(), max_staleness in 0u32..3,
    ) {
        let evaluate_examples = if evaluates { 60 } else { 0 };
        let rates = Rates::Bandit(Bandit {
            means: vec![0.0, 0.3],
            epsilon: 0.5,
            shapes: vec![Shape::Increasing],
            schedules: vec![Schedule::Constant, Schedule::WarmUp],
            ..Bandit::default()
        });
        let settings = RunSettings {
            rounds: 3, over_selection, quorum, asynchronous, max_staleness, evaluate_examples, rates, ..settings()
        };
        let mut world = World::new(settings, DEVICES);
        ops.into_iter().for_each(|op| apply(&mut world, op));
        let mut steps = 0;
        while !world.run.ledger.is_ended() {
            world.merge();
            if let Some(deadline) = world.run.deadline() {
                world.now = deadline.0;
                world.step(Event::Tick);
            }
            steps += 1;
            prop_assert!(steps < 2_000, "the run does not end");
        }
        prop_assert_eq!(world.run.ledger.closed.len(), 3);
    }

    #[test]
    fn prop_shares_are_even_and_use_what_there_is(total in 0u64..500, held in proptest::collection::vec(0u64..200, 0..8)) {
        let held: BTreeMap<DeviceId, u64> = held.into_iter().enumerate().map(|(index, n)| (device(index), n)).collect();
        let shares = selection::share(total, &held);
        prop_assert_eq!(shares.values().sum::<u64>(), total.min(held.values().sum()));
        prop_assert!(shares.iter().all(|(device, &share)| share > 0 && share <= held[device]));
        let most = shares.values().max().copied().unwrap_or(0);
        let capped_or_even = |(device, &examples): (&DeviceId, &u64)| {
            let share = shares.get(device).copied().unwrap_or(0);
            share == examples || share + 1 >= most
        };
        prop_assert!(held.iter().all(capped_or_even));
    }

    #[test]
    fn prop_records_read_back_as_they_were_written(seed in any::<u64>(), accuracy in any::<f64>().prop_filter("a number", |x| !x.is_nan())) {
        let evaluated = Record::Evaluated(Evaluation { devices: 1, examples: seed, correct: 2, loss_sum: accuracy, ..Evaluation::default() });
        let sharing = skiff_api::policy::Sharing::LeastImportant(2);
        let started = Record::RunStarted(begin(RunSettings { seed, sharing, ..settings() }));
        for record in [evaluated, started] {
            let entry = Entry { at_ms: seed, record };
            let (bytes, checksum) = journal::Entry::from(&entry).encode(RUN, 0);
            let read = journal::Entry::decode(RUN, 0, &bytes, &checksum).unwrap();
            prop_assert_eq!(Entry::try_from(read).unwrap(), entry);
        }
    }
}
