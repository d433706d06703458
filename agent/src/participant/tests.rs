//! The engine on a small disk and a small coordinator, in virtual time: named cases, then any order of events, with a
//! crash after any action.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "tests")]

use super::*;
use proptest::prelude::*;
use skiff_protocol::messages::{
    Announcement, Birth, EvaluateOrder, EvaluationReport, Machine, Place, SharingPlan, StepMemory, TrainReport,
};
use skiff_protocol::samples;
use skiff_protocol::transfer::Held;
use std::collections::{BTreeMap, VecDeque};

const LAYERS: usize = 4;
const DEADLINE_MS: u64 = 60_000;

fn schema() -> Digest {
    Digest::of(b"schema")
}

fn profile(boot: u64) -> Profile {
    let machine = Machine { arch: "test".into(), os: "test".into(), cores: 1, memory_bytes: 1 };
    let birth = Birth {
        speaks: skiff_protocol::VersionRange::OURS,
        boot: BootId(boot),
        agent_version: "0.0.0".into(),
        pack: Digest::of(b"pack"),
        train_examples: 10,
        test_examples: 10,
        machine,
        place: Place::default(),
        memory: StepMemory::default(),
    };
    Profile { birth, schema: schema(), layers: LAYERS, protected: vec![1] }
}

fn weights(version: u8) -> Vec<u8> {
    vec![version; 10]
}

/// Returns a command to train. Runs are numbered in the order in which they start.
fn train(run: u64, epoch: u64, version: u8) -> Command {
    let order = TrainOrder {
        weights: Digest::of(&weights(version)),
        schema: schema(),
        seed: 7,
        rates: vec![0.5; LAYERS],
        most_active: 4,
        proximal: 0.0,
        rank: 0,
        probe_examples: 0,
        steps: 3,
        batch: 2,
        max_tokens: 16,
        learning_rate: 1e-3,
        sharing: SharingPlan::All,
        deadline_ms: DEADLINE_MS,
    };
    let round = u32::try_from(epoch).unwrap();
    Command { run: RunId(run), started_ms: run * 1000, round, epoch, order: Order::Train(order) }
}

fn evaluate(run: u64, epoch: u64, version: u8) -> Command {
    let order = EvaluateOrder {
        weights: Digest::of(&weights(version)),
        schema: schema(),
        examples: 10,
        batch: 2,
        max_tokens: 16,
        deadline_ms: DEADLINE_MS,
    };
    Command { order: Order::Evaluate(order), ..train(run, epoch, version) }
}

fn stop(run: u64, epoch: u64) -> Command {
    Command { order: Order::Stop, ..train(run, epoch, 0) }
}

fn evaluation() -> EvaluationReport {
    EvaluationReport {
        examples: 10,
        correct: 9,
        loss_sum: 1.0,
        evaluate_ms: 1,
        peak_rss_bytes: 1,
        metrics: skiff_protocol::metrics::TaskMetrics::Unknown,
    }
}

/// Trains as any device would: the same work gives the same update. In odd rounds the device keeps the layers 2 and 3.
fn training(work: &Work) -> Trained {
    let shared_layers = if work.round.is_multiple_of(2) { vec![0, 1, 2, 3] } else { vec![0, 1] };
    let text = format!("{:?} {} {:?}", work.job, work.round, work.personal);
    let personal = (!work.round.is_multiple_of(2)).then(|| (vec![2, 3], format!("own {text}").into_bytes()));
    let report = TrainReport { shared_layers, importance: vec![1.0; LAYERS], ..samples::train_report() };
    Trained { update: text.into_bytes(), personal, report }
}

/// A device around the engine: its disk survives a crash, the rest is lost.
struct Device {
    engine: Participant,
    now: Timestamp,
    boot: u64,
    memory: Option<Memory>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    worker: Option<Work>,
    said: Vec<Message>,
    sent: Vec<(TransferId, TransferMessage)>,
    /// The update that was offered for a command.
    offered: BTreeMap<(u64, u64), Digest>,
    disk_full: bool,
    /// Number of actions after which this life ends.
    crash_after: Option<usize>,
}

impl Device {
    fn new() -> Self {
        Self {
            engine: Participant::new(profile(0), None, BTreeSet::new()),
            now: Timestamp(0),
            boot: 0,
            memory: None,
            blobs: BTreeMap::new(),
            worker: None,
            said: Vec::new(),
            sent: Vec::new(),
            offered: BTreeMap::new(),
            disk_full: false,
            crash_after: None,
        }
    }

    fn online() -> Self {
        let mut device = Self::new();
        device.tell(Event::LinkUp);
        device.said.clear();
        device
    }

    fn holding(version: u8) -> Self {
        let mut device = Self::online();
        device.command(train(1, 1, version));
        device.bring(1, version);
        device.tell(Event::WorkFailed { ticket: Ticket { run: RunId(1), epoch: 1 }, reason: "x".into() });
        device.worker = None;
        device.said.clear();
        device
    }

    fn restart(&mut self) {
        self.boot += 1;
        self.worker = None;
        self.engine = Participant::new(profile(self.boot), self.memory.clone(), self.blobs.keys().copied().collect());
    }

    fn tell(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.engine.handle(event, self.now) {
                if let Some(left) = &mut self.crash_after {
                    if *left == 0 {
                        self.crash_after = None;
                        return self.restart();
                    }
                    *left -= 1;
                }
                match self.carry_out(action) {
                    Ok(result) => events.extend(result),
                    Err(()) => {
                        events.push_front(Event::StoreFailed { reason: "disk full".into() });
                        break;
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, action: Action) -> Result<Option<Event>, ()> {
        match action {
            Action::Say(message) => self.said.push(message),
            Action::Transfer { id, message } => {
                if let TransferMessage::Offer(offer) = &message {
                    self.check_offer(offer);
                }
                self.sent.push((id, message));
            }
            Action::TransferChunk { digest, .. } => assert!(self.blobs.contains_key(&digest)),
            Action::LookUp(offer) => {
                let whole = self.blobs.contains_key(&offer.digest);
                let found = if whole { Found::Whole } else { Found::Chunks(Held::default()) };
                return Ok(Some(Event::LookedUp { offer, found }));
            }
            Action::StoreChunk { digest, index, .. } => {
                return Ok(Some(Event::Fetched { digest, event: ReceiverEvent::Stored { index } }));
            }
            Action::Assemble { digest, .. } => {
                let bytes = (0..=u8::MAX).map(weights).find(|bytes| Digest::of(bytes) == digest).unwrap();
                self.blobs.insert(digest, bytes);
                return Ok(Some(Event::Fetched { digest, event: ReceiverEvent::Assembled }));
            }
            Action::Keep(_) | Action::Remember(_) if self.disk_full => return Err(()),
            Action::Keep(bytes) => drop(self.blobs.insert(Digest::of(&bytes), bytes)),
            Action::Remember(memory) => {
                if let Some(before) = &self.memory {
                    assert!(before.run != memory.run || before.epoch <= memory.epoch, "an epoch went back");
                    assert!(before.started_ms <= memory.started_ms, "a run that was over came back");
                }
                let needed = memory.blobs();
                self.blobs.retain(|digest, _| needed.contains(digest));
                self.memory = Some(memory);
            }
            Action::Start(work) => {
                assert_eq!(self.worker, None, "started beside other work");
                assert!(self.blobs.contains_key(&work.job.weights()), "started without weights");
                let personal = work.personal.as_ref();
                assert!(personal.is_none_or(|own| own.run == work.ticket.run && self.blobs.contains_key(&own.blob)));
                self.worker = Some(work);
            }
            Action::Cancel => self.worker = None,
        }
        Ok(None)
    }

    /// Checks that a restart would offer the same update.
    fn check_offer(&mut self, offer: &Offer) {
        let Purpose::Update { run, epoch, report, .. } = &offer.purpose else { panic!("devices send updates only") };
        let memory = self.memory.as_ref().expect("remembered before it was offered");
        assert_eq!((memory.run, memory.epoch), (*run, *epoch));
        let stored = Update { blob: offer.digest, total_bytes: offer.total_bytes, report: report.clone() };
        assert_eq!(memory.settled, Settled::Trained(stored));
        assert!(self.blobs.contains_key(&offer.digest), "offered before its blob was stored");
        let first = self.offered.entry((run.0, *epoch)).or_insert(offer.digest);
        assert_eq!(*first, offer.digest, "two updates for one command");
    }

    fn command(&mut self, command: Command) {
        self.tell(Event::Command(command));
    }

    fn offer(&mut self, run: u64, version: u8) -> TransferId {
        let bytes = weights(version);
        let offer = Offer {
            purpose: Purpose::Weights { run: RunId(run) },
            digest: Digest::of(&bytes),
            total_bytes: bytes.len() as u64,
        };
        let id = offer.id();
        self.tell(Event::Transfer { id, message: TransferMessage::Offer(offer) });
        id
    }

    /// Does the coordinator's whole part of a transfer of weights.
    fn bring(&mut self, run: u64, version: u8) {
        let id = self.offer(run, version);
        self.tell(Event::Transfer { id, message: TransferMessage::Chunk { index: 0, bytes: weights(version) } });
    }

    /// Accepts the offered update, as the coordinator would.
    fn take_update(&mut self) {
        let Phase::Offering(sender) = &self.engine.phase else { return };
        let id = sender.id();
        self.tell(Event::Transfer { id, message: TransferMessage::Grant { held: Held::default(), window: 1 } });
        self.tell(Event::Transfer { id, message: TransferMessage::Done });
    }

    fn finish_work(&mut self) {
        let Some(work) = self.worker.take() else { return };
        let ticket = work.ticket;
        match &work.job {
            Job::Train(_) => self.tell(Event::Trained { ticket, trained: training(&work) }),
            Job::Evaluate(_) => self.tell(Event::Evaluated { ticket, report: evaluation() }),
        }
    }

    fn outcomes(&mut self) -> Vec<Outcome> {
        let outcome = |message| match message {
            Message::Answer(answer) => Some(answer.outcome),
            _ => None,
        };
        self.said.drain(..).filter_map(outcome).collect()
    }

    fn offers(&mut self) -> usize {
        self.sent.drain(..).filter(|(_, message)| matches!(message, TransferMessage::Offer(_))).count()
    }
}

const fn accepted(has_weights: bool) -> Outcome {
    Outcome::Accepted { has_weights }
}

fn reason(outcomes: &[Outcome]) -> &str {
    match outcomes {
        [Outcome::Refused { reason }] => reason,
        other => panic!("no refusal: {other:?}"),
    }
}

#[test]
fn a_smaller_memory_limit_goes_to_the_coordinator_with_a_birth() {
    let mut engine = Participant::new(profile(0), None, BTreeSet::new());
    assert_eq!(
        engine.handle(Event::MemoryLimited { limit_bytes: 70 }, Timestamp(0)),
        [],
        "nothing is sent while the link is down"
    );
    let limit = |actions: Vec<Action>| match actions.as_slice() {
        [Action::Say(Message::Birth(birth))] => Some(birth.memory.limit_bytes),
        _ => None,
    };
    assert_eq!(limit(engine.handle(Event::LinkUp, Timestamp(1))), Some(70));
    assert_eq!(limit(engine.handle(Event::MemoryLimited { limit_bytes: 50 }, Timestamp(2))), Some(50));
}

#[test]
fn command_is_accepted_weights_are_fetched_and_the_update_is_handed_in() {
    let mut device = Device::online();
    device.command(train(1, 1, 1));
    assert_eq!(device.outcomes(), [accepted(false)]);
    assert_eq!(device.engine.state(), AgentState::Fetching);
    device.bring(1, 1);
    assert_eq!(device.engine.state(), AgentState::Training);
    assert!(matches!(device.sent.last(), Some((_, TransferMessage::Done))));
    device.finish_work();
    assert_eq!((device.engine.state(), device.offers()), (AgentState::Uploading, 1));
    device.take_update();
    assert_eq!(device.engine.state(), AgentState::Idle);
}

#[test]
fn evaluation_is_answered_and_a_repeated_command_is_answered_again() {
    let mut device = Device::holding(1);
    device.command(evaluate(1, 2, 1));
    device.finish_work();
    assert_eq!(device.outcomes(), [accepted(true), Outcome::Evaluated(evaluation())]);
    device.command(evaluate(1, 2, 1));
    assert_eq!(device.outcomes(), [Outcome::Evaluated(evaluation())]);
    device.restart();
    device.tell(Event::LinkUp);
    device.command(evaluate(1, 2, 1));
    assert_eq!(device.outcomes().last(), Some(&Outcome::Evaluated(evaluation())));
    assert_eq!(device.worker, None);
}

#[test]
fn smaller_epoch_is_ignored_and_a_larger_one_cancels() {
    let mut device = Device::holding(1);
    device.command(train(1, 5, 1));
    let old = device.worker.clone().unwrap();
    device.command(train(1, 4, 1));
    assert_eq!(device.worker.as_ref(), Some(&old));
    device.outcomes();
    device.command(evaluate(1, 6, 1));
    assert_eq!(device.worker.as_ref().unwrap().ticket.epoch, 6);
    device.tell(Event::Trained { ticket: old.ticket, trained: training(&old) });
    assert_eq!((device.outcomes(), device.offers()), (vec![accepted(true)], 0));
}

#[test]
fn stop_ends_the_run_it_names_and_no_other() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    device.command(stop(9, 1));
    assert_eq!(device.outcomes(), [accepted(true), Outcome::Stopped]);
    assert!(device.worker.is_some());
    device.command(stop(1, 3));
    assert_eq!((device.outcomes(), device.worker.is_some()), (vec![Outcome::Stopped], false));
}

#[test]
fn late_command_of_an_older_run_changes_nothing_even_after_a_restart() {
    let mut device = Device::holding(1);
    device.command(train(2, 1, 1));
    let (work, memory) = (device.worker.clone(), device.memory.clone());
    device.outcomes();
    for late in [train(1, 9, 1), evaluate(1, 9, 1)] {
        device.command(late);
        assert_eq!((device.outcomes(), &device.worker, &device.memory), (vec![], &work, &memory));
    }
    device.restart();
    device.tell(Event::LinkUp);
    device.command(train(1, 9, 1));
    assert_eq!((device.outcomes(), &device.worker, &device.memory), (vec![], &None, &memory));
    device.command(train(3, 1, 1));
    assert_eq!(device.worker.unwrap().ticket.run, RunId(3));
}

#[test]
fn unfinished_work_begins_again_after_a_restart_when_the_command_is_repeated() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    let work = device.worker.clone();
    device.restart();
    device.tell(Event::LinkUp);
    assert_eq!(device.worker, None);
    device.command(train(1, 2, 1));
    assert_eq!(device.worker, work);
}

#[test]
fn update_survives_a_restart_and_is_offered_when_the_command_is_repeated() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    device.finish_work();
    device.restart();
    device.tell(Event::LinkUp);
    device.sent.clear();
    device.command(train(1, 2, 1));
    assert_eq!((device.offers(), device.worker.is_some()), (1, false));
    device.take_update();
    device.command(train(1, 2, 1));
    assert_eq!(device.offers(), 1, "and again where the coordinator has lost it");
}

#[test]
fn update_that_is_not_wanted_is_not_offered_again_by_itself() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    device.finish_work();
    let (id, _) = device.sent.last().cloned().unwrap();
    device.tell(Event::Transfer { id, message: TransferMessage::Refused { reason: "late".into() } });
    device.sent.clear();
    device.now = device.now.plus_millis(1_000_000);
    device.tell(Event::Tick);
    device.tell(Event::LinkUp);
    assert_eq!((device.offers(), device.engine.state()), (0, AgentState::Idle));
}

#[test]
fn orders_that_cannot_be_done_are_refused_with_the_reason() {
    let mut device = Device::online();
    let mut command = train(1, 1, 1);
    if let Order::Train(order) = &mut command.order {
        order.schema = Digest::of(b"other");
    }
    device.command(command);
    assert!(reason(&device.outcomes()).contains("use one pack"));
    let mut command = train(1, 2, 1);
    if let Order::Train(order) = &mut command.order {
        order.rates.push(0.1);
    }
    device.command(command);
    assert!(reason(&device.outcomes()).contains("rates for 5 layers"));
    device.engine.profile.birth.train_examples = 0;
    device.engine.profile.birth.test_examples = 0;
    device.command(train(1, 3, 1));
    assert!(reason(&device.outcomes()).contains("no examples to train on"));
    device.command(evaluate(1, 4, 1));
    assert!(reason(&device.outcomes()).contains("no examples to evaluate on"));
}

#[test]
fn protected_layers_are_never_skipped() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    let Some(Work { job: Job::Train(order), .. }) = &device.worker else { panic!("no training") };
    assert_eq!(order.rates, [0.5, 0.0, 0.5, 0.5]);
}

#[test]
fn layers_kept_personal_return_in_their_run_and_survive_a_restart() {
    let mut device = Device::holding(1);
    device.command(train(1, 3, 1));
    device.finish_work();
    device.restart();
    device.tell(Event::LinkUp);
    device.command(evaluate(1, 4, 1));
    let own = device.worker.as_ref().unwrap().personal.clone().unwrap();
    assert_eq!((own.run, own.layers), (RunId(1), vec![2, 3]));
    device.finish_work();
    device.command(train(2, 1, 1));
    assert_eq!(device.worker.as_ref().unwrap().personal, None);
}

#[test]
fn an_update_of_all_layers_leaves_none_personal() {
    let mut device = Device::holding(1);
    device.command(train(1, 3, 1));
    device.finish_work();
    device.command(train(1, 4, 1));
    device.finish_work();
    device.command(evaluate(1, 5, 1));
    assert_eq!(device.worker.as_ref().unwrap().personal, None);
}

#[test]
fn work_past_the_orders_deadline_is_refused_and_cancelled() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    device.outcomes();
    assert_eq!(device.engine.deadline(), Some(Timestamp(DEADLINE_MS)));
    device.now = Timestamp(DEADLINE_MS - 1);
    device.tell(Event::Tick);
    assert!(device.worker.is_some());
    device.now = Timestamp(DEADLINE_MS);
    device.tell(Event::Tick);
    assert!(device.worker.is_none());
    assert!(reason(&device.outcomes()).contains("deadline"));
    assert_eq!(device.engine.deadline(), None);
}

#[test]
fn a_full_disk_refuses_the_order_and_keeps_what_was() {
    let mut device = Device::holding(1);
    device.command(train(1, 3, 1));
    device.finish_work();
    device.command(train(1, 5, 1));
    device.outcomes();
    device.sent.clear();
    device.disk_full = true;
    device.finish_work();
    assert!(reason(&device.outcomes()).contains("disk full"));
    assert_eq!((device.offers(), device.engine.state()), (0, AgentState::Idle));
    assert!(device.engine.held.iter().all(|digest| device.blobs.contains_key(digest)));
    device.disk_full = false;
    device.command(evaluate(1, 6, 1));
    assert!(device.worker.as_ref().unwrap().personal.is_some());
}

#[test]
fn a_new_coordinator_hears_the_birth_again_and_the_same_one_does_not() {
    let mut device = Device::online();
    let presence = |boot, online| Event::Presence(Presence { boot: BootId(boot), online });
    let mut births = |event| {
        device.tell(event);
        device.said.drain(..).filter(|message| matches!(message, Message::Birth(_))).count()
    };
    assert_eq!(births(presence(1, true)), 1);
    assert_eq!(births(presence(1, true)), 0);
    assert_eq!(births(presence(1, false)), 0);
    assert_eq!(births(presence(2, true)), 1);
}

fn births_in(device: &mut Device) -> Vec<Version> {
    let version = device.engine.version();
    device.said.drain(..).filter(|message| matches!(message, Message::Birth(_))).map(|_| version).collect()
}

fn announced(boot: u64, max: u16) -> Event {
    Event::Announcement(Announcement { boot: BootId(boot), speaks: VersionRange { min: 2, max } })
}

fn present(boot: u64) -> Event {
    Event::Presence(Presence { boot: BootId(boot), online: true })
}

#[test]
fn the_birth_is_said_in_the_oldest_version_and_again_in_the_newest_common_one() {
    let mut device = Device::online();
    device.tell(present(1));
    assert_eq!(births_in(&mut device), [Version::V2]);
    device.tell(announced(1, 3));
    assert_eq!(births_in(&mut device), [Version::V3]);
    device.tell(announced(1, 3));
    assert_eq!(births_in(&mut device), [], "it is known already");
}

#[test]
fn the_birth_is_said_once_if_the_announcement_comes_before_the_presence() {
    let mut device = Device::online();
    device.tell(announced(1, 9));
    assert_eq!(births_in(&mut device), []);
    device.tell(present(1));
    assert_eq!(births_in(&mut device), [Version::V3]);
}

#[test]
fn an_announcement_of_another_life_of_the_coordinator_counts_for_nothing() {
    let mut device = Device::online();
    device.tell(announced(1, 3));
    device.tell(present(1));
    device.said.clear();
    // The announcement is retained: it is still there when a coordinator without announcements takes over.
    device.tell(present(2));
    assert_eq!(births_in(&mut device), [Version::V2]);
    device.tell(announced(1, 3));
    assert_eq!(births_in(&mut device), []);
    assert_eq!(device.engine.version(), Version::V2);
    device.tell(announced(2, 2));
    assert_eq!((births_in(&mut device), device.engine.version()), (vec![], Version::V2));
    device.tell(announced(3, 3));
    device.tell(present(3));
    assert_eq!(births_in(&mut device), [Version::V3]);
}

/// The oldest version has no room for the metrics of an evaluation, and the coordinator keeps the first answer.
#[test]
fn a_stored_answer_waits_until_the_version_of_a_new_coordinator_is_known() {
    for announcement_first in [false, true] {
        let mut device = Device::holding(1);
        device.command(evaluate(1, 2, 1));
        device.finish_work();
        device.restart();
        device.outcomes();
        let mut meeting = [Event::LinkUp, present(1), announced(1, 3)];
        if announcement_first {
            meeting.swap(1, 2);
        }
        meeting.into_iter().for_each(|event| device.tell(event));
        assert_eq!((device.outcomes(), device.engine.version()), (vec![], Version::V3));
        device.command(evaluate(1, 2, 1));
        assert_eq!(device.outcomes(), [Outcome::Evaluated(evaluation())]);
        device.tell(present(2));
        assert_eq!((device.outcomes(), device.engine.version()), (vec![], Version::V2));
    }
}

#[test]
fn an_answer_that_was_made_offline_is_said_when_the_link_to_the_same_coordinator_is_back() {
    let mut device = Device::holding(1);
    device.tell(present(1));
    device.command(evaluate(1, 2, 1));
    device.tell(Event::LinkDown);
    device.finish_work();
    device.outcomes();
    device.tell(Event::LinkUp);
    assert_eq!(device.outcomes(), [Outcome::Evaluated(evaluation())]);
}

#[test]
fn nothing_is_said_offline_and_all_of_it_when_the_link_is_back() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    device.outcomes();
    device.sent.clear();
    device.tell(Event::LinkDown);
    device.finish_work();
    assert_eq!((device.said.len(), device.sent.len()), (0, 0));
    device.tell(Event::LinkUp);
    assert!(matches!(device.said[..], [Message::Birth(_)]));
    assert_eq!(device.offers(), 1);
}

#[test]
fn weights_offered_before_their_command_are_taken_when_it_comes() {
    let mut device = Device::online();
    device.offer(1, 3);
    assert!(device.sent.is_empty());
    device.command(train(1, 1, 3));
    assert!(matches!(device.sent[..], [(_, TransferMessage::Grant { .. })]));
}

#[test]
fn weights_that_are_held_are_acknowledged_and_foreign_ones_are_not_answered() {
    let mut device = Device::holding(1);
    device.sent.clear();
    device.offer(1, 1);
    device.offer(1, 2);
    assert!(matches!(device.sent[..], [(_, TransferMessage::Done)]));
}

#[test]
fn progress_is_shown_while_the_work_lasts() {
    let mut device = Device::holding(1);
    device.command(train(1, 2, 1));
    let sample = WorkSample {
        run: RunId(1),
        round: 2,
        step: 1,
        steps: 3,
        step_ms: 1.0,
        tokens_per_second: 1.0,
        active_layers: 2,
        loss: 0.5,
    };
    let ticket = device.worker.as_ref().unwrap().ticket;
    device.tell(Event::Stepped { ticket: Ticket { epoch: 1, ..ticket }, sample: sample.clone() });
    assert_eq!(device.engine.work(), None);
    device.tell(Event::Stepped { ticket, sample: sample.clone() });
    assert_eq!(device.engine.work(), Some(&sample));
    device.finish_work();
    assert_eq!(device.engine.work(), None);
}

#[derive(Clone, Debug)]
enum Op {
    Train { version: u8 },
    Evaluate { version: u8 },
    Stop,
    Repeat,
    Late,
    LateRun,
    NextRun,
    StopOther,
    LinkUp,
    LinkDown,
    Presence(u64),
    Offer { version: u8 },
    Bring { version: u8 },
    FinishWork,
    FailWork,
    TakeUpdate,
    RefuseUpdate,
    Elapse(u64),
    DiskFull(bool),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..3_u8).prop_map(|version| Op::Train { version }),
        2 => (0..3_u8).prop_map(|version| Op::Evaluate { version }),
        1 => Just(Op::Stop),
        3 => Just(Op::Repeat),
        1 => Just(Op::Late),
        1 => Just(Op::LateRun),
        1 => Just(Op::NextRun),
        1 => Just(Op::StopOther),
        1 => Just(Op::LinkUp),
        1 => Just(Op::LinkDown),
        1 => (0..3_u64).prop_map(Op::Presence),
        2 => (0..3_u8).prop_map(|version| Op::Offer { version }),
        3 => (0..3_u8).prop_map(|version| Op::Bring { version }),
        4 => Just(Op::FinishWork),
        1 => Just(Op::FailWork),
        2 => Just(Op::TakeUpdate),
        1 => Just(Op::RefuseUpdate),
        1 => (0..90_000_u64).prop_map(Op::Elapse),
        1 => any::<bool>().prop_map(Op::DiskFull),
        1 => Just(Op::Restart),
    ]
}

/// The naive twin of the coordinator: it knows only the newest command that was sent.
struct Fleet {
    newest: Command,
}

impl Fleet {
    fn say(&mut self, device: &mut Device, command: Command) {
        self.newest = command;
        let unknown_stop = self.newest.order == Order::Stop
            && device.engine.memory.as_ref().is_none_or(|memory| memory.run != self.newest.run);
        let may_fail = device.disk_full || device.crash_after.is_some() || unknown_stop;
        device.command(self.newest.clone());
        if !may_fail {
            let memory = device.memory.as_ref().unwrap();
            assert_eq!((memory.run, memory.epoch), (self.newest.run, self.newest.epoch), "a new command was not taken");
        }
    }

    fn apply(&mut self, device: &mut Device, op: Op) {
        let (run, epoch) = (self.newest.run.0, self.newest.epoch);
        match op {
            Op::Train { version } => self.say(device, train(run, epoch + 1, version)),
            Op::Evaluate { version } => self.say(device, evaluate(run, epoch + 1, version)),
            Op::Stop => self.say(device, stop(run, epoch + 1)),
            Op::NextRun => self.say(device, train(run + 1, 1, 0)),
            Op::Repeat => device.command(self.newest.clone()),
            Op::Late => {
                let before = device.memory.clone();
                device.command(train(run, epoch.saturating_sub(1), 0));
                let newest_was_taken =
                    before.as_ref().is_some_and(|memory| memory.run.0 == run && memory.epoch == epoch);
                assert!(!newest_was_taken || device.memory == before, "a late command changed what is remembered");
            }
            Op::LateRun => {
                let before = device.memory.clone();
                // A larger epoch than any that the run reached.
                device.command(train(run.saturating_sub(1), 1_000, 0));
                let newest_was_taken = before.as_ref().is_some_and(|memory| memory.run.0 == run);
                assert!(!newest_was_taken || device.memory == before, "a late run changed what is remembered");
            }
            Op::StopOther => device.command(stop(run + 1000, 1)),
            Op::LinkUp => device.tell(Event::LinkUp),
            Op::LinkDown => device.tell(Event::LinkDown),
            Op::Presence(boot) => device.tell(Event::Presence(Presence { boot: BootId(boot), online: true })),
            Op::Offer { version } => drop(device.offer(run, version)),
            Op::Bring { version } => device.bring(run, version),
            Op::FinishWork => device.finish_work(),
            Op::FailWork => {
                if let Some(work) = device.worker.take() {
                    device.tell(Event::WorkFailed { ticket: work.ticket, reason: "planned".into() });
                }
            }
            Op::TakeUpdate => device.take_update(),
            Op::RefuseUpdate => {
                if let Phase::Offering(sender) = &device.engine.phase {
                    let id = sender.id();
                    device.tell(Event::Transfer { id, message: TransferMessage::Refused { reason: "late".into() } });
                }
            }
            Op::Elapse(ms) => {
                device.now = device.now.plus_millis(ms);
                device.tell(Event::Tick);
            }
            Op::DiskFull(full) => device.disk_full = full,
            Op::Restart => device.restart(),
        }
        let mut held = device.engine.held.iter();
        assert!(held.all(|digest| device.blobs.contains_key(digest)), "held what is not stored");
        if !device.engine.online {
            return;
        }
        for message in device.said.drain(..) {
            if let Message::Answer(Answer { run, epoch, outcome, .. }) = message {
                let newest = run == self.newest.run && epoch <= self.newest.epoch;
                assert!(newest || run < self.newest.run || outcome == Outcome::Stopped, "answered what was not asked");
            }
        }
    }

    /// Mends the disk and the link, and checks that the newest command reaches its end.
    fn settle(&self, device: &mut Device) {
        device.disk_full = false;
        device.crash_after = None;
        device.tell(Event::LinkUp);
        for _ in 0..4 {
            device.command(self.newest.clone());
            match &self.newest.order {
                Order::Train(order) => self.bring(device, order.weights),
                Order::Evaluate(order) => self.bring(device, order.weights),
                Order::Stop => {}
            }
            device.finish_work();
            device.take_update();
        }
        let memory = device.engine.memory.as_ref().unwrap();
        if self.newest.order == Order::Stop && memory.run != self.newest.run {
            // The stopped run never reached this device, so the work before it may continue.
            device.said.clear();
            device.command(self.newest.clone());
            assert_eq!(device.outcomes(), [Outcome::Stopped]);
            return;
        }
        assert_eq!((memory.run, memory.epoch), (self.newest.run, self.newest.epoch));
        assert!(memory.settled != Settled::Open, "the newest command came to no end");
        assert_eq!((device.engine.state(), device.worker.is_some()), (AgentState::Idle, false));
        device.said.clear();
        device.sent.clear();
        device.command(self.newest.clone());
        assert_eq!(device.outcomes().len() + device.offers(), 1, "a repeated command is answered once");
    }

    fn bring(&self, device: &mut Device, digest: Digest) {
        let version = (0..3).find(|version| Digest::of(&weights(*version)) == digest).unwrap();
        device.bring(self.newest.run.0, version);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// The assertions are in [`Device`] and [`Fleet`]: stored before offered, one update for each command, one work at a
    /// time, epochs that never go back, an end for the newest command.
    #[test]
    fn prop_any_order_of_events_and_crashes_keeps_the_promises(
        ops in proptest::collection::vec((op(), proptest::option::weighted(0.15, 0..4_usize)), 1..60),
    ) {
        let mut device = Device::new();
        let mut fleet = Fleet { newest: train(1, 1, 0) };
        device.tell(Event::LinkUp);
        device.command(fleet.newest.clone());
        for (op, crash_after) in ops {
            device.crash_after = crash_after;
            fleet.apply(&mut device, op);
            device.crash_after = None;
        }
        fleet.settle(&mut device);
    }
}

#[test]
fn the_newest_weights_that_arrived_stay_for_the_devices_own_use() {
    let mut device = Device::holding(1);
    let first = Digest::of(&weights(1));
    device.command(stop(1, 3));
    let memory = |device: &Device| device.memory.clone().unwrap();
    assert_eq!((memory(&device).weights, memory(&device).received), (None, Some(first)));
    assert!(device.blobs.contains_key(&first), "a stopped run leaves the device its model");
    device.command(train(1, 4, 2));
    assert_eq!(memory(&device).received, Some(first), "the second weights have not arrived yet");
    device.bring(1, 2);
    device.restart();
    device.command(stop(1, 6));
    let second = Digest::of(&weights(2));
    assert_eq!(memory(&device).received, Some(second));
    assert!(device.blobs.contains_key(&second) && !device.blobs.contains_key(&first));
}
