//! The report of `doctor`: a line for each check as soon as it is known, or one line of JSON at the end.

use crate::text::fold;
use skiff_base::findings::{Check, Finding};
use std::io::{self, Write};

/// Width of the column of names.
const NAME_WIDTH: usize = 13;
/// Width of `ok`, `warn` or `FAIL` and the blanks after it.
const VERDICT_WIDTH: usize = 6;

/// Prints the results of checks.
#[derive(Debug)]
pub struct Report<W> {
    out: W,
    width: Option<usize>,
    json: bool,
    checks: Vec<Check>,
}

impl<W: Write> Report<W> {
    /// Begins a report on `out`, whose lines are folded to `width` columns. If `json` is true, the report is a list of objects with
    /// `check`, `verdict` (`ok`, `warn` or `fail`) and `text`.
    pub const fn new(out: W, width: Option<usize>, json: bool) -> Self {
        Self { out, width, json, checks: Vec::new() }
    }

    /// Adds the result of a check.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn add(&mut self, name: &str, finding: &Finding) -> io::Result<()> {
        self.checks.push(Check::new(name, finding));
        if self.json {
            return Ok(());
        }
        let line = format!("{name:<NAME_WIDTH$}{finding}");
        writeln!(self.out, "{}", fold(&line, NAME_WIDTH + VERDICT_WIDTH, self.width))
    }

    /// Ends the report. Returns true if nothing is broken.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn end(mut self) -> io::Result<bool> {
        if self.json {
            writeln!(self.out, "{}", serde_json::to_string(&self.checks)?)?;
        }
        Ok(self.checks.iter().all(|check| check.verdict != "fail"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    fn report(json: bool, findings: &[Finding]) -> (String, bool) {
        let mut text = Vec::new();
        let mut report = Report::new(&mut text, Some(40), json);
        findings.iter().for_each(|finding| report.add("clock", finding).unwrap());
        let is_sound = report.end().unwrap();
        (String::from_utf8(text).unwrap(), is_sound)
    }

    #[test]
    fn lines_fit_and_a_broken_check_is_told() {
        let findings = [Finding::Fine("right".into()), Finding::Broken("wrong by several years: set it".into())];
        let (text, is_sound) = report(false, &findings);
        assert_eq!(text.lines().next(), Some("clock        ok    right"));
        assert!(text.lines().all(|line| line.chars().count() <= 40) && !is_sound, "{text}");
        assert!(report(false, &findings[..1]).1);
    }

    #[test]
    fn json_is_one_line() {
        let (text, is_sound) = report(true, &[Finding::Doubtful("slow".into())]);
        assert_eq!(text, "[{\"check\":\"clock\",\"verdict\":\"warn\",\"text\":\"slow\"}]\n");
        assert!(is_sound, "a doubt is no fault");
    }
}
