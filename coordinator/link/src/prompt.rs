//! A TCP stream that acknowledges every read at once.
//!
//! Brokers (rumqttd always, Mosquitto without `set_tcp_nodelay`) leave Nagle's algorithm on: a second message waits until the
//! first is acknowledged, and the system delays the acknowledgement for 40 ms. A round has a dozen such messages in a row. Every
//! read therefore asks the kernel to acknowledge without delay (`TCP_QUICKACK`, which the kernel resets after a while). On systems
//! other than Linux this is a plain stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// Maximum time for one address to accept a connection. A system repeats its request after 1 s and 3 s, then only after 7 s and
/// 15 s, so a new attempt finds a returning broker sooner.
const ACCEPT_PATIENCE: Duration = Duration::from_secs(4);

pub(crate) struct Prompt(TcpStream);

impl Prompt {
    /// Connects to the first address of `host` (with its port) that accepts.
    ///
    /// # Errors
    /// The host has no address, or the error of its last address; [`io::ErrorKind::TimedOut`] if it did not answer.
    pub(crate) async fn connect(host: &str) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in lookup_host(host).await? {
            match timeout(ACCEPT_PATIENCE, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(Self(stream));
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    fn acknowledge(&self) {
        #[cfg(target_os = "linux")]
        // If the system refuses, the message is only slower.
        let _ = rustix::net::sockopt::set_tcp_quickack(&self.0, true);
    }
}

impl AsyncRead for Prompt {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(cx, buffer);
        if read.is_ready() {
            self.acknowledge();
        }
        read
    }
}

impl AsyncWrite for Prompt {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
