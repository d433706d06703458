//! `skiff run watch`: a run until it ends.

use crate::door::Door;
use crate::watch::{Watch, called, figure, phase};
use anyhow::bail;
use serde_json::json;
use skiff_api::measures::Measure;
use skiff_api::progress::{Phase, RunProgress};
use skiff_coordinator::doors::client::Watch as Watcher;
use skiff_screen::live::Live;
use skiff_screen::output::{stdout, width};
use skiff_screen::text::fold;
use skiff_screen::units::{UNKNOWN, bytes, millis};
use std::io::Write as _;
use tokio::select;
use tokio::signal::ctrl_c;

/// The watcher was stopped by Ctrl-C; the run was not.
#[derive(Debug, thiserror::Error)]
#[error("run {run} continues without this watcher; to stop it: skiff run stop{option}")]
pub(crate) struct Interrupted {
    run: String,
    option: String,
}

/// A watched run ended without a result.
#[derive(Debug, thiserror::Error)]
#[error("run {run} failed: it has trained nothing")]
pub(crate) struct RunFailed {
    run: String,
}

/// Shows the run called `name`, or the current one, until it ends.
///
/// # Errors
/// No coordinator is reachable, no run has been started, Ctrl-C, or the run failed.
pub(super) async fn watch(door: &Door, name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut watcher = Watcher::start(&door.state()?).await?;
    let mut screen = Watch::new(Live::new());
    let mut interrupt = std::pin::pin!(ctrl_c());
    let mut watched = None;
    loop {
        let progress = select! {
            progress = watcher.next() => progress?,
            _ = &mut interrupt => {
                screen.clear();
                let run = watched.unwrap_or_else(|| "that was started".to_owned());
                return Err(Interrupted { run, option: door.option() }.into());
            }
        };
        let Some(run) = progress.run.as_ref() else { bail!("no run has been started") };
        if name.is_some_and(|name| name != run.run) {
            continue;
        }
        watched = Some(run.run.clone());
        if json {
            writeln!(stdout(), "{}", serde_json::to_string(progress)?)?;
        } else {
            screen.update(progress)?;
        }
        if run.phase.is_end() {
            screen.clear();
            return end(door, run, json);
        }
    }
}

/// Shows a run that had ended before.
///
/// # Errors
/// The run failed.
pub(super) fn show_end(door: &Door, run: &RunProgress, json: bool) -> anyhow::Result<()> {
    match json {
        true => writeln!(stdout(), "{}", serde_json::to_string(&json!({ "run": run }))?)?,
        false => write!(stdout(), "run {} has ended: ", called(run))?,
    }
    end(door, run, json)
}

fn end(door: &Door, run: &RunProgress, json: bool) -> anyhow::Result<()> {
    if !json {
        write!(stdout(), "{}", fold(&ending(run, &door.option()), 2, width()))?;
    }
    if run.phase == Phase::Failed {
        return Err(RunFailed { run: run.run.clone() }.into());
    }
    Ok(())
}

fn ending(run: &RunProgress, option: &str) -> String {
    let mut text = phase(run.phase).to_owned();
    if let Some(reason) = &run.reason {
        text += &format!(": {reason}");
    }
    let before = figure(run.metrics_before.as_ref(), run.measure);
    let last = run.metrics_after.as_ref().or(run.metrics.as_ref());
    let after = figure(last, run.measure);
    if let Some(last) = last.filter(|_| after != UNKNOWN) {
        let counted = match run.measure {
            Measure::Accuracy | Measure::PearsonR => "examples",
            Measure::SpanF1 | Measure::Perplexity => "tokens",
        };
        text += &format!("; {} {before} before, {after} after, on {} {counted}", run.measure.name(), last.examples);
    }
    text += &format!("; {}, {} up, {} down\n", millis(run.elapsed_ms), bytes(run.bytes_up), bytes(run.bytes_down));
    if run.closed.iter().any(|closed| closed.skipped.is_none()) {
        let name = run.name.as_ref().unwrap_or(&run.run);
        text += &format!("to write its best weights for PEFT: skiff run export {name}{option} --out DIR\n");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_api::measures::Figures;

    fn ended(reason: Option<&str>) -> RunProgress {
        serde_json::from_value(json!({
            "run": "00a1", "phase": "stopped", "round": 2, "rounds": 3, "ordered": 0, "answered": 0,
            "accuracy_before": null, "accuracy": null, "accuracy_after": null, "elapsed_ms": 17_100,
            "bytes_up": 1_600_000, "bytes_down": 0, "closed": [], "reason": reason,
        }))
        .unwrap()
    }

    #[test]
    fn the_end_names_the_reason_and_only_known_figures() {
        assert_eq!(
            ending(&ended(Some("the operator stopped it")), ""),
            "stopped: the operator stopped it; 17.1 s, 1.6 MB up, 0 B down\n"
        );
        let figures = |perplexity| Some(Figures { perplexity: Some(perplexity), ..Figures::default() });
        let run = RunProgress {
            measure: Measure::Perplexity,
            metrics_before: figures(9.5),
            metrics: figures(7.25),
            ..ended(None)
        };
        let text = ending(&run, "");
        assert!(text.starts_with("stopped; perplexity 9.5000 before, 7.2500 after, on 0 tokens; 17.1 s"), "{text}");
    }
}
