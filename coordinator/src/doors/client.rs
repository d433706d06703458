//! The client of the control socket: sends a request to a coordinator on the same machine and reads the replies.

use super::socket::SOCKET;
use serde::Deserialize;
use skiff_api::changes::Changes;
use skiff_api::progress::Progress;
use skiff_api::request::{Answer, Envelope, Request};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Maximum length in bytes of a reply that a client accepts.
const MAX_REPLY_BYTES: u64 = 64 << 20;
/// Maximum time for the coordinator's first reply.
const PATIENCE: Duration = Duration::from_secs(10);

/// A reason why a request failed.
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
        PATIENCE.as_secs()
    )]
    Silent,
    /// The answer cannot be read.
    #[error("reading the coordinator's answer: is it another version of Skiff?")]
    Unreadable(#[source] serde_json::Error),
    /// The coordinator does not know this request.
    #[error(
        "the coordinator is another version of Skiff and does not know this request ({reason}): restart `skiff serve`"
    )]
    UnknownRequest {
        /// The coordinator's error message.
        reason: String,
    },
    /// The coordinator refused the request.
    #[error("{reason}")]
    Refused {
        /// Reason for the refusal.
        reason: String,
    },
}

/// A client's connection, after its request was sent.
pub struct Client<T> {
    lines: BufReader<UnixStream>,
    /// True after the first answer. Later answers come only when something changes, so they have no time limit.
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
        let line = Envelope::new(request.clone()).to_line();
        let written = tokio::time::timeout(PATIENCE, stream.write_all(&line)).await;
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
        let answer = tokio::time::timeout(PATIENCE, self.read()).await.map_err(|_| ControlError::Silent)??;
        self.is_answered = true;
        Ok(answer)
    }

    async fn read(&mut self) -> Result<T, ControlError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.lines).take(MAX_REPLY_BYTES);
        let bytes = bounded.read_until(b'\n', &mut line).await.map_err(ControlError::Broken)?;
        if bytes == 0 {
            return Err(ControlError::HungUp);
        }
        match serde_json::from_slice(&line).map_err(ControlError::Unreadable)? {
            Answer::Ok(value) => Ok(value),
            Answer::Error(reason) if reason.starts_with("not a request") => {
                Err(ControlError::UnknownRequest { reason })
            }
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

/// A watcher of the coordinator's state, which applies the changes that arrive.
pub struct Watch {
    changes: Client<Changes>,
    state: Progress,
}

impl Watch {
    /// Asks the coordinator of the folder `state` for its state and every change.
    ///
    /// # Errors
    /// Same as [`Client::ask`].
    pub async fn start(state: &Path) -> Result<Self, ControlError> {
        Ok(Self { changes: Client::ask(state, &Request::Watch).await?, state: Progress::default() })
    }

    /// Waits for the whole state in the first call, and for its next change in later calls. Returns the newest state.
    ///
    /// # Errors
    /// Same as [`Client::next`].
    pub async fn next(&mut self) -> Result<&Progress, ControlError> {
        loop {
            let changes = self.changes.next().await?;
            let is_partial = changes.is_partial;
            self.state.apply(changes);
            if !is_partial {
                return Ok(&self.state);
            }
        }
    }

    /// Returns the newest state.
    #[must_use]
    pub fn state(&self) -> &Progress {
        &self.state
    }
}
