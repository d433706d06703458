//! A terminal of any width for a program under test: the program draws, and the test reads the rows of the screen.

use crate::PATIENCE;
use crate::wait::eventually;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::Read;
use std::num::NonZero;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Number of rows of every terminal, so many that nothing scrolls away.
const ROWS: u16 = 120;

/// A program with a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    drawn: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    columns: u16,
}

/// Rows on a screen at one moment, without blanks at their ends and without the empty rows at the end.
#[derive(Clone, PartialEq, Debug)]
pub struct Screen {
    /// The rows from the top.
    pub rows: Vec<String>,
    /// Rows that the terminal had to break because they were too wide.
    pub broken: Vec<String>,
}

impl Terminal {
    /// Starts `command` on a terminal with this number of columns.
    ///
    /// # Panics
    /// If the system has no free terminal, or the program does not start.
    #[must_use]
    pub fn start(mut command: Command, columns: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("a terminal");
        let name = ptsname(&ours, Vec::new()).expect("a terminal");
        let size = Winsize { ws_row: ROWS, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).expect("a terminal has a size");
        let theirs = open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).expect("a terminal");
        let theirs = File::from(theirs);
        command.stdin(Stdio::null()).stderr(theirs.try_clone().expect("a file handle")).stdout(theirs);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        let child = command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        // The command holds the program's side of the terminal open.
        drop(command);
        let drawn = Arc::new(Mutex::new(Vec::new()));
        let (shared, mut ours) = (Arc::clone(&drawn), File::from(ours));
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Reading fails once the program has closed its side.
            while let Ok(read) = ours.read(&mut bytes) {
                shared.lock().expect("a terminal").extend_from_slice(&bytes[..read]);
                if read == 0 {
                    break;
                }
            }
        });
        Self { child, drawn, reader, columns }
    }

    /// Returns the present screen.
    ///
    /// # Panics
    /// If the reader has panicked.
    #[must_use]
    pub fn screen(&self) -> Screen {
        Screen::of(&self.drawn.lock().expect("a terminal"), self.columns)
    }

    /// Waits until the screen is as wanted.
    ///
    /// # Panics
    /// If it takes too long; the message shows the last screen.
    #[must_use]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Screen) -> bool) -> Screen {
        let mut seen = None;
        let found = eventually(|| {
            let screen = self.screen();
            let found = wanted(&screen);
            seen = Some(screen);
            found
        });
        let screen = seen.expect("a screen was seen");
        assert!(found, "never saw {what} in {PATIENCE:?}:\n{}", screen.rows.join("\n"));
        screen
    }

    /// Sends what Ctrl-C sends.
    ///
    /// # Panics
    /// If the program has ended.
    pub fn interrupt(&self) {
        let process = Pid::from_child(&self.child);
        kill_process(process, Signal::INT).expect("the program is running");
    }

    /// Waits for the end of the program, and returns its status and its last screen.
    ///
    /// # Panics
    /// If it does not end.
    #[must_use]
    pub fn end(mut self) -> (ExitStatus, Screen) {
        let ended = eventually(|| self.child.try_wait().is_ok_and(|ended| ended.is_some()));
        assert!(ended, "it does not end:\n{}", self.screen().rows.join("\n"));
        let status = self.child.wait().expect("it has ended");
        self.reader.join().expect("the reader ends with the program");
        let screen = Screen::of(&self.drawn.lock().expect("a terminal"), self.columns);
        (status, screen)
    }
}

impl Screen {
    fn of(drawn: &[u8], columns: u16) -> Self {
        let size = |size| NonZero::new(size).expect("a terminal has rows and columns");
        let mut terminal = vt100::Parser::new(size(ROWS), size(columns), 0);
        terminal.process(drawn);
        let screen = terminal.screen();
        let rows: Vec<String> = screen.rows(0, columns).map(|row| row.trim_end().to_owned()).collect();
        let broken =
            (0..ROWS).filter(|&row| screen.row_wrapped(row)).map(|row| rows[usize::from(row)].clone()).collect();
        let used = rows.iter().rposition(|row| !row.is_empty()).map_or(0, |last| last + 1);
        Self { rows: rows[..used].to_vec(), broken }
    }

    /// Draws the screen as a picture of `columns` columns.
    #[must_use]
    pub fn svg(&self, columns: u16) -> String {
        let (width, height) = (8.4 * f64::from(columns) + 32.0, 20 * self.rows.len() + 32);
        let mut picture = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans Mono, Menlo, \
             Consolas, monospace\" font-size=\"14\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#1e1f22\"/>\n"
        );
        for (at, row) in self.rows.iter().enumerate().filter(|(_, row)| !row.is_empty()) {
            let text = row.replace('&', "&amp;").replace('<', "&lt;").replace(' ', "&#160;");
            let (y, length) = (20 * at + 30, 8.4 * row.chars().count() as f64);
            picture += &format!("<text x=\"16\" y=\"{y}\" fill=\"#d5d8d6\" textLength=\"{length:.1}\">{text}</text>\n");
        }
        picture + "</svg>\n"
    }

    /// Returns true if a row contains `part`.
    #[must_use]
    pub fn shows(&self, part: &str) -> bool {
        self.rows.iter().any(|row| row.contains(part))
    }
}
