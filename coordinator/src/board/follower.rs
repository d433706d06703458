//! A watcher in the coordinator's own process.

use super::{Board, Feed};
use skiff_api::progress::Progress;
use tokio::sync::watch;

/// The coordinator has stopped, and its last state has been seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the coordinator has stopped")]
pub struct Stopped;

/// Follows the state of a coordinator in this process.
#[derive(Debug)]
pub struct Follower {
    board: watch::Receiver<Board>,
    feed: Feed,
    state: Progress,
}

impl Follower {
    /// Creates a follower of a board.
    #[must_use]
    pub fn new(board: watch::Receiver<Board>) -> Self {
        Self { board, feed: Feed::default(), state: Progress::default() }
    }

    /// Returns the newest state.
    pub fn newest(&mut self) -> &Progress {
        let changes = self.feed.next(&self.board.borrow_and_update(), usize::MAX);
        self.state.apply(changes);
        &self.state
    }

    /// Waits for a change and returns the newest state. A call that is dropped while it waits loses nothing.
    ///
    /// # Errors
    /// The coordinator has stopped.
    pub async fn changed(&mut self) -> Result<&Progress, Stopped> {
        self.board.changed().await.map_err(|_| Stopped)?;
        Ok(self.newest())
    }

    /// Waits until `is_wanted` accepts the state, and returns the state.
    ///
    /// # Errors
    /// The coordinator has stopped.
    pub async fn wait_for(&mut self, is_wanted: impl Fn(&Progress) -> bool) -> Result<&Progress, Stopped> {
        while !is_wanted(self.newest()) {
            self.board.changed().await.map_err(|_| Stopped)?;
        }
        Ok(&self.state)
    }
}
