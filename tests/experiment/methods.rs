//! Compared methods of federated fine-tuning, each as settings of the coordinator's own engine.

use crate::fleets::{CLASSES, Class};
use skiff_api::policy::{Group, Sharing};
use skiff_coordinator::run::configurator::{Bandit, Policy, Rates, Schedule, Shape};
use skiff_models::peft::{Lora, Peft};

/// A method.
#[derive(Clone, Debug)]
pub(crate) struct Method {
    /// Name on the command line and in results.
    pub(crate) name: &'static str,
    /// Description, with what is simplified here.
    pub(crate) what: &'static str,
    /// Trainable part.
    pub(crate) tuning: Tuning,
    /// Source of the dropout rates.
    pub(crate) rates: Rates,
    /// Half of the layers that is shared.
    pub(crate) shared: Shared,
    /// True if LoRA's rank depends on the device's class.
    pub(crate) ranks: bool,
    /// True if every device trains every layer and devices that cannot are left out.
    pub(crate) whole: bool,
    /// True if only the upper layers' adapters are tuned, more of them in each stage of the run.
    pub(crate) progressive: bool,
    /// True if rounds wait for nobody (FedBuff).
    pub(crate) asynchronous: bool,
}

/// Trainable part beside the frozen model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Tuning {
    Lora,
    /// LoRA whose `A` stays as it was drawn.
    FrozenA,
    /// Houlsby's bottleneck adapters.
    Adapters,
}

impl Tuning {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::FrozenA => "frozen-a",
            Self::Adapters => "adapters",
        }
    }

    pub(crate) fn peft(self) -> Peft {
        match self {
            Self::Lora => Peft::default(),
            Self::FrozenA => Peft::Lora(Lora { freeze_a: true, ..Lora::default() }),
            Self::Adapters => Peft::Houlsby { width: 16 },
        }
    }
}

/// Layers that devices share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shared {
    All,
    LeastImportantHalf,
    MostImportantHalf,
}

impl Shared {
    pub(crate) fn of(self, layers: u32) -> Sharing {
        match self {
            Self::All => Sharing::All,
            Self::LeastImportantHalf => Sharing::LeastImportant(layers.div_ceil(2)),
            Self::MostImportantHalf => Sharing::MostImportant(layers.div_ceil(2)),
        }
    }
}

impl Method {
    fn whole(name: &'static str, what: &'static str) -> Self {
        Self {
            name,
            what,
            tuning: Tuning::Lora,
            rates: Rates::default(),
            shared: Shared::All,
            ranks: false,
            whole: true,
            progressive: false,
            asynchronous: false,
        }
    }

    fn dropping(name: &'static str, what: &'static str, rates: Rates, shared: Shared) -> Self {
        Self { rates, shared, whole: false, ..Self::whole(name, what) }
    }

    /// Returns the groups of devices that have a rank of their own.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let group = |class: &Class| Group {
            name: class.name.to_owned(),
            class: Some(class.name.to_owned()),
            rank: class.rank,
            ..Group::default()
        };
        if self.ranks { CLASSES.iter().map(group).collect() } else { Vec::new() }
    }

    /// Returns the number of tuned upper layers in each stage of a run. Only a progressive method has more than one stage.
    pub(crate) fn depths(&self, layers: u32) -> Vec<u32> {
        if !self.progressive {
            return vec![layers];
        }
        (1..=3).map(|stage| (layers * stage).div_ceil(3)).collect()
    }
}

/// Names of the methods that `--quick` compares.
pub(crate) const QUICK: [&str; 3] = ["fedlora", "droppeft", "droppeft-share-all"];

/// Returns every method, in the order of the tables.
pub(crate) fn all() -> Vec<Method> {
    let least = Shared::LeastImportantHalf;
    let bandit = |bandit: Bandit| Rates::Bandit(Bandit { probe_examples: 16, ..bandit });
    let fixed = |mean, shape| Rates::Fixed { mean, shape, schedule: Schedule::Constant };
    let bandit_with = |policy| bandit(Bandit { policy, ..Bandit::default() });
    let mut methods = vec![
        Method::whole("fedlora", "LoRA of rank 8 on every device, FedAvg by examples"),
        Method {
            ranks: true,
            ..Method::whole(
                "fedhetlora",
                "LoRA whose rank goes by the device's class (2, 4, 8), zero-padded mean (HetLoRA, arXiv 2401.06432, without \
                 its pruning of ranks and its weights by sparsity)",
            )
        },
        Method {
            tuning: Tuning::FrozenA,
            ..Method::whole(
                "ffa-lora",
                "LoRA whose A stays as it was drawn (FFA-LoRA, arXiv 2403.12313, without its noise)",
            )
        },
        Method {
            tuning: Tuning::Adapters,
            progressive: true,
            ..Method::whole(
                "fedadapter",
                "bottleneck adapters of width 16, in the upper third, two thirds, then all of the layers, a third of the \
                 rounds each (FedAdapter, arXiv 2205.10162, with a fixed schedule in place of its search by trial groups; \
                 adapters below that depth train on the device and are thrown away, and their backward pass is not counted)",
            )
        },
        Method {
            asynchronous: true,
            ..Method::whole(
                "fedbuff",
                "as fedlora in buffered asynchronous rounds (FedBuff, arXiv 2106.06639): nobody waits, and older updates count less",
            )
        },
        Method::dropping(
            "droppeft",
            "rates by the bandit (epsilon-greedy; means 0 to 0.5, lower layers more), the least important half of the layers shared",
            bandit_with(Policy::EpsilonGreedy),
            least,
        ),
        Method::dropping(
            "droppeft-share-all",
            "as droppeft, every layer shared",
            bandit_with(Policy::EpsilonGreedy),
            Shared::All,
        ),
        Method::dropping(
            "droppeft-share-most",
            "as droppeft, the most important half shared",
            bandit_with(Policy::EpsilonGreedy),
            Shared::MostImportantHalf,
        ),
        Method {
            asynchronous: true,
            ..Method::dropping(
                "droppeft-fedbuff",
                "as droppeft-share-all in buffered asynchronous rounds",
                bandit_with(Policy::EpsilonGreedy),
                Shared::All,
            )
        },
        Method::dropping("droppeft-ucb", "as droppeft-share-all, rates by UCB", bandit_with(Policy::Ucb), Shared::All),
        Method::dropping(
            "droppeft-thompson",
            "as droppeft-share-all, rates by Thompson sampling",
            bandit_with(Policy::Thompson),
            Shared::All,
        ),
    ];
    for (name, what, mean) in [
        ("fixed-0.2", "every device drops with mean rate 0.2, more in the lower layers, every layer shared", 0.2),
        ("fixed-0.35", "every device drops with mean rate 0.35, more in the lower layers, every layer shared", 0.35),
        ("fixed-0.5", "every device drops with mean rate 0.5, more in the lower layers, every layer shared", 0.5),
    ] {
        methods.push(Method::dropping(name, what, fixed(mean, Shape::Decreasing), Shared::All));
    }
    for (name, what, shape) in [
        ("shape-uniform", "mean rate 0.35 in every layer, every layer shared", Shape::Uniform),
        ("shape-increasing", "mean rate 0.35, more in the upper layers, every layer shared", Shape::Increasing),
        ("shape-normal", "mean rate 0.35, most in the middle layers, every layer shared", Shape::Normal),
    ] {
        methods.push(Method::dropping(name, what, fixed(0.35, shape), Shared::All));
    }
    methods
}
