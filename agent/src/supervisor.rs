//! Tells systemd that the agent is ready, alive, or stopping, if systemd started it.
//!
//! The protocol is `sd_notify(3)`: one datagram for each line, sent to the socket that `NOTIFY_SOCKET` names. A watchdog that
//! hears nothing for `WATCHDOG_USEC` restarts the service (`sd_watchdog_enabled(3)`). Without those variables nothing is sent.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The service manager that started the agent, if it asked for messages.
#[derive(Debug, Default)]
pub struct Supervisor {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// Returns the supervisor that the environment names, for this process `pid`. If its address cannot be reached, a log line says so
    /// and nothing is sent.
    #[must_use]
    pub fn of_environment(pid: u32) -> Self {
        let variable = |name: &str| std::env::var_os(name);
        let Some(address) = variable("NOTIFY_SOCKET") else { return Self::default() };
        let number = |name: &str| variable(name).and_then(|text| text.to_str()?.parse::<u64>().ok());
        let for_us = number("WATCHDOG_PID").is_none_or(|wanted| wanted == u64::from(pid));
        Self::at(&address, number("WATCHDOG_USEC").filter(|_| for_us))
    }

    fn at(address: &OsStr, watchdog_usec: Option<u64>) -> Self {
        match connected(address) {
            Ok(socket) => Self {
                socket: Some(socket),
                watchdog: watchdog_usec.filter(|usec| *usec > 0).map(Duration::from_micros),
            },
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be reached: systemd will not know whether the agent is alive");
                Self::default()
            }
        }
    }

    /// Returns the time between two calls of [`Self::alive`]: half of the watchdog's patience.
    #[must_use]
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog.map(|patience| patience / 2)
    }

    /// Reports that the agent has started.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// Reports that the agent is not stuck.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// Reports that the agent stops.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    fn tell(&self, fact: &str) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(fact.as_bytes()) {
            tracing::debug!(%error, fact, "the message to the supervisor was not sent");
        }
    }
}

/// Connects a socket to `address`. A leading `@` means an abstract address, without a file.
fn connected(address: &OsStr) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).expect("a datagram");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn systemd_hears_ready_alive_and_stopping_in_that_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).expect("a socket");
        let supervisor = Supervisor::at(path.as_os_str(), Some(30_000_000));
        supervisor.ready();
        supervisor.alive();
        supervisor.stopping();
        assert_eq!([(); 3].map(|()| received(&systemd)), ["READY=1", "WATCHDOG=1", "STOPPING=1"]);
        assert_eq!(supervisor.interval(), Some(Duration::from_secs(15)));
    }

    #[test]
    fn an_address_without_a_file_is_reached() {
        let name = format!("skiff-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let systemd = UnixDatagram::bind_addr(&address).expect("a socket");
        Supervisor::at(OsStr::new(&format!("@{name}")), None).ready();
        assert_eq!(received(&systemd), "READY=1");
    }

    #[test]
    fn without_a_supervisor_nothing_is_sent_and_nothing_is_due() {
        for address in ["", "/nowhere/notify", "@"] {
            let supervisor = Supervisor::at(OsStr::new(address), Some(1));
            supervisor.ready();
            assert_eq!(supervisor.interval(), None);
        }
    }
}
