//! A whole fleet in one process: virtual time, a broker in memory, the real coordinator and the real agents. One seed decides
//! everything.

use crate::broker::{Broker, Client, Delivery};
use crate::checks::Checks;
use crate::coordinator::{Call, Coordinator, Done};
use crate::device::{self, Device};
use crate::disk::Journal;
use crate::faults::{Faults, Incident};
use crate::training::Lie;
use skiff_agent::participant::Event as AgentEvent;
use skiff_api::policy::{Policy, Sharing};
use skiff_base::random::Random;
use skiff_coordinator::merge::Merging;
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::run::{Phase, RunSettings};
use skiff_link::{LinkEvent, Publication};
use skiff_protocol::topics::{coordinator_filters, coordinator_optional_filters, device_filters};
use skiff_protocol::{FleetId, RunId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// Time at which every simulation begins, in milliseconds since 1970.
const BEGIN_MS: u64 = 1_800_000_000_000;
/// Time after which a broker notices that a client is gone, in milliseconds.
const KEEP_ALIVE_MS: u64 = 90_000;
const RUN: RunId = RunId(0x51);

/// Something that happens at a moment.
#[derive(Debug)]
enum Event {
    Deliver(Delivery),
    /// A program tries to connect, in this life of it.
    Connect(Client, u64),
    /// A program notices that its connection is gone.
    Down(Client, u64),
    /// The broker publishes the last will of a connection.
    Will(Client, u64),
    Tick(Client, u64),
    Work(usize, u64, u64),
    Done(u64, Box<Call>),
    StartAgent(usize),
    StartCoordinator,
    StartRun,
    Incident(Incident),
    /// No faults happen from now on.
    Quiet,
}

/// Result of a simulation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) devices: u32,
    pub(crate) rounds: u32,
    pub(crate) merged: u32,
    pub(crate) incidents: u32,
    pub(crate) deliveries: u64,
    pub(crate) events: u64,
    pub(crate) virtual_s: u64,
    pub(crate) confirmed: u32,
    pub(crate) orders: u32,
    pub(crate) merges: u32,
    pub(crate) replays: u32,
}

/// A fleet under simulation.
pub(crate) struct World {
    random: Random,
    now_ms: u64,
    numbered: u64,
    queue: BTreeMap<(u64, u64), Event>,
    faults: Faults,
    broker: Broker,
    wills: BTreeMap<Client, (u64, Publication)>,
    cut: u64,
    model: Arc<Model>,
    journal: Journal,
    checks: Checks,
    folder: TempDir,
    state: PathBuf,
    coordinator: Option<Coordinator>,
    lives: u64,
    ahead_ms: i64,
    coordinator_cut_off_until_ms: u64,
    devices: Vec<Device>,
    settings: RunSettings,
    /// Time of the next tick that is queued for each program.
    ticks: BTreeMap<Client, u64>,
    /// True if something is printed for each event.
    speaks: bool,
    totals: Totals,
}

impl World {
    /// Prepares the fleet of a seed.
    pub(crate) fn new(seed: u64, model: &Arc<Model>, swarm: bool, speaks: bool) -> Self {
        let mut random = Random::new(seed);
        let faults = if swarm { Faults::swarm(&mut random) } else { Faults::ALL };
        let folder = scratch();
        let (devices, rounds) = (2 + random.below(11), 3 + random.below(8) as u32);
        let wanted = 1 + random.below(devices) as u32;
        let settings = RunSettings {
            rounds,
            devices: wanted,
            over_selection: random.below(3) as u32,
            quorum: 1 + random.below(wanted as usize) as u32,
            asynchronous: random.chance(0.3),
            steps: 5,
            seed,
            merge: merging(&mut random),
            sharing: sharing(&mut random, model.layers),
            evaluate_examples: if random.chance(0.5) { 50 } else { 0 },
            final_examples: if random.chance(0.7) { 50 } else { 0 },
            gather_ms: 20_000,
            train_ms: 120_000,
            evaluate_ms: 60_000,
            grace_ms: 5_000,
            ..RunSettings::default()
        };
        let fleet: Vec<Device> = (0..devices).map(|at| Device::new(at, folder.path(), model, &mut random)).collect();
        let journal = Journal::default();
        let state = folder.path().join("coordinator-0");
        std::fs::create_dir(&state).expect("a folder");
        let totals = Totals { devices: devices as u32, rounds, ..Totals::default() };
        let mut world = Self {
            random,
            now_ms: BEGIN_MS,
            numbered: 0,
            queue: BTreeMap::new(),
            faults,
            broker: Broker::default(),
            wills: BTreeMap::new(),
            cut: 0,
            model: Arc::clone(model),
            checks: Checks::new(Arc::clone(&journal)),
            journal,
            folder,
            state,
            coordinator: None,
            lives: 0,
            ahead_ms: 0,
            coordinator_cut_off_until_ms: 0,
            devices: fleet,
            settings,
            ticks: BTreeMap::new(),
            speaks,
            totals,
        };
        world.plan();
        world
    }

    /// Queues the start of every program, of the run, and all incidents.
    fn plan(&mut self) {
        self.after(0, Event::StartCoordinator);
        for at in 0..self.devices.len() {
            let start_ms = self.below(10_000);
            self.after(start_ms, Event::StartAgent(at));
        }
        let start_ms = 2_000 + self.below(10_000);
        self.after(start_ms, Event::StartRun);
        let lasts_ms = 20_000 + u64::from(self.settings.rounds) * 25_000;
        let incidents = 5 + self.random.below(10);
        for _ in 0..incidents {
            let incident = self.faults.draw(&mut self.random);
            let at_ms = self.below(lasts_ms);
            self.after(at_ms, Event::Incident(incident));
        }
        self.totals.incidents = incidents as u32;
        self.after(lasts_ms, Event::Quiet);
    }

    /// Simulates until the run has ended and every device rests.
    pub(crate) fn run(mut self) -> Totals {
        let settings = &self.settings;
        let round_ms = settings.gather_ms + settings.train_ms + settings.evaluate_ms + 30_000;
        // The faults last a few minutes. A device that is suspended in the last minute sleeps for an hour. After that the fleet
        // needs at most the time of all its rounds.
        let most_ms = self.now_ms + 5 * 60_000 + 3_600_000 + u64::from(settings.rounds + 2) * round_ms;
        while let Some(((at_ms, _), event)) = self.queue.pop_first() {
            self.now_ms = at_ms;
            self.totals.events += 1;
            assert!(self.now_ms < most_ms, "the run does not end: {}", self.described());
            assert!(self.totals.events < 2_000_000, "the fleet talks without end: {}", self.described());
            if self.speaks {
                println!("{:>9} {}", self.now_ms - BEGIN_MS, short(&format!("{event:?}")));
            }
            self.happen(event);
            if let Some(coordinator) = &self.coordinator {
                Checks::between_events(coordinator);
            }
            if self.is_done() {
                break;
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Totals {
        assert!(self.is_done(), "nothing more happens, and the fleet is not done: {}", self.described());
        let coordinator = self.coordinator.as_ref().expect("a coordinator");
        let ledger = coordinator.hub.ledger().expect("a run");
        self.checks.phases_kept_their_deadlines(RUN);
        let (blobs, partials) = coordinator.stored();
        // The initial, the last and the best weights, and the moments. A kill may prevent the record of an update, of merged weights and of
        // moments; such blobs belong to nobody and are kept until `skiff store gc --unknown`.
        let named: Vec<Vec<String>> = blobs.iter().map(|blob| self.checks.naming(RUN, *blob)).collect();
        let unnamed = named.iter().filter(|names| names.is_empty()).count() as u64;
        assert!(unnamed <= 3 * (self.lives - 1), "{unnamed} blobs without a record after {} kills", self.lives - 1);
        assert!(blobs.len() as u64 - unnamed <= 4, "{} blobs are left after the run: {named:?}", blobs.len());
        assert!(partials.is_empty(), "{} incomplete updates are left after the run", partials.len());
        // The weights of the order and those before it, the update, and the personal layers.
        for device in &self.devices {
            let blobs = device.agent.as_ref().map_or(0, device::Agent::blobs);
            assert!(blobs <= 4, "{blobs} blobs are left on {}", device::name(device.at));
        }
        self.totals.merged = ledger.version;
        self.totals.virtual_s = (self.now_ms - BEGIN_MS) / 1000;
        let Checks { confirmed, orders, merges, replays, .. } = self.checks;
        Totals { confirmed, orders, merges, replays, ..self.totals }
    }

    /// Returns true if no fault can happen any more, the run has ended, and every device rests.
    fn is_done(&mut self) -> bool {
        let is_quiet = self.faults.lost == 0.0 && !self.queue.values().any(|event| matches!(event, Event::Quiet));
        let has_ended = self
            .coordinator
            .as_ref()
            .and_then(|coordinator| coordinator.hub.ledger())
            .is_some_and(|ledger| ledger.is_ended());
        is_quiet && has_ended && self.devices.iter().all(Device::rests)
    }

    fn described(&self) -> String {
        let phase = self.coordinator.as_ref().and_then(|coordinator| coordinator.hub.ledger()).map(|ledger| {
            match &ledger.phase {
                Phase::Gather(purpose) => format!("round {} gathers to {purpose:?}", ledger.round),
                Phase::Train(training) => {
                    format!("round {} waits for {:?}", ledger.round, training.pending().collect::<Vec<_>>())
                }
                Phase::Merge(_) => format!("round {} merges", ledger.round),
                Phase::Evaluate(_) => format!("round {} evaluates", ledger.round),
                Phase::Done | Phase::Ended(_) => "the run has ended".to_owned(),
            }
        });
        let busy: Vec<String> =
            self.devices.iter().filter(|device| !device.rests()).map(|device| device::name(device.at)).collect();
        format!("{}; busy: {busy:?}", phase.unwrap_or_else(|| "no run".to_owned()))
    }

    // --- time and queue ---

    fn after(&mut self, delay_ms: u64, event: Event) {
        self.numbered += 1;
        self.queue.insert((self.now_ms + delay_ms, self.numbered), event);
    }

    fn below(&mut self, bound_ms: u64) -> u64 {
        self.random.below(bound_ms as usize) as u64
    }

    /// Queues the next tick of a program, unless an earlier or equal one is queued.
    fn queue_tick(&mut self, client: Client) {
        let (deadline_ms, life) = match client {
            Client::Coordinator => match &self.coordinator {
                Some(coordinator) => (coordinator.deadline_ms(), coordinator.life),
                None => return,
            },
            Client::Device(at) => (self.devices[at].deadline_ms(), self.devices[at].life),
        };
        let Some(deadline_ms) = deadline_ms.map(|deadline_ms| deadline_ms.max(self.now_ms + 1)) else { return };
        if self.ticks.get(&client).is_none_or(|&queued_ms| queued_ms > deadline_ms || queued_ms <= self.now_ms) {
            self.ticks.insert(client, deadline_ms);
            self.after(deadline_ms - self.now_ms, Event::Tick(client, life));
        }
    }

    // --- events ---

    fn happen(&mut self, event: Event) {
        if let Some(at) = self.device_of(&event)
            && self.devices[at].suspended_until_ms > self.now_ms
        {
            let delay_ms = self.devices[at].suspended_until_ms - self.now_ms;
            return self.after(delay_ms, event);
        }
        match event {
            Event::Deliver(delivery) => self.deliver(delivery),
            Event::Connect(client, life) if life == self.life(client) => self.connect(client),
            Event::Down(client, life) if life == self.life(client) && self.broker.connection(client).is_none() => {
                self.link(client, LinkEvent::Down { reason: "the connection is lost".to_owned() });
                let delay_ms = 100 + self.below(4_000);
                self.after(delay_ms, Event::Connect(client, life));
            }
            Event::Will(client, number) => self.publish_will(client, Some(number)),
            Event::Tick(client, life) if life == self.life(client) => self.tick(client),
            Event::Work(at, life, begun) if life == self.devices[at].life => {
                let wants = self.devices[at].work_done(begun, &Arc::clone(&self.model), self.now_ms);
                self.follow_device(at, wants);
            }
            Event::Done(life, call) if life == self.lives => self.call(*call),
            Event::StartAgent(at) => self.start_agent(at),
            Event::StartCoordinator => self.start_coordinator(),
            Event::StartRun => self.start_run(),
            Event::Incident(incident) => self.incident(incident),
            Event::Quiet => self.be_quiet(),
            // Of an earlier life.
            Event::Connect(..) | Event::Down(..) | Event::Tick(..) | Event::Work(..) | Event::Done(..) => {}
        }
    }

    fn device_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Deliver(Delivery { to: Client::Device(at), .. })
            | Event::Connect(Client::Device(at), _)
            | Event::Down(Client::Device(at), _)
            | Event::Tick(Client::Device(at), _)
            | Event::Work(at, ..)
            | Event::StartAgent(at) => Some(*at),
            _ => None,
        }
    }

    fn life(&self, client: Client) -> u64 {
        match client {
            Client::Coordinator => self.lives,
            Client::Device(at) => self.devices[at].life,
        }
    }

    fn deliver(&mut self, Delivery { to, connection, topic, payload, .. }: Delivery) {
        if self.broker.connection(to) == Some(connection) {
            self.totals.deliveries += 1;
            self.link(to, LinkEvent::Message { topic, payload });
        }
    }

    fn link(&mut self, client: Client, event: LinkEvent) {
        match client {
            Client::Coordinator => self.call(Call::Link(event)),
            Client::Device(at) => {
                let wants = self.devices[at].link(event, self.now_ms);
                self.follow_device(at, wants);
            }
        }
    }

    fn tick(&mut self, client: Client) {
        match client {
            Client::Coordinator => self.call(Call::Tick),
            Client::Device(at) => {
                let wants = self.devices[at].tell(AgentEvent::Tick, self.now_ms);
                self.follow_device(at, wants);
            }
        }
    }

    // --- connections ---

    fn has_network(&self, client: Client) -> bool {
        self.now_ms
            >= match client {
                Client::Coordinator => self.coordinator_cut_off_until_ms,
                Client::Device(at) => self.devices[at].cut_off_until_ms,
            }
    }

    fn connect(&mut self, client: Client) {
        let life = self.life(client);
        if !self.has_network(client) {
            let delay_ms = 1_000 + self.below(4_000);
            return self.after(delay_ms, Event::Connect(client, life));
        }
        // A broker that sees the same client again first publishes the will of the connection before.
        self.publish_will(client, None);
        let fleet: FleetId = crate::coordinator::FLEET.parse().expect("a name");
        let (filters, will) = match client {
            Client::Coordinator => match &self.coordinator {
                Some(coordinator) => {
                    let filters = [coordinator_filters(&fleet), coordinator_optional_filters(&fleet)].concat();
                    (filters, coordinator.hub.farewell())
                }
                None => return,
            },
            Client::Device(at) => {
                let name = device::name(at).parse().expect("a name");
                (device_filters(&fleet, &name), self.devices[at].will())
            }
        };
        let retained = self.broker.connect(client, filters, will, self.now_ms, &mut self.random);
        self.send(retained);
        self.link(client, LinkEvent::Up);
    }

    /// Cuts a connection. The broker publishes the last will when it notices, and so does the program, if it lives.
    fn cut(&mut self, client: Client, notices_ms: u64) {
        if let Some(will) = self.broker.cut(client) {
            self.cut += 1;
            self.wills.insert(client, (self.cut, will));
            let number = self.cut;
            let delay_ms = self.below(KEEP_ALIVE_MS);
            self.after(delay_ms, Event::Will(client, number));
        }
        let life = self.life(client);
        self.after(notices_ms, Event::Down(client, life));
    }

    /// Publishes the last will of a cut connection. If a number is given, it must be the number of that connection.
    fn publish_will(&mut self, client: Client, number: Option<u64>) {
        let is_due = self.wills.get(&client).is_some_and(|(cut, _)| number.is_none_or(|number| number == *cut));
        if let Some((_, will)) = self.wills.remove(&client).filter(|_| is_due) {
            let sent = self.broker.publish(will, self.now_ms, &self.faults, &mut self.random);
            self.send(sent);
        }
    }

    fn send(&mut self, deliveries: Vec<Delivery>) {
        for delivery in deliveries {
            self.after(delivery.at_ms.saturating_sub(self.now_ms), Event::Deliver(delivery));
        }
    }

    fn publish(&mut self, from: Client, publications: Vec<Publication>) {
        for publication in publications {
            match from {
                Client::Coordinator => self.checks.said_by_coordinator(&publication),
                Client::Device(_) => self.checks.said_by_device(&publication),
            }
            if self.broker.connection(from).is_some() && self.has_network(from) {
                let sent = self.broker.publish(publication, self.now_ms, &self.faults, &mut self.random);
                self.send(sent);
            }
        }
    }

    // --- devices ---

    fn start_agent(&mut self, at: usize) {
        if self.devices[at].agent.is_none() {
            self.devices[at].start();
            let (life, delay_ms) = (self.devices[at].life, self.below(1_000));
            self.after(delay_ms, Event::Connect(Client::Device(at), life));
        }
    }

    fn kill_agent(&mut self, at: usize) {
        self.devices[at].agent = None;
        self.ticks.remove(&Client::Device(at));
        if let Some(will) = self.broker.cut(Client::Device(at)) {
            self.cut += 1;
            self.wills.insert(Client::Device(at), (self.cut, will));
            let (number, delay_ms) = (self.cut, self.below(2_000));
            self.after(delay_ms, Event::Will(Client::Device(at), number));
        }
        let delay_ms = 500 + self.below(20_000);
        self.after(delay_ms, Event::StartAgent(at));
    }

    fn follow_device(&mut self, at: usize, wants: device::Wants) {
        self.publish(Client::Device(at), wants.publications);
        if wants.killed {
            return self.kill_agent(at);
        }
        if let Some(begun) = wants.begun {
            let (life, takes_ms) = (self.devices[at].life, 500 + self.below(15_000));
            self.after(takes_ms, Event::Work(at, life, begun));
        }
        self.queue_tick(Client::Device(at));
    }

    // --- the coordinator ---

    fn start_coordinator(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        self.lives += 1;
        let (lives, ahead_ms, now_ms) = (self.lives, self.ahead_ms, self.now_ms);
        let started =
            Coordinator::start(&self.state, &self.model, &self.journal, lives, ahead_ms, now_ms, &mut self.checks);
        let (coordinator, wants) = started.unwrap_or_else(|error| panic!("the coordinator cannot start: {error:?}"));
        self.checks.restarted(&coordinator);
        self.coordinator = Some(coordinator);
        self.follow_coordinator(wants);
        let delay_ms = self.below(1_000);
        self.after(delay_ms, Event::Connect(Client::Coordinator, lives));
    }

    fn start_run(&mut self) {
        match &self.coordinator {
            None => self.after(1_000, Event::StartRun),
            Some(coordinator) if coordinator.hub.ledger().is_some() => {}
            Some(_) => {
                self.call(Call::Start(RUN, Box::new(self.settings.clone())));
                // The operator checks whether the coordinator was killed before it stored the run.
                self.after(5_000, Event::StartRun);
            }
        }
    }

    fn call(&mut self, call: Call) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let wants = coordinator.handle(call, self.now_ms, &mut self.checks);
        let is_dead = coordinator.killer.is_dead();
        match wants {
            Ok(wants) if !is_dead => self.follow_coordinator(wants),
            Ok(_) => self.kill_coordinator(),
            Err(_) if is_dead => self.kill_coordinator(),
            Err(error) => panic!("the coordinator stops although its disk is sound: {error:?}"),
        }
    }

    fn follow_coordinator(&mut self, wants: crate::coordinator::Wants) {
        self.publish(Client::Coordinator, wants.publications);
        for done in wants.done {
            let call = match done {
                Done::Merged(job, merged) => Call::MergeEnded(job, merged),
                Done::Checked(checked) => Call::Checked(checked),
            };
            let (life, takes_ms) = (self.lives, 1 + self.below(2_000));
            self.after(takes_ms, Event::Done(life, Box::new(call)));
        }
        self.queue_tick(Client::Coordinator);
    }

    /// Ends the coordinator's process. The next life finds a copy of the files as they were at this moment.
    fn kill_coordinator(&mut self) {
        let copy = self.folder.path().join(format!("coordinator-{}", self.lives));
        copy_folder(&self.state, &copy);
        self.coordinator = None;
        self.ticks.remove(&Client::Coordinator);
        std::fs::remove_dir_all(&self.state).expect("the files of the dead process");
        self.state = copy;
        if let Some(will) = self.broker.cut(Client::Coordinator) {
            self.cut += 1;
            self.wills.insert(Client::Coordinator, (self.cut, will));
            let (number, delay_ms) = (self.cut, self.below(2_000));
            self.after(delay_ms, Event::Will(Client::Coordinator, number));
        }
        let delay_ms = 500 + self.below(10_000);
        self.after(delay_ms, Event::StartCoordinator);
    }

    // --- faults ---

    fn incident(&mut self, incident: Incident) {
        let at = self.random.below(self.devices.len());
        let device = Client::Device(at);
        match incident {
            Incident::AgentKilled => {
                if self.random.chance(0.5) {
                    self.devices[at].killed_after = Some(self.random.below(6) as u32);
                } else if self.devices[at].agent.is_some() {
                    self.kill_agent(at);
                }
            }
            Incident::WorkerKilled => {
                let wants = self.devices[at].worker_killed(self.now_ms);
                self.follow_device(at, wants);
            }
            Incident::CoordinatorKilled => {
                let (writes, after) = (self.random.below(6) as u32, self.random.chance(0.5));
                if let Some(coordinator) = &self.coordinator {
                    coordinator.killer.arm(writes, after);
                }
            }
            Incident::BrokerForgets | Incident::BrokerRestarts => {
                self.broker.restart(incident == Incident::BrokerRestarts);
                self.wills.clear();
                for client in [Client::Coordinator].into_iter().chain((0..self.devices.len()).map(Client::Device)) {
                    let (life, delay_ms) = (self.life(client), self.below(2_000));
                    self.after(delay_ms, Event::Down(client, life));
                }
            }
            Incident::DeviceCutOff => {
                self.devices[at].cut_off_until_ms = self.now_ms + 1_000 + self.below(60_000);
                let notices_ms = self.below(30_000);
                self.cut(device, notices_ms);
            }
            Incident::CoordinatorCutOff => {
                self.coordinator_cut_off_until_ms = self.now_ms + 1_000 + self.below(30_000);
                let notices_ms = self.below(30_000);
                self.cut(Client::Coordinator, notices_ms);
            }
            Incident::DeviceSuspended => {
                let lasts_ms = 1_000 + self.below(3_600_000);
                self.devices[at].suspended_until_ms = self.now_ms + lasts_ms;
                if lasts_ms > KEEP_ALIVE_MS {
                    self.cut(device, lasts_ms);
                }
            }
            Incident::DeviceDiskFull => self.devices[at].full_until_ms = self.now_ms + 1_000 + self.below(60_000),
            Incident::ClockJumps => {
                let day_ms = 24 * 3_600_000;
                self.ahead_ms = self.below(2 * day_ms) as i64 - day_ms as i64;
                if self.coordinator.is_some() {
                    self.kill_coordinator();
                }
            }
            Incident::DeviceBlobFlips => {
                if self.devices[at].agent.is_some() {
                    self.kill_agent(at);
                    let which = self.random.next_u64();
                    flip_a_blob(&self.devices[at].folder, which);
                }
            }
            Incident::DeviceLies => self.devices[at].lie = self.random.choose(&Lie::ALL).copied(),
            Incident::DeviceReplaced => {
                if self.devices[at].agent.is_some() {
                    self.kill_agent(at);
                    let _ = std::fs::remove_dir_all(&self.devices[at].folder);
                }
            }
            Incident::PolicyChanges => {
                let sharing = sharing(&mut self.random, self.model.layers);
                self.call(Call::Policy(Policy { sharing, groups: Vec::new() }));
            }
        }
    }

    fn be_quiet(&mut self) {
        (self.faults.lost, self.faults.doubled, self.faults.late) = (0.0, 0.0, 0.0);
        self.coordinator_cut_off_until_ms = 0;
        if let Some(coordinator) = &self.coordinator {
            coordinator.killer.disarm();
        }
        for device in &mut self.devices {
            (device.cut_off_until_ms, device.full_until_ms) = (0, 0);
            (device.lie, device.killed_after) = (None, None);
        }
    }
}

fn merging(random: &mut Random) -> Merging {
    let merging = [
        "",
        "",
        "rule = 'median'",
        "rule = { trimmed_mean = { share = 0.2 } }",
        "rule = { norm_bounded = { norm = 8.0 } }",
        "server = { adam = {} }",
    ];
    let text = random.choose(&merging).copied().unwrap_or_default();
    toml::from_str(text).expect("settings of a merge")
}

fn sharing(random: &mut Random, layers: u32) -> Sharing {
    let k = 1 + random.below(layers as usize) as u32;
    let of_layers = Sharing::Layers((0..k).collect());
    [Sharing::All, Sharing::All, Sharing::LeastImportant(k), Sharing::MostImportant(k), of_layers]
        .into_iter()
        .nth(random.below(5))
        .unwrap_or_default()
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(150).collect();
    if short.len() < text.len() {
        short.push_str(" ...");
    }
    short
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Changes a byte of one of a device's blobs.
fn flip_a_blob(folder: &Path, which: u64) {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder.join("blobs")).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    if files.is_empty() {
        return;
    }
    let file = &files[which as usize % files.len()];
    let mut bytes = std::fs::read(file).expect("a blob");
    let at = which as usize % bytes.len().max(1);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1;
    }
    std::fs::write(file, bytes).expect("a blob");
}

impl Totals {
    /// Adds the result of another simulation.
    pub(crate) fn add(&mut self, other: &Self) {
        self.devices += other.devices;
        self.rounds += other.rounds;
        self.merged += other.merged;
        self.incidents += other.incidents;
        self.deliveries += other.deliveries;
        self.events += other.events;
        self.virtual_s += other.virtual_s;
        self.confirmed += other.confirmed;
        self.orders += other.orders;
        self.merges += other.merges;
        self.replays += other.replays;
    }
}

/// Returns a new folder, in memory if the system offers one.
fn scratch() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a temporary folder")
}
