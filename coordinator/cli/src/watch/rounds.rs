//! The rows of a run's rounds, and the state of the run as a sentence.

use super::devices;
use skiff_api::measures::{Figures, Measure};
use skiff_api::progress::{DeviceProgress, Phase, RoundProgress, RunProgress};
use skiff_screen::table::{Column, Running};
use skiff_screen::units::{bytes, counted, figure as number, millis};

/// Parts of a run that a watcher has seen.
#[derive(Debug, Default)]
pub(super) struct Shown {
    run: Option<String>,
    before: bool,
    round: u32,
}

impl Shown {
    /// Returns the rows that are new: the heading of another run, the evaluation before its first round, and each complete round.
    pub(super) fn news(&mut self, run: &RunProgress, width: Option<usize>) -> String {
        let table = table(run.measure, width);
        let mut text = String::new();
        if self.run.as_ref() != Some(&run.run) {
            *self = Self { run: Some(run.run.clone()), before: false, round: 0 };
            text = format!("run {}, {}\n{}", called(run), counted(run.rounds as usize, "round"), table.heading());
        }
        let before = number(main_figure(run.metrics_before.as_ref(), run.accuracy_before, run.measure), 4);
        if !self.before && before != skiff_screen::units::UNKNOWN {
            self.before = true;
            text += &table.row(["before".to_owned(), String::new(), before]);
        }
        for closed in run.closed.iter().filter(|closed| closed.round > self.round).take_while(|at| is_complete(at, run))
        {
            text += &rows(&table, closed, run.measure);
        }
        self.round =
            run.closed.iter().take_while(|at| is_complete(at, run)).map(|at| at.round).fold(self.round, u32::max);
        text
    }
}

/// Returns the name of a run with its id, or the id if it has no name.
#[must_use]
pub fn called(run: &RunProgress) -> String {
    run.name.as_ref().map_or_else(|| run.run.clone(), |name| format!("{name} ({})", run.run))
}

/// Returns true if nothing about the round will change. It is merged before it is evaluated, so its row waits for the figure.
fn is_complete(closed: &RoundProgress, run: &RunProgress) -> bool {
    closed.skipped.is_some() || closed.accuracy.is_some() || closed.round < run.round || run.phase.is_end()
}

fn table(measure: Measure, width: Option<usize>) -> Running {
    let columns = [
        Column::number("round").room(6),
        Column::number("updates").rank(1),
        Column::number(measure.name()).room(8),
        Column::number("loss").room(6).rank(2),
        Column::number("dropout").rank(5),
        Column::number("layers").rank(1),
        Column::number("ms/step").rank(6),
        Column::number("up").room(8).rank(3),
        Column::number("down").room(8).rank(4),
        Column::number("time").room(7),
    ];
    Running::new(columns, width)
}

fn rows(table: &Running, closed: &RoundProgress, measure: Measure) -> String {
    let round = closed.round.to_string();
    let mut text = match &closed.skipped {
        Some(reason) => table.remark(&round, &format!("skipped: {reason}")),
        None => table.row([
            round,
            format!("{}/{}", closed.updates, closed.selected),
            number(main_figure(closed.metrics.as_ref(), closed.accuracy, measure), 4),
            number(closed.train_loss, 3),
            format!("{:.2}", closed.mean_rate),
            format!("{:.1}", closed.mean_active_layers),
            format!("{:.0}", closed.step_ms),
            bytes(closed.bytes_up),
            bytes(closed.bytes_down),
            millis(closed.train_ms + closed.evaluate_ms),
        ]),
    };
    for (device, reason) in &closed.left_out {
        text += &table.remark("", &format!("{device} was left out of the evaluation: {reason}"));
    }
    text
}

/// Returns the figure of the run's measure; the accuracy alone if the coordinator names no other figures.
fn main_figure(figures: Option<&Figures>, accuracy: Option<f64>, measure: Measure) -> Option<f64> {
    match figures {
        Some(figures) => measure.figure(figures),
        None => accuracy.filter(|_| measure == Measure::Accuracy),
    }
}

/// Returns the figure of the run's measure as text.
#[must_use]
pub fn figure(figures: Option<&Figures>, measure: Measure) -> String {
    number(main_figure(figures, None, measure), 4)
}

/// Returns the state of the run as a sentence, with what it waits for.
pub(super) fn status(run: &RunProgress, known: &[DeviceProgress]) -> String {
    let round =
        if run.round == 0 { "before round 1".to_owned() } else { format!("round {} of {}", run.round, run.rounds) };
    let waits = match run.phase {
        Phase::Gathering => format!("waiting for devices, {}", devices::connected(known)),
        Phase::Training | Phase::Evaluating if run.ordered > 0 => {
            let devices = counted(run.ordered as usize, "device");
            format!("{}, {} of {devices} done", phase(run.phase), run.answered)
        }
        Phase::Training | Phase::Merging | Phase::Evaluating | Phase::Completed | Phase::Stopped | Phase::Failed => {
            phase(run.phase).to_owned()
        }
    };
    format!("{round}: {waits}, {}", millis(run.elapsed_ms))
}

/// Returns what the run waits for, how much longer, and what happens then; `None` if it waits for no device, or if an older
/// coordinator does not say it.
pub(super) fn waits(run: &RunProgress, now_ms: u64) -> Option<String> {
    let waits = run.waits.as_ref()?;
    let left = waits.until_ms.filter(|_| now_ms > 0)?.saturating_sub(now_ms);
    Some(format!("at most {} for {}, then {}", millis(left), waits.what, waits.then))
}

/// Returns the name of a phase.
#[must_use]
pub const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Gathering => "gathering",
        Phase::Training => "training",
        Phase::Merging => "merging",
        Phase::Evaluating => "evaluating",
        Phase::Completed => "completed",
        Phase::Stopped => "stopped",
        Phase::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{device, round, run};
    use super::*;
    use skiff_api::progress::Waits;

    const WIDE: &str = "\
\x20round  updates  accuracy    loss  dropout  layers  ms/step        up      down     time
before             0.2500
     1      4/4    0.8125   0.400     0.25     4.5      140    3.0 MB    4.0 MB     1:05
";

    #[test]
    fn a_watcher_sees_the_heading_once_a_run_and_each_round_once() {
        let mut shown = Shown::default();
        let mut news = |run: &RunProgress| shown.news(run, None).lines().count();
        assert_eq!((news(&run(&[])), news(&run(&[]))), (3, 0));
        assert_eq!((news(&run(&[1])), news(&run(&[1, 2])), news(&run(&[1, 2]))), (1, 1, 0));
        let another = RunProgress { run: "b".to_owned(), accuracy_before: None, ..run(&[1]) };
        assert_eq!((news(&another), news(&another)), (3, 0));
    }

    #[test]
    fn rows_stand_under_their_titles_and_fit_the_terminal() {
        let rows = |width| Shown::default().news(&run(&[1]), width).split_once('\n').map(|(_, rows)| rows.to_owned());
        assert_eq!(rows(None).as_deref(), Some(WIDE));
        for width in [60, 80, 120, 200] {
            let rows = rows(Some(width)).unwrap_or_default();
            assert!(rows.lines().all(|row| row.len() <= width), "{width}:\n{rows}");
            assert!(rows.contains("accuracy") && rows.contains("time"), "{width}:\n{rows}");
        }
    }

    #[test]
    fn a_round_waits_for_its_figure_until_the_next_round() {
        let unknown = RoundProgress { accuracy: None, metrics: None, ..round(3) };
        let lines = |run: RunProgress| {
            let mut shown = Shown::default();
            shown.news(&RunProgress { closed: Vec::new(), ..run.clone() }, None);
            shown.news(&RunProgress { closed: vec![unknown.clone()], ..run }, None)
        };
        assert_eq!(lines(run(&[])), "");
        assert!(lines(RunProgress { round: 4, ..run(&[]) }).starts_with("     3      4/4         -   0.400"));
        assert_ne!(lines(RunProgress { phase: Phase::Completed, ..run(&[]) }), "");
    }

    #[test]
    fn a_skipped_round_and_a_device_that_was_left_out_say_why() {
        let table = table(Measure::Accuracy, Some(40));
        let skipped = RoundProgress { skipped: Some("1 update came, 2 are needed".to_owned()), ..round(12) };
        assert_eq!(
            rows(&table, &skipped, Measure::Accuracy),
            "    12  skipped: 1 update came, 2 are\n        needed\n"
        );
        let left_out = RoundProgress { left_out: [("elm".to_owned(), "it diverged".to_owned())].into(), ..round(1) };
        let text = rows(&table, &left_out, Measure::Accuracy);
        assert!(text.ends_with("        elm was left out of the\n        evaluation: it diverged\n"), "{text}");
    }

    #[test]
    fn another_task_shows_its_own_measure() {
        let mut run = run(&[1]);
        run.measure = Measure::Perplexity;
        run.closed[0].metrics = Some(Figures { perplexity: Some(7.25), accuracy: Some(0.5), ..Figures::default() });
        let text = Shown::default().news(&run, None);
        assert!(text.contains("perplexity") && text.contains("    7.2500") && !text.contains("before"), "{text}");
    }

    #[test]
    fn the_status_says_what_the_run_waits_for() {
        let devices = [device("kitchen")];
        assert_eq!(status(&run(&[]), &devices), "round 3 of 8: training, 2 of 4 devices done, 1:05");
        let waits = Waits { what: "updates of oak".to_owned(), until_ms: Some(44_000), then: "they merge".to_owned() };
        let waiting = RunProgress { waits: Some(waits), ..run(&[]) };
        assert_eq!(
            super::waits(&waiting, 9_000).as_deref(),
            Some("at most 35.0 s for updates of oak, then they merge")
        );
        assert_eq!(super::waits(&run(&[]), 9_000), None);
        let first = RunProgress { round: 0, ordered: 0, phase: Phase::Gathering, ..run(&[]) };
        assert_eq!(status(&first, &devices), "before round 1: waiting for devices, 1 of 1 device can train, 1:05");
    }
}
