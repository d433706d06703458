//! The control socket for operators on the same machine: a Unix socket in the state folder, one JSON request per connection.
//!
//! A request is one line; the answer is one line `{"ok": ...}` or `{"error": "..."}`. The answer to `watch` is a line of
//! [`Progress`] for each change, at most one per [`WATCH_EVERY`], until the client closes its side. The socket's mode is
//! 0600: only its owner can open it, and whoever opens it can do everything.
//!
//! There are more places for connections than for watchers, so that forgotten watchers never block a request.

use crate::progress::Progress;
use crate::run::sharing::{Change, Policy, Share};
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

/// Name of the socket in the state folder.
pub const SOCKET: &str = "control.sock";
/// Minimum time between two lines to a watcher.
pub const WATCH_EVERY: Duration = Duration::from_millis(200);
/// Maximum length of a request in bytes.
pub const MAX_REQUEST_BYTES: u64 = 64 * 1024;
/// Maximum length in bytes of an answer that a client accepts.
const MAX_ANSWER_BYTES: u64 = 64 << 20;
/// Maximum number of connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// Maximum number of watchers at a time. The other connections are reserved for requests.
const MAX_WATCHERS: usize = 24;
/// Time after which a silent client is disconnected.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time that a client gives the coordinator for its first answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// A request of an operator.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Return the current [`Progress`].
    Progress,
    /// Return [`Progress`] now and after each change.
    Watch,
    /// Start a run with these settings; defaults come from the configuration. Answer: the name of the run.
    StartRun(serde_json::Map<String, serde_json::Value>),
    /// Stop the current run.
    StopRun,
    /// Delete the ended run with this name. Answer: [`Deleted`].
    DeleteRun(String),
    /// Return the sharing policy. Answer: [`PolicyView`].
    ShowPolicy,
    /// Return what another policy would change, without setting it. Answer: a [`Change`] for each known device.
    ComparePolicy(Policy),
    /// Set another policy, for the current run and all later ones. Answer: same as for [`Request::ComparePolicy`].
    SetPolicy(Policy),
}

/// The sharing policy, and its effect on each known device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyView {
    /// The policy.
    pub policy: Policy,
    /// Layers that each known device shares.
    pub shares: BTreeMap<DeviceId, Share>,
}

/// Blobs that were removed with a deleted run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Deleted {
    /// Number of removed weights and updates.
    pub removed_blobs: u64,
    /// Size of the removed blobs, in bytes.
    pub removed_bytes: u64,
}

/// A request to the coordinator's loop, with the channel for its answer.
#[derive(Debug)]
pub enum Order {
    /// Start a run with these settings in place of the configured ones.
    StartRun(serde_json::Map<String, serde_json::Value>, Reply<String>),
    /// Stop the current run.
    StopRun(Reply<()>),
    /// Delete an ended run.
    DeleteRun(String, Reply<Deleted>),
    /// Return the sharing policy.
    ShowPolicy(Reply<PolicyView>),
    /// Return what another policy would change.
    ComparePolicy(Policy, Reply<Vec<Change>>),
    /// Set another policy.
    SetPolicy(Policy, Reply<Vec<Change>>),
}

/// Channel for the answer. The error is a text for the operator.
pub type Reply<T> = oneshot::Sender<Result<T, String>>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer<T> {
    Ok(T),
    Error(String),
}

/// A reason for which a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No coordinator listens on the socket.
    #[error("reaching the coordinator at {}: is `skiff serve` running, with this state folder?", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The connection broke.
    #[error("talking to the coordinator")]
    Broken(#[source] io::Error),
    /// The coordinator closed the connection.
    #[error("the coordinator closed the connection")]
    HungUp,
    /// The coordinator did not answer in time.
    #[error(
        "the coordinator did not answer within {} s: it is hung or overloaded (see its log); it may still carry out the request",
        ANSWER_PATIENCE.as_secs()
    )]
    Silent,
    /// The answer cannot be read.
    #[error("reading the coordinator's answer: is it another version of Skiff?")]
    Unreadable(#[source] serde_json::Error),
    /// The coordinator refused the request.
    #[error("{reason}")]
    Refused {
        /// Reason for the refusal.
        reason: String,
    },
}

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
pub async fn serve(listener: UnixListener, orders: mpsc::Sender<Order>, progress: watch::Receiver<Progress>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let watchers = Arc::new(Semaphore::new(MAX_WATCHERS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (orders, progress, watchers) = (orders.clone(), progress.clone(), Arc::clone(&watchers));
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &orders, progress, &watchers).await {
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
    orders: &mpsc::Sender<Order>,
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
    let line = match serde_json::from_str(&line) {
        Ok(Request::Progress) => to_line(&Ok(&*progress.borrow())),
        Ok(Request::Watch) => match watchers.try_acquire() {
            Ok(_place) => return watch(&mut read, &mut write, &mut progress).await,
            Err(_) => to_line::<()>(&Err(format!(
                "too many watchers: {MAX_WATCHERS} are connected; end one of them (`skiff run watch`, `skiff fleet --watch`)"
            ))),
        },
        Ok(Request::StartRun(settings)) => to_line(&ask(orders, |reply| Order::StartRun(settings, reply)).await),
        Ok(Request::StopRun) => to_line(&ask(orders, Order::StopRun).await),
        Ok(Request::DeleteRun(run)) => to_line(&ask(orders, |reply| Order::DeleteRun(run, reply)).await),
        Ok(Request::ShowPolicy) => to_line(&ask(orders, Order::ShowPolicy).await),
        Ok(Request::ComparePolicy(policy)) => to_line(&ask(orders, |reply| Order::ComparePolicy(policy, reply)).await),
        Ok(Request::SetPolicy(policy)) => to_line(&ask(orders, |reply| Order::SetPolicy(policy, reply)).await),
        Err(error) => to_line::<()>(&Err(format!("not a request: {error}"))),
    };
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
            let line = to_line(&Ok(&*progress.borrow_and_update()));
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

async fn ask<T>(orders: &mpsc::Sender<Order>, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, String> {
    let (reply, answered) = oneshot::channel();
    let stopping = |_| "the coordinator is stopping".to_owned();
    orders.send(order(reply)).await.map_err(|_| stopping(()))?;
    answered.await.map_err(|_| stopping(()))?
}

fn to_line<T: Serialize>(answer: &Result<T, String>) -> Vec<u8> {
    let answer = match answer {
        Ok(value) => Answer::Ok(value),
        Err(reason) => Answer::Error(reason.clone()),
    };
    let mut line = serde_json::to_vec(&answer).expect("answers are plain values with text keys");
    line.push(b'\n');
    line
}

/// A client's connection, with its request sent.
pub struct Client<T> {
    lines: BufReader<UnixStream>,
    /// True after the first answer. Later answers come when something changes, so they have no time limit.
    is_answered: bool,
    answers: std::marker::PhantomData<T>,
}

impl<T: for<'de> Deserialize<'de>> Client<T> {
    /// Sends a request to the coordinator of the folder `state`.
    ///
    /// # Errors
    /// No coordinator listens there, or the connection broke.
    pub async fn ask(state: &Path, request: &Request) -> Result<Self, ControlError> {
        let path = state.join(SOCKET);
        let connected = UnixStream::connect(&path).await;
        let mut stream = connected.map_err(|source| ControlError::Unreachable { path, source })?;
        let mut line = serde_json::to_vec(request).expect("requests are plain values with text keys");
        line.push(b'\n');
        let written = tokio::time::timeout(ANSWER_PATIENCE, stream.write_all(&line)).await;
        written.map_err(|_| ControlError::Silent)?.map_err(ControlError::Broken)?;
        Ok(Self { lines: BufReader::new(stream), is_answered: false, answers: std::marker::PhantomData })
    }

    /// Returns the next answer. The first one has a time limit.
    ///
    /// # Errors
    /// The first answer did not come in time, the connection broke or was closed, the answer cannot be read, or the
    /// coordinator refused.
    pub async fn next(&mut self) -> Result<T, ControlError> {
        if self.is_answered {
            return self.read().await;
        }
        let answer = tokio::time::timeout(ANSWER_PATIENCE, self.read()).await.map_err(|_| ControlError::Silent)??;
        self.is_answered = true;
        Ok(answer)
    }

    async fn read(&mut self) -> Result<T, ControlError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.lines).take(MAX_ANSWER_BYTES);
        let bytes = bounded.read_until(b'\n', &mut line).await.map_err(ControlError::Broken)?;
        if bytes == 0 {
            return Err(ControlError::HungUp);
        }
        match serde_json::from_slice(&line).map_err(ControlError::Unreadable)? {
            Answer::Ok(value) => Ok(value),
            Answer::Error(reason) => Err(ControlError::Refused { reason }),
        }
    }
}

/// Sends a request and returns the first answer.
///
/// # Errors
/// Same as [`Client::ask`] and [`Client::next`].
pub async fn ask_once<T: for<'de> Deserialize<'de>>(state: &Path, request: &Request) -> Result<T, ControlError> {
    Client::ask(state, request).await?.next().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use tempfile::TempDir;

    struct Door {
        folder: TempDir,
        orders: mpsc::Receiver<Order>,
        progress: watch::Sender<Progress>,
    }

    fn open() -> Door {
        let folder = TempDir::new().unwrap();
        let (send, orders) = mpsc::channel(4);
        let (progress, seen) = watch::channel(Progress::default());
        tokio::spawn(serve(listen(folder.path()).unwrap(), send, seen));
        Door { folder, orders, progress }
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
        let Door { folder, mut orders, progress: _published } = open();
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
            let Some(Order::StopRun(reply)) = orders.recv().await else { panic!("another order") };
            reply.send(Ok(())).unwrap();
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
        let Door { folder, orders: _never_read, progress: _published } = open();
        let error = ask_once::<()>(folder.path(), &Request::StopRun).await.unwrap_err();
        assert!(matches!(error, ControlError::Silent), "{error}");
    }

    #[tokio::test]
    async fn a_run_is_started_with_what_was_said_and_its_name_told() {
        let Door { folder, mut orders, .. } = open();
        let settings = serde_json::from_str(r#"{"rounds": 3}"#).unwrap();
        let answering = tokio::spawn(async move {
            let Some(Order::StartRun(settings, reply)) = orders.recv().await else { panic!("another order") };
            reply.send(Ok(format!("run of {}", settings["rounds"]))).unwrap();
            let Some(Order::StopRun(reply)) = orders.recv().await else { panic!("another order") };
            reply.send(Err("there is no current run".to_owned())).unwrap();
        });
        let name: String = ask_once(folder.path(), &Request::StartRun(settings)).await.unwrap();
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
