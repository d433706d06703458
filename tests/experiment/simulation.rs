//! One run on a virtual fleet. Training, merging and every decision are real: the agent's trainer and the coordinator's engine, in one
//! process. Time is virtual: the device's class decides how long a step, a transfer or an absence takes, so that a run does not
//! depend on the machine, and can be repeated bit for bit.
//!
//! | what | takes |
//! |---|---|
//! | a step | `flops(active layers) · way / speed`, with [`work::flops`], and `way` the agent's memory plan's estimate for steps that are done in parts or recompute |
//! | measuring a gain | `evaluation_flops(all layers) / speed`, before and after the training |
//! | a transfer | `bytes · 8 / link`: the trainable tensors, down and up |
//! | energy | the class's watts while it computes, [`RADIO_WATTS`] while it transfers |
//!
//! Merging takes no time, and accuracies are measured outside of it. A device that leaves resumes its work when it comes back.

use crate::data::{Data, MAX_TOKENS, Part};
use crate::fleets::{Availability, Battery, Class, Fleet, RADIO_WATTS, device_id};
use crate::methods::Method;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use skiff_api::policy::Sharing;
use skiff_blobs::{Blobs as _, DiskBlobs};
use skiff_coordinator::merge::model::Model;
use skiff_coordinator::run::configurator::Pace;
use skiff_coordinator::run::{Action, Condition, Event, Here, MAX_ROUNDS, Record, Run, RunSettings, Start};
use skiff_models::Pack;
use skiff_models::memory::{Plan, Step};
use skiff_models::tensors::{NamedTensors, Schema};
use skiff_models::work;
use skiff_protocol::messages::{Answer, Command, Order, Outcome as Told, Place, SharingPlan, TrainOrder};
use skiff_protocol::{BootId, DeviceId, Digest, RunId, Timestamp};
use skiff_trainer::{EvaluatePlan, LayerMask, Runtime, Trainer};
use skiff_worker::inventory::of_steps;
use skiff_worker::order::{OrderedTraining, only_layers};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Size of a run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Scale {
    pub(crate) devices: usize,
    /// Number of devices that train in a round.
    pub(crate) trained: u32,
    /// Length of a run, in rounds of the slowest class that trains every layer. A method with faster rounds has more of them.
    pub(crate) rounds: u32,
    pub(crate) steps: u32,
    pub(crate) batch: u32,
    pub(crate) learning_rate: f32,
    /// Number of measurements of the accuracies in that time, evenly spread.
    pub(crate) measured: u32,
}

/// One run: a method on a fleet with data.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) method: String,
    pub(crate) fleet: String,
    pub(crate) data: String,
    /// Digest of the data set's files.
    pub(crate) texts: String,
    /// Dirichlet's concentration: similarity of the devices' data.
    pub(crate) alpha: f64,
    pub(crate) seed: u64,
    pub(crate) scale: Scale,
    /// Whole description of the method, so that its results cannot be confused with another method's.
    pub(crate) settings: String,
}

/// Accuracies at a moment of a run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Point {
    pub(crate) round: u32,
    pub(crate) seconds: f64,
    /// Accuracy of the global model, on texts in the data set's own mix.
    pub(crate) global: f64,
    /// Mean accuracy over all devices: each with its own layers, on texts of its own mix.
    pub(crate) personal: f64,
}

/// Result of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) cell: Cell,
    pub(crate) points: Vec<Point>,
    /// The largest memory of a step on any device, with its process.
    pub(crate) peak_memory_bytes: u64,
    /// The same over devices whose memory holds only some of the layers.
    pub(crate) small_peak_memory_bytes: Option<u64>,
    /// Memory of a step with every layer: in the fastest way, and in the leanest.
    pub(crate) whole_memory_bytes: [u64; 2],
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    pub(crate) joules: f64,
    /// Mean number of active layers over all steps.
    pub(crate) active_layers: f64,
    pub(crate) skipped_rounds: u32,
    /// Number of devices that cannot take part.
    pub(crate) left_out: usize,
    /// Digest of the last global weights. The same cell always gives the same digest.
    pub(crate) weights: String,
}

/// A pack that is opened by every run that needs it.
pub(crate) struct Opened {
    pub(crate) pack: Arc<Pack>,
    pub(crate) model: Model,
}

/// A cell with the tools that carry it out.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a> {
    pub(crate) cell: &'a Cell,
    pub(crate) method: &'a Method,
    pub(crate) fleet: Fleet,
    pub(crate) data: &'a Data,
    pub(crate) opened: &'a Opened,
}

/// Carries out a cell, with blobs in the folder `scratch`. `watch` gets every measurement, and may stop it.
///
/// # Errors
/// If a training or the disk fails.
pub(crate) fn simulate(
    task: Task<'_>,
    runtime: &Runtime,
    scratch: &Path,
    watch: &mut dyn FnMut() -> ControlFlow<()>,
) -> anyhow::Result<Outcome> {
    let mut world = World::new(task, runtime, scratch)?;
    let depths = task.method.depths(task.opened.model.layers);
    world.measure()?;
    for (stage, &depth) in depths.iter().enumerate() {
        world.begin(stage, depth)?;
        let ends_ms = world.whole_ms * f64::from(task.cell.scale.rounds) * (stage + 1) as f64 / depths.len() as f64;
        world.run_on(ends_ms as u64, watch)?;
    }
    Ok(world.outcome())
}

/// An event at its own time.
#[derive(Clone, PartialEq, Debug)]
enum Happening {
    /// An update arrives, if the device was not interrupted.
    Arrives { device: usize, epoch: u64 },
    /// The device comes or goes, by its own plan.
    Turns { device: usize },
    /// Its battery is charged.
    Charged { device: usize },
}

/// Training of a device.
struct Work {
    epoch: u64,
    round: u32,
    order: TrainOrder,
    /// Mean time of its steps.
    step_ms: f64,
    train_ms: f64,
    joules: f64,
    due_ms: u64,
}

struct Device {
    id: DeviceId,
    class: &'static Class,
    here: Here,
    plan: Plan,
    train: Part,
    test: Part,
    personal: Option<NamedTensors>,
    work: Option<Work>,
    /// True if it is online by its plan.
    is_there: bool,
    away_since: u64,
    availability: Option<Availability>,
    battery: Option<Battery>,
    is_charging: bool,
    /// True if its memory cannot carry the method.
    is_left_out: bool,
}

/// A model's costs.
struct Costs {
    /// Cost of a step, by active layers.
    step: Vec<f64>,
    /// Cost of evaluating one example.
    example: f64,
    forward: f64,
}

struct World<'a> {
    cell: &'a Cell,
    method: &'a Method,
    opened: &'a Opened,
    trainer: Trainer,
    blobs: DiskBlobs,
    run: Run,
    now_ms: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    queued: u64,
    devices: Vec<Device>,
    index: BTreeMap<DeviceId, usize>,
    costs: Costs,
    /// Time that the slowest class takes for a round's training with every layer.
    whole_ms: f64,
    deadline_ms: u64,
    depth: u32,
    /// Number of merged rounds, and time of the next measurement.
    rounds: u32,
    measured_at_ms: u64,
    sample: Part,
    weights: Digest,
    /// Updates, and weights that were merged into newer ones.
    kept: BTreeSet<Digest>,
    steps: u64,
    active: u64,
    outcome: Outcome,
}

impl<'a> World<'a> {
    fn new(task: Task<'a>, runtime: &Runtime, scratch: &Path) -> anyhow::Result<Self> {
        let Task { cell, method, fleet, data, opened } = task;
        let Scale { devices, steps, batch, .. } = cell.scale;
        let Opened { pack, model } = opened;
        let trainer = Trainer::open(runtime, Arc::clone(pack))?;
        let layers = model.layers;
        let tokens = data.step_tokens(batch as usize);
        let stages = pack.manifest().design.stages().context("the graphs of the pack")?;
        let step = |active| Step { examples: batch as usize, tokens, active };
        let costs = Costs {
            step: (0..=layers as usize).map(|active| work::flops(&stages, step(active)) as f64).collect(),
            example: work::evaluation_flops(&stages, Step { examples: 1, ..step(layers as usize) }) as f64,
            forward: work::evaluation_flops(&stages, step(layers as usize)) as f64,
        };
        let whole_ms = f64::from(steps) * costs.step[layers as usize] / (fleet.class(0).gflops * 1e6);
        let deadline_ms = fleet.deadline_ms(whole_ms);
        let leanest = of_steps(pack, &skiff_contract::limits::Limit::set(u64::MAX));
        let held = data.deal(devices, cell.alpha, cell.seed);
        let mut all = Vec::new();
        let longest = Step { examples: batch as usize, tokens: MAX_TOKENS as usize, active: layers as usize };
        for (at, (train, test)) in held.into_iter().enumerate() {
            let memory = fleet.memory(at, leanest, layers);
            let room = if memory.limit_bytes == 0 { u64::MAX } else { memory.limit_bytes - memory.process_bytes };
            let class = fleet.class(at);
            let plan = trainer.plan(longest, room)?;
            let in_time = f64::from(steps) * costs.step[layers as usize] / (class.gflops * 1e6) <= deadline_ms as f64;
            let in_memory = memory.limit_bytes == 0;
            let is_field = fleet == Fleet::Field;
            let place = Place { class: class.name.to_owned(), ..Place::default() };
            let examples = |part: &Part| skiff_trainer::Examples::len(part) as u64;
            all.push(Device {
                id: device_id(at),
                class,
                here: Here {
                    boot: BootId(at as u64 + 1),
                    train_examples: examples(&train),
                    test_examples: examples(&test),
                    place,
                    memory,
                },
                plan,
                train,
                test,
                personal: None,
                work: None,
                is_there: true,
                away_since: 0,
                availability: is_field.then(|| Availability::new(cell.seed, at)),
                battery: (is_field && class.name != "agx").then(Battery::full),
                is_charging: false,
                is_left_out: method.whole && !(in_time && in_memory),
            });
        }
        let whole = skiff_models::memory::costed(&pack.manifest().design, &stages_of(pack)?, longest);
        let bytes = |costed: &skiff_models::memory::Costed| leanest.process_bytes + costed.bytes.total();
        let blobs = DiskBlobs::open(scratch, 8 << 30)?;
        let weights = blobs.put(&model.initial)?;
        let depth = method.depths(layers)[0];
        let (run, _) = Run::start(start(cell, method, model, weights, 0, depth, deadline_ms), Timestamp(0))?;
        let outcome = Outcome {
            cell: cell.clone(),
            points: Vec::new(),
            peak_memory_bytes: 0,
            small_peak_memory_bytes: None,
            whole_memory_bytes: [whole.first().map_or(0, bytes), whole.iter().map(bytes).min().unwrap_or(0)],
            bytes_up: 0,
            bytes_down: 0,
            joules: 0.0,
            active_layers: 0.0,
            skipped_rounds: 0,
            left_out: all.iter().filter(|device| device.is_left_out).count(),
            weights: String::new(),
        };
        Ok(Self {
            cell,
            method,
            opened,
            trainer,
            blobs,
            run,
            now_ms: 0,
            queue: BTreeMap::new(),
            queued: 0,
            index: all.iter().enumerate().map(|(at, device)| (device.id.clone(), at)).collect(),
            devices: all,
            costs,
            whole_ms,
            deadline_ms,
            depth,
            rounds: 0,
            measured_at_ms: 0,
            sample: data.sample(),
            weights,
            kept: BTreeSet::new(),
            steps: 0,
            active: 0,
            outcome,
        })
    }

    /// Begins a stage of the method, from the weights so far.
    fn begin(&mut self, stage: usize, depth: u32) -> anyhow::Result<()> {
        if stage > 0 {
            let model = &self.opened.model;
            let start = start(self.cell, self.method, model, self.weights, stage, depth, self.deadline_ms);
            let (run, _) = Run::start(start, Timestamp(self.now_ms))?;
            (self.run, self.depth) = (run, depth);
        }
        for at in 0..self.devices.len() {
            self.devices[at].work = None;
            if stage == 0
                && let Some(availability) = &mut self.devices[at].availability
            {
                let leaves = availability.next_ms(true);
                self.queue_in(leaves, Happening::Turns { device: at });
            }
            if self.is_here(at) {
                self.comes(at)?;
            }
        }
        Ok(())
    }

    /// Runs until the time is over.
    fn run_on(&mut self, ends_ms: u64, watch: &mut dyn FnMut() -> ControlFlow<()>) -> anyhow::Result<()> {
        loop {
            let queued = self.queue.keys().next().map(|&(at, _)| at);
            let deadline = self.run.deadline().map(|deadline| deadline.0);
            let next = queued.into_iter().chain(deadline).min();
            let Some(next) = next else { bail!("nothing happens any more in {:?}", self.cell) };
            while self.measured_at_ms <= next.min(ends_ms) {
                self.now_ms = self.measured_at_ms;
                self.measure()?;
                if watch().is_break() {
                    bail!("interrupted");
                }
            }
            if next > ends_ms {
                self.now_ms = ends_ms;
                return Ok(());
            }
            self.now_ms = self.now_ms.max(next);
            match self.queue.pop_first() {
                Some(((at, _), happening)) if at <= self.now_ms => self.happens(happening)?,
                Some((key, later)) => {
                    self.queue.insert(key, later);
                    self.tell(Event::Tick)?;
                }
                None => self.tell(Event::Tick)?,
            }
        }
    }

    fn queue_in(&mut self, after_ms: u64, happening: Happening) {
        self.queued += 1;
        self.queue.insert((self.now_ms + after_ms, self.queued), happening);
    }

    fn is_here(&self, at: usize) -> bool {
        let Device { is_there, is_charging, is_left_out, .. } = self.devices[at];
        is_there && !is_charging && !is_left_out
    }

    fn happens(&mut self, happening: Happening) -> anyhow::Result<()> {
        match happening {
            Happening::Arrives { device, epoch } => {
                let is_due = self.is_here(device)
                    && self.devices[device]
                        .work
                        .as_ref()
                        .is_some_and(|work| work.epoch == epoch && work.due_ms <= self.now_ms);
                if is_due { self.arrives(device) } else { Ok(()) }
            }
            Happening::Turns { device } => {
                let was_here = self.is_here(device);
                let is_there = !self.devices[device].is_there;
                self.devices[device].is_there = is_there;
                if let Some(availability) = &mut self.devices[device].availability {
                    let next = availability.next_ms(is_there);
                    self.queue_in(next, Happening::Turns { device });
                }
                self.turned(device, was_here)
            }
            Happening::Charged { device } => {
                let was_here = self.is_here(device);
                self.devices[device].is_charging = false;
                self.turned(device, was_here)
            }
        }
    }

    /// Handles a device that came or left. Its work pauses while it is away.
    fn turned(&mut self, at: usize, was_here: bool) -> anyhow::Result<()> {
        match (was_here, self.is_here(at)) {
            (true, false) => {
                self.devices[at].away_since = self.now_ms;
                self.tell(Event::DeviceGone(self.devices[at].id.clone()))
            }
            (false, true) => {
                let away = self.now_ms - self.devices[at].away_since;
                if let Some(work) = &mut self.devices[at].work {
                    work.due_ms += away;
                    let (epoch, after) = (work.epoch, work.due_ms.saturating_sub(self.now_ms));
                    self.queue_in(after, Happening::Arrives { device: at, epoch });
                }
                self.comes(at)
            }
            (true, true) | (false, false) => Ok(()),
        }
    }

    fn comes(&mut self, at: usize) -> anyhow::Result<()> {
        let Device { id, here, .. } = &self.devices[at];
        self.tell(Event::DeviceHere(id.clone(), here.clone()))?;
        self.set_condition(at, None);
        Ok(())
    }

    fn set_condition(&mut self, at: usize, pace: Option<Pace>) {
        let Device { id, battery, .. } = &self.devices[at];
        let battery_percent = battery.map(Battery::percent);
        self.run.set_condition(id, Condition { celsius: None, battery_percent, pace });
    }

    /// Sends an event to the engine and carries out its actions.
    fn tell(&mut self, event: Event) -> anyhow::Result<()> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.run.handle(event, Timestamp(self.now_ms)) {
                match action {
                    Action::SendCommand(device, command) => events.extend(self.ordered(self.index[&device], command)),
                    Action::Merge(job) => {
                        let merged = self.opened.model.merge(&job, &self.blobs).map_err(|error| format!("{error:#}"));
                        events.push(Event::MergeEnded { run: job.run, epoch: job.epoch, merged });
                    }
                    Action::Journal(entry) => self.journalled(&entry.record)?,
                    Action::OfferWeights(..) | Action::ConfirmUpdate(..) | Action::RefuseUpdate(..) => {}
                }
            }
        }
        Ok(())
    }

    fn journalled(&mut self, record: &Record) -> anyhow::Result<()> {
        match record {
            Record::Merged(merged) => {
                self.kept.insert(std::mem::replace(&mut self.weights, merged.weights));
                let needed = self.run.ledger().needed();
                for blob in std::mem::take(&mut self.kept) {
                    if needed.contains(&blob) {
                        self.kept.insert(blob);
                    } else {
                        self.blobs.remove(blob)?;
                    }
                }
                self.rounds += 1;
            }
            Record::Skipped { .. } => self.outcome.skipped_rounds += 1,
            Record::RunEnded { stopped: Some(reason) } => {
                bail!("{} on {}: the run was stopped: {reason}", self.cell.method, self.cell.fleet)
            }
            Record::RunStarted(_)
            | Record::Resumed
            | Record::TrainingStarted { .. }
            | Record::UpdateStored { .. }
            | Record::DeviceOut { .. }
            | Record::Collected
            | Record::EvaluationStarted { .. }
            | Record::Evaluated(_)
            | Record::PolicySet(_)
            | Record::RunEnded { stopped: None } => {}
        }
        Ok(())
    }

    /// Handles a command to a device: it answers, and begins if the order is new.
    fn ordered(&mut self, at: usize, command: Command) -> Option<Event> {
        let device = self.devices[at].id.clone();
        let answer = |outcome| {
            let Command { run, round, epoch, .. } = command;
            Some(Event::Answered(device, Answer { boot: BootId(at as u64 + 1), run, round, epoch, outcome }))
        };
        match command.order {
            Order::Stop => {
                self.devices[at].work = None;
                answer(Told::Stopped)
            }
            Order::Train(order) => {
                if self.devices[at].work.as_ref().is_none_or(|work| work.epoch != command.epoch) {
                    self.begins(at, command.epoch, command.round, order);
                }
                answer(Told::Accepted { has_weights: true })
            }
            Order::Evaluate(_) => {
                answer(Told::Refused { reason: "accuracies are measured outside of the run".to_owned() })
            }
        }
    }

    /// Begins a training: computes the update's arrival time and energy from the masks of the steps, which are known beforehand.
    fn begins(&mut self, at: usize, epoch: u64, round: u32, order: TrainOrder) {
        let Device { id, class, plan, here, .. } = &self.devices[at];
        let most = (order.most_active as usize).min(plan.chosen.len());
        let active: Vec<usize> = (1..=order.steps)
            .map(|step| LayerMask::draw(&order.rates, most, order.seed, id.as_str(), round, step).active().len())
            .collect();
        let layers = self.opened.model.layers;
        let flops = |active: usize| {
            let whole = self.costs.step[active];
            let unneeded = f64::from(layers - self.depth) / f64::from(layers);
            plan.chosen[active - 1].relative_time * (whole - unneeded * (whole - self.costs.forward).max(0.0))
        };
        let steps_ms: f64 = active.iter().map(|&active| flops(active)).sum::<f64>() / (class.gflops * 1e6);
        let probed = u64::from(order.probe_examples).min(here.test_examples);
        let probe_ms = 2.0 * probed as f64 * self.costs.example / (class.gflops * 1e6);
        let down = self.bytes(&self.opened.model.schema.at_rank(order.rank as usize), &order);
        let down_ms = transfer_ms(down, class);
        let peak = active.iter().map(|&active| plan.chosen[active - 1].bytes.total()).max().unwrap_or(0);
        let peak = peak + here.memory.process_bytes;
        let is_small = here.memory.limit_bytes > 0;
        let step_ms = steps_ms / f64::from(order.steps);
        let mean_active = active.iter().sum::<usize>() as f64 / active.len().max(1) as f64;
        let train_ms = steps_ms + probe_ms;
        let joules = (class.watts * train_ms + RADIO_WATTS * down_ms) / 1000.0;
        self.outcome.bytes_down += down;
        self.outcome.peak_memory_bytes = self.outcome.peak_memory_bytes.max(peak);
        if is_small {
            self.outcome.small_peak_memory_bytes = self.outcome.small_peak_memory_bytes.max(Some(peak));
        }
        (self.steps, self.active) =
            (self.steps + active.len() as u64, self.active + active.iter().sum::<usize>() as u64);
        // The update is nearly as large as the weights.
        let after = (down_ms + train_ms + transfer_ms(down, class)).ceil() as u64;
        let due_ms = self.now_ms + after;
        self.devices[at].work = Some(Work { epoch, round, order, step_ms, train_ms, joules, due_ms });
        self.queue_in(after, Happening::Arrives { device: at, epoch });
        self.set_condition(at, Some(Pace { step_ms, active_layers: mean_active, other_ms: 0.0 }));
    }

    /// Returns the bytes of a transfer of weights: all of them, or the adapters that are tuned at this depth.
    fn bytes(&self, schema: &Schema, order: &TrainOrder) -> u64 {
        let bytes_of =
            |schema: &Schema| schema.tensors.iter().map(|spec| 4 * spec.shape.iter().product::<usize>() as u64).sum();
        match &order.sharing {
            SharingPlan::Fixed { layers } => {
                bytes_of(&schema.of_layers(&layers.iter().map(|&layer| layer as usize).collect::<Vec<_>>()))
            }
            SharingPlan::All | SharingPlan::LeastImportant { .. } | SharingPlan::MostImportant { .. } => {
                bytes_of(schema)
            }
        }
    }

    /// Trains when the update is due, and delivers it.
    fn arrives(&mut self, at: usize) -> anyhow::Result<()> {
        let Some(work) = self.devices[at].work.take() else { return Ok(()) };
        let is_wanted = self.run.is_awaited(&self.devices[at].id, work.epoch);
        if is_wanted {
            let Work { epoch, round, order, step_ms, train_ms, joules, .. } = work;
            let Opened { pack, model } = self.opened;
            let base = model.weights(&self.blobs, order.weights)?;
            let device = &self.devices[at];
            let mut weights = base.clone();
            weights.extend(device.personal.clone().unwrap_or_default());
            // A device without test texts measures on its training texts, as the agent does.
            let probe = if device.here.test_examples > 0 { &device.test } else { &device.train };
            let ways = device.plan.ways();
            let training =
                OrderedTraining { pack, device: &device.id, round, order: &order, train: &device.train, probe, ways };
            let go_on = &mut |_: &skiff_trainer::StepReport| ControlFlow::Continue(());
            let trained = training.run(&mut self.trainer, weights, go_on)?;
            let mut report = trained.report;
            (report.train_ms, report.step_ms) = (train_ms as u64, step_ms as f32);
            report.peak_rss_bytes = self.outcome.peak_memory_bytes;
            let checked = model.check_update(&trained.update, &report.shared_layers, order.rank, &base);
            let distance = checked.map_err(|what| anyhow::anyhow!("{}: {what}", device.id))?;
            let update = self.blobs.put(&trained.update)?;
            let bytes = trained.update.len() as u64;
            self.kept.insert(update);
            self.outcome.bytes_up += bytes;
            let spent = joules + RADIO_WATTS * transfer_ms(bytes, device.class) / 1000.0;
            self.outcome.joules += spent;
            let device = &mut self.devices[at];
            device.personal = match trained.personal {
                Some((layers, bytes)) if !self.method.progressive => {
                    Some(only_layers(&model.schema, &layers).read(&bytes)?)
                }
                Some(_) | None => None,
            };
            let stored = Event::UpdateStored { device: device.id.clone(), epoch, update, report, distance };
            let charged_in = device.battery.as_mut().and_then(|battery| battery.spend(spent));
            self.tell(stored)?;
            self.set_condition(at, None);
            if let Some(after) = charged_in {
                self.devices[at].is_charging = true;
                self.queue_in(after, Happening::Charged { device: at });
                self.turned(at, true)?;
            }
        }
        Ok(())
    }

    /// Measures accuracies with the present weights.
    fn measure(&mut self) -> anyhow::Result<()> {
        let weights = self.opened.model.weights(&self.blobs, self.weights)?;
        self.trainer.set_weights(weights.clone())?;
        let global = accuracy(&mut self.trainer, &self.sample)?;
        let mut sum = 0.0;
        for device in &self.devices {
            if let Some(personal) = &device.personal {
                let mut own = weights.clone();
                own.extend(personal.clone());
                self.trainer.set_weights(own)?;
            } else {
                self.trainer.set_weights(weights.clone())?;
            }
            sum += accuracy(&mut self.trainer, &device.test)?;
        }
        let personal = sum / self.devices.len() as f64;
        let seconds = self.now_ms as f64 / 1000.0;
        self.outcome.points.push(Point { round: self.rounds, seconds, global, personal });
        let apart = self.whole_ms * f64::from(self.cell.scale.rounds) / f64::from(self.cell.scale.measured);
        self.measured_at_ms = (apart * self.outcome.points.len() as f64) as u64;
        Ok(())
    }

    fn outcome(self) -> Outcome {
        let active_layers = self.active as f64 / self.steps.max(1) as f64;
        Outcome { active_layers, weights: self.weights.to_string(), ..self.outcome }
    }
}

fn start(
    cell: &Cell,
    method: &Method,
    model: &Model,
    weights: Digest,
    stage: usize,
    depth: u32,
    deadline_ms: u64,
) -> Start {
    let layers = model.layers;
    let sharing =
        if depth == layers { method.shared.of(layers) } else { Sharing::Layers((layers - depth..layers).collect()) };
    let Scale { trained, steps, batch, learning_rate, .. } = cell.scale;
    // Asynchronous rounds close with a third of the training devices.
    let devices = if method.asynchronous { trained.div_ceil(3) } else { trained };
    let settings = RunSettings {
        // The time ends it.
        rounds: MAX_ROUNDS,
        max_skipped: MAX_ROUNDS,
        devices,
        over_selection: trained - devices,
        quorum: 2.min(devices),
        asynchronous: method.asynchronous,
        steps,
        batch,
        max_tokens: MAX_TOKENS,
        learning_rate,
        seed: cell.seed + 1_000 * stage as u64,
        rates: method.rates.clone(),
        sharing,
        groups: method.groups(),
        evaluate_examples: 0,
        final_examples: 0,
        train_ms: deadline_ms.max(1),
        ..RunSettings::default()
    };
    let schema = Digest(model.schema.hash());
    let run = RunId(cell.seed * 10 + stage as u64 + 1);
    Start {
        run,
        name: None,
        settings: Box::new(settings),
        layers,
        pack: model.pack,
        schema,
        weights,
        task: Some(model.task.clone()),
    }
}

fn stages_of(pack: &Pack) -> anyhow::Result<skiff_models::design::Stages> {
    pack.manifest().design.fused_stages().context("the graphs of the pack")
}

fn transfer_ms(bytes: u64, class: &Class) -> f64 {
    bytes as f64 * 8.0 / (class.mbits * 1e3)
}

fn accuracy(trainer: &mut Trainer, part: &Part) -> anyhow::Result<f64> {
    let plan = EvaluatePlan { examples: usize::MAX, batch: 16 };
    Ok(trainer.evaluate(part, &plan, &mut |_| ControlFlow::Continue(()))?.accuracy())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::data::labels_of;
    use crate::methods;
    use skiff_data::corpus::{GenerateOptions, generate};
    use skiff_models::pack::BuildOptions;
    use skiff_tests::{packs, places};

    #[test]
    fn a_run_is_repeated_bit_for_bit_and_keeps_to_small_memories() {
        let folder = tempfile::tempdir().unwrap();
        let texts = folder.path().join("texts");
        std::fs::create_dir(&texts).unwrap();
        generate(&GenerateOptions { seed: 1, train: 160, test: 40 }).unwrap().write(&texts).unwrap();
        let out = folder.path().join("pack");
        let pack = Arc::new(packs::made(&BuildOptions::new(&places::minilm(), &out, labels_of(&texts).unwrap())));
        let data = Data::load(&texts, &pack).unwrap();
        let opened = Opened { pack, model: Model::open(&out).unwrap() };
        let runtime = places::runtime();
        let (devices, trained, rounds, steps, batch, learning_rate, measured) = (4, 2, 3, 2, 4, 1e-3, 2);
        let scale = Scale { devices, trained, rounds, steps, batch, learning_rate, measured };
        let outcome = |name: &str| {
            let method = methods::all().into_iter().find(|method| method.name == name).unwrap();
            let text = || String::new();
            let cell = Cell {
                method: name.to_owned(),
                fleet: text(),
                data: text(),
                texts: text(),
                alpha: 1.0,
                seed: 1,
                scale,
                settings: text(),
            };
            let task = Task { cell: &cell, method: &method, fleet: Fleet::Field, data: &data, opened: &opened };
            let scratch = tempfile::tempdir().unwrap();
            simulate(task, &runtime, scratch.path(), &mut || ControlFlow::Continue(())).unwrap()
        };
        let first = outcome("droppeft");
        assert_eq!(first, outcome("droppeft"));
        let [fastest, leanest] = first.whole_memory_bytes;
        assert!(first.small_peak_memory_bytes.unwrap() < leanest && leanest < fastest, "{first:?}");
        assert!(
            first.points.last().unwrap().round > 0 && first.left_out == 0 && first.active_layers < 6.0,
            "{first:?}"
        );
        let whole = outcome("fedadapter");
        assert_eq!((whole.left_out, whole.small_peak_memory_bytes), (2, None));
        assert!(whole.active_layers > 5.99);
    }
}
