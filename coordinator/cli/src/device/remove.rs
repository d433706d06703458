//! `skiff device remove`: removes a device that is gone for good.

use crate::door::Door;
use anyhow::Context as _;
use clap::Args;
use skiff_api::removal::Removal;
use skiff_api::request::{RemoveDevice, Request};
use skiff_coordinator::doors::client::ask_once;
use skiff_protocol::DeviceId;
use skiff_screen::output::{stdout, width};
use skiff_screen::text::fold;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;

/// Arguments of `skiff device remove`.
#[derive(Args, Debug)]
#[command(after_help = "\
The fleet does not show the device any more, the current run does not wait for it, and the broker drops its last message, so
that it does not come back by itself. Its past work stays in the journal, and so does the removal. A device with this name that
connects later is a new member. To keep a device away for good, also delete its account at the broker.

Examples:
  skiff device remove pi-7 --state fleet-state --reason 'broken SD card'
  skiff device remove pi-7 --state fleet-state --force    although it is online")]
pub(crate) struct Arguments {
    /// Name of the device
    #[arg(value_name = "DEVICE")]
    device: DeviceId,
    /// Reason, for the journal
    #[arg(long, default_value = "")]
    reason: String,
    /// Your name, for the journal [default: the name or number of your account]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Remove the device although it is online
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

/// Removes the device.
///
/// # Errors
/// No coordinator is reachable, the device is not known, or it is online.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { device, reason, by, force, json, door } = arguments;
    let by = by.or_else(account).context("finding the name of your account failed: add --by NAME")?;
    let request = Request::RemoveDevice(RemoveDevice { device, by, reason, force });
    let removal: Removal = ask_once(&door.state()?, &request).await?;
    if json {
        return Ok(writeln!(stdout(), "{}", serde_json::to_string(&removal)?)?);
    }
    Ok(writeln!(stdout(), "{}", fold(&as_text(&removal), 2, width()))?)
}

/// Returns the name of the account, or of the account that called sudo. Without a name, returns its number.
fn account() -> Option<String> {
    let names = ["SUDO_USER", "USER", "LOGNAME"];
    let name = names.iter().filter_map(|name| std::env::var(name).ok()).find(|name| !name.is_empty());
    // A service or a container often has no name in its environment.
    let number = || std::fs::metadata("/proc/self").ok().map(|own| format!("user {}", own.uid()));
    name.or_else(number)
}

fn as_text(removal: &Removal) -> String {
    let Removal { device, by, was_online, .. } = removal;
    let online = if *was_online {
        "; it is still connected: when it connects again, it is a new member"
    } else {
        "; if it comes back, it is a new member"
    };
    format!("{device} is removed from the fleet by {by}{online}")
}
