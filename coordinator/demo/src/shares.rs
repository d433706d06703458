//! Reads or generates the data, cuts it to the demo's size, and distributes it unequally over the devices.

use anyhow::{Context, ensure};
use skiff_data::corpus::{GenerateOptions, generate};
use skiff_data::{Columns, Example, dataset, labels, open, read, split};
use std::collections::BTreeMap;
use std::path::Path;

/// Maximum number of training examples over all devices.
pub(super) const MOST_TRAINING: usize = 4_800;
/// Maximum number of test examples over all devices. They are always the first examples of the file, so that runs are comparable.
pub(super) const MOST_TEST: usize = 1_000;

/// Examples of each device. The index is the number of the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shares {
    /// Name of the data set.
    pub(super) name: String,
    /// All labels, in the order of the class numbers.
    pub(super) labels: Vec<String>,
    /// Training examples of each device, distributed non-IID.
    pub(super) train: Vec<Vec<Example>>,
    /// Test examples of each device, in equal parts.
    pub(super) test: Vec<Vec<Example>>,
}

impl Shares {
    /// Returns the number of test examples over all devices.
    pub(super) fn test_examples(&self) -> u64 {
        self.test.iter().map(Vec::len).sum::<usize>() as u64
    }

    /// Returns the mean length in bytes of a training text, or of both texts of a pair.
    pub(super) fn mean_text_bytes(&self) -> usize {
        let pair = |example: &Example| example.pair.as_ref().map_or(0, String::len);
        let lengths = self.train.iter().flatten().map(|example| example.text.len() + pair(example));
        lengths.clone().sum::<usize>() / lengths.count().max(1)
    }
}

/// Settings for the distribution of the data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dealing {
    /// Number of devices.
    pub(super) devices: usize,
    /// Concentration of the Dirichlet distribution; smaller values give more unequal shares.
    pub(super) alpha: f64,
    /// Seed of the shares; equal seeds give equal shares.
    pub(super) seed: u64,
}

/// Reads the data set in `folder`, or generates one if `folder` is `None`, and distributes it.
pub(super) fn prepare(folder: Option<&Path>, dealing: Dealing) -> anyhow::Result<Shares> {
    let Some(folder) = folder else {
        let corpus = generate(&GenerateOptions { seed: dealing.seed, ..GenerateOptions::default() })?;
        return deal("generated commands to a home assistant", corpus.train, corpus.test, dealing);
    };
    let set = dataset(folder).with_context(|| {
        format!(
            "the data in {}; --data takes a folder with a training and a test file, or `generated`",
            folder.display()
        )
    })?;
    let train = read(&set.train)?;
    let test: Result<Vec<Example>, _> = open(&set.test, &Columns::default())?.take(MOST_TEST).collect();
    deal(&set.name, train, test?, dealing)
}

fn deal(name: &str, train: Vec<Example>, mut test: Vec<Example>, dealing: Dealing) -> anyhow::Result<Shares> {
    let Dealing { devices, alpha, seed } = dealing;
    test.truncate(MOST_TEST);
    let labels = labels(&[train.as_slice(), test.as_slice()].concat());
    ensure!(labels.len() > 1, "every example of {name} has the label {:?}; there is nothing to learn", labels.first());
    ensure!(
        train.len() >= devices && test.len() >= devices,
        "{name} has {} training and {} test examples, too few for {devices} agents; use fewer with --agents",
        train.len(),
        test.len()
    );
    let mut order = split::permutation(train.len(), seed);
    order.truncate(MOST_TRAINING);
    let classes = classes_of(&train, &order, &labels);
    let pick = |examples: &[Example], indices: Vec<usize>| indices.into_iter().map(|at| examples[at].clone()).collect();
    let shares = split::dirichlet(&classes, devices, alpha, seed);
    let train =
        shares.into_iter().map(|share| share.into_iter().map(|at| train[order[at]].clone()).collect()).collect();
    let test = split::even(test.len(), devices).into_iter().map(|part| pick(&test, part)).collect();
    Ok(Shares { name: name.to_owned(), labels, train, test })
}

fn classes_of(examples: &[Example], order: &[usize], labels: &[String]) -> Vec<usize> {
    let numbers: BTreeMap<&str, usize> = labels.iter().enumerate().map(|(at, label)| (label.as_str(), at)).collect();
    order.iter().map(|&at| numbers[examples[at].label.as_str()]).collect()
}

/// Writes examples as JSON, one object per line, with `text`, `label` and, for pairs, `text_pair`.
pub(super) fn write(path: &Path, examples: &[Example]) -> anyhow::Result<()> {
    let mut lines = String::new();
    for example in examples {
        lines += &serde_json::to_string(example).expect("an example is strings only");
        lines.push('\n');
    }
    std::fs::write(path, lines).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use std::collections::BTreeSet;

    const DEALING: Dealing = Dealing { devices: 4, alpha: 1.0, seed: 1 };

    fn examples(count: usize) -> Vec<Example> {
        let example = |at| Example { text: format!("text {at}"), pair: None, label: format!("{}", at % 3) };
        (0..count).map(example).collect()
    }

    fn texts(parts: &[Vec<Example>]) -> BTreeSet<&str> {
        parts.iter().flatten().map(|example| example.text.as_str()).collect()
    }

    #[test]
    fn the_demo_size_is_kept_and_nothing_is_dealt_twice() {
        let shares = deal("set", examples(6_000), examples(2_000), DEALING).unwrap();
        assert_eq!(shares.labels, ["0", "1", "2"]);
        assert_eq!(shares.train.iter().map(Vec::len).sum::<usize>(), MOST_TRAINING);
        assert_eq!(texts(&shares.train).len(), MOST_TRAINING);
        assert_eq!(shares.test.iter().map(Vec::len).collect::<Vec<_>>(), [250; 4]);
        assert_eq!((shares.test_examples(), shares.mean_text_bytes()), (1_000, "text 9999".len() - 1));
        assert!(texts(&shares.test).contains("text 999") && !texts(&shares.test).contains("text 1000"));
    }

    #[test]
    fn the_same_seed_deals_the_same_and_another_does_not() {
        let dealt = |seed| deal("set", examples(500), examples(100), Dealing { seed, ..DEALING }).unwrap();
        assert_eq!(dealt(1), dealt(1));
        assert_ne!(dealt(1).train, dealt(2).train);
        assert_eq!(dealt(1).test, dealt(2).test);
    }

    #[test]
    fn too_few_examples_or_one_label_are_refused_with_the_remedy() {
        let refused = deal("set", examples(3), examples(9), DEALING).unwrap_err().to_string();
        assert!(refused.contains("3 training and 9 test examples") && refused.contains("--agents"), "{refused}");
        let refused = deal("set", examples(1), examples(1), DEALING).unwrap_err().to_string();
        assert!(refused.contains("nothing to learn"), "{refused}");
    }

    #[test]
    fn a_folder_without_data_says_what_is_expected() {
        let folder = tempfile::tempdir().unwrap();
        let refused = format!("{:#}", prepare(Some(folder.path()), DEALING).unwrap_err());
        assert!(refused.contains("--data takes a folder") && refused.contains("train"), "{refused}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.jsonl");
        let odd = Example { text: "a \"quoted\"\tline\\ é".to_owned(), pair: None, label: "x".to_owned() };
        let examples = vec![Example { pair: Some(" second".to_owned()), ..odd.clone() }, odd];
        write(&path, &examples).unwrap();
        assert_eq!(read::<Example>(&path).unwrap(), examples);
    }
}
