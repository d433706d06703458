//! Listens for Ctrl-C and SIGTERM.

use anyhow::Context;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The user's request to stop.
pub(super) struct Stop {
    asked: watch::Receiver<bool>,
}

impl Stop {
    /// Starts to listen, until the runtime ends.
    pub(super) fn listen() -> anyhow::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let (ask, asked) = watch::channel(false);
        tokio::spawn(async move {
            select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            ask.send_replace(true);
            ask.closed().await;
        });
        Ok(Self { asked })
    }

    pub(super) fn is_asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Returns when the user asks to stop.
    pub(super) async fn asked(&mut self) {
        if self.asked.wait_for(|asked| *asked).await.is_err() {
            std::future::pending().await
        }
    }
}
