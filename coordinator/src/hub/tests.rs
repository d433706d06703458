#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking, and look for one kind of message"
)]
use super::*;
use crate::arrivals::Checker;
use crate::board::Board;
use crate::merge::model::tests::{blob, tiny};
use crate::run::RunSettings;
use crate::store::SqliteStore;
use crate::store::kills::WatchedBlobs;
use crate::views;
use skiff_api::policy::Sharing;
use skiff_api::progress::{self, Progress, RunProgress};
use skiff_api::removal::Removal;
use skiff_api::request::RemoveDevice;
use skiff_protocol::codec::{self, Message};
use skiff_protocol::messages::{
    Answer, Birth, BootId, Command, EvaluationReport, Gone, Machine, Order, Outcome, Place, StepMemory, TrainReport,
};
use skiff_protocol::transfer::{CHUNK_BYTES, Purpose, TransferId, TransferMessage};
use skiff_protocol::{Signer, Topic, Version, samples};
use tempfile::TempDir;

mod kills;
mod removals;

const PACK: Digest = Digest([9; 32]);
const RUN: RunId = RunId(5);

/// A hub with its state in a folder, and every message that it sent.
struct World {
    folder: TempDir,
    hub: Hub,
    now: u64,
    said: Vec<(DeviceId, Message)>,
    /// Topics that every device reads, in the order in which they were written.
    broadcast: Vec<Topic>,
    /// Topics whose retained message the broker was asked to drop.
    cleared: Vec<String>,
    /// Version of the last message to each device.
    versions: BTreeMap<DeviceId, Version>,
    merges: Vec<MergeJob>,
    /// Board that receives only changes.
    board: Board,
}

fn fleet() -> FleetId {
    "home".parse().unwrap()
}

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

fn open(folder: &TempDir, now: u64) -> Result<Hub, HubError> {
    let blobs: Arc<dyn Blobs> = Arc::new(WatchedBlobs::open(folder.path().join("blobs")));
    let parts = Parts {
        fleet: fleet(),
        devices: 10,
        slots: 2,
        model: Arc::new(tiny()),
        store: Box::new(SqliteStore::open(folder.path(), &*blobs)?),
        blobs,
        writer: Writer::new(fleet(), Signer::new([1; 32]), BootId(1)),
    };
    Hub::open(parts, Timestamp(now))
}

fn settings() -> RunSettings {
    RunSettings {
        rounds: 2,
        devices: 2,
        steps: 4,
        batch: 2,
        final_examples: 8,
        evaluate_examples: 0,
        ..RunSettings::default()
    }
}

fn report(shared_layers: Vec<u32>) -> TrainReport {
    TrainReport { shared_layers, ..samples::train_report() }
}

impl World {
    fn new() -> Self {
        Self::of_folder(TempDir::new().unwrap())
    }

    /// Starts a coordinator in a state folder.
    fn of_folder(folder: TempDir) -> Self {
        let hub = open(&folder, 0).unwrap();
        let (said, broadcast, versions) = (vec![], vec![], BTreeMap::new());
        let board = Board::default();
        let mut world = Self { folder, hub, now: 0, said, broadcast, cleared: vec![], versions, merges: vec![], board };
        let effects = world.hub.take_effects();
        world.carry_out(effects);
        world.link(vec![LinkEvent::Up]);
        world
    }

    /// Makes a world with two devices that train in the first round.
    fn training() -> Self {
        Self::training_with(settings())
    }

    fn training_with(settings: RunSettings) -> Self {
        let mut world = Self::new();
        world.birth("a", PACK);
        world.birth("b", PACK);
        let effects = world.hub.start_run(RUN, None, settings, Timestamp(world.now)).unwrap().unwrap();
        world.carry_out(effects);
        world.evaluate("a");
        world.evaluate("b");
        assert!(matches!(world.command("a").order, Order::Train(_)));
        world
    }

    fn link(&mut self, events: Vec<LinkEvent>) {
        let effects = self.hub.link(events, Timestamp(self.now)).unwrap();
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Publish(publication) => {
                    if publication.payload.is_empty() {
                        assert!(publication.retain);
                        self.cleared.push(publication.topic);
                        continue;
                    }
                    let verifier = Signer::new([1; 32]).verifier();
                    let (message, version) =
                        codec::open(&publication.payload, &publication.topic, Some(&verifier)).unwrap();
                    match Topic::parse(&fleet(), &publication.topic).unwrap() {
                        Topic::Command(device) | Topic::DownTransfer(device, _) => {
                            self.versions.insert(device.clone(), version);
                            self.said.push((device, message));
                        }
                        topic @ (Topic::Presence | Topic::Versions) => self.broadcast.push(topic),
                        topic => panic!("the coordinator does not speak on {topic:?}"),
                    }
                }
                Effect::Merge(job) => self.merges.push(job),
                Effect::Check(arrival) => {
                    let mut checker = Checker::new(Arc::clone(&self.hub.model), Arc::clone(&self.hub.blobs));
                    let effects = self.hub.checked(checker.check(&arrival), Timestamp(self.now)).unwrap();
                    self.carry_out(effects);
                }
            }
        }
    }

    fn say(&mut self, topic: &Topic, message: &Message) {
        self.say_in(Version::OLDEST, topic, message);
    }

    fn say_in(&mut self, version: Version, topic: &Topic, message: &Message) {
        let topic = topic.text(&fleet());
        let payload = codec::seal(message, version, &topic, None);
        self.link(vec![LinkEvent::Message { topic, payload }]);
    }

    fn birth(&mut self, name: &str, pack: Digest) {
        self.birth_in(Version::OLDEST, name, pack);
    }

    fn birth_in(&mut self, version: Version, name: &str, pack: Digest) {
        let machine = Machine { arch: "x".into(), os: "y".into(), cores: 1, memory_bytes: 1 };
        let (train_examples, test_examples) = (50, 50);
        let (place, memory) = (Place::default(), StepMemory::default());
        let agent_version = "0.1.0".to_owned();
        let birth = Birth {
            speaks: skiff_protocol::VersionRange::OURS,
            boot: BootId(3),
            agent_version,
            pack,
            train_examples,
            test_examples,
            machine,
            place,
            memory,
        };
        self.say_in(version, &Topic::Birth(device(name)), &Message::Birth(birth));
    }

    fn command(&self, name: &str) -> Command {
        let last = self.said.iter().rev().find_map(|(to, message)| match message {
            Message::Command(command) if *to == device(name) => Some(command.clone()),
            _ => None,
        });
        last.unwrap()
    }

    fn answer(&mut self, name: &str, outcome: Outcome) {
        let Command { run, round, epoch, .. } = self.command(name);
        let answer = Answer { boot: BootId(3), run, round, epoch, outcome };
        self.say(&Topic::Answer(device(name)), &Message::Answer(answer));
    }

    fn evaluate(&mut self, name: &str) {
        let Order::Evaluate(order) = self.command(name).order else { panic!("no evaluation") };
        let correct = order.examples / 2;
        let report = EvaluationReport {
            examples: order.examples,
            correct,
            loss_sum: 2.0,
            evaluate_ms: 3,
            peak_rss_bytes: 5,
            metrics: skiff_protocol::metrics::TaskMetrics::Unknown,
        };
        self.answer(name, Outcome::Evaluated(report));
    }

    fn transfer(&mut self, name: &str, id: TransferId, message: TransferMessage) {
        self.say(&Topic::UpTransfer(device(name), id), &Message::Transfer(message));
    }

    fn offer(&self, name: &str, bytes: &[u8], shared_layers: Vec<u32>) -> Offer {
        let Command { run, round, epoch, .. } = self.command(name);
        let purpose = Purpose::Update { run, round, epoch, report: report(shared_layers) };
        Offer { purpose, digest: Digest::of(bytes), total_bytes: bytes.len() as u64 }
    }

    /// Sends an update and returns the last message to the device.
    fn upload(&mut self, name: &str, bytes: &[u8]) -> TransferMessage {
        self.upload_of_layers(name, bytes, vec![0, 1])
    }

    fn upload_of_layers(&mut self, name: &str, bytes: &[u8], shared_layers: Vec<u32>) -> TransferMessage {
        let offer = self.offer(name, bytes, shared_layers);
        let id = offer.id();
        self.transfer(name, id, TransferMessage::Offer(offer));
        for (index, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
            self.transfer(name, id, TransferMessage::Chunk { index: index as u32, bytes: chunk.to_vec() });
        }
        self.last_transfer(name)
    }

    fn last_transfer(&self, name: &str) -> TransferMessage {
        let last = self.said.iter().rev().find_map(|(to, message)| match message {
            Message::Transfer(message) if *to == device(name) => Some(message.clone()),
            _ => None,
        });
        last.unwrap()
    }

    fn merge(&mut self) -> Digest {
        let job = self.merges.pop().unwrap();
        let merged = self.hub.model.merge(&job, &*self.hub.blobs).unwrap();
        let effects = self.hub.merge_ended((job.run, job.epoch), Ok(merged), Timestamp(self.now)).unwrap();
        self.carry_out(effects);
        merged.weights
    }

    fn restart(&mut self) {
        self.hub = open(&self.folder, self.now).unwrap();
        self.said.clear();
        self.merges.clear();
        self.board = Board::default();
        let effects = self.hub.take_effects();
        self.carry_out(effects);
        self.link(vec![LinkEvent::Up]);
    }

    fn listed(&self) -> Vec<RunProgress> {
        self.hub.store.runs().unwrap().iter().map(|row| views::listed_run(row, Timestamp(self.now))).collect()
    }

    /// Writes the changes to the board, and checks that it equals a board that is built from nothing.
    fn progress(&mut self) -> Progress {
        self.hub.show(&mut self.board, usize::MAX, Timestamp(self.now));
        let shown = self.board.whole().progress();
        self.hub.mark_all();
        let mut anew = Board::default();
        self.hub.show(&mut anew, usize::MAX, Timestamp(self.now));
        assert_eq!(shown, anew.whole().progress(), "every change is marked");
        shown
    }

    fn run(&mut self) -> RunProgress {
        self.progress().run.unwrap()
    }
}

fn update(value: f32) -> Vec<u8> {
    blob(&[("head", value), ("layer.0", value), ("layer.1", value)])
}

#[test]
fn a_probe_comes_back_with_a_command_that_changes_nothing_and_a_flood_of_them_does_not() {
    let mut world = World::training();
    let (before, order) = (world.hub.ledger().cloned(), world.command("a"));
    let topic = Topic::Telemetry(device("stranger"));
    let chunk = Message::Transfer(TransferMessage::Chunk { index: 1, bytes: vec![0] });
    world.said.clear();
    world.say(&topic, &chunk);
    assert_eq!(world.said[0], (device("stranger"), chunk.clone()));
    assert_eq!((world.command("stranger").order, world.said.len()), (Order::Stop, 2));
    assert_eq!((world.hub.ledger().cloned(), world.hub.fleet.get(&device("stranger")).is_none()), (before, true));
    (0..10_000).for_each(|_| world.say(&topic, &chunk));
    assert_eq!(world.said.len(), 2 * updates::MAX_PROBES as usize);
    world.now += 1_000;
    world.say(&topic, &chunk);
    assert_eq!(world.said.len(), 2 * updates::MAX_PROBES as usize + 2, "later ones are answered again");
    assert!(matches!(order.order, Order::Train(_)));
}

#[test]
fn a_run_goes_from_start_to_merged_weights() {
    let mut world = World::training();
    for value in [2.0, 4.0] {
        world.now += 100;
        assert_eq!(world.upload("a", &update(value - 1.0)), TransferMessage::Done);
        assert_eq!(world.upload("b", &update(value + 1.0)), TransferMessage::Done);
        let merged = world.merge();
        assert_eq!(world.hub.blobs.read(merged).unwrap(), update(value));
    }
    world.evaluate("a");
    world.evaluate("b");
    let run = world.run();
    assert_eq!((run.phase, run.round, run.accuracy_after), (progress::Phase::Completed, 2, Some(0.5)));
    assert!(run.bytes_up > 0 && run.bytes_down > 0);
    let rounds: u64 = run.closed.iter().map(|closed| closed.bytes_up).sum();
    assert!(run.closed.iter().all(|closed| closed.bytes_up > 2 * update(0.0).len() as u64) && rounds < run.bytes_up);
    let seen = &world.progress().devices[0];
    assert_eq!((seen.updates, seen.mean_active_layers, seen.peak_rss_bytes), (2, Some(1.5), 1000));
    let kept: Vec<Digest> = world.hub.blobs.list().unwrap().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(kept.len(), 2, "the initial and the final weights: {kept:?}");
    world.restart();
    assert_eq!(world.run(), run, "as it was, after a restart");
    let listed = RunProgress { closed: Vec::new(), ..run };
    assert_eq!(world.listed(), [listed]);
}

#[test]
fn a_run_starts_from_the_weights_of_an_earlier_one_and_keeps_them() {
    let mut world = World::training();
    for value in [2.0, 4.0] {
        assert_eq!(world.upload("a", &update(value)), TransferMessage::Done);
        assert_eq!(world.upload("b", &update(value)), TransferMessage::Done);
        world.merge();
    }
    world.evaluate("a");
    world.evaluate("b");
    let trained = Digest::of(&update(4.0));
    let settings_from = |text: &str| RunSettings { from: Some(text.to_owned()), ..settings() };
    let refused =
        world.hub.start_run(RunId(6), None, settings_from("last@7"), Timestamp(world.now)).unwrap().unwrap_err();
    assert!(refused.contains("no merged round 7"), "{refused}");
    let effects = world.hub.start_run(RunId(6), None, settings_from("0000"), Timestamp(world.now)).unwrap().unwrap();
    world.carry_out(effects);
    world.evaluate("a");
    world.evaluate("b");
    let Order::Train(order) = world.command("a").order else { panic!("no training") };
    assert_eq!(order.weights, trained);
    // The earlier run is not needed for that any more.
    world.hub.delete_run(RUN).unwrap().unwrap();
    world.restart();
    assert_eq!(world.hub.blobs.read(trained).unwrap(), update(4.0));
    let row = world.hub.store.runs().unwrap().pop().unwrap();
    let details = views::details(&*world.hub.store, &row, Timestamp(world.now)).unwrap();
    assert_eq!(details.settings.unwrap()["from"], "0000000000000005@2");
}

#[test]
fn a_failed_run_is_listed_as_failed_after_a_restart_too() {
    let mut world = World::training_with(RunSettings { rounds: 1, ..settings() });
    world.answer("a", Outcome::Refused { reason: "no examples".to_owned() });
    world.answer("b", Outcome::Refused { reason: "no examples".to_owned() });
    world.evaluate("a");
    world.evaluate("b");
    let run = world.run();
    assert_eq!(run.phase, progress::Phase::Failed);
    assert!(run.reason.as_ref().unwrap().contains("no update was merged in 1 round; a: no examples"), "{run:?}");
    world.restart();
    let listed = world.listed().remove(0);
    assert_eq!((listed.phase, listed.reason), (progress::Phase::Failed, run.reason));
}

#[test]
fn each_device_is_addressed_in_the_newest_version_that_it_speaks() {
    let mut world = World::new();
    world.birth("a", PACK);
    world.birth("b", PACK);
    world.birth_in(Version::V3, "b", PACK);
    let effects = world.hub.start_run(RUN, None, settings(), Timestamp(world.now)).unwrap().unwrap();
    world.carry_out(effects);
    assert_eq!(world.versions, BTreeMap::from([(device("a"), Version::V2), (device("b"), Version::V3)]));
    world.evaluate("a");
    world.evaluate("b");
    assert_eq!(world.upload("b", &update(1.0)), TransferMessage::Done);
    assert_eq!(world.versions[&device("b")], Version::V3, "transfers too");
}

#[test]
fn the_versions_are_announced_before_the_presence() {
    let mut world = World::new();
    world.broadcast.clear();
    world.link(vec![LinkEvent::Up]);
    assert_eq!(world.broadcast, [Topic::Versions, Topic::Presence]);
}

#[test]
fn the_weights_are_offered_to_a_device_without_them() {
    let mut world = World::training();
    world.answer("a", Outcome::Accepted { has_weights: false });
    let TransferMessage::Offer(offer) = world.last_transfer("a") else { panic!("no offer") };
    assert_eq!(offer.digest, Digest::of(&tiny().initial));
    world.transfer("a", offer.id(), TransferMessage::Grant { held: Default::default(), window: 4 });
    assert!(matches!(world.last_transfer("a"), TransferMessage::Chunk { index: 0, .. }));
}

#[test]
fn what_was_stored_before_a_crash_is_neither_lost_nor_asked_for() {
    let mut world = World::training();
    world.upload("a", &update(1.0));
    world.restart();
    world.birth("a", PACK);
    world.birth("b", PACK);
    assert!(world.said.iter().all(|(to, _)| *to == device("b")), "{:?}", world.said);
    assert_eq!(world.upload("b", &update(3.0)), TransferMessage::Done);
    let job = world.merges.last().unwrap().clone();
    assert_eq!(job.updates.len(), 2);
    world.restart();
    assert_eq!(world.merges, [job], "the merge is done again");
    let merged = world.merge();
    assert_eq!(world.hub.blobs.read(merged).unwrap(), update(2.0));
}

#[test]
fn an_update_offered_again_after_a_crash_is_done_at_once() {
    let mut world = World::training();
    world.upload("a", &update(1.0));
    let offer = world.offer("a", &update(1.0), vec![0, 1]);
    world.restart();
    world.birth("a", PACK);
    world.transfer("a", offer.id(), TransferMessage::Offer(offer));
    assert_eq!(world.last_transfer("a"), TransferMessage::Done);
}

#[test]
fn an_unfit_update_is_refused_with_the_reason_and_its_device_is_out() {
    let mut world = World::training();
    let refused = world.upload("a", &update(f32::NAN));
    assert!(matches!(&refused, TransferMessage::Refused { reason } if reason.contains("not finite")), "{refused:?}");
    assert!(world.progress().devices[0].note.as_ref().unwrap().contains("not finite"));
    // One device is left, the quorum is two.
    assert!(world.run().closed[0].skipped.as_ref().unwrap().contains("a: tensor \"head\""));
    let lied = world.offer("b", &update(1.0), vec![1]);
    world.transfer("b", lied.id(), TransferMessage::Offer(lied));
    assert!(matches!(world.last_transfer("b"), TransferMessage::Refused { .. }));
}

#[test]
fn an_update_larger_than_all_weights_is_refused_before_it_is_sent_and_its_device_is_out() {
    let mut world = World::training_with(RunSettings { devices: 2, quorum: 1, ..settings() });
    let most = world.hub.most_bytes();
    let offered = |world: &mut World, name: &str, total_bytes| {
        let offer = Offer { total_bytes, ..world.offer(name, &update(1.0), vec![0, 1]) };
        world.transfer(name, offer.id(), TransferMessage::Offer(offer));
        world.last_transfer(name)
    };
    assert!(matches!(offered(&mut world, "a", most), TransferMessage::Grant { .. }));
    let TransferMessage::Refused { reason } = offered(&mut world, "b", most + 1) else { panic!("taken") };
    assert_eq!(reason, format!("an update of {} bytes, expected at most {most}", most + 1));
    assert!(world.progress().devices[1].note.clone().unwrap().contains("expected at most"));
    assert_eq!(world.upload("a", &update(1.0)), TransferMessage::Done);
    assert_eq!(world.merges.len(), 1, "the round does not wait for the other device");
}

#[test]
fn the_updates_of_a_skipped_round_are_removed() {
    let mut world = World::training();
    assert_eq!(world.upload("a", &update(1.0)), TransferMessage::Done);
    world.answer("b", Outcome::Refused { reason: "on battery".into() });
    assert!(world.run().closed[0].skipped.is_some());
    let kept: Vec<Digest> = world.hub.blobs.list().unwrap().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(kept, [Digest::of(&tiny().initial)]);
}

#[test]
fn a_blob_that_is_needed_outlives_an_unfit_offer_of_it() {
    let unfit = |said: &TransferMessage| matches!(said, TransferMessage::Refused { .. });
    let settings = || RunSettings { quorum: 1, sharing: Sharing::LeastImportant(1), ..settings() };
    let mut world = World::training_with(settings());
    assert!(unfit(&world.upload_of_layers("a", &tiny().initial, vec![1])), "the global weights hold every layer");
    let good = blob(&[("head", 1.0), ("layer.0", 1.0)]);
    assert_eq!(world.upload_of_layers("b", &good, vec![0]), TransferMessage::Done);
    let merged = world.merge();
    assert_eq!(world.hub.blobs.read(merged).unwrap(), blob(&[("head", 1.0), ("layer.0", 1.0), ("layer.1", 0.5)]));

    let mut world = World::training_with(settings());
    assert_eq!(world.upload_of_layers("b", &good, vec![0]), TransferMessage::Done);
    assert!(unfit(&world.upload_of_layers("a", &good, vec![1])), "another's update");
    world.merge();
}

#[test]
fn a_device_with_another_pack_is_never_ordered_anything() {
    let mut world = World::new();
    world.birth("a", PACK);
    world.birth("b", PACK);
    world.birth("odd", Digest([2; 32]));
    let effects = world
        .hub
        .start_run(RUN, None, RunSettings { devices: 3, ..settings() }, Timestamp(world.now))
        .unwrap()
        .unwrap();
    world.carry_out(effects);
    world.now += 60_000;
    let effects = world.hub.tick(Timestamp(world.now)).unwrap();
    world.carry_out(effects);
    let ordered: BTreeSet<&str> = world.said.iter().map(|(device, _)| device.as_str()).collect();
    assert_eq!(ordered, BTreeSet::from(["a", "b"]));
    assert_eq!(world.progress().devices[2].presence, progress::Presence::WrongPack);
}

#[test]
fn refused_messages_are_counted_and_seen() {
    let mut world = World::new();
    let message = |topic: &str, payload: &[u8]| LinkEvent::Message { topic: topic.into(), payload: payload.into() };
    world.link(vec![
        message("skiff/v1/home/d/a/up/birth", b"short"),
        message("skiff/v1/home/d/a/up/nowhere", b""),
        message("skiff/v1/home/d/a/up/birth", &[0; 200_000]),
    ]);
    let refused = world.progress().refused_messages;
    let expected = [("truncated", 1), ("unknown_topic", 1), ("oversized", 1)];
    assert_eq!(refused, expected.map(|(label, n)| (label.to_owned(), n)).into());
}

#[test]
fn a_device_that_takes_no_weights_is_named_until_it_takes_some() {
    let mut world = World::training();
    let note = |world: &mut World| world.progress().devices[0].note.clone();
    world.answer("a", Outcome::Accepted { has_weights: false });
    world.now += crate::stalls::STALL_MS;
    let effects = world.hub.tick(Timestamp(world.now)).unwrap();
    world.carry_out(effects);
    assert!(note(&mut world).unwrap().contains("has not answered an offer of weights"));
    assert!(world.progress().devices[1].note.clone().unwrap().contains("has not answered an order"));
    world.say(&Topic::Birth(device("a")), &Message::Gone(Gone { boot: BootId(3), clean: true }));
    assert_eq!(note(&mut world), None, "nobody waits for a device that left");
    world.answer("b", Outcome::Accepted { has_weights: true });
    assert_eq!(world.progress().devices[1].note, None, "it answered at last");
}

#[test]
fn a_second_coordinator_is_seen_and_its_farewell_is_answered() {
    let mut world = World::new();
    let presence = |boot, online| {
        let topic = Topic::Presence.text(&"home".parse().unwrap());
        let presence = Message::Presence(skiff_protocol::messages::Presence { boot: BootId(boot), online });
        LinkEvent::Message { payload: codec::seal(&presence, Version::OLDEST, &topic, None), topic }
    };
    let own = world.hub.writer.boot().0;
    world.link(vec![presence(77, true), presence(own, true)]);
    assert_eq!(world.progress().warnings, [""; 0], "77 is a former life");
    world.link(vec![presence(78, true)]);
    assert!(world.progress().warnings[0].contains("another coordinator of fleet home connects with another key"));
    let effects = world.hub.link(vec![presence(78, false)], Timestamp(world.now)).unwrap();
    assert!(matches!(&effects[..], [Effect::Publish(publication)] if publication.retain));
    world.carry_out(effects);
    world.now += 200_000;
    world.link(vec![LinkEvent::Up]);
    assert_eq!(world.progress().warnings, [""; 0]);
}

#[test]
fn one_run_at_a_time_and_only_with_settings_that_can_be() {
    let mut world = World::training();
    let again = world.hub.start_run(RunId(6), None, settings(), Timestamp(0)).unwrap().unwrap_err();
    assert!(again.contains("run 0000000000000005 has not ended"), "{again}");
    world.hub.stop_run("enough".into(), Timestamp(world.now)).unwrap().unwrap();
    assert_eq!(world.run().reason.as_deref(), Some("enough"));
    let twice = world.hub.stop_run("enough".into(), Timestamp(world.now)).unwrap().unwrap_err();
    assert_eq!(twice, "there is no current run");
    let bad = RunSettings { protected: vec![2], ..settings() };
    assert!(world.hub.start_run(RunId(6), None, bad, Timestamp(0)).unwrap().unwrap_err().contains("no layer 2"));
    world.hub.start_run(RunId(6), None, settings(), Timestamp(world.now)).unwrap().unwrap();
    assert_eq!(world.listed().len(), 2);
}

#[test]
fn two_kept_runs_never_have_the_same_name() {
    let mut world = World::training();
    world.hub.stop_run("enough".into(), Timestamp(world.now)).unwrap().unwrap();
    let name = |text: &str| Some(text.parse().unwrap());
    let start = |world: &mut World, run, name| {
        let started = world.hub.start_run(RunId(run), name, settings(), Timestamp(world.now)).unwrap();
        started.map(|_| world.hub.stop_run("enough".into(), Timestamp(world.now)).unwrap().unwrap())
    };
    start(&mut world, 6, name("night")).unwrap();
    start(&mut world, 7, name("night-2")).unwrap();
    assert_eq!(world.run().name.as_deref(), Some("night-2"));
    assert_eq!(world.listed().last().unwrap().name.as_deref(), Some("night-2"));
    let refused = start(&mut world, 8, name("night")).unwrap_err();
    assert!(
        refused.starts_with("the name night is taken by run 0000000000000006 (night), stopped, started"),
        "{refused}"
    );
    world.hub.delete_run(RunId(6)).unwrap().unwrap();
    start(&mut world, 8, name("night")).unwrap();
}

#[test]
fn a_lost_device_is_known_from_its_last_will() {
    let mut world = World::training();
    let gone = |boot| Message::Gone(Gone { boot: BootId(boot), clean: false });
    world.say(&Topic::Birth(device("b")), &gone(2));
    assert_eq!(world.progress().devices[1].presence, progress::Presence::Here, "of an older life");
    world.say(&Topic::Birth(device("b")), &gone(3));
    assert_eq!(world.progress().devices[1].presence, progress::Presence::Lost);
}

#[test]
fn nothing_is_said_while_nobody_hears_it() {
    let mut world = World::training();
    world.said.clear();
    world.link(vec![LinkEvent::Down { reason: "cable".into() }]);
    world.now += 60_000;
    let effects = world.hub.tick(Timestamp(world.now)).unwrap();
    assert_eq!(effects, []);
    world.link(vec![LinkEvent::Up]);
    world.now += 60_000;
    let effects = world.hub.tick(Timestamp(world.now)).unwrap();
    world.carry_out(effects);
    assert!(!world.said.is_empty());
}

#[test]
fn a_run_whose_weights_are_missing_or_damaged_is_stopped_alone() {
    for damage in [false, true] {
        let mut world = World::training();
        let path = world.folder.path().join("blobs/blobs").join(Digest::of(&tiny().initial).to_string());
        match damage {
            true => std::fs::write(&path, b"flipped").unwrap(),
            false => std::fs::remove_file(&path).unwrap(),
        }
        world.restart();
        let run = world.run();
        let reason = run.reason.unwrap();
        assert!(reason.contains(if damage { "damaged" } else { "missing" }), "{reason}");
        assert_eq!(run.phase, progress::Phase::Stopped);
        assert_eq!(path.exists(), damage, "a damaged blob stays");
        // The next run starts from good weights.
        let effects = world.hub.start_run(RunId(6), None, settings(), Timestamp(world.now)).unwrap().unwrap();
        world.carry_out(effects);
        assert!(world.hub.blobs.read(Digest::of(&tiny().initial)).is_ok(), "{damage}");
    }
}

#[test]
fn a_run_with_a_damaged_record_is_stopped_alone_and_its_weights_stay() {
    let mut world = World::training();
    assert_eq!(world.upload("a", &update(1.0)), TransferMessage::Done);
    assert_eq!(world.upload("b", &update(1.0)), TransferMessage::Done);
    let merged = world.merge();
    let path = world.folder.path().join(crate::store::FILE);
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute("UPDATE record SET entry = x'0100' WHERE at = 3", []).unwrap();
    world.restart();
    let listed = world.listed().remove(0);
    assert_eq!(listed.phase, progress::Phase::Stopped);
    assert!(listed.reason.unwrap().contains("record 3 of run 0000000000000005"));
    assert!(world.progress().run.is_none() && world.hub.blobs.contains(merged));
    world.hub.start_run(RunId(6), None, settings(), Timestamp(world.now)).unwrap().unwrap();
    assert_eq!(world.listed().len(), 2);
}

#[test]
fn blobs_that_no_journal_named_stay() {
    let mut world = World::training();
    let unknown = world.hub.blobs.put(b"from a backup").unwrap();
    world.restart();
    world.birth("a", PACK);
    world.birth("b", PACK);
    assert_eq!(world.upload("a", &update(1.0)), TransferMessage::Done);
    assert_eq!(world.upload("b", &update(1.0)), TransferMessage::Done);
    world.merge();
    assert!(world.hub.blobs.contains(unknown));
    // A device may offer its digest: the blob is no update, and still it stays.
    let offer = world.offer("a", b"from a backup", vec![0, 1]);
    world.transfer("a", offer.id(), TransferMessage::Offer(offer));
    assert!(matches!(world.last_transfer("a"), TransferMessage::Refused { .. }));
    assert!(world.hub.blobs.contains(unknown));
}

#[test]
fn a_deleted_run_takes_its_weights_with_it_and_a_current_one_is_not_deleted() {
    let mut world = World::training();
    assert_eq!(world.upload("a", &update(1.0)), TransferMessage::Done);
    assert_eq!(world.upload("b", &update(3.0)), TransferMessage::Done);
    let merged = world.merge();
    let refused = world.hub.delete_run(RUN).unwrap().unwrap_err();
    assert!(refused.contains("stop it first"), "{refused}");
    assert!(world.hub.delete_run(RunId(9)).unwrap().unwrap_err().contains("there is no run"));
    world.hub.stop_run("enough".into(), Timestamp(world.now)).unwrap().unwrap();
    assert!(world.hub.blobs.contains(merged), "until it is deleted");
    let collected = world.hub.delete_run(RUN).unwrap().unwrap();
    assert!(collected.removed.contains(&merged.to_string()) && !world.hub.blobs.contains(merged));
    assert_eq!(world.listed(), []);
    world.restart();
    assert!(world.progress().run.is_none());
}

#[test]
fn a_run_for_whose_weights_there_is_no_room_does_not_start() {
    let mut world = World::new();
    let many = RunSettings { devices: 1000, ..settings() };
    let refused = world.hub.start_run(RUN, None, many, Timestamp(0)).unwrap().unwrap_err();
    assert!(refused.contains("no room") && refused.contains("limits.blob_bytes"), "{refused}");
    assert_eq!(world.listed(), []);
}
