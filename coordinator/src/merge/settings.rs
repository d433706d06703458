//! Settings of a merge.

use super::{Ranks, Server};
use serde::{Deserialize, Serialize};

/// Way in which updates become new weights: table `[run.merge]`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Merging {
    /// Rule that combines the updates (default mean).
    pub rule: Rule,
    /// Optimizer that moves the weights towards the combined updates (default average: all the way).
    pub server: Server,
    /// Way of merging updates with a smaller LoRA rank (default pad).
    pub ranks: Ranks,
    /// Largest distance of an update from the weights it started from, as a multiple of the median distance of recent updates. An
    /// update with a larger distance is refused; 0 refuses none (default 10).
    pub far_out: f32,
}

impl Default for Merging {
    fn default() -> Self {
        Self { rule: Rule::Mean, server: Server::Average, ranks: Ranks::Pad, far_out: 10.0 }
    }
}

/// Rule that combines the updates of a round.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// Mean, weighted by examples.
    #[default]
    Mean,
    /// Mean of updates that are first shortened to a distance of `norm` from the weights they started from (Sun et al.,
    /// arXiv:1911.07963, section 4).
    NormBounded {
        /// Largest distance; above 0.
        norm: f32,
    },
    /// Mean of each number over the devices, without the `share` of devices with the largest values and the same share with the
    /// smallest. All devices have the same weight (Yin et al., arXiv:1803.01498, definition 2).
    TrimmedMean {
        /// Share of devices cut on each side, 0 to below 0.5.
        share: f32,
    },
    /// Median of each number over the devices (Yin et al., definition 1).
    Median,
}

impl Merging {
    /// Checks every number.
    ///
    /// # Errors
    /// The first number that is out of range, with its name and the range.
    pub fn check(&self) -> Result<(), String> {
        match self.rule {
            Rule::NormBounded { norm } if !(norm > 0.0 && norm.is_finite()) => {
                return Err(format!("merge.rule.norm_bounded.norm is {norm}, expected above 0"));
            }
            Rule::TrimmedMean { share } if !(0.0..0.5).contains(&share) => {
                return Err(format!("merge.rule.trimmed_mean.share is {share}, expected 0 to below 0.5"));
            }
            Rule::Mean | Rule::NormBounded { .. } | Rule::TrimmedMean { .. } | Rule::Median => {}
        }
        if self.far_out != 0.0 && !(self.far_out >= 1.0 && self.far_out.is_finite()) {
            return Err(format!("merge.far_out is {}, expected 0 or at least 1", self.far_out));
        }
        if self.ranks == Ranks::Project && !matches!(self.rule, Rule::Mean | Rule::NormBounded { .. }) {
            return Err("merge.ranks is \"project\", which works with the rules mean and norm_bounded only".to_owned());
        }
        self.server.check()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let refused = |toml: &str| toml::from_str::<Merging>(toml).unwrap().check().unwrap_err();
        assert_eq!(Merging::default().check(), Ok(()));
        for (toml, name) in [
            ("rule = { trimmed_mean = { share = 0.5 } }", "share is 0.5, expected 0 to below 0.5"),
            ("rule = { norm_bounded = { norm = 0.0 } }", "norm is 0"),
            ("far_out = 0.5", "far_out"),
            ("rule = 'median'\nranks = 'project'", "rules mean and norm_bounded only"),
            ("server = { adam = { rate = 0.0 } }", "rate"),
        ] {
            assert!(refused(toml).contains(name), "{toml}: {}", refused(toml));
        }
    }
}
