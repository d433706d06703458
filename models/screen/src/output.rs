//! The standard output: its width, its colours, and the end of a program whose reader has left.

use crate::text::fold;
use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

/// Exit status after the reader of the standard output has left: 128 and SIGPIPE, as shells report it.
const READER_GONE: u8 = 141;

/// Nobody reads the standard output any more, for example after `| head`.
#[derive(Debug)]
struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the standard output any more")
    }
}

impl Error for ReaderGone {}

/// The standard output, whose errors [`exit_status`] can tell from errors of files and sockets.
#[derive(Debug)]
pub struct Output<W = io::Stdout>(W);

/// Returns the standard output.
#[must_use]
pub fn stdout() -> Output {
    Output(io::stdout())
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::BrokenPipe { io::Error::new(ErrorKind::BrokenPipe, ReaderGone) } else { error }
}

/// Writes the error on standard error and returns `failed`. If only the reader of the standard output has left, nothing is
/// written, and the status is the one that shells expect.
pub fn exit_status(program: &str, error: &anyhow::Error, failed: ExitCode) -> ExitCode {
    if is_reader_gone(error) {
        return ExitCode::from(READER_GONE);
    }
    remark(program, &format!("{error:#}"));
    failed
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    let inner = |cause: &(dyn Error + 'static)| {
        cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<ReaderGone>())
    };
    error.chain().any(inner)
}

/// Returns the number of columns of the terminal that shows the standard output; `None` if it is no terminal.
#[must_use]
pub fn width() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0.into())
}

/// Writes a remark of `program` on standard error, folded if that is a terminal.
pub fn remark(program: &str, text: &str) {
    note(&format!("{program}: {text}"));
}

/// Writes lines on standard error, folded if that is a terminal.
pub fn note(text: &str) {
    let width = terminal_size::terminal_size_of(io::stderr()).map(|(width, _)| width.0.into());
    // Without standard error, the lines are lost, and the work continues.
    let _ = writeln!(io::stderr(), "{}", fold(text, 2, width));
}

/// Returns true if log lines on standard error may have colours: it is a terminal, and NO_COLOR is unset or empty.
#[must_use]
pub fn colours_log() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    /// A pipe or a socket without a reader.
    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn only_a_reader_of_the_standard_output_may_leave() {
        let output = Output(Closed).write_all(b"a line\n").context("writing the table");
        assert!(output.is_err_and(|error| is_reader_gone(&error)));
        let socket = Closed.write_all(b"a request\n").context("asking the coordinator");
        assert!(socket.is_err_and(|error| !is_reader_gone(&error)));
    }
}
