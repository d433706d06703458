//! The model card of an export: `README.md` with the header that the Hugging Face hub reads.
//!
//! It holds names, counts and figures, never contents of examples.

use super::origin::is_hub_name;
use super::{Manifest, Pack};
use crate::design::Design;
use crate::peft::Peft;
use crate::storage::Storage;
use crate::task::Task;
use std::fmt::Write as _;

/// File name of the card.
pub(super) const FILE: &str = "README.md";
/// Maximum number of labels that a card lists.
const MAX_LABELS: usize = 200;

/// Facts about tuned weights that are not in their pack, for the model card.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct About {
    /// Name of the base model, if it replaces the pack's.
    pub base_model: Option<String>,
    /// Whether a fleet of devices trained the weights together.
    pub is_federated: bool,
    /// Facts about the training: name and value.
    pub training: Vec<(&'static str, String)>,
    /// Facts about the data: name and value. They are counts.
    pub data: Vec<(&'static str, String)>,
    /// Results of the evaluation.
    pub results: Vec<Figure>,
}

/// A result of an evaluation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Figure {
    /// Name for readers.
    pub name: &'static str,
    /// The hub's name of the metric, for example `accuracy`.
    pub metric: &'static str,
    /// Value as text.
    pub value: String,
}

/// Form of an export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Adapter,
    Merged,
}

/// Returns the card.
pub(super) fn write(pack: &Pack, form: Form, about: &About) -> String {
    let manifest = pack.manifest();
    let base = about.base_model.as_deref().or(manifest.base_model.as_deref());
    let mut text = header(pack, form, about, base);
    let shown = base.map_or_else(|| "a model without a name".to_owned(), code);
    let task = task_name(manifest.design.head.task);
    let what = match form {
        Form::Adapter => "LoRA adapter for",
        Form::Merged => "Fine-tuned",
    };
    let _ = write!(text, "\n# {what} {shown}: {task}\n\n{}\n", introduction(manifest, form, about));
    section(&mut text, "How to use", &usage(manifest, form, base));
    section(&mut text, "Labels", &labels(manifest));
    section(&mut text, "Texts", &texts(manifest));
    section(&mut text, "Data", &data(about));
    section(&mut text, "Training", &training(manifest, about));
    section(&mut text, "Results", &results(about));
    text
}

fn section(text: &mut String, title: &str, body: &str) {
    if !body.is_empty() {
        let _ = write!(text, "\n## {title}\n\n{}\n", body.trim_end());
    }
}

/// Returns the header. Language and data set are left out, because Skiff does not know them.
fn header(pack: &Pack, form: Form, about: &About, base: Option<&str>) -> String {
    let mut text = String::from("---\n");
    if let Some(base) = base.filter(|base| is_hub_name(base)) {
        let relation = if form == Form::Adapter { "adapter" } else { "finetune" };
        let _ = write!(text, "base_model: {}\nbase_model_relation: {relation}\n", quoted(base));
    }
    let library = if form == Form::Adapter { "peft" } else { "transformers" };
    let _ = writeln!(text, "library_name: {library}");
    if let Some(license) = pack.license() {
        let _ = writeln!(text, "license: {}", quoted(&license));
    }
    let Design { head, peft, .. } = &pack.manifest().design;
    let task = head.task;
    let _ = writeln!(text, "pipeline_tag: {}", pipeline(task));
    let mut tags = vec!["skiff"];
    tags.extend(about.is_federated.then_some("federated-learning"));
    tags.extend(matches!(peft, Peft::Lora(_)).then_some("lora"));
    tags.extend((form == Form::Adapter).then_some("transformers"));
    tags.extend((task == Task::Regression).then_some("regression"));
    list(&mut text, "tags", &tags);
    let metrics: Vec<&str> = about.results.iter().map(|figure| figure.metric).collect();
    list(&mut text, "metrics", &metrics);
    text + "---\n"
}

fn list(text: &mut String, key: &str, items: &[&str]) {
    if !items.is_empty() {
        let _ = writeln!(text, "{key}:");
        text.extend(items.iter().map(|item| format!("- {item}\n")));
    }
}

fn introduction(manifest: &Manifest, form: Form, about: &About) -> String {
    let how = match (about.is_federated, about.training.is_empty()) {
        (true, _) => "A fleet of small devices trained these weights together; the data stayed on the devices.",
        (false, false) => "One device trained these weights.",
        (false, true) => "Skiff does not know how these weights were trained.",
    };
    let parts = match (form, &manifest.design.peft) {
        (Form::Adapter, _) => {
            "The folder holds the trained parts alone: LoRA matrices, and a head if the task has one."
        }
        (Form::Merged, Peft::Lora(_)) => "The trained LoRA matrices are merged into the model's own weights.",
        (Form::Merged, Peft::BitFit | Peft::Houlsby { .. }) => "The trained values replace the model's own.",
    };
    let version = env!("CARGO_PKG_VERSION");
    format!("{how} {parts} Written by Skiff {version}.")
}

fn usage(manifest: &Manifest, form: Form, base: Option<&str>) -> String {
    let class = match manifest.design.head.task {
        Task::SequenceClassification | Task::Regression => "AutoModelForSequenceClassification",
        Task::TokenClassification => "AutoModelForTokenClassification",
        Task::CausalLm => "AutoModelForCausalLM",
    };
    let classes = match manifest.design.head.task {
        Task::CausalLm => String::new(),
        Task::SequenceClassification | Task::Regression | Task::TokenClassification => {
            format!(", num_labels={}", manifest.labels.len())
        }
    };
    let this = "\"PATH_OR_NAME_OF_THIS_MODEL\"";
    let base = base.map_or_else(|| "\"PATH_OR_NAME_OF_THE_BASE_MODEL\"".to_owned(), quoted);
    match form {
        Form::Adapter => format!(
            "```python\nimport peft, transformers\n\n\
             base = transformers.{class}.from_pretrained({base}{classes})\n\
             model = peft.PeftModel.from_pretrained(base, {this}).eval()\n\
             tokenizer = transformers.AutoTokenizer.from_pretrained({base})\n```\n"
        ),
        Form::Merged => format!(
            "```python\nimport transformers\n\n\
             model = transformers.{class}.from_pretrained({this}).eval()\n\
             tokenizer = transformers.AutoTokenizer.from_pretrained({this})\n```\n"
        ),
    }
}

fn labels(manifest: &Manifest) -> String {
    let what = match manifest.design.head.task {
        Task::CausalLm => return String::new(),
        Task::Regression => "The model gives one number for each of these, in this order:",
        Task::SequenceClassification | Task::TokenClassification => "The scores are in this order:",
    };
    let mut text = format!("{what}\n\n");
    for (at, label) in manifest.labels.iter().take(MAX_LABELS).enumerate() {
        let _ = writeln!(text, "{at}. {}", code(label));
    }
    if let Some(more) = manifest.labels.len().checked_sub(MAX_LABELS).filter(|more| *more > 0) {
        let _ = writeln!(text, "\nand {more} more.");
    }
    text
}

/// Describes how the fields of an example become the text that the model reads.
fn texts(manifest: &Manifest) -> String {
    match manifest.design.head.task {
        Task::SequenceClassification | Task::Regression => {
            "A text goes to the tokenizer as it is. `title` and `description` become one text, `title. description`. The two \
             texts of a pair are two arguments of the tokenizer. Longer texts were cut at the end.\n"
        }
        Task::TokenClassification => {
            "A text is a list of words; the first token of a word has the word's label, and the others have none.\n"
        }
        Task::CausalLm => "A text, or a prompt and its completion one directly after the other.\n",
    }
    .to_owned()
}

fn data(about: &About) -> String {
    match about.data.is_empty() {
        true => "Skiff does not record which data the weights were trained with.\n".to_owned(),
        false => format!(
            "{}\nWhat the examples say was never sent, and Skiff does not record where they are from.\n",
            table(&about.data)
        ),
    }
}

fn training(manifest: &Manifest, about: &About) -> String {
    let mut facts = about.training.clone();
    facts.push(("method", method(manifest)));
    let stored = match manifest.design.frozen {
        Storage::F32 => "float32",
        Storage::F16 => "float16, as the devices had them",
        Storage::Int8 => "int8 with a scale for each row, as the devices had them",
    };
    facts.push(("frozen weights", stored.to_owned()));
    table(&facts)
}

fn method(manifest: &Manifest) -> String {
    match &manifest.design.peft {
        Peft::Lora(lora) => {
            let scaled = if lora.rslora { ", rank-stabilised" } else { "" };
            let frozen = if lora.freeze_a { ", A frozen" } else { "" };
            let others = if lora.rank_pattern.is_empty() { "" } else { " (others by pattern)" };
            format!("LoRA, rank {}{others}, alpha {}{scaled}{frozen}", lora.rank, lora.alpha)
        }
        Peft::Houlsby { width } => format!("Houlsby adapters of width {width}"),
        Peft::BitFit => "BitFit: the biases of the blocks".to_owned(),
    }
}

fn results(about: &About) -> String {
    let rows: Vec<(&str, String)> = about.results.iter().map(|figure| (figure.name, figure.value.clone())).collect();
    table(&rows)
}

fn table(rows: &[(&str, String)]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let lines = rows.iter().map(|(name, value)| format!("| {name} | {} |\n", value.replace('|', "\\|")));
    std::iter::once("| | |\n|---|---|\n".to_owned()).chain(lines).collect()
}

const fn task_name(task: Task) -> &'static str {
    match task {
        Task::SequenceClassification => "text classification",
        Task::Regression => "regression on texts",
        Task::TokenClassification => "token classification",
        Task::CausalLm => "language modelling",
    }
}

/// Returns the hub's name of a task.
const fn pipeline(task: Task) -> &'static str {
    match task {
        Task::SequenceClassification | Task::Regression => "text-classification",
        Task::TokenClassification => "token-classification",
        Task::CausalLm => "text-generation",
    }
}

/// Returns a string literal for YAML and Python. A JSON string without control characters is valid in both.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Returns any text as inline code in Markdown.
fn code(text: &str) -> String {
    let runs = text.split(|letter| letter != '`').map(str::len);
    let fence = "`".repeat(runs.max().unwrap_or(0) + 1);
    let space = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) { " " } else { "" };
    format!("{fence}{space}{text}{space}{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_in_markdown_and_yaml() {
        assert_eq!(
            [code("news"), code("a`b"), code("`"), code("``x")],
            ["`news`", "``a`b``", "`` ` ``", "``` ``x ```"]
        );
        assert_eq!(quoted("a\"b: #"), r#""a\"b: #""#);
        assert_eq!(table(&[("name", "a|b".to_owned())]), "| | |\n|---|---|\n| name | a\\|b |\n");
    }
}
