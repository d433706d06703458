//! The display: bars while the demo sets up, then a table that grows by a line each round, with the devices below it.
//!
//! On a terminal, the lines of the devices are redrawn. Elsewhere only the lines of the table are written.

use super::table;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use skiff_api::progress::{DeviceProgress, Progress, RoundProgress};
use std::io::{IsTerminal, Write};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(120);

/// Draws to standard output.
pub(super) struct Screen {
    multi: MultiProgress,
    live: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let live = std::io::stdout().is_terminal();
        let target = if live { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        Self { multi: MultiProgress::with_draw_target(target), live }
    }

    /// Writes a permanent line. Ignores errors: the demo continues without a reader.
    pub(super) fn say(&self, line: &str) {
        if self.live {
            let _ = self.multi.println(line);
        } else {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }

    /// Returns a progress bar for the `stages` stages of the set-up.
    pub(super) fn set_up(&self, stages: u64) -> ProgressBar {
        let bar = self.multi.add(ProgressBar::new(stages).with_style(style("{spinner} {bar:24.cyan} {wide_msg}")));
        bar.enable_steady_tick(TICK);
        bar
    }

    /// Returns the table for a run of a model with `layers` layers.
    pub(super) fn table(&self, layers: usize) -> Table<'_> {
        let status = self.multi.add(ProgressBar::new_spinner().with_style(style("{spinner:.green} {wide_msg:.bold}")));
        status.enable_steady_tick(TICK);
        self.say(table::HEADER);
        Table { screen: self, layers, devices: Vec::new(), status, shown: Shown::default() }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our templates are well-formed").progress_chars("━━─")
}

/// Rows that the table already shows.
#[derive(Default)]
struct Shown {
    before: bool,
    round: u32,
}

impl Shown {
    /// Returns the lines of `progress` that are not in the table yet.
    fn news(&mut self, progress: &Progress, layers: usize) -> Vec<String> {
        let Some(run) = &progress.run else { return Vec::new() };
        let mut lines = Vec::new();
        if let (false, Some(accuracy)) = (self.before, run.accuracy_before) {
            self.before = true;
            lines.push(table::before(accuracy));
        }
        // A round closes when it is merged and is evaluated only then, so its line waits for the accuracy.
        let settled = |round: &&RoundProgress| {
            round.skipped.is_some() || round.accuracy.is_some() || run.round > round.round || run.phase.is_end()
        };
        let shown = self.round;
        for round in run.closed.iter().filter(|round| round.round > shown).take_while(settled) {
            lines.push(table::row(round, layers));
            self.round = round.round;
        }
        lines
    }
}

/// The table, with the devices below it until it is dropped.
pub(super) struct Table<'a> {
    screen: &'a Screen,
    layers: usize,
    devices: Vec<ProgressBar>,
    status: ProgressBar,
    shown: Shown,
}

impl Table<'_> {
    /// Shows the newest state.
    pub(super) fn update(&mut self, progress: &Progress) {
        for line in self.shown.news(progress, self.layers) {
            self.screen.say(&line);
        }
        while self.devices.len() < progress.devices.len() {
            let bar = ProgressBar::new(1).with_style(style("  {prefix:<10} {bar:16.cyan/dim} {wide_msg}"));
            self.devices.push(self.screen.multi.insert_before(&self.status, bar));
        }
        for (bar, device) in self.devices.iter().zip(&progress.devices) {
            let DeviceProgress { step, steps, .. } = *device;
            bar.set_prefix(device.device.to_string());
            bar.set_length(steps.max(1).into());
            bar.set_position(step.into());
            bar.set_message(table::device(device, self.layers));
        }
        self.status.set_message(match &progress.run {
            Some(run) => table::status(run),
            None => format!("{} agents are connected", progress.devices.len()),
        });
    }
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        for bar in self.devices.iter().chain([&self.status]) {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::{round, run};
    use super::*;
    use skiff_api::progress::{Phase, RunProgress};

    #[test]
    fn every_round_is_written_once() {
        let mut shown = Shown::default();
        let progress = |closed: Vec<u32>| {
            let closed = closed.into_iter().map(round).collect();
            Progress { run: Some(RunProgress { closed, ..run() }), ..Progress::default() }
        };
        assert_eq!(shown.news(&Progress::default(), 6), Vec::<String>::new());
        assert_eq!(shown.news(&progress(vec![]), 6), [table::before(0.25)]);
        assert_eq!(shown.news(&progress(vec![1]), 6), [table::row(&round(1), 6)]);
        assert_eq!(shown.news(&progress(vec![1]), 6), Vec::<String>::new());
        assert_eq!(shown.news(&progress(vec![1, 2, 3]), 6).len(), 2);
    }

    #[test]
    fn a_round_waits_for_its_accuracy_until_the_run_goes_on() {
        let unknown = RoundProgress { accuracy: None, ..round(3) };
        let progress = |closed: RoundProgress, run: RunProgress| Progress {
            run: Some(RunProgress { closed: vec![closed], accuracy_before: None, ..run }),
            ..Progress::default()
        };
        let mut shown = Shown::default();
        assert_eq!(shown.news(&progress(unknown.clone(), run()), 6), Vec::<String>::new());
        assert_eq!(shown.news(&progress(round(3), run()), 6), [table::row(&round(3), 6)]);
        for later in [RunProgress { round: 4, ..run() }, RunProgress { phase: Phase::Completed, ..run() }] {
            let line = Shown::default().news(&progress(unknown.clone(), later), 6);
            assert_eq!(line, [table::row(&unknown, 6)]);
        }
    }
}
