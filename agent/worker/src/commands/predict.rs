//! `skiff-agent predict`: the answers of a pack, with any weights, to texts.

use super::model::{Model, ModelArguments};
use crate::corpus::joined_by;
use crate::questions::{Answer, Asked, Desk};
use serde_json::{Map, Value, json};
use skiff_data::{Columns, DataError, Format, Passage, Place, Question, Reader, Record, Words, open};
use skiff_models::task::Task;
use skiff_screen::output;
use skiff_screen::text::fold;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

/// Prints the answers of a pack, with any weights, to texts.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  echo 'turn on the lamp' | skiff-agent predict --pack minilm.pack --weights adapter\n  \
                  skiff-agent predict --pack minilm.pack --weights trained.safetensors questions.txt more.csv\n  \
                  skiff-agent predict --own < questions.txt                       this device's model\n  \
                  skiff-agent predict --pack ner.pack --json articles.jsonl > tagged.jsonl\n\n\
                  What it prints, with tabs between the fields, by the pack's task:\n  \
                  classification  the label with the largest score, its probability, the text\n  \
                  regression      the number, or the numbers with spaces between them, and the text\n  \
                  tokens          each word and its label on a line; a blank line after each text\n  \
                  causal-lm       the text's perplexity, the number of predicted tokens, the text\n\
                  There is - for a word beyond --max-tokens, and for the perplexity of a text with nothing to predict. \
                  Line ends, tabs and other control characters in a text are printed as spaces. \
                  A terminal gets the fields in columns, folded at words.\n\
                  --json prints an object for each text, with the probability of every label, in the form that \
                  `skiff-agent train` reads.\n\n\
                  Formats: .txt (a text on each line), .csv, .tsv, .jsonl, and .conll for words. Labels in a file are ignored. \
                  For tokens, the words of a text stand between spaces, or in an array.\n\n\
                  Exit status: 0 answered; 1 failed; 2 wrong usage or settings."
)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// Files with texts; - is standard input [default: -]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Format of standard input
    #[arg(long, value_enum, default_value_t = Input::Lines)]
    format: Input,
    /// Print an object of JSON for each text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    columns: Columns,
}

/// Values of `--format`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Input {
    Lines,
    Csv,
    Tsv,
    Jsonl,
    Conll,
}

/// Runs the command.
///
/// # Errors
/// A file, a pack, weights or an ONNX Runtime that cannot be used.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Model { pack, trainer, .. } = arguments.model.open()?;
    let task = pack.manifest().layout.task;
    let columns = joined_by(&pack, &arguments.columns);
    let labels = pack.manifest().labels.clone();
    let desk = Desk::open(&pack, trainer, arguments.model.max_tokens as usize)?;
    let mut predictor = Predictor {
        desk,
        labels,
        columns,
        format: arguments.format.format(),
        // Somebody who types a line wants its answer, not a batch.
        batch: if std::io::stdin().is_terminal() { 1 } else { arguments.model.batch.into() },
        json: arguments.json,
        cut: 0,
    };
    let input = [PathBuf::from(STDIN)];
    let files = if arguments.files.is_empty() { &input[..] } else { &arguments.files };
    files.iter().try_for_each(|file| match task {
        Task::SequenceClassification | Task::Regression => predictor.answer::<Question>(file),
        Task::TokenClassification => predictor.answer::<Words>(file),
        Task::CausalLm => predictor.answer::<Passage>(file),
    })?;
    predictor.warn(arguments.model.max_tokens);
    Ok(())
}

const STDIN: &str = "-";

impl Input {
    const fn format(self) -> Format {
        match self {
            Self::Lines => Format::Lines,
            Self::Csv => Format::Csv,
            Self::Tsv => Format::Tsv,
            Self::Jsonl => Format::JsonLines,
            Self::Conll => Format::Conll,
        }
    }
}

struct Predictor {
    desk: Desk,
    labels: Vec<String>,
    columns: Columns,
    /// Format of standard input.
    format: Format,
    batch: usize,
    json: bool,
    /// Number of texts that were cut.
    cut: usize,
}

impl Predictor {
    /// Prints the answers to a file's texts, a batch at a time.
    fn answer<R: Record + Into<Asked>>(&mut self, file: &Path) -> anyhow::Result<()> {
        let mut reader = self.reader::<R>(file)?;
        loop {
            let mut batch = Vec::with_capacity(self.batch);
            let mut failed = None;
            while batch.len() < self.batch && failed.is_none() {
                let Some(record) = reader.next() else { break };
                match record {
                    Ok(record) => batch.push((reader.place().clone(), record.into())),
                    Err(error) => failed = Some(error),
                }
            }
            if !batch.is_empty() {
                self.print(&batch)?;
            }
            // Texts before a fault are answered first, so that the output shows the position of the fault.
            failed.map_or(Ok(()), Err)?;
            if batch.len() < self.batch {
                return Ok(());
            }
        }
    }

    fn reader<R: Record>(&self, file: &Path) -> Result<Reader<R>, DataError> {
        if file != Path::new(STDIN) {
            return open(file, &self.columns);
        }
        let input = Box::new(std::io::stdin());
        Ok(Reader::new(Path::new("standard input"), self.format, &self.columns, input))
    }

    fn print(&mut self, batch: &[(Place, Asked)]) -> anyhow::Result<()> {
        let answers = self.desk.answer(batch)?;
        let mut text = String::new();
        for ((_, asked), (answer, was_cut)) in batch.iter().zip(&answers) {
            self.cut += usize::from(*was_cut);
            if self.json {
                writeln!(text, "{}", object(asked, answer, &self.labels))?;
            } else {
                text.push_str(&lines(asked, answer, &self.labels, output::width()));
            }
        }
        let mut out = output::stdout();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Says on standard error how many texts were cut.
    fn warn(&self, max_tokens: u32) {
        if self.cut > 0 {
            let (cut, why) = (self.cut, "or the model's limit, and were cut; see --max-tokens");
            output::remark("skiff-agent", &format!("{cut} texts are longer than {max_tokens} tokens {why}"));
        }
    }
}

/// Returns the lines of an answer: its fields with tabs between them, or folded to the `width` of a terminal.
fn lines(asked: &Asked, answer: &Answer, labels: &[String], width: Option<usize>) -> String {
    let text = flat(&asked.text());
    match answer {
        Answer::Class { probabilities, best } => {
            let room = longest(labels);
            line(&[(&labels[*best], room), (&format!("{:.4}", probabilities[*best]), 0)], &text, width)
        }
        Answer::Numbers(numbers) => {
            let numbers: Vec<String> = numbers.iter().map(|number| format!("{number:.4}")).collect();
            line(&[(&numbers.join(" "), 0)], &text, width)
        }
        Answer::Words(found) => {
            let room = longest(asked.words());
            let word = |(word, found): (&String, &Option<(usize, f64)>)| {
                line(&[(&flat(word), room)], found.map_or("-", |(class, _)| &labels[class]), width)
            };
            asked.words().iter().zip(found).map(word).chain(["\n".to_owned()]).collect()
        }
        Answer::Perplexity { tokens, perplexity } => {
            let perplexity = perplexity.map_or("-".to_owned(), |perplexity| format!("{perplexity:.4}"));
            line(&[(&perplexity, 8), (&tokens.to_string(), 4)], &text, width)
        }
    }
}

/// Returns a line of fields, each with the room that it gets on a terminal, and the text after them.
fn line(fields: &[(&str, usize)], text: &str, width: Option<usize>) -> String {
    let Some(columns) = width else {
        return fields.iter().map(|(field, _)| format!("{field}\t")).collect::<String>() + text + "\n";
    };
    let begin: String = fields.iter().map(|(field, room)| format!("{field:<room$}  ")).collect();
    // Beside fields that take most of the terminal, the text has too little room.
    let indent = if begin.chars().count() > columns / 2 { 2 } else { begin.chars().count() };
    fold(&(begin + text), indent, width) + "\n"
}

/// Returns the number of characters of the longest name, at most as many as a field has room for on a terminal.
fn longest(names: &[String]) -> usize {
    names.iter().map(|name| name.chars().count()).max().unwrap_or_default().min(24)
}

/// Returns an answer as JSON, with the names of the data formats.
fn object(asked: &Asked, answer: &Answer, labels: &[String]) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
    match asked {
        Asked::Whole(Question { text, pair }) => {
            put("text", json!(text));
            pair.iter().for_each(|pair| put("text_pair", json!(pair)));
        }
        Asked::Words(Words { words }) => put("tokens", json!(words)),
        Asked::Passage(Passage { prompt, text }) if prompt.is_empty() => put("text", json!(text)),
        Asked::Passage(Passage { prompt, text }) => {
            put("prompt", json!(prompt));
            put("completion", json!(text));
        }
    }
    match answer {
        Answer::Class { probabilities, best } => {
            let all: Map<String, Value> =
                labels.iter().cloned().zip(probabilities.iter().map(|probability| json!(probability))).collect();
            put("label", json!(labels[*best]));
            put("probability", json!(probabilities[*best]));
            put("probabilities", Value::Object(all));
        }
        Answer::Numbers(numbers) => put("label", json!(numbers)),
        Answer::Words(found) => {
            let array = |value: &dyn Fn(usize, f64) -> Value| -> Value {
                found.iter().map(|found| found.map_or(Value::Null, |(class, p)| value(class, p))).collect()
            };
            put("labels", array(&|class, _| json!(labels[class])));
            put("probabilities", array(&|_, probability| json!(probability)));
        }
        Answer::Perplexity { tokens, perplexity } => {
            put("perplexity", json!(perplexity));
            put("predicted_tokens", json!(tokens));
        }
    }
    Value::Object(object)
}

/// Returns the text on one line, without characters that steer a terminal.
fn flat(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test may panic")]
    use super::*;

    fn whole(text: &str, pair: Option<&str>) -> Asked {
        Asked::Whole(Question { text: text.to_owned(), pair: pair.map(str::to_owned) })
    }

    fn words(words: &[&str]) -> Asked {
        Asked::Words(Words { words: words.iter().copied().map(str::to_owned).collect() })
    }

    #[test]
    fn an_answer_is_a_line_for_each_text_or_word() {
        let labels = ["warm", "light"].map(str::to_owned);
        let class = Answer::Class { probabilities: vec![0.25, 0.75], best: 1 };
        assert_eq!(lines(&whole("a\tb\nc", Some("d")), &class, &labels, None), "light\t0.7500\ta b c / d\n");
        let numbers = Answer::Numbers(vec![1.5, -2.0]);
        assert_eq!(lines(&whole("a", None), &numbers, &[], None), "1.5000 -2.0000\ta\n");
        let found = Answer::Words(vec![Some((0, 0.5)), None]);
        assert_eq!(lines(&words(&["Ada", "wrote"]), &found, &labels, None), "Ada\twarm\nwrote\t-\n\n");
        let passage = Asked::Passage(Passage { prompt: "1+1=".to_owned(), text: "2".to_owned() });
        let told = Answer::Perplexity { tokens: 1, perplexity: Some(8.0) };
        assert_eq!(lines(&passage, &told, &[], None), "8.0000\t1\t1+1=2\n");
        let nothing = Answer::Perplexity { tokens: 0, perplexity: None };
        assert_eq!(lines(&passage, &nothing, &[], None), "-\t0\t1+1=2\n");
    }

    #[test]
    fn on_a_terminal_an_answer_is_folded_beside_its_fields() {
        let labels = ["warm", "light"].map(str::to_owned);
        let class = Answer::Class { probabilities: vec![0.75, 0.25], best: 0 };
        let long = whole("turn on the light in the kitchen", None);
        let expected = "warm   0.7500  turn on the light in\n               the kitchen\n";
        assert_eq!(lines(&long, &class, &labels, Some(36)), expected);
        let expected = "warm   0.7500  turn on\n  the light in the\n  kitchen\n";
        assert_eq!(lines(&long, &class, &labels, Some(22)), expected);
        let found = Answer::Words(vec![Some((0, 0.5)), None]);
        assert_eq!(lines(&words(&["Ada", "\u{1b}[2J"]), &found, &labels, Some(80)), "Ada   warm\n [2J  -\n\n");
    }

    #[test]
    fn an_object_has_the_names_that_training_reads() {
        let labels = ["warm", "light"].map(str::to_owned);
        let class = Answer::Class { probabilities: vec![0.25, 0.75], best: 1 };
        let expected = json!({
            "text": "a", "text_pair": "b", "label": "light", "probability": 0.75,
            "probabilities": {"warm": 0.25, "light": 0.75},
        });
        assert_eq!(object(&whole("a", Some("b")), &class, &labels), expected);
        let found = Answer::Words(vec![Some((0, 0.5)), None]);
        let expected = json!({"tokens": ["Ada", "wrote"], "labels": ["warm", null], "probabilities": [0.5, null]});
        assert_eq!(object(&words(&["Ada", "wrote"]), &found, &labels), expected);
        assert_eq!(object(&whole("a", None), &Answer::Numbers(vec![1.5]), &[]), json!({"text": "a", "label": [1.5]}));
    }
}
