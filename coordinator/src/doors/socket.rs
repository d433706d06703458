//! The control socket for operators on the same machine: a Unix socket in the state folder, one JSON request per connection.
//!
//! A request is one line ([`Envelope`]); the answer is one line `{"ok": ...}` or `{"error": "..."}` ([`Answer`]). The answer to
//! `watch` is a line of [`Progress`] for each change, at most one per [`WATCH_EVERY`], until the client closes its side. The
//! socket's mode is 0600: only its owner can open it, and whoever opens it can do everything.
//!
//! There are more places for connections than for watchers, so that forgotten watchers never block a request.

use super::Call;
use serde::Serialize;
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
/// Maximum length of a request in bytes.
pub const MAX_REQUEST_BYTES: u64 = 64 * 1024;
/// Maximum number of connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// Maximum number of watchers at a time. The other connections are reserved for requests.
const MAX_WATCHERS: usize = 24;
/// Time after which a silent client is disconnected.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the socket in the folder `state`. Replaces one that a crash left behind.
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
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, progress: watch::Receiver<Progress>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let watchers = Arc::new(Semaphore::new(MAX_WATCHERS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (calls, progress, watchers) = (calls.clone(), progress.clone(), Arc::clone(&watchers));
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &calls, progress, &watchers).await {
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
    mut progress: watch::Receiver<Progress>,
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
        Ok((Request::Progress, _)) => Answer::Ok(Reply::Progress(Box::new(progress.borrow().clone()))),
        Ok((Request::Watch, _)) => match watchers.try_acquire() {
            Ok(_place) => return watch(&mut read, &mut write, &mut progress).await,
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
    let line = to_line(&answer);
    send(&mut write, &line).await
}

/// Sends a line. Fails after [`PATIENCE`], so that a client that does not read cannot keep its place.
async fn send(write: &mut (impl AsyncWriteExt + Unpin), line: &[u8]) -> io::Result<()> {
    let in_time = tokio::time::timeout(PATIENCE, write.write_all(line)).await;
    in_time.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")))
}

/// Sends each change until the client closes its side. Notices that even if nothing changes.
async fn watch(
    read: &mut (impl AsyncReadExt + Unpin),
    write: &mut (impl AsyncWriteExt + Unpin),
    progress: &mut watch::Receiver<Progress>,
) -> io::Result<()> {
    let changes = async {
        loop {
            let line = to_line(&Answer::Ok(&*progress.borrow_and_update()));
            send(write, &line).await?;
            tokio::time::sleep(WATCH_EVERY).await;
            if progress.changed().await.is_err() {
                return Ok(());
            }
        }
    };
    let mut rest = tokio::io::sink();
    tokio::select! {
        ended = changes => ended,
        left = tokio::io::copy(read, &mut rest) => left.map(drop),
    }
}

fn to_line<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).expect("answers are plain values with text keys");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::super::client::{Client, ControlError, ask_once};
    use super::*;
    use tempfile::TempDir;

    struct Door {
        folder: TempDir,
        calls: mpsc::Receiver<Call>,
        progress: watch::Sender<Progress>,
    }

    fn open() -> Door {
        let folder = TempDir::new().unwrap();
        let (send, calls) = mpsc::channel(4);
        let (progress, seen) = watch::channel(Progress::default());
        tokio::spawn(serve(listen(folder.path()).unwrap(), send, seen));
        Door { folder, calls, progress }
    }

    async fn answer_next(calls: &mut mpsc::Receiver<Call>, expected: Request, answer: Result<Reply, String>) {
        let call = calls.recv().await.unwrap();
        assert_eq!(call.request, expected);
        call.reply.send(answer).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_does_not_read_gives_its_place_up() {
        let (mut ours, _theirs) = tokio::io::duplex(16);
        let (_published, mut progress) = watch::channel(Progress::default());
        let (mut read, mut write) = tokio::io::split(&mut ours);
        let error = super::watch(&mut read, &mut write, &mut progress).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn watchers_leave_places_for_requests_and_one_too_many_is_refused() {
        let Door { folder, mut calls, progress: _published } = open();
        let mut watchers = Vec::new();
        for _ in 0..MAX_WATCHERS {
            let mut watcher = Client::<Progress>::ask(folder.path(), &Request::Watch).await.unwrap();
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
        let (_published, mut progress) = watch::channel(Progress::default());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut read, mut write) = ours.split();
        let watching = super::watch(&mut read, &mut write, &mut progress);
        let leaving = async {
            BufReader::new(theirs).read_line(&mut String::new()).await.unwrap();
        };
        let (ended, ()) = tokio::join!(watching, leaving);
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    }

    #[tokio::test(start_paused = true)]
    async fn a_coordinator_that_does_not_answer_is_given_up() {
        let Door { folder, calls: _never_read, progress: _published } = open();
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
        let Door { folder, progress, .. } = open();
        let mut watcher = Client::<Progress>::ask(folder.path(), &Request::Watch).await.unwrap();
        assert!(!watcher.next().await.unwrap().connected);
        progress.send_modify(|progress| progress.connected = true);
        assert!(watcher.next().await.unwrap().connected);
        drop(progress);
        assert!(matches!(watcher.next().await, Err(ControlError::HungUp)));
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
