//! The sharing policy: says which layers each device shares. It depends on the region, class and labels that the device's owner set.

use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::{Place, SharingPlan};
use std::collections::BTreeMap;
use std::fmt;

/// Largest number of groups of a policy.
pub const MAX_GROUPS: usize = 64;
/// Largest LoRA rank on a device.
const MAX_RANK: u32 = 1024;

/// Layers that each device shares, as `policy.toml` and two keys of table `[run]` set them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Plan for devices that are in no group (default `all`).
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
    /// Labels that a device must have, all of them.
    pub labels: Vec<String>,
    /// Layers that the devices share. The plan of the policy if left out.
    pub sharing: Option<Sharing>,
    /// LoRA rank on the devices, up to 1024; 0 for the rank of the pack.
    pub rank: u32,
}

/// Layers that one device shares under a policy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Share {
    /// Group of the device; `None` if it is in no group.
    pub group: Option<String>,
    /// Layers that the device shares.
    pub plan: SharingPlan,
    /// LoRA rank on the device; 0 for the rank of the pack.
    pub rank: u32,
}

/// The sharing policy, and its effect on each known device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    /// The policy.
    pub policy: Policy,
    /// Layers that each known device shares.
    pub shares: BTreeMap<DeviceId, Share>,
}

/// Effect of a new policy on one device, as `skiff policy diff` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// Name of the device.
    pub device: DeviceId,
    /// Share under the present policy.
    pub before: Share,
    /// Share under the new policy.
    pub after: Share,
}

impl Change {
    /// Returns true if the new policy makes the device share other layers or belong to another group.
    #[must_use]
    pub fn is_one(&self) -> bool {
        self.before != self.after
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

impl Policy {
    /// Checks the policy for a model of `layers` layers.
    ///
    /// # Errors
    /// A plan that the model does not allow, too many groups, two groups with the same name, or a group that matches every
    /// device.
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
    /// This number of layers: the least important ones on the device. This is our interpretation of the abstract of DropPEFT.
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

fn is_ascending(layers: &[u32]) -> bool {
    layers.is_sorted_by(|a, b| a < b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

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
}
