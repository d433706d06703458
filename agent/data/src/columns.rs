//! The columns that a user names.

/// Names of a file's columns, or keys of its objects, if they differ from the usual ones. Upper and lower case are equal.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "clap", derive(clap::Args), command(next_help_heading = "Columns"))]
pub struct Columns {
    /// Column or key of the text, or of the words. Several columns, separated by commas, are joined like a title and its
    /// description [default: text, sentence, utterance, content or review].
    #[cfg_attr(
        feature = "clap",
        arg(id = "text_column", long = "text-column", value_name = "NAMES", value_delimiter = ',')
    )]
    pub text: Vec<String>,
    /// Column or key of a pair's second text; --text-column names the first.
    #[cfg_attr(feature = "clap", arg(long = "pair-column", value_name = "NAME", requires = "text_column"))]
    pub pair: Option<String>,
    /// Column or key of the prompt before the text, for language models.
    #[cfg_attr(feature = "clap", arg(long = "prompt-column", value_name = "NAME"))]
    pub prompt: Option<String>,
    /// Column or key of the label, of the numbers, or of the words' labels [default: label, class, class index, category, intent,
    /// quality or score].
    #[cfg_attr(feature = "clap", arg(long = "label-column", value_name = "NAME"))]
    pub label: Option<String>,
    /// Names of all columns of a CSV or TSV file without a header, for example label,text.
    #[cfg_attr(feature = "clap", arg(long = "columns", value_name = "NAMES", value_delimiter = ','))]
    pub header: Vec<String>,
    /// Text between columns that are joined to one text, such as a title and a description; `None` for [`SEPARATOR`].
    #[cfg_attr(feature = "clap", arg(skip))]
    pub separator: Option<String>,
}

/// Default text between columns that are joined.
pub const SEPARATOR: &str = ". ";

impl Columns {
    /// Returns the text between columns that are joined.
    pub(crate) fn separator(&self) -> &str {
        self.separator.as_deref().unwrap_or(SEPARATOR)
    }

    /// Returns the names of the columns that every file must have.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let single = [&self.pair, &self.prompt, &self.label];
        self.text.iter().map(String::as_str).chain(single.into_iter().filter_map(Option::as_deref))
    }
}
