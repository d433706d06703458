//! The layers that an adapter adapts, by PEFT's rules (`check_target_module_exists` and `get_pattern_key` of PEFT 0.21).
//!
//! A list matches the ends of names, a string is a regular expression on the whole name, and `all-linear` is a special word. Keys
//! of `rank_pattern` and `alpha_pattern` are regular expressions on the ends of names. A pack has neither regular expressions nor
//! exclusions, so it records the names of the selected layers.

use super::settings::{Layers, Modules, Refusal, Settings};
use crate::architectures::Model;
use crate::peft::{ALL_LINEAR, Lora, Patterns, ends_with_parts};
use crate::task::Task;
use fancy_regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

/// A layer with LoRA.
struct Adapted<'a> {
    name: &'a str,
    rank: usize,
    alpha: f32,
}

impl Settings {
    /// Returns LoRA's settings for `model`. For an adapter of the `bare` model, names lack the prefix of the model's names.
    pub(super) fn lora(&self, model: &Model, task: Task, bare: bool) -> Result<Lora, Refusal> {
        let rules = Rules::new(self, model)?;
        let base = if bare { model.base() } else { "" };
        let names = model.linear_names(task);
        let mut adapted = Vec::new();
        for name in &names {
            let seen = name.strip_prefix(base).unwrap_or(name);
            if rules.adapt(seen)? {
                let rank = rules.ranks.first(seen)?.copied().unwrap_or(self.r);
                let alpha = rules.alphas.first(seen)?.copied().unwrap_or(self.lora_alpha);
                adapted.push(Adapted { name, rank, alpha });
            }
        }
        if adapted.is_empty() {
            let found = self.target_modules.as_ref().map_or(Value::Null, Modules::value);
            let advice = format!(
                "with the adapter's other settings it selects no layer of this model, which has {}",
                model.linears().join(", ")
            );
            return Err(Refusal::new("target_modules", found, advice));
        }
        let explicit = self.by_name(&adapted, &names, &model.linears());
        let plain = self.plain(model, &adapted);
        let is_same = |plain: &Lora| names.iter().all(|name| plain.on(name) == explicit.on(name));
        Ok(plain.filter(is_same).unwrap_or(explicit))
    }

    /// Returns the settings unchanged, if a pack can hold them. Drops patterns that match no adapted layer, as PEFT does.
    fn plain(&self, model: &Model, adapted: &[Adapted<'_>]) -> Option<Lora> {
        let fits = |end: &str| adapted.iter().any(|layer| ends_with_parts(layer.name, end));
        let targets = match &self.target_modules {
            Some(Modules::Names(names)) => names.iter().filter(|name| fits(name)).cloned().collect(),
            Some(Modules::Pattern(pattern)) if is_all_linear(pattern) => vec![ALL_LINEAR.to_owned()],
            Some(Modules::Pattern(_)) => return None,
            None => model.usual_targets().map(str::to_owned).to_vec(),
        };
        let mut layers = match &self.layers_to_transform {
            None => None,
            Some(Layers::One(layer)) => Some(vec![*layer]),
            Some(Layers::Many(layers)) => Some(layers.clone()).filter(|layers| !layers.is_empty()),
        };
        layers.iter_mut().for_each(|layers| layers.retain(|layer| *layer < model.sizes().layers));
        Some(Lora {
            rank: self.r,
            alpha: self.lora_alpha,
            targets,
            rank_pattern: self.rank_pattern.as_ref().map(|all| all.retained(fits)).unwrap_or_default(),
            alpha_pattern: self.alpha_pattern.as_ref().map(|all| all.retained(fits)).unwrap_or_default(),
            layers,
            rslora: self.use_rslora,
            freeze_a: false,
        })
    }

    /// Returns settings that name the adapted layers: by the end of the name if every such layer is adapted.
    fn by_name(&self, adapted: &[Adapted<'_>], names: &[String], linears: &[&str]) -> Lora {
        let is_adapted = |name: &str| adapted.iter().any(|layer| layer.name == name);
        let whole = |end: &&&str| names.iter().filter(|name| ends_with_parts(name, end)).all(|name| is_adapted(name));
        let mut targets: Vec<String> = linears.iter().filter(whole).map(|end| (*end).to_owned()).collect();
        let rest = adapted.iter().filter(|layer| !targets.iter().any(|end| ends_with_parts(layer.name, end)));
        let rest: Vec<String> = rest.map(|layer| layer.name.to_owned()).collect();
        targets.extend(rest);
        let ranks = adapted.iter().filter(|layer| layer.rank != self.r);
        let alphas = adapted.iter().filter(|layer| layer.alpha.to_bits() != self.lora_alpha.to_bits());
        Lora {
            rank: self.r,
            alpha: self.lora_alpha,
            targets,
            rank_pattern: ranks.map(|layer| (layer.name.to_owned(), layer.rank)).collect(),
            alpha_pattern: alphas.map(|layer| (layer.name.to_owned(), layer.alpha)).collect(),
            layers: None,
            rslora: self.use_rslora,
            freeze_a: false,
        }
    }
}

impl Modules {
    fn value(&self) -> Value {
        match self {
            Self::Names(names) => json!(names),
            Self::Pattern(pattern) => json!(pattern),
        }
    }
}

/// PEFT's rules for one adapter.
struct Rules<'a> {
    targets: Names<'a>,
    excluded: Option<Names<'a>>,
    saved: Vec<Expression>,
    layers: Option<Vec<usize>>,
    /// Expressions that find a layer's number, in the order of the search.
    numbers: Vec<Expression>,
    ranks: Values<'a, usize>,
    alphas: Values<'a, f32>,
}

enum Names<'a> {
    AllLinear,
    Ends(Vec<&'a str>),
    Whole(Expression),
}

impl<'a> Rules<'a> {
    fn new(settings: &'a Settings, model: &Model) -> Result<Self, Refusal> {
        let targets = match &settings.target_modules {
            Some(Modules::Pattern(pattern)) if is_all_linear(pattern) => Names::AllLinear,
            Some(modules) => Names::new("target_modules", modules)?,
            None => Names::Ends(model.usual_targets().to_vec()),
        };
        let excluded = settings.exclude_modules.as_ref().filter(|modules| !modules.is_empty());
        let saved = settings.modules_to_save.iter().flatten();
        // PEFT does not put the alternatives of a name into brackets here.
        let saved =
            saved.map(|name| Expression::new("modules_to_save", name, &format!(r"\A(?:(^|.*\.){name}($|\..*))")));
        let layers = match &settings.layers_to_transform {
            None => None,
            Some(Layers::One(layer)) => Some(vec![*layer]),
            Some(Layers::Many(layers)) => Some(layers.clone()).filter(|layers| !layers.is_empty()),
        };
        let number = |name: &str| {
            let text = format!(r"\A(?:(?:^|.*?\.){name}\.(?P<idx>\d+)\.)");
            Expression::new("layers_pattern", name, &text)
        };
        let numbers = match settings.layers_pattern.as_ref().filter(|modules| !modules.is_empty()) {
            None => vec![Expression::new("layers_pattern", "", r"\A.*?\.[^.]*\.(?P<idx>\d+)\.")?],
            Some(Modules::Pattern(name)) => vec![number(name)?],
            Some(Modules::Names(names)) => names.iter().map(|name| number(name)).collect::<Result<_, _>>()?,
        };
        Ok(Self {
            targets,
            excluded: excluded.map(|modules| Names::new("exclude_modules", modules)).transpose()?,
            saved: saved.collect::<Result<_, _>>()?,
            layers,
            numbers,
            ranks: Values::new("rank_pattern", settings.rank_pattern.as_ref())?,
            alphas: Values::new("alpha_pattern", settings.alpha_pattern.as_ref())?,
        })
    }

    /// Returns true if PEFT adapts the linear layer with this name.
    fn adapt(&self, name: &str) -> Result<bool, Refusal> {
        if let Some(excluded) = &self.excluded
            && excluded.fit(name)?
        {
            return Ok(false);
        }
        for saved in &self.saved {
            if saved.fits(name)? {
                return Ok(false);
            }
        }
        let is_target = self.targets.fit(name)?;
        let Some(layers) = self.layers.as_ref().filter(|_| is_target) else { return Ok(is_target) };
        if matches!(&self.targets, Names::Ends(ends) if ends.contains(&name)) {
            // If the settings give the whole name, PEFT ignores the number of the layer.
            return Ok(true);
        }
        for number in &self.numbers {
            if let Some(layer) = number.number(name)? {
                return Ok(layers.contains(&layer));
            }
        }
        Ok(false)
    }
}

impl Modules {
    const fn is_empty(&self) -> bool {
        match self {
            Self::Names(names) => names.is_empty(),
            Self::Pattern(pattern) => pattern.is_empty(),
        }
    }
}

impl<'a> Names<'a> {
    fn new(key: &'static str, modules: &'a Modules) -> Result<Self, Refusal> {
        Ok(match modules {
            Modules::Names(names) => Self::Ends(names.iter().map(String::as_str).collect()),
            Modules::Pattern(pattern) => Self::Whole(Expression::new(key, pattern, &format!(r"\A(?:{pattern})\z"))?),
        })
    }

    fn fit(&self, name: &str) -> Result<bool, Refusal> {
        match self {
            Self::AllLinear => Ok(true),
            Self::Ends(ends) => Ok(ends.iter().any(|end| ends_with_parts(name, end))),
            Self::Whole(expression) => expression.fits(name),
        }
    }
}

/// Values by regular expressions on the ends of names. The first expression that matches counts.
struct Values<'a, T>(Vec<(Expression, &'a T)>);

impl<'a, T> Values<'a, T> {
    fn new(key: &'static str, patterns: Option<&'a Patterns<T>>) -> Result<Self, Refusal> {
        let pairs = patterns.into_iter().flat_map(|patterns| patterns.ends().zip(patterns.values()));
        let pairs = pairs.map(|(pattern, value)| {
            Ok((Expression::new(key, pattern, &format!(r"\A(?:(.*\.)?({pattern})\z)"))?, value))
        });
        pairs.collect::<Result<_, Refusal>>().map(Self)
    }

    fn first(&self, name: &str) -> Result<Option<&'a T>, Refusal> {
        for (expression, value) in &self.0 {
            if expression.fits(name)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

/// A Python regular expression, with the name of its setting.
struct Expression {
    key: &'static str,
    text: String,
    regex: Regex,
}

/// Forms that Python interprets differently from this program.
const OTHERWISE: [&str; 9] = ["[[", "[:", "&&", "||", "~~", "--", r"\<", r"\>", r"\b{"];
/// Maximum number of backtracking steps of a search, and maximum size of a compiled expression in bytes.
const MAX_STEPS: usize = 100_000;
const MAX_COMPILED_BYTES: usize = 1 << 20;

impl Expression {
    /// Compiles `regex`, which contains the setting's value `text`.
    fn new(key: &'static str, text: &str, regex: &str) -> Result<Self, Refusal> {
        if let Some(form) = OTHERWISE.iter().find(|form| text.contains(**form)) {
            return Err(unread(key, text, &format!("{form} has another meaning in Python")));
        }
        let regex = RegexBuilder::new(regex)
            .backtrack_limit(MAX_STEPS)
            .delegate_size_limit(MAX_COMPILED_BYTES)
            .delegate_dfa_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(|error| unread(key, text, &error.to_string()))?;
        Ok(Self { key, text: text.to_owned(), regex })
    }

    fn fits(&self, name: &str) -> Result<bool, Refusal> {
        self.regex.is_match(name).map_err(|error| unread(self.key, &self.text, &error.to_string()))
    }

    /// Returns the number that the group `idx` finds in a name.
    fn number(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let found = self.regex.captures(name).map_err(|error| unread(self.key, &self.text, &error.to_string()))?;
        Ok(found.and_then(|found| found.name("idx")?.as_str().parse().ok()))
    }
}

fn unread(key: &'static str, text: &str, why: &str) -> Refusal {
    Refusal::new(
        key,
        json!(text),
        format!("as a regular expression it cannot be read here ({why}); give a list of names"),
    )
}

fn is_all_linear(pattern: &str) -> bool {
    pattern.to_lowercase() == ALL_LINEAR
}
