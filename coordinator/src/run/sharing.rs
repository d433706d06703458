//! Which layers a device shares: the plan that is sent, and whether an update keeps to it.
//!
//! A [`Policy`] is a plan for everybody, and groups of devices with a plan of their own. It stands in the run's settings, so
//! that the journal tells it, and what each device was ordered to share stands in the record of the order.

use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::{Place, SharingPlan, TrainReport};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// The most groups of a policy.
pub const MAX_GROUPS: usize = 64;
/// The largest rank that LoRA can have on a device.
const MAX_RANK: u32 = 1024;

/// Who shares what: `policy.toml`, and two keys of table `[run]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// For devices of no group (default `all`).
    pub sharing: Sharing,
    /// Devices with a plan of their own; a device is in the first group whose rules it fulfils.
    pub groups: Vec<Group>,
}

/// Devices with a plan of their own. A rule that is left out is fulfilled by everybody.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The devices' class.
    pub class: Option<String>,
    /// The devices' region.
    pub region: Option<String>,
    /// Labels that they have, all of them.
    pub labels: Vec<String>,
    /// What they share; left out: as everybody.
    pub sharing: Option<Sharing>,
    /// LoRA's rank on them, up to 1024; 0: the pack's.
    pub rank: u32,
}

/// What a policy means for one device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Share {
    /// The group that it is in; `None`: none.
    pub group: Option<String>,
    /// What it shares.
    pub plan: SharingPlan,
    /// LoRA's rank on it; 0: the pack's.
    pub rank: u32,
}

/// What a change of policy means for one device; as `skiff policy diff` tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The device.
    pub device: DeviceId,
    /// What it shares now.
    pub before: Share,
    /// What it would.
    pub after: Share,
}

impl Change {
    /// Whether the device would share anything else, or as another group.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.before != self.after
    }
}

/// As it stands in its file.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plan {
            SharingPlan::All => write!(f, "all layers")?,
            SharingPlan::Fixed { layers } => write!(f, "layers {layers:?}")?,
            SharingPlan::LeastImportant { k } => write!(f, "its {k} least important layers")?,
            SharingPlan::MostImportant { k } => write!(f, "its {k} most important layers")?,
        }
        if self.rank > 0 {
            write!(f, " at rank {}", self.rank)?;
        }
        self.group.as_ref().map_or(Ok(()), |group| write!(f, ", as of group {group:?}"))
    }
}

/// A policy's file, where one was set: in the state folder.
pub const FILE: &str = "policy.toml";

/// Why a policy cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file that cannot be read or written.
    #[error("reading or writing the policy {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not a policy.
    #[error("in the policy {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
}

impl Policy {
    /// Reads a policy's file.
    ///
    /// # Errors
    /// A file that cannot be read, or says something else.
    pub fn open(path: &Path) -> Result<Self, PolicyError> {
        let text = fs::read_to_string(path).map_err(|source| PolicyError::File { path: path.to_owned(), source })?;
        let parsed = toml::from_str(&text);
        parsed.map_err(|source| PolicyError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// The policy that was set for the coordinator of the folder `state`; `None`: none was.
    ///
    /// # Errors
    /// As [`Policy::open`].
    pub fn read(state: &Path) -> Result<Option<Self>, PolicyError> {
        match Self::open(&state.join(FILE)) {
            Err(PolicyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Keeps it for the coordinator of the folder `state`, whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, state: &Path) -> Result<(), PolicyError> {
        let path = state.join(FILE);
        let written = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(state)?;
            file.write_all(self.to_string().as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            fs::File::open(state)?.sync_all()
        };
        written().map_err(|source| PolicyError::File { path: path.clone(), source })
    }

    /// Checks it for a model of `layers` layers.
    ///
    /// # Errors
    /// The first plan that the model cannot keep, too many groups, two of a name, or one that takes in everybody.
    pub fn check(&self, layers: u32) -> Result<(), String> {
        self.sharing.plan(layers)?;
        if self.groups.len() > MAX_GROUPS {
            return Err(format!("groups: {} of them, expected at most {MAX_GROUPS}", self.groups.len()));
        }
        for (at, group) in self.groups.iter().enumerate() {
            let name = &group.name;
            if name.is_empty() || self.groups[..at].iter().any(|other| other.name == *name) {
                return Err(format!("groups: number {} needs a name that no other has", at + 1));
            }
            if group.class.is_none() && group.region.is_none() && group.labels.is_empty() {
                return Err(format!("group {name:?} has no class, region or labels: it would take in every device"));
            }
            if group.rank > MAX_RANK {
                return Err(format!("group {name:?}: rank is {}, expected 0 to {MAX_RANK}", group.rank));
            }
            if let Some(sharing) = &group.sharing {
                sharing.plan(layers).map_err(|what| format!("group {name:?}: {what}"))?;
            }
        }
        Ok(())
    }

    /// What it means for a device at that place.
    ///
    /// # Errors
    /// Where [`Policy::check`] has one.
    pub fn share(&self, place: &Place, layers: u32) -> Result<Share, String> {
        let group = self.groups.iter().find(|group| group.takes(place));
        let plan = group.and_then(|group| group.sharing.as_ref()).unwrap_or(&self.sharing).plan(layers)?;
        Ok(Share { group: group.map(|group| group.name.clone()), plan, rank: group.map_or(0, |group| group.rank) })
    }
}

impl Group {
    fn takes(&self, place: &Place) -> bool {
        self.class.as_ref().is_none_or(|class| *class == place.class)
            && self.region.as_ref().is_none_or(|region| *region == place.region)
            && self.labels.iter().all(|label| place.labels.contains(label))
    }
}

/// The plan as it stands in the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sharing {
    /// Every layer.
    #[default]
    All,
    /// So many layers, those of least importance on the device (DropPEFT's choice).
    LeastImportant(u32),
    /// So many layers, those of most importance on the device.
    MostImportant(u32),
    /// These layers, ascending.
    Layers(Vec<u32>),
}

impl Sharing {
    /// The plan for a model of `layers` layers.
    ///
    /// # Errors
    /// More layers than there are, none at all, or a list that is not ascending; the text says which.
    pub fn plan(&self, layers: u32) -> Result<SharingPlan, String> {
        let count = |k: u32| match k {
            0 => Err("sharing: at least one layer must be shared".to_owned()),
            k if k > layers => Err(format!("sharing: {k} layers of a model with {layers}")),
            k => Ok(k),
        };
        match self {
            Self::All => Ok(SharingPlan::All),
            Self::LeastImportant(k) => count(*k).map(|k| SharingPlan::LeastImportant { k }),
            Self::MostImportant(k) => count(*k).map(|k| SharingPlan::MostImportant { k }),
            Self::Layers(list) if !is_ascending(list) => Err("sharing: list the layers in ascending order".to_owned()),
            Self::Layers(list) => match list.last() {
                Some(&last) if last >= layers => {
                    Err(format!("sharing: layer {last} of a model whose last is {}", layers.saturating_sub(1)))
                }
                Some(_) => Ok(SharingPlan::Fixed { layers: list.clone() }),
                None => Err("sharing: at least one layer must be shared".to_owned()),
            },
        }
    }
}

/// Whether a report is one that the order allows.
///
/// `layers` is the model's number of layers, `most_examples` the largest count of distinct examples that the ordered steps
/// can have trained on.
///
/// # Errors
/// What is wrong with it, in words for the device's operator.
pub fn check(report: &TrainReport, plan: &SharingPlan, layers: u32, most_examples: u64) -> Result<(), String> {
    let shared = &report.shared_layers;
    if !is_ascending(shared) || shared.last().is_some_and(|&last| last >= layers) {
        return Err(format!("shared_layers {shared:?} are not ascending layers below {layers}"));
    }
    let as_planned = match plan {
        SharingPlan::All => shared.len() == layers as usize,
        SharingPlan::LeastImportant { k } | SharingPlan::MostImportant { k } => shared.len() == *k as usize,
        SharingPlan::Fixed { layers } => shared == layers,
    };
    if !as_planned {
        return Err(format!("shared_layers {shared:?} are not what {plan:?} asks for"));
    }
    if !(1..=most_examples).contains(&report.examples) {
        return Err(format!("{} examples, expected 1 to {most_examples}", report.examples));
    }
    let numbers = report.importance.iter().chain([&report.mean_loss, &report.mean_active_layers, &report.step_ms]);
    if report.importance.len() != layers as usize || !numbers.into_iter().all(|number| number.is_finite()) {
        return Err(format!("the report must hold the importance of {layers} layers, and finite numbers only"));
    }
    Ok(())
}

fn is_ascending(layers: &[u32]) -> bool {
    layers.is_sorted_by(|a, b| a < b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_protocol::samples;

    fn report(shared_layers: Vec<u32>) -> TrainReport {
        TrainReport { examples: 80, shared_layers, importance: vec![1.0; 4], ..samples::train_report() }
    }

    #[test]
    fn plans_that_the_model_cannot_keep_are_refused() {
        assert_eq!(Sharing::All.plan(4), Ok(SharingPlan::All));
        assert_eq!(Sharing::LeastImportant(4).plan(4), Ok(SharingPlan::LeastImportant { k: 4 }));
        assert_eq!(Sharing::Layers(vec![0, 3]).plan(4), Ok(SharingPlan::Fixed { layers: vec![0, 3] }));
        for bad in [
            Sharing::LeastImportant(5),
            Sharing::MostImportant(0),
            Sharing::Layers(vec![]),
            Sharing::Layers(vec![1, 1]),
            Sharing::Layers(vec![2, 1]),
            Sharing::Layers(vec![4]),
        ] {
            assert!(bad.plan(4).unwrap_err().starts_with("sharing: "), "{bad:?}");
        }
    }

    #[test]
    fn a_device_is_in_the_first_group_whose_rules_it_fulfils() {
        let toml = r#"
            sharing = { least_important = 3 }
            [[groups]]
            name = "lab"
            region = "eu"
            labels = ["lab", "fan"]
            sharing = "all"
            [[groups]]
            name = "small"
            class = "tx2"
            rank = 2
        "#;
        let policy: Policy = toml::from_str(toml).unwrap();
        policy.check(4).unwrap();
        let share = |class: &str, region: &str, labels: &[&str]| {
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            let share = policy.share(&Place { class: class.into(), region: region.into(), labels }, 4).unwrap();
            (share.group, share.plan, share.rank)
        };
        let three = SharingPlan::LeastImportant { k: 3 };
        assert_eq!(share("tx2", "eu", &["fan", "lab"]), (Some("lab".into()), SharingPlan::All, 0));
        assert_eq!(share("tx2", "eu", &["lab"]), (Some("small".into()), three.clone(), 2));
        assert_eq!(share("agx", "", &[]), (None, three, 0));
        assert!(policy.check(2).unwrap_err().contains("3 layers of a model with 2"));
        let refused = |group: &str| {
            let policy = toml::from_str::<Policy>(&format!("[[groups]]\n{group}")).unwrap();
            policy.check(4).unwrap_err()
        };
        assert!(refused("class = 'a'").contains("number 1 needs a name"));
        assert!(refused("name = 'a'").contains("every device"));
        assert!(refused("name = 'a'\nclass = 'b'\nsharing = { most_important = 9 }").contains("group \"a\""));
        assert!(toml::from_str::<Policy>("[[groups]]\nlabel = 'a'").is_err());
    }

    #[test]
    fn an_update_that_keeps_to_the_plan_passes() {
        assert_eq!(check(&report(vec![0, 1, 2, 3]), &SharingPlan::All, 4, 80), Ok(()));
        assert_eq!(check(&report(vec![1, 3]), &SharingPlan::LeastImportant { k: 2 }, 4, 80), Ok(()));
        assert_eq!(check(&report(vec![2]), &SharingPlan::Fixed { layers: vec![2] }, 4, 80), Ok(()));
    }

    #[test]
    fn an_update_that_does_not_is_told_why() {
        let shared = |layers: &[u32], plan: SharingPlan| check(&report(layers.to_vec()), &plan, 4, 80).unwrap_err();
        assert!(shared(&[0, 1, 2], SharingPlan::All).contains("All"));
        assert!(shared(&[1, 0], SharingPlan::LeastImportant { k: 2 }).contains("ascending"));
        assert!(shared(&[1, 4], SharingPlan::LeastImportant { k: 2 }).contains("below 4"));
        assert!(shared(&[1], SharingPlan::Fixed { layers: vec![2] }).contains("Fixed"));
        let altered = |change: fn(&mut TrainReport)| {
            let mut report = report(vec![0, 1, 2, 3]);
            change(&mut report);
            check(&report, &SharingPlan::All, 4, 80).unwrap_err()
        };
        assert!(altered(|r| r.examples = 0).contains("expected 1 to 80"));
        assert!(altered(|r| r.examples = 81).contains("expected 1 to 80"));
        assert!(altered(|r| r.importance = vec![1.0]).contains("importance of 4"));
        assert!(altered(|r| r.mean_loss = f32::NAN).contains("finite"));
        assert!(altered(|r| r.importance[2] = f32::INFINITY).contains("finite"));
    }
}
