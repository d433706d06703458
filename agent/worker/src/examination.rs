//! The checks of `skiff-agent doctor` that need the pack, the examples or ONNX Runtime. They change nothing.

use crate::corpus::{columns, count};
use skiff_base::chain;
use skiff_contract::{Finding, Training};
use skiff_models::Pack;
use skiff_models::layout::Layout;
use skiff_models::pack::PackError;
use skiff_models::task::Task;
use skiff_protocol::Digest;
use skiff_trainer::Runtime;
use std::path::Path;

/// Checks ONNX Runtime, the pack and the examples. Returns names and findings.
#[must_use]
pub fn examine(training: &Training) -> Vec<(String, Finding)> {
    let pack = Pack::open(&training.pack).and_then(|pack| pack.check_weights().map(|()| pack));
    let findings = [
        ("onnxruntime", onnxruntime(training)),
        ("pack", check_pack(&pack, &training.pack)),
        ("train", examples(training.train.as_deref(), training, &pack, "training")),
        ("test", examples(training.test.as_deref(), training, &pack, "evaluation")),
    ];
    findings.map(|(name, finding)| (name.to_owned(), finding)).into()
}

fn onnxruntime(training: &Training) -> Finding {
    match Runtime::load(training.onnxruntime.as_deref(), 1).and_then(|runtime| runtime.on(training.provider)) {
        Ok(runtime) => Finding::Fine(format!("{}, computes on {}", runtime.version(), runtime.provider())),
        Err(error) => Finding::Broken(chain(&error)),
    }
}

fn check_pack(pack: &Result<Pack, PackError>, path: &Path) -> Finding {
    match pack {
        Ok(pack) => {
            let (manifest, digest) = (pack.manifest(), Digest(pack.digest()));
            Finding::Fine(format!(
                "{} is intact: {} for {}, {} layers, {}, digest {digest:?}",
                path.display(),
                manifest.design.model.name(),
                manifest.layout.task,
                manifest.layers,
                scored(&manifest.layout),
            ))
        }
        Err(error) => Finding::Broken(chain(error)),
    }
}

/// Describes the pack's scores.
fn scored(layout: &Layout) -> String {
    match layout.task {
        Task::SequenceClassification | Task::TokenClassification => format!("{} labels", layout.classes),
        Task::Regression => format!("{} numbers", layout.classes),
        Task::CausalLm => format!("{} tokens", layout.vocabulary),
    }
}

fn examples(file: Option<&Path>, training: &Training, pack: &Result<Pack, PackError>, purpose: &str) -> Finding {
    match (file, pack) {
        (None, _) => Finding::Doubtful(format!("no file is set: orders of {purpose} will be refused")),
        (Some(path), Err(_)) => Finding::Doubtful(format!("{} is not read before the pack is intact", path.display())),
        (Some(path), Ok(pack)) => match count(path, &columns(&training.columns), pack) {
            Ok(count) => Finding::Fine(format!("{count} examples in {}", path.display())),
            Err(error) => Finding::Broken(chain(&error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_is_named() {
        let nowhere = Path::new("/nowhere");
        let found = check_pack(&Pack::open(nowhere), nowhere);
        assert!(
            matches!(&found, Finding::Broken(text) if text.contains("/nowhere/manifest.json") && text.contains("No such file")),
            "{found}"
        );
    }
}
