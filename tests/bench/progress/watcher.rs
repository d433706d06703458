//! A watcher in a thread of its own, which reads the control socket and counts bytes.

use skiff_api::changes::Changes;
use skiff_api::progress::Progress;
use skiff_api::request::{Answer, Envelope, Request};
use skiff_coordinator::doors::socket::SOCKET;
use skiff_trainer::clock::monotonic;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

/// Figures of a watcher.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Size of the whole state.
    pub(crate) first_bytes: usize,
    /// Time from the request to the whole state, in milliseconds.
    pub(crate) first_ms: f64,
    /// Bytes per second after that.
    pub(crate) bytes_per_second: f64,
}

/// The running watcher.
pub(crate) struct Watcher(JoinHandle<Seen>);

impl Watcher {
    /// Starts to watch, until `length` after it has the whole state.
    pub(crate) fn start(state: &Path, length: Duration) -> Self {
        let path = state.join(SOCKET);
        Self(std::thread::spawn(move || watch(UnixStream::connect(path).unwrap(), length)))
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }

    pub(crate) fn seen(self) -> Seen {
        self.0.join().unwrap()
    }
}

fn watch(mut stream: UnixStream, length: Duration) -> Seen {
    stream.write_all(&Envelope::new(Request::Watch).to_line()).unwrap();
    let (mut lines, mut line) = (BufReader::new(stream), Vec::new());
    let (mut state, mut first_bytes, begun) = (Progress::default(), 0, monotonic());
    let mut read = |state: &mut Progress| {
        line.clear();
        let bytes = lines.read_until(b'\n', &mut line).unwrap();
        let Answer::Ok(changes) = serde_json::from_slice::<Answer<Changes>>(&line).unwrap() else { panic!("refused") };
        let is_partial = changes.is_partial;
        state.apply(changes);
        (bytes, is_partial)
    };
    loop {
        let (bytes, is_partial) = read(&mut state);
        first_bytes += bytes;
        if !is_partial {
            break;
        }
    }
    let whole = monotonic();
    let first_ms = whole.saturating_sub(begun).as_secs_f64() * 1e3;
    let mut bytes = 0;
    while monotonic().saturating_sub(whole) < length {
        bytes += read(&mut state).0;
    }
    let seconds = monotonic().saturating_sub(whole).as_secs_f64();
    assert_eq!(state.devices.len(), super::DEVICES);
    Seen { first_bytes, first_ms, bytes_per_second: bytes as f64 / seconds }
}
