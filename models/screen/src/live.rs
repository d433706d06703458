//! Long work on standard error: a status line with a bar, and a line for each part. In a pipe, a plain line every ten seconds.
//!
//! On a terminal the lines are redrawn in place and never wider than the terminal. Permanent texts go to the standard output above
//! them. All lines disappear at the end.

use crate::output::stdout;
use crate::units::duration;
use console::{Alignment, Term, measure_text_width, pad_str, truncate_str};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Time between two redraws of the spinner.
const TICK: Duration = Duration::from_millis(120);
/// Time between two plain lines.
const PLAIN: Duration = Duration::from_secs(10);
/// Maximum width of a part's name.
const NAME_WIDTH: usize = 16;
/// Lines of a terminal that stay free of parts: the status, the prompt and a permanent line.
const OTHER_LINES: usize = 4;
/// Time before which the remaining time is not shown, because it would be a guess.
const SETTLED: Duration = Duration::from_secs(3);

/// A part of the work with a line of its own, such as a device.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// Name at the beginning of the line.
    pub name: String,
    /// Finished steps.
    pub done: u64,
    /// Number of steps; 0 if there is nothing to count.
    pub total: u64,
    /// State, after the bar.
    pub text: String,
}

/// The lines of some work. Clones show the same lines.
#[derive(Clone)]
pub struct Live(Arc<Mutex<Lines>>);

struct Lines {
    multi: MultiProgress,
    status: ProgressBar,
    counts: bool,
    parts: Vec<ProgressBar>,
    more: ProgressBar,
    plain: Option<Plain>,
}

impl Default for Live {
    fn default() -> Self {
        Self::new()
    }
}

impl Live {
    /// Begins without any text.
    #[must_use]
    pub fn new() -> Self {
        let is_terminal = io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let multi = MultiProgress::with_draw_target(target);
        let status = multi.add(ProgressBar::new(0).with_style(style(STATUS)));
        if is_terminal {
            status.enable_steady_tick(TICK);
        }
        let plain = (!is_terminal).then(|| Plain::start(PLAIN, io::stderr()));
        let more = ProgressBar::hidden();
        Self(Arc::new(Mutex::new(Lines { multi, status, counts: false, parts: Vec::new(), more, plain })))
    }

    /// Shows the current work without a bar.
    pub fn say(&self, doing: &str) {
        self.lines().show(doing.to_owned(), None);
    }

    /// Shows the current work with a bar, and the remaining time once it is known.
    pub fn count(&self, doing: &str, done: u64, total: u64) {
        self.lines().show(doing.to_owned(), Some((done, total)));
    }

    /// Shows these parts above the status. If the terminal is too low for all of them, a line says how many are left out.
    pub fn parts(&self, parts: &[Part]) {
        self.lines().show_parts(parts);
    }

    /// Writes a permanent text to the standard output.
    ///
    /// # Errors
    /// The standard output cannot be written; see [`crate::output::exit_status`].
    pub fn print(&self, text: &str) -> io::Result<()> {
        let multi = self.lines().multi.clone();
        multi.suspend(|| {
            let mut out = stdout();
            out.write_all(text.as_bytes())?;
            out.flush()
        })
    }

    /// Removes all lines.
    pub fn clear(&self) {
        self.lines().clear();
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remaining(left: Duration) -> String {
    let seconds = left.as_secs().max(1);
    if seconds < 60 { format!("{seconds} s") } else { duration(Duration::from_secs(seconds)) }
}

const STATUS: &str = "{spinner:.green} {wide_msg}";
const COUNTED: &str = "{spinner:.green} {bar:20.cyan/dim} {wide_msg}";
const PART: &str = "  {prefix} {bar:12.cyan/dim} {wide_msg}";
const UNCOUNTED_PART: &str = "  {prefix} {wide_msg}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("our templates are well-formed").progress_chars("━━─")
}

impl Lines {
    fn show(&mut self, doing: String, counts: Option<(u64, u64)>) {
        if self.counts != counts.is_some() {
            self.counts = counts.is_some();
            self.status.set_style(style(if self.counts { COUNTED } else { STATUS }));
            self.status.reset_eta();
        }
        let mut text = doing;
        if let Some((done, total)) = counts {
            self.status.set_length(total);
            self.status.set_position(done);
            let left = self.status.eta();
            if done < total && self.status.elapsed() > SETTLED && left > Duration::ZERO {
                text += &format!(", {} left", remaining(left));
            }
        }
        if let Some(plain) = &self.plain {
            plain.set(&text);
        }
        if self.status.message() != text {
            self.status.set_message(text);
        }
    }

    fn show_parts(&mut self, parts: &[Part]) {
        let (height, _) = Term::stderr().size();
        let room = usize::from(height).saturating_sub(OTHER_LINES).max(2);
        let shown = if parts.len() > room { &parts[..room - 1] } else { parts };
        while self.parts.len() > shown.len() {
            if let Some(bar) = self.parts.pop() {
                bar.finish_and_clear();
                self.multi.remove(&bar);
            }
        }
        while self.parts.len() < shown.len() {
            let next = if self.more.is_hidden() { &self.status } else { &self.more };
            self.parts.push(self.multi.insert_before(next, ProgressBar::new(1).with_style(style(PART))));
        }
        let width = shown.iter().map(|part| measure_text_width(&part.name)).max().unwrap_or(0).min(NAME_WIDTH);
        for (bar, part) in self.parts.iter().zip(shown) {
            let name = truncate_str(&part.name, NAME_WIDTH, "…");
            bar.set_prefix(pad_str(&name, width, Alignment::Left, None).into_owned());
            bar.set_style(style(if part.total > 0 { PART } else { UNCOUNTED_PART }));
            bar.set_length(part.total.max(1));
            bar.set_position(part.done);
            bar.set_message(part.text.clone());
        }
        self.show_rest(parts.len() - shown.len());
    }

    /// Says how many parts have no line.
    fn show_rest(&mut self, left_out: usize) {
        if left_out == 0 && !self.more.is_hidden() {
            self.more.finish_and_clear();
            self.multi.remove(&self.more);
            self.more = ProgressBar::hidden();
        }
        if left_out > 0 {
            if self.more.is_hidden() {
                self.more =
                    self.multi.insert_before(&self.status, ProgressBar::new(1).with_style(style("  {wide_msg}")));
            }
            self.more.set_message(format!("and {left_out} more"));
        }
    }

    fn clear(&mut self) {
        self.plain = None;
        for bar in self.parts.drain(..) {
            bar.finish_and_clear();
        }
        self.more.finish_and_clear();
        self.status.finish_and_clear();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Writes the current text again and again, until it is dropped.
struct Plain {
    text: Arc<Mutex<String>>,
    _stop: Sender<()>,
}

impl Plain {
    /// Starts to write to `out` every `interval`, if there is a text.
    fn start(interval: Duration, mut out: impl Write + Send + 'static) -> Self {
        let (stop, stopped) = channel();
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let write = move || {
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let line = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // Without a reader, the work continues.
                if !line.is_empty() && writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
        };
        // Without a thread, the work continues in silence.
        let _ = thread::Builder::new().name("progress".to_owned()).spawn(write);
        Self { text, _stop: stop }
    }

    fn set(&self, text: &str) {
        let mut current = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != text {
            text.clone_into(&mut current);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands every written text over.
    struct Written(Sender<String>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn in_a_pipe_the_current_text_is_repeated_until_the_end() {
        let (written, lines) = channel();
        let plain = Plain::start(Duration::from_millis(1), Written(written));
        plain.set("writing the weights");
        let text: String = lines.iter().take(4).collect();
        assert!(text.starts_with("writing the weights\n"), "{text}");
        drop(plain);
        assert_eq!(lines.iter().filter(|text| text == "another").count(), 0, "the thread has ended");
    }
}
