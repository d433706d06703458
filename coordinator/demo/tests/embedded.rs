//! The coordinator over a real broker, with devices that speak the protocol but do not train. A round here therefore costs only
//! its overhead.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests fail by panicking, and look for one kind of message"
)]

use ndarray::Array1;
use skiff_api::progress::RunProgress;
use skiff_coordinator::config::Config;
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::run::{ModelTask, RunSettings};
use skiff_coordinator::serve::Coordinator;
use skiff_coordinator::store::{SqliteStore, Store as _};
use skiff_demo::broker::{Access, EmbeddedBroker};
use skiff_link::{BrokerSettings, Link, LinkConfig, LinkEvent, Publication, Qos};
use skiff_models::task::Task;
use skiff_models::tensors::{self, Schema, TensorSpec};
use skiff_protocol::codec::{self, Message};
use skiff_protocol::messages::{
    Answer, Birth, BootId, Command, EvaluationReport, Machine, Order, Outcome, Place, StepMemory, TrainReport,
};
use skiff_protocol::topics::device_filters;
use skiff_protocol::transfer::{
    CHUNK_BYTES, Found, Offer, Purpose, Receiver, ReceiverAction, ReceiverEvent, Sender, SenderAction, SenderEvent,
    TransferMessage,
};
use skiff_protocol::{DeviceId, Digest, FleetId, Timestamp, Topic, Verifier, Version};
use std::collections::{BTreeMap, VecDeque};
use tempfile::TempDir;
use tokio::sync::mpsc;

const PACK: Digest = Digest([9; 32]);
/// Trainable weights of 0.3 MB, as with LoRA on a small model.
const PARAMETERS: usize = 75_000;

fn fleet() -> FleetId {
    "home".parse().unwrap()
}

fn model() -> Model {
    let spec = TensorSpec { name: "layer.0".to_owned(), shape: vec![PARAMETERS], layer: Some(0) };
    let initial = tensors::write(&[("layer.0".to_owned(), Array1::zeros(PARAMETERS).into_dyn())].into()).unwrap();
    let task = ModelTask { task: Task::SequenceClassification, labels: vec!["no".to_owned(), "yes".to_owned()] };
    Model { pack: PACK, schema: Schema { tensors: vec![spec] }, layers: 1, initial, task }
}

/// A simulated device that adds one to every weight instead of training.
struct Device {
    name: DeviceId,
    schema: Schema,
    verifier: Verifier,
    link: Link,
    events: mpsc::Receiver<LinkEvent>,
    held: BTreeMap<Digest, Vec<u8>>,
    order: Option<Command>,
    download: Option<(Receiver, BTreeMap<u32, Vec<u8>>)>,
    upload: Option<(Sender, Vec<u8>)>,
}

impl Device {
    fn open(index: usize, url: &str, coordinator: &Coordinator) -> Self {
        let name: DeviceId = format!("dev{index}").parse().unwrap();
        let subscriptions = device_filters(&fleet(), &name);
        let config = LinkConfig {
            broker: BrokerSettings { url: url.to_owned(), ..BrokerSettings::default() },
            client_id: name.to_string(),
            subscriptions,
            ..LinkConfig::default()
        };
        let (link, events) = Link::open(config).unwrap();
        let verifier = Verifier::parse(coordinator.public_key()).unwrap();
        let schema = model().schema;
        Self { name, schema, verifier, link, events, held: BTreeMap::new(), order: None, download: None, upload: None }
    }

    async fn work(mut self) {
        while let Some(event) = self.events.recv().await {
            match event {
                LinkEvent::Up => self.birth().await,
                LinkEvent::Down { .. } => {}
                LinkEvent::Message { topic, payload } => {
                    let (message, _) = codec::open(&payload, &topic, Some(&self.verifier)).unwrap();
                    match message {
                        Message::Command(command) => self.command(command).await,
                        Message::Transfer(message) => self.transfer(message).await,
                        _ => {}
                    }
                }
            }
        }
    }

    async fn say(&self, topic: Topic, message: Message) {
        let topic = topic.text(&fleet());
        let payload = codec::seal(&message, Version::OLDEST, &topic, None);
        let publication =
            Publication { topic, payload, qos: Qos::AtLeastOnce, retain: matches!(message, Message::Birth(_)) };
        self.link.publish(publication).await.unwrap();
    }

    async fn birth(&self) {
        let machine = Machine { arch: "x".into(), os: "y".into(), cores: 1, memory_bytes: 1 };
        let agent_version = "0.1.0".to_owned();
        let (place, memory) = (Place::default(), StepMemory::default());
        let birth = Birth {
            speaks: skiff_protocol::VersionRange::OURS,
            boot: BootId(1),
            agent_version,
            pack: PACK,
            train_examples: 10,
            test_examples: 10,
            machine,
            place,
            memory,
        };
        self.say(Topic::Birth(self.name.clone()), Message::Birth(birth)).await;
    }

    async fn command(&mut self, command: Command) {
        let weights = match &command.order {
            Order::Train(order) => order.weights,
            Order::Evaluate(order) => order.weights,
            Order::Stop => return,
        };
        let has_weights = self.held.contains_key(&weights);
        self.order = Some(command.clone());
        if has_weights {
            self.obey(weights).await;
        } else {
            self.answer(Outcome::Accepted { has_weights }).await;
        }
    }

    async fn answer(&self, outcome: Outcome) {
        let Command { run, round, epoch, .. } = self.order.clone().unwrap();
        let answer = Answer { boot: BootId(1), run, round, epoch, outcome };
        self.say(Topic::Answer(self.name.clone()), Message::Answer(answer)).await;
    }

    async fn obey(&mut self, weights: Digest) {
        let command = self.order.clone().unwrap();
        match command.order {
            Order::Evaluate(order) => {
                let (examples, correct) = (order.examples, order.examples / 2);
                let report = EvaluationReport {
                    examples,
                    correct,
                    loss_sum: 1.0,
                    evaluate_ms: 0,
                    peak_rss_bytes: 1,
                    metrics: skiff_protocol::metrics::TaskMetrics::Unknown,
                };
                self.answer(Outcome::Evaluated(report)).await;
            }
            Order::Train(order) => {
                let mut trained = self.schema.read(&self.held[&weights]).unwrap();
                trained.values_mut().for_each(|tensor| *tensor += 1.0);
                let bytes = tensors::write(&trained).unwrap();
                let report = TrainReport {
                    examples: u64::from(order.steps * order.batch),
                    tokens: 1,
                    steps: order.steps,
                    mean_loss: 0.1,
                    shared_layers: vec![0],
                    importance: vec![1.0],
                    mean_active_layers: 1.0,
                    train_ms: 0,
                    step_ms: 0.0,
                    peak_rss_bytes: 1,
                    probe: None,
                };
                let purpose = Purpose::Update { run: command.run, round: command.round, epoch: command.epoch, report };
                let offer = Offer { purpose, digest: Digest::of(&bytes), total_bytes: bytes.len() as u64 };
                let mut sender = Sender::new(offer);
                let actions = sender.handle(SenderEvent::Nudged, Timestamp(0));
                self.upload = Some((sender, bytes));
                self.send(actions).await;
            }
            Order::Stop => {}
        }
    }

    async fn transfer(&mut self, message: TransferMessage) {
        match message {
            TransferMessage::Offer(offer)
                if self.download.as_ref().is_none_or(|(known, _)| known.id() != offer.id()) =>
            {
                let (receiver, actions) = Receiver::new(offer, Found::Chunks(Default::default()));
                self.download = Some((receiver, BTreeMap::new()));
                self.receive(actions).await;
            }
            TransferMessage::Offer(_) | TransferMessage::Chunk { .. } => {
                let actions = match &mut self.download {
                    Some((receiver, _)) => receiver.handle(ReceiverEvent::Received(message)),
                    None => return,
                };
                self.receive(actions).await;
            }
            message => {
                let actions = match &mut self.upload {
                    Some((sender, _)) => sender.handle(SenderEvent::Received(message), Timestamp(0)),
                    None => return,
                };
                self.send(actions).await;
            }
        }
    }

    async fn receive(&mut self, actions: Vec<ReceiverAction>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let (receiver, chunks) = self.download.as_mut().unwrap();
            let id = receiver.id();
            match action {
                ReceiverAction::Send(message) => {
                    self.say(Topic::UpTransfer(self.name.clone(), id), Message::Transfer(message)).await;
                }
                ReceiverAction::Store { index, bytes } => {
                    chunks.insert(index, bytes);
                    actions.extend(receiver.handle(ReceiverEvent::Stored { index }));
                }
                ReceiverAction::Assemble => {
                    let whole: Vec<u8> = chunks.values().flatten().copied().collect();
                    assert_eq!(Digest::of(&whole), receiver.offer().digest);
                    self.held.insert(receiver.offer().digest, whole);
                    actions.extend(receiver.handle(ReceiverEvent::Assembled));
                }
                ReceiverAction::Completed => {
                    let weights = receiver.offer().digest;
                    self.obey(weights).await;
                }
                ReceiverAction::Failed { reason } => panic!("{reason}"),
            }
        }
    }

    async fn send(&self, actions: Vec<SenderAction>) {
        let (sender, bytes) = self.upload.as_ref().unwrap();
        let topic = || Topic::UpTransfer(self.name.clone(), sender.id());
        for action in actions {
            match action {
                SenderAction::Send(message) => self.say(topic(), Message::Transfer(message)).await,
                SenderAction::SendChunk { index } => {
                    let bytes = bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap().to_vec();
                    self.say(topic(), Message::Transfer(TransferMessage::Chunk { index, bytes })).await;
                }
                SenderAction::Finished => {}
                SenderAction::Refused { reason } => panic!("{}: {reason}", self.name),
            }
        }
    }
}

async fn run(devices: usize, rounds: u32) -> (RunProgress, TempDir) {
    let state = TempDir::new().unwrap();
    let broker = EmbeddedBroker::start_anywhere(Access::Anybody).unwrap();
    let config = Config::new(fleet(), "unused".into(), state.path().into(), &broker.url());
    let coordinator = Coordinator::start_with(config, model()).await.unwrap();
    let works: Vec<_> =
        (0..devices).map(|index| tokio::spawn(Device::open(index, &broker.url(), &coordinator).work())).collect();
    let settings = RunSettings {
        rounds,
        devices: devices as u32,
        quorum: devices as u32,
        evaluate_examples: 16,
        final_examples: 32,
        ..RunSettings::default()
    };
    coordinator.start_run(&settings).await.unwrap();
    let mut progress = coordinator.progress();
    let ended = |run: &RunProgress| run.phase.is_end();
    let run =
        progress.wait_for(|progress| progress.run.as_ref().is_some_and(ended)).await.unwrap().run.clone().unwrap();
    coordinator.shutdown().await.unwrap();
    works.iter().for_each(tokio::task::JoinHandle::abort);
    (run, state)
}

fn check(run: &RunProgress, devices: u32, rounds: usize) {
    assert_eq!((run.closed.len(), run.accuracy_before, run.accuracy_after), (rounds, Some(0.5), Some(0.5)));
    let payload = (PARAMETERS * 4) as u64 * u64::from(devices);
    for closed in &run.closed {
        assert_eq!((closed.updates, &closed.skipped), (devices, &None));
        assert!((payload..payload * 3 / 2).contains(&closed.bytes_up), "{closed:?}");
        assert!((payload..payload * 3 / 2).contains(&closed.bytes_down), "{closed:?}");
    }
    let costs: Vec<(u64, u64)> = run.closed.iter().map(|closed| (closed.train_ms, closed.evaluate_ms)).collect();
    eprintln!("{devices} devices: (train, evaluate) in ms: {costs:?}");
}

#[tokio::test]
async fn two_devices_go_through_a_run() {
    let (run, state) = run(2, 4).await;
    check(&run, 2, 4);
    let store = SqliteStore::open_existing(state.path()).unwrap();
    let weights = store.runs().unwrap()[0].summary.last.clone().unwrap().weights;
    let bytes = std::fs::read(state.path().join("blobs/blobs").join(weights)).unwrap();
    let tensors = model().schema.read(&bytes).unwrap();
    assert!(tensors["layer.0"].iter().all(|value| (value - 4.0).abs() < 1e-6), "one for each round");
}

#[tokio::test]
async fn eight_devices_go_through_a_run() {
    let (run, _state) = run(8, 3).await;
    check(&run, 8, 3);
}
