//! The checks of `skiff-agent doctor` that need the pack, the examples or ONNX Runtime. They change nothing.

use crate::corpus::{columns, count};
use crate::inventory::{limit, of_steps};
use bytesize::ByteSize;
use skiff_base::chain;
use skiff_contract::limits::{Cause, Limit};
use skiff_contract::{Finding, Setup, Training};
use skiff_models::Pack;
use skiff_models::layout::Layout;
use skiff_models::pack::PackError;
use skiff_models::task::Task;
use skiff_protocol::Digest;
use skiff_protocol::messages::StepMemory;
use skiff_trainer::Runtime;
use std::path::Path;

/// Checks ONNX Runtime, the pack, the examples and the memory. Returns names and findings.
#[must_use]
pub fn examine(setup: &Setup) -> Vec<(String, Finding)> {
    let training = &setup.training;
    let pack = Pack::open(&training.pack).and_then(|pack| pack.check_weights().map(|()| pack));
    let findings = [
        ("onnxruntime", onnxruntime(training)),
        ("pack", check_pack(&pack, &training.pack)),
        ("train", examples(training.train.as_deref(), training, &pack, "training")),
        ("test", examples(training.test.as_deref(), training, &pack, "evaluation")),
        ("memory", memory(&limit(setup), pack.as_ref().ok())),
    ];
    findings.map(|(name, finding)| (name.to_owned(), finding)).into()
}

/// Checks that the smallest step fits into the memory limit.
fn memory(limit: &Limit, pack: Option<&Pack>) -> Finding {
    if let Some(pack) = pack {
        let StepMemory { process_bytes, step_bytes, layer_bytes, .. } = of_steps(pack, limit);
        let least = process_bytes + step_bytes + layer_bytes;
        if least > limit.bytes {
            let least = ByteSize(least).display().si();
            return Finding::Broken(format!(
                "at most {limit}, but a step of one layer takes about {least}: allow more"
            ));
        }
    }
    let text = format!("at most {limit}");
    match limit.cause {
        Cause::Lesson => Finding::Doubtful(format!("{text}; the device tries more again after a day")),
        Cause::Setting
        | Cause::Machine
        | Cause::Group { .. }
        | Cause::AddressSpace
        | Cause::Data
        | Cause::Free
        | Cause::Unknown => Finding::Fine(text),
    }
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
    fn the_memory_limit_and_its_cause_are_named() {
        let group = Limit { bytes: 150, whole: 200, cause: Cause::Group { path: "/box".to_owned() } };
        assert_eq!(
            memory(&group, None),
            Finding::Fine("at most 150 B (the control group /box may use 200 B)".to_owned())
        );
        let lesson = Limit { cause: Cause::Lesson, ..group };
        assert!(matches!(memory(&lesson, None), Finding::Doubtful(text) if text.contains("killed")));
    }

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
