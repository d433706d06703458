//! Runs of an experiment.

use crate::data::Source;
use crate::fleets::Fleet;
use crate::methods::{self, Method, QUICK};
use crate::simulation::{Cell, Scale};
use anyhow::{bail, ensure};
use std::collections::BTreeMap;

/// A planned run.
pub(crate) struct Planned {
    pub(crate) cell: Cell,
    pub(crate) method: Method,
    pub(crate) fleet: Fleet,
}

/// The requested part of all combinations.
pub(crate) struct Narrowed<'a> {
    pub(crate) quick: bool,
    pub(crate) every: bool,
    pub(crate) methods: &'a [String],
    pub(crate) fleets: &'a [String],
    /// The data sets; the first one gets the main part of the table.
    pub(crate) sets: &'a [Source],
    pub(crate) alphas: &'a [f64],
    pub(crate) seeds: u64,
    pub(crate) rounds: Option<u32>,
    pub(crate) steps: Option<u32>,
    pub(crate) learning_rate: Option<f32>,
}

/// Concentrations of Dirichlet's distribution: very different data, usual data, alike data.
const ALPHAS: [f64; 3] = [0.1, 1.0, 10.0];

const FULL: Scale =
    Scale { devices: 20, trained: 6, rounds: 45, steps: 10, batch: 8, learning_rate: 3e-3, measured: 24 };

impl Planned {
    /// Returns the name of its result.
    pub(crate) fn file(&self) -> String {
        let Cell { method, fleet, data, alpha, seed, .. } = &self.cell;
        format!("{data}-{alpha}-{fleet}-{method}-{seed}.json")
    }
}

/// Returns true if the table's part on that fleet has the method, for the main data set or for another one.
fn is_of_part(fleet: Fleet, is_main_set: bool, alpha: f64, method: &str) -> bool {
    let alike = alpha > 5.0;
    let different = alpha < 0.5;
    let is_main = ["fedlora", "droppeft", "droppeft-share-all"].contains(&method);
    match (fleet, is_main_set) {
        (Fleet::Roomy, true) if alike || different => is_main || method == "droppeft-share-most",
        (Fleet::Roomy, true) => method != "droppeft-share-most",
        (Fleet::MemoryBound, true) if different => is_main,
        (Fleet::MemoryBound, true) if !alike => {
            let others = ["fedhetlora", "ffa-lora", "fedadapter", "fedbuff", "droppeft-fedbuff", "fixed-0.35"];
            is_main || others.contains(&method)
        }
        (Fleet::DeadlineBound | Fleet::Field, true) | (Fleet::MemoryBound, false) => is_main && !alike && !different,
        (Fleet::MemoryBound, true) | (Fleet::Roomy | Fleet::DeadlineBound | Fleet::Field, false) => false,
    }
}

/// Returns the runs, the first seed's before others.
///
/// # Errors
/// A name that is not known; nothing left.
pub(crate) fn cells(narrowed: &Narrowed<'_>) -> anyhow::Result<Vec<Planned>> {
    let methods = methods::all();
    known("method", narrowed.methods, &methods.iter().map(|method| method.name).collect::<Vec<_>>())?;
    known("fleet", narrowed.fleets, &Fleet::ALL.map(Fleet::name))?;
    for alpha in narrowed.alphas {
        ensure!(alpha.is_finite() && *alpha > 0.0, "--alphas has {alpha}; give numbers above 0");
    }
    let wanted = |names: &[String], name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let alphas = if narrowed.every && !narrowed.alphas.is_empty() { narrowed.alphas } else { &ALPHAS };
    let same = |a: f64, b: f64| (a - b).abs() < 1e-9;
    let is_quick = |fleet: Fleet, is_main_set: bool, alpha: f64, method: &str| {
        fleet == Fleet::MemoryBound && is_main_set && same(alpha, 1.0) && QUICK.contains(&method)
    };
    let rounds = narrowed.rounds.unwrap_or(if narrowed.quick { 15 } else { FULL.rounds });
    let steps = narrowed.steps.unwrap_or(FULL.steps);
    let learning_rate = narrowed.learning_rate.unwrap_or(FULL.learning_rate);
    ensure!(
        learning_rate > 0.0 && learning_rate <= 1.0,
        "--learning-rate is {learning_rate}, expected above 0, at most 1"
    );
    // If texts are long, measuring takes as long as training.
    let measured = rounds.clamp(6, FULL.measured);
    let scale = Scale { rounds, steps, learning_rate, measured, ..FULL };
    let mut cells = Vec::new();
    for seed in 1..=narrowed.seeds {
        for fleet in Fleet::ALL.into_iter().filter(|fleet| wanted(narrowed.fleets, fleet.name())) {
            for (at, source) in narrowed.sets.iter().enumerate() {
                for &alpha in alphas {
                    let asked = |method: &&Method| {
                        let in_table = match (narrowed.every, narrowed.quick) {
                            (true, _) => true,
                            (false, true) => is_quick(fleet, at == 0, alpha, method.name),
                            (false, false) => is_of_part(fleet, at == 0, alpha, method.name),
                        };
                        let of_alpha = narrowed.alphas.is_empty() || narrowed.alphas.iter().any(|&a| same(a, alpha));
                        in_table && of_alpha && wanted(narrowed.methods, method.name)
                    };
                    for method in methods.iter().filter(asked) {
                        let cell = Cell {
                            method: method.name.to_owned(),
                            fleet: fleet.name().to_owned(),
                            data: source.name.clone(),
                            texts: source.digest.clone(),
                            alpha,
                            seed,
                            scale,
                            settings: format!("{method:?}"),
                        };
                        cells.push(Planned { cell, method: method.clone(), fleet });
                    }
                }
            }
        }
    }
    ensure!(!cells.is_empty(), "the table has no such runs; --list shows what it has, --every runs any combination");
    Ok(cells)
}

/// Describes all choices, and the runs that would be done.
pub(crate) fn told(planned: &[Planned]) -> String {
    let mut text = String::from("Methods\n");
    for method in methods::all() {
        text += &format!("  {:<20} {}\n", method.name, method.what);
    }
    text += "\nFleets\n";
    for fleet in Fleet::ALL {
        text += &format!("  {:<20} {}\n", fleet.name(), fleet.what());
    }
    text += "\nRuns\n";
    let mut parts: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for Planned { cell, .. } in planned {
        let part = parts.entry(format!("{}, {}, alpha {}", cell.fleet, cell.data, cell.alpha)).or_default();
        if !part.contains(&cell.method.as_str()) {
            part.push(&cell.method);
        }
    }
    for (part, methods) in parts {
        text += &format!("  {part}: {}\n", methods.join(", "));
    }
    text + &format!("  {} runs in all", planned.len())
}

fn known(kind: &str, asked: &[String], names: &[&str]) -> anyhow::Result<()> {
    match asked.iter().find(|name| !names.contains(&name.as_str())) {
        Some(name) => bail!("there is no {kind} {name:?}; there are {}", names.join(", ")),
        None => Ok(()),
    }
}
