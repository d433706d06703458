//! The devices: they send a birth, then telemetry in turn, and accept every order without ever sending an update.

use skiff_link::{LinkEvent, Publication};
use skiff_protocol::codec::{self, Message};
use skiff_protocol::messages::{AgentState, Answer, Birth, Machine, Outcome, Place, StepMemory, Telemetry, WorkSample};
use skiff_protocol::{BootId, DeviceId, Digest, FleetId, RunId, Topic, Version, VersionRange};
use std::collections::VecDeque;
use std::time::Duration;

/// Name of the fleet.
pub(crate) const FLEET: &str = "bench";
/// Time between two samples of a device.
const EVERY: Duration = Duration::from_secs(10);

/// All devices of the fleet.
pub(crate) struct Devices {
    fleet: FleetId,
    pack: Digest,
    names: Vec<DeviceId>,
    /// Number of samples sent so far, by all devices together.
    sent: usize,
    answers: VecDeque<LinkEvent>,
}

impl Devices {
    pub(crate) fn new(devices: usize, pack: Digest) -> Self {
        let names = (0..devices).map(|at| format!("device-{at:05}").parse().unwrap()).collect();
        Self { fleet: FLEET.parse().unwrap(), pack, names, sent: 0, answers: VecDeque::new() }
    }

    pub(crate) fn birth(&self, at: usize) -> LinkEvent {
        let machine = Machine { arch: "aarch64".into(), os: "Debian 12".into(), cores: 4, memory_bytes: 1 << 32 };
        let birth = Birth {
            speaks: VersionRange::OURS,
            boot: BootId(1),
            agent_version: "0.1.0".into(),
            pack: self.pack,
            train_examples: 100,
            test_examples: 100,
            machine,
            place: Place::default(),
            memory: StepMemory::default(),
        };
        self.message(&Topic::Birth(self.names[at].clone()), &Message::Birth(birth))
    }

    /// Returns the messages that are due after `elapsed`, at most `most`.
    pub(crate) fn due(&mut self, elapsed: Duration, most: usize) -> Vec<LinkEvent> {
        let due = (elapsed.as_secs_f64() / EVERY.as_secs_f64() * self.names.len() as f64) as usize;
        let mut events: Vec<LinkEvent> = Vec::new();
        while events.len() < most {
            if let Some(answer) = self.answers.pop_front() {
                events.push(answer);
            } else if self.sent < due {
                events.push(self.sample());
                self.sent += 1;
            } else {
                break;
            }
        }
        events
    }

    /// Accepts an order.
    pub(crate) fn hear(&mut self, publication: &Publication) {
        if let Some(Topic::Command(device)) = Topic::parse(&self.fleet, &publication.topic)
            && let Ok((Message::Command(command), _)) = codec::open(&publication.payload, &publication.topic, None)
        {
            let outcome = Outcome::Accepted { has_weights: true };
            let (run, round, epoch) = (command.run, command.round, command.epoch);
            let answer = Answer { boot: BootId(1), run, round, epoch, outcome };
            self.answers.push_back(self.message(&Topic::Answer(device), &Message::Answer(answer)));
        }
    }

    /// Returns the next sample. Its figures differ from sample to sample.
    fn sample(&self) -> LinkEvent {
        let (at, turn) = (self.sent % self.names.len(), self.sent / self.names.len());
        let step = turn as u32;
        let vary = |base: f32| base + ((at * 31 + turn * 17) % 100) as f32 / 10.0;
        let telemetry = Telemetry {
            boot: BootId(1),
            sequence: turn as u64 + 1,
            uptime_ms: 10_000 * turn as u64,
            state: AgentState::Training,
            cpu_percent: vary(50.0),
            agent_cpu_percent: vary(90.0),
            memory_bytes: 4 << 30,
            memory_available_bytes: 1 << 30,
            load_1m: 1.0,
            temperatures: vec![("cpu".to_owned(), vary(50.0))],
            battery: None,
            agent_rss_bytes: 200_000_000 + (at * 4_096) as u64,
            agent_peak_rss_bytes: 300_000_000,
            work: Some(WorkSample {
                run: RunId(1),
                round: 1,
                step,
                steps: 1_000,
                step_ms: vary(400.0),
                tokens_per_second: vary(300.0),
                active_layers: 4,
                loss: 0.5,
            }),
        };
        self.message(&Topic::Telemetry(self.names[at].clone()), &Message::Telemetry(telemetry))
    }

    fn message(&self, topic: &Topic, message: &Message) -> LinkEvent {
        let topic = topic.text(&self.fleet);
        let payload = codec::seal(message, Version::V3, &topic, None);
        LinkEvent::Message { topic, payload }
    }
}
