//! Which layers a device shares: the plan that is sent to it, and the check that its update follows the plan.
//!
//! A [`Policy`] holds a plan for all devices and groups of devices with their own plan. It is part of the run's settings, so it
//! is journalled. The record of each order holds what the device was ordered to share.

use serde::{Deserialize, Serialize};
use skiff_base::files::{self, Access};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::{Place, SharingPlan, TrainReport};
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// Largest number of groups of a policy.
pub const MAX_GROUPS: usize = 64;
/// Largest LoRA rank on a device.
const MAX_RANK: u32 = 1024;

/// Which layers each device shares: `policy.toml`, and two keys of table `[run]`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Plan for devices of no group (default `all`).
    pub sharing: Sharing,
    /// Groups with their own plan; a device belongs to the first group that it matches.
    pub groups: Vec<Group>,
}

/// A group of devices with its own plan. A condition that is left out matches every device.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Group {
    /// Name of the group.
    pub name: String,
    /// Class of the devices.
    pub class: Option<String>,
    /// Region of the devices.
    pub region: Option<String>,
    /// Labels that a device needs, all of them.
    pub labels: Vec<String>,
    /// Layers that they share; left out: the plan of the policy.
    pub sharing: Option<Sharing>,
    /// LoRA rank on them, up to 1024; 0: the rank of the pack.
    pub rank: u32,
}

/// Layers that one device shares under a policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Share {
    /// Group of the device; `None` if it is in no group.
    pub group: Option<String>,
    /// Layers that it shares.
    pub plan: SharingPlan,
    /// LoRA rank on it; 0: the rank of the pack.
    pub rank: u32,
}

/// Effect of a new policy on one device, as `skiff policy diff` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Device.
    pub device: DeviceId,
    /// Share under the present policy.
    pub before: Share,
    /// Share under the new policy.
    pub after: Share,
}

impl Change {
    /// Returns true if the device would share other layers, or belong to another group.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.before != self.after
    }
}

/// Writes the policy as its file holds it.
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
        self.group.as_ref().map_or(Ok(()), |group| write!(f, ", by group {group:?}"))
    }
}

/// Name of the policy's file in the state folder. It exists once a policy was set.
pub const FILE: &str = "policy.toml";

/// Why a policy cannot be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read or written.
    #[error("reading or writing the policy {}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file holds no policy.
    #[error("in the policy {}", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Position and cause.
        source: Box<toml::de::Error>,
    },
}

impl Policy {
    /// Reads a policy's file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no policy.
    pub fn open(path: &Path) -> Result<Self, PolicyError> {
        let text = fs::read_to_string(path).map_err(|source| PolicyError::File { path: path.to_owned(), source })?;
        let parsed = toml::from_str(&text);
        parsed.map_err(|source| PolicyError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// Reads the policy that was set for the coordinator of the folder `state`; `None` if none was set.
    ///
    /// # Errors
    /// Same as [`Policy::open`].
    pub fn read(state: &Path) -> Result<Option<Self>, PolicyError> {
        match Self::open(&state.join(FILE)) {
            Err(PolicyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// Stores the policy for the coordinator of the folder `state`, completely or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, state: &Path) -> Result<(), PolicyError> {
        let path = state.join(FILE);
        files::replace(&path, self.to_string().as_bytes(), Access::Owner)
            .map_err(|source| PolicyError::File { path, source })
    }

    /// Checks the policy for a model of `layers` layers.
    ///
    /// # Errors
    /// A plan that the model does not allow, too many groups, two groups of one name, or a group that matches every device.
    pub fn check(&self, layers: u32) -> Result<(), String> {
        self.sharing.plan(layers)?;
        if self.groups.len() > MAX_GROUPS {
            return Err(format!("groups: {} of them, expected at most {MAX_GROUPS}", self.groups.len()));
        }
        for (at, group) in self.groups.iter().enumerate() {
            let name = &group.name;
            if name.is_empty() || self.groups[..at].iter().any(|other| other.name == *name) {
                return Err(format!("groups: group number {} needs a name of its own", at + 1));
            }
            if group.class.is_none() && group.region.is_none() && group.labels.is_empty() {
                return Err(format!("group {name:?} has no class, region or labels, so it would match every device"));
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

    /// Returns what a device at that place shares.
    ///
    /// # Errors
    /// A plan that the model does not allow.
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

/// Plan of layers to share, as the configuration holds it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sharing {
    /// All layers.
    #[default]
    All,
    /// This number of layers: the least important ones on the device. It is our reading of the abstract of DropPEFT.
    LeastImportant(u32),
    /// This number of layers: the most important ones on the device.
    MostImportant(u32),
    /// These layers, in ascending order.
    Layers(Vec<u32>),
}

impl Sharing {
    /// Returns the plan for a model of `layers` layers.
    ///
    /// # Errors
    /// More layers than there are, none at all, or a list that is not ascending; the text says which.
    pub fn plan(&self, layers: u32) -> Result<SharingPlan, String> {
        let count = |k: u32| match k {
            0 => Err("sharing: at least one layer must be shared".to_owned()),
            k if k > layers => Err(format!("sharing: {k} layers, but the model has {layers}")),
            k => Ok(k),
        };
        match self {
            Self::All => Ok(SharingPlan::All),
            Self::LeastImportant(k) => count(*k).map(|k| SharingPlan::LeastImportant { k }),
            Self::MostImportant(k) => count(*k).map(|k| SharingPlan::MostImportant { k }),
            Self::Layers(list) if !is_ascending(list) => Err("sharing: list the layers in ascending order".to_owned()),
            Self::Layers(list) => match list.last() {
                Some(&last) if last >= layers => Err(format!(
                    "sharing: layer {last}, but the last layer of the model is {}",
                    layers.saturating_sub(1)
                )),
                Some(_) => Ok(SharingPlan::Fixed { layers: list.clone() }),
                None => Err("sharing: at least one layer must be shared".to_owned()),
            },
        }
    }
}

/// Checks that a report follows the order.
///
/// `layers` is the number of layers of the model, `most_examples` the largest number of distinct examples that the ordered
/// steps can use.
///
/// # Errors
/// The reason against it, in words for the device's operator.
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
        return Err(format!("shared_layers {shared:?} do not follow the plan {plan:?}"));
    }
    if !(1..=most_examples).contains(&report.examples) {
        return Err(format!("{} examples, expected 1 to {most_examples}", report.examples));
    }
    let numbers = report.importance.iter().chain([&report.mean_loss, &report.mean_active_layers, &report.step_ms]);
    if report.importance.len() != layers as usize || !numbers.into_iter().all(|number| number.is_finite()) {
        return Err(format!(
            "the report must hold the importance of each of the {layers} layers, and only finite numbers"
        ));
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
        assert!(policy.check(2).unwrap_err().contains("3 layers, but the model has 2"));
        let refused = |group: &str| {
            let policy = toml::from_str::<Policy>(&format!("[[groups]]\n{group}")).unwrap();
            policy.check(4).unwrap_err()
        };
        assert!(refused("class = 'a'").contains("number 1 needs a name of its own"));
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
        assert!(altered(|r| r.importance = vec![1.0]).contains("importance of each of the 4"));
        assert!(altered(|r| r.mean_loss = f32::NAN).contains("finite"));
        assert!(altered(|r| r.importance[2] = f32::INFINITY).contains("finite"));
    }
}
