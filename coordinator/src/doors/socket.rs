//! The control socket for operators on the same machine: a Unix socket in the state folder, one JSON request per connection.
//!
//! A request is one line ([`Envelope`]); the answer is one line `{"ok": ...}` or `{"error": "..."}` ([`Answer`]). The answer to
//! `watch` is the whole state in pieces, and then lines of changes, at most one per [`WATCH_EVERY`] and at most
//! [`WATCH_BYTES_PER_SECOND`] over time, until the client closes its side. A watcher that has not yet read its last line gets the
//! newest values in the next one. The socket's mode is 0600: only its owner can open it, and whoever opens it can do everything.
//!
//! There are more places for connections than for watchers, so that forgotten watchers never block a request.

use super::Call;
use crate::board::{Board, Feed};
use serde::Serialize;
use serde_json::Value;
use skiff_api::progress::Progress;
use skiff_api::request::{Answer, Envelope, Reply, Request};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

/// Name of the socket in the state folder.
pub const SOCKET: &str = "control.sock";
/// Minimum time between two lines to a watcher.
pub const WATCH_EVERY: Duration = Duration::from_millis(200);
/// Maximum number of bytes per second to a watcher that has the whole state.
pub const WATCH_BYTES_PER_SECOND: u64 = 40_000;
/// Size in bytes above which no more devices are added to a line of changes.
const LINE_BYTES: usize = 7_000;
/// Size in bytes above which no more devices are added to a piece of the whole state.
const FIRST_BYTES: usize = 64 * 1024;
/// Maximum length of a request in bytes.
pub const MAX_REQUEST_BYTES: u64 = 64 * 1024;
/// Maximum number of connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// Maximum number of watchers at a time. The other connections are reserved for requests.
const MAX_WATCHERS: usize = 24;
/// Time after which a silent client is disconnected.
const PATIENCE: Duration = Duration::from_secs(10);

/// Creates the socket in the folder `state`. Replaces a socket that a crash left behind.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(state: &Path) -> io::Result<UnixListener> {
    let path = state.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts and answers connections until it is dropped.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, board: watch::Receiver<Board>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let watchers = Arc::new(Semaphore::new(MAX_WATCHERS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (calls, board, watchers) = (calls.clone(), board.clone(), Arc::clone(&watchers));
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &calls, &board, &watchers).await {
                        tracing::debug!(%error, "a control connection broke");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(
    stream: UnixStream,
    calls: &mpsc::Sender<Call>,
    board: &watch::Receiver<Board>,
    watchers: &Semaphore,
) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(MAX_REQUEST_BYTES));
    match tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await {
        Ok(read) => read?,
        Err(_) => return Ok(()),
    };
    let answer = match Envelope::read(line.as_bytes()) {
        Ok((Request::Progress, version)) => return send(&mut write, &whole_line(board, version).await?).await,
        Ok((Request::Watch, version)) => match watchers.try_acquire() {
            Ok(_place) if version == 1 => return watch(&mut read, watch_whole(&mut write, &mut board.clone())).await,
            Ok(_place) => return watch(&mut read, watch_changes(&mut write, &mut board.clone())).await,
            Err(_) => Answer::Error(format!(
                "too many watchers: {MAX_WATCHERS} are connected; end one of them (`skiff run watch`, `skiff fleet --watch`)"
            )),
        },
        Ok((request, _)) => match Call::make(calls, request).await {
            Ok(reply) => Answer::Ok(reply),
            Err(reason) => Answer::Error(reason),
        },
        Err(bad) => Answer::Error(bad.to_string()),
    };
    send(&mut write, &to_line(&answer)).await
}

/// Sends a line. Fails after [`PATIENCE`], so that a client that does not read is disconnected.
async fn send(write: &mut (impl AsyncWriteExt + Unpin), line: &[u8]) -> io::Result<()> {
    let in_time = tokio::time::timeout(PATIENCE, write.write_all(line)).await;
    in_time.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
}

/// Sends lines until the client closes its side. Notices a closed side even if nothing changes.
async fn watch(read: &mut (impl AsyncReadExt + Unpin), lines: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let mut rest = tokio::io::sink();
    tokio::select! {
        ended = lines => ended,
        left = tokio::io::copy(read, &mut rest) => left.map(drop),
    }
}

/// Sends the whole state in pieces, as fast as the client reads, and then its changes, at most [`WATCH_BYTES_PER_SECOND`].
async fn watch_changes(write: &mut (impl AsyncWriteExt + Unpin), board: &mut watch::Receiver<Board>) -> io::Result<()> {
    let (mut feed, mut budget_bytes) = (Feed::default(), FIRST_BYTES);
    loop {
        let changes = feed.next(&board.borrow_and_update(), budget_bytes);
        let is_partial = changes.is_partial;
        let line = to_line(&Answer::Ok(Reply::Changes(Box::new(changes))));
        send(write, &line).await?;
        if is_partial {
            tokio::task::yield_now().await;
            continue;
        }
        budget_bytes = LINE_BYTES;
        tokio::time::sleep(pause_after(&line)).await;
        if !feed.has_more() && board.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Sends the whole state after each change, to a client of version 1.
async fn watch_whole(write: &mut (impl AsyncWriteExt + Unpin), board: &mut watch::Receiver<Board>) -> io::Result<()> {
    loop {
        board.mark_unchanged();
        let line = whole_line(board, 1).await?;
        send(write, &line).await?;
        tokio::time::sleep(pause_after(&line)).await;
        if board.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Returns the pause after a line: the longer the line, the longer the pause.
fn pause_after(line: &[u8]) -> Duration {
    WATCH_EVERY.max(Duration::from_millis(line.len() as u64 * 1_000 / WATCH_BYTES_PER_SECOND))
}

/// Returns the whole state as a line of a version. A thread beside the loop makes the line of a large fleet.
async fn whole_line(board: &watch::Receiver<Board>, version: u32) -> io::Result<Vec<u8>> {
    let whole = board.borrow().whole();
    let make = move || {
        let progress = whole.progress();
        if version == 1 { to_line(&Answer::Ok(with_ages(&progress))) } else { to_line(&Answer::Ok(progress)) }
    };
    Ok(tokio::task::spawn_blocking(make).await?)
}

/// Returns the state in the format of version 1, which has the age of each device's telemetry instead of its time.
fn with_ages(progress: &Progress) -> Value {
    let mut state = serde_json::to_value(progress).expect("a state is plain values with text keys");
    let devices = state.get_mut("devices").and_then(Value::as_array_mut);
    for (shown, device) in devices.into_iter().flatten().zip(&progress.devices) {
        if let Some(shown) = shown.as_object_mut() {
            shown.remove("telemetry_at_ms");
            let age_ms = device.telemetry_at_ms.map(|at_ms| progress.now_ms.saturating_sub(at_ms));
            shown.insert("telemetry_age_ms".to_owned(), age_ms.into());
        }
    }
    state
}

fn to_line<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).expect("answers are plain values with text keys");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::super::client::{ControlError, Watch, ask_once};
    use super::*;
    use skiff_api::changes::Changes;
    use skiff_api::progress::{DeviceProgress, Presence};
    use std::collections::{BTreeMap, BTreeSet};
    use tempfile::TempDir;

    struct Door {
        folder: TempDir,
        calls: mpsc::Receiver<Call>,
        board: watch::Sender<Board>,
    }

    fn open() -> Door {
        let folder = TempDir::new().unwrap();
        let (send, calls) = mpsc::channel(4);
        let (board, seen) = watch::channel(Board::default());
        tokio::spawn(serve(listen(folder.path()).unwrap(), send, seen));
        Door { folder, calls, board }
    }

    async fn answer_next(calls: &mut mpsc::Receiver<Call>, expected: Request, answer: Result<Reply, String>) {
        let call = calls.recv().await.unwrap();
        assert_eq!(call.request, expected);
        call.reply.send(answer).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_does_not_read_gives_its_place_up() {
        let (mut ours, _theirs) = tokio::io::duplex(16);
        let (_published, mut board) = watch::channel(Board::default());
        let error = watch_changes(&mut ours, &mut board).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn watchers_leave_places_for_requests_and_one_too_many_is_refused() {
        let Door { folder, mut calls, board: _published } = open();
        let mut watchers = Vec::new();
        for _ in 0..MAX_WATCHERS {
            let mut watcher = Watch::start(folder.path()).await.unwrap();
            watcher.next().await.unwrap();
            watchers.push(watcher);
        }
        for _ in 0..MAX_CONNECTIONS {
            let refused = ask_once::<Progress>(folder.path(), &Request::Watch).await.unwrap_err();
            assert!(refused.to_string().starts_with("too many watchers"), "{refused}");
        }
        let answering = tokio::spawn(async move {
            answer_next(&mut calls, Request::StopRun, Ok(Reply::Done(()))).await;
        });
        ask_once::<()>(folder.path(), &Request::StopRun).await.unwrap();
        answering.await.unwrap();
    }

    #[tokio::test]
    async fn a_watcher_that_left_gives_its_place_up_though_nothing_changes() {
        let (_published, mut board) = watch::channel(Board::default());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut read, mut write) = ours.split();
        let watching = super::watch(&mut read, watch_changes(&mut write, &mut board));
        let leaving = async {
            BufReader::new(theirs).read_line(&mut String::new()).await.unwrap();
        };
        let (ended, ()) = tokio::join!(watching, leaving);
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_does_not_answer_is_given_up() {
        let Door { folder, calls: _never_read, board: _published } = open();
        let error = ask_once::<()>(folder.path(), &Request::StopRun).await.unwrap_err();
        assert!(matches!(error, ControlError::Silent), "{error}");
    }

    #[tokio::test]
    async fn a_run_is_started_with_what_was_said_and_its_name_told() {
        let Door { folder, mut calls, .. } = open();
        let start = Request::StartRun(serde_json::from_str(r#"{"rounds": 3}"#).unwrap());
        let started = start.clone();
        let answering = tokio::spawn(async move {
            answer_next(&mut calls, started, Ok(Reply::RunStarted("run of 3".to_owned()))).await;
            answer_next(&mut calls, Request::StopRun, Err("there is no current run".to_owned())).await;
        });
        let name: String = ask_once(folder.path(), &start).await.unwrap();
        assert_eq!(name, "run of 3");
        let refused = ask_once::<()>(folder.path(), &Request::StopRun).await.unwrap_err();
        assert_eq!(refused.to_string(), "there is no current run");
        answering.await.unwrap();
    }

    #[tokio::test]
    async fn a_watcher_sees_changes_as_they_come() {
        let Door { folder, board, .. } = open();
        let mut watcher = Watch::start(folder.path()).await.unwrap();
        assert!(!watcher.next().await.unwrap().connected);
        board.send_modify(|board| board.set_state(1, true, BTreeMap::new(), vec![]));
        assert!(watcher.next().await.unwrap().connected);
        drop(board);
        assert!(matches!(watcher.next().await, Err(ControlError::HungUp)));
    }

    #[tokio::test]
    async fn a_large_fleet_comes_in_pieces_and_is_shown_when_it_is_whole() {
        let Door { folder, board, .. } = open();
        board.send_modify(|board| (0..1_000).for_each(|at| board.set_device(device(at))));
        let mut watcher = Watch::start(folder.path()).await.unwrap();
        assert_eq!(watcher.next().await.unwrap().devices.len(), 1_000);
        let whole: Progress = ask_once(folder.path(), &Request::Progress).await.unwrap();
        assert_eq!(*watcher.state(), whole);
    }

    /// Reads one line at a time as a watcher, while all devices keep changing.
    #[tokio::test(start_paused = true)]
    async fn a_watcher_gets_no_more_bytes_than_its_budget_and_every_device_in_turn() {
        const DEVICES: usize = 200;
        let (published, mut board) = watch::channel(Board::default());
        published.send_modify(|board| (0..DEVICES).for_each(|at| board.set_device(device(at))));
        let (mut ours, theirs) = tokio::io::duplex(1 << 20);
        let changing = async {
            for updates in 1.. {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let changed = |at| DeviceProgress { updates, ..device(at) };
                published.send_modify(|board| (0..DEVICES).for_each(|at| board.set_device(changed(at))));
            }
        };
        let reading = async {
            let (mut lines, mut line) = (BufReader::new(theirs), String::new());
            let mut seen: BTreeSet<skiff_protocol::DeviceId> = BTreeSet::new();
            let (mut bytes, mut is_whole) = (0, false);
            let begun = tokio::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(60) {
                line.clear();
                lines.read_line(&mut line).await.unwrap();
                let Answer::Ok(changes) = serde_json::from_str::<Answer<Changes>>(&line).unwrap() else { panic!() };
                if is_whole {
                    bytes += line.len() as u64;
                    seen.extend(changes.devices.into_iter().map(|device| device.device));
                }
                is_whole |= !changes.is_partial;
            }
            (bytes, seen.len())
        };
        let (bytes, seen) = tokio::select! {
            ended = watch_changes(&mut ours, &mut board) => panic!("{ended:?}"),
            () = changing => panic!("it ended"),
            read = reading => read,
        };
        assert!(bytes <= 61 * WATCH_BYTES_PER_SECOND, "{bytes} bytes in a minute");
        assert_eq!(seen, DEVICES, "no device is starved");
    }

    #[tokio::test]
    async fn a_client_of_version_1_gets_the_whole_state_with_ages() {
        let Door { folder, board, .. } = open();
        board.send_modify(|board| {
            board.set_state(1_500, true, BTreeMap::new(), vec![]);
            board.set_device(DeviceProgress { telemetry_at_ms: Some(1_000), ..device(1) });
        });
        for request in ["\"progress\"\n", "\"watch\"\n"] {
            let mut stream = BufReader::new(UnixStream::connect(folder.path().join(SOCKET)).await.unwrap());
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["ok"]["devices"][0]["telemetry_age_ms"], 500, "{line}");
            assert_eq!(line["ok"]["connected"], true);
        }
    }

    fn device(at: usize) -> DeviceProgress {
        let name = format!("device-{at:05}").parse().unwrap();
        let known = crate::fleet::Device::new(Presence::Here, skiff_protocol::Timestamp(0));
        crate::views::device(&name, &known, None)
    }

    #[tokio::test]
    async fn only_the_owner_may_open_the_socket() {
        let Door { folder, .. } = open();
        let mode = std::fs::metadata(folder.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        listen(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_request_is_refused() {
        let Door { folder, .. } = open();
        for line in ["{}\n", "\"dance\"\n", "nonsense\n", "\n"] {
            let mut stream = UnixStream::connect(folder.path().join(SOCKET)).await.unwrap();
            stream.write_all(line.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(r#"{"error":"not a request"#), "{line:?}: {answer}");
        }
        let mut stream = UnixStream::connect(folder.path().join(SOCKET)).await.unwrap();
        let long = vec![b' '; MAX_REQUEST_BYTES as usize + 1];
        let _ = stream.write_all(&long).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer.starts_with(b"{\"error\""));
    }

    #[tokio::test]
    async fn without_a_coordinator_the_error_says_what_to_look_at() {
        let folder = TempDir::new().unwrap();
        let error = ask_once::<Progress>(folder.path(), &Request::Progress).await.unwrap_err();
        assert!(error.to_string().contains("is `skiff serve` running"));
    }
}
