//! A text that is redrawn in its place.

use crate::output::stdout;
use console::Term;
use std::io::{self, Write};

/// The standard output as one frame after another. In a pipe they are written below each other.
#[derive(Debug)]
pub struct Frame {
    terminal: Term,
    rows: usize,
}

impl Default for Frame {
    fn default() -> Self {
        Self::new()
    }
}

impl Frame {
    /// Returns a screen without a frame.
    #[must_use]
    pub fn new() -> Self {
        Self { terminal: Term::buffered_stdout(), rows: 0 }
    }

    /// Shows `text`, whose lines fit the terminal's width, in place of the frame before. Lines below the screen are left out.
    ///
    /// # Errors
    /// The standard output cannot be written.
    pub fn show(&mut self, text: &str) -> io::Result<()> {
        if !self.terminal.is_term() {
            return stdout().write_all(text.as_bytes());
        }
        let (height, _) = self.terminal.size();
        let room = usize::from(height).saturating_sub(1).max(2);
        let lines: Vec<&str> = text.lines().collect();
        let shown = if lines.len() > room { &lines[..room - 1] } else { &lines };
        self.terminal.move_cursor_up(self.rows)?;
        self.terminal.clear_to_end_of_screen()?;
        shown.iter().try_for_each(|line| self.terminal.write_line(line))?;
        self.rows = shown.len();
        if shown.len() < lines.len() {
            self.terminal.write_line(&format!("({} more lines)", lines.len() - shown.len()))?;
            self.rows += 1;
        }
        self.terminal.flush()
    }
}
