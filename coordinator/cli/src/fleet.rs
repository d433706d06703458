//! `skiff fleet`: shows which devices are connected, and what they report.

use crate::door::Door;
use crate::table::{bytes, number, row, table};
use clap::Args;
use skiff_api::progress::{DeviceProgress, Presence, Progress};
use skiff_api::request::Request;
use skiff_coordinator::doors::client::{Watch, ask_once};
use std::fmt::Write as _;
use std::io::Write as _;

/// Arguments of `skiff fleet`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    door: Door,
    /// Refresh the table whenever something changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

/// Prints the devices of the fleet.
///
/// # Errors
/// No coordinator is reachable.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let state = arguments.door.state()?;
    let mut out = std::io::stdout();
    if !arguments.watch {
        let progress: Progress = ask_once(&state, &Request::Progress).await?;
        return Ok(write!(out, "{}", text(&progress, arguments.json)?)?);
    }
    let mut watch = Watch::start(&state).await?;
    loop {
        let clear = if arguments.json { "" } else { "\x1b[H\x1b[2J" };
        write!(out, "{clear}{}", text(watch.next().await?, arguments.json)?)?;
        out.flush()?;
    }
}

fn text(progress: &Progress, json: bool) -> anyhow::Result<String> {
    Ok(if json { serde_json::to_string(progress)? + "\n" } else { show(progress) })
}

fn show(progress: &Progress) -> String {
    let mut rows = vec![row([
        "device", "presence", "state", "step", "ms/step", "tokens/s", "layers", "cpu %", "rss", "peak", "temp", "age",
    ])];
    rows.extend(progress.devices.iter().map(|device| cells(device, progress.now_ms)));
    let mut text = table(&rows);
    for device in &progress.devices {
        if let Some(note) = &device.note {
            let _ = writeln!(text, "{}: {note}", device.device);
        }
    }
    if progress.devices.is_empty() {
        text = "no device has connected yet\n".to_owned();
    }
    if !progress.connected {
        text.push_str("not connected to the broker\n");
    }
    if !progress.refused_messages.is_empty() {
        let refused: Vec<String> = progress.refused_messages.iter().map(|(label, n)| format!("{label} {n}")).collect();
        let _ = writeln!(text, "refused messages: {}", refused.join(", "));
    }
    text
}

fn cells(device: &DeviceProgress, now_ms: u64) -> Vec<String> {
    let presence = match device.presence {
        Presence::Here => "here",
        Presence::WrongPack => "wrong pack",
        Presence::Left => "left",
        Presence::Lost => "lost",
    };
    let age_ms = device.telemetry_at_ms.map(|at_ms| now_ms.saturating_sub(at_ms));
    let positive = |value: f32, digits| number((value > 0.0).then_some(value.into()), digits);
    vec![
        device.device.to_string(),
        presence.to_owned(),
        device.state.clone(),
        if device.steps > 0 { format!("{}/{}", device.step, device.steps) } else { "-".to_owned() },
        positive(device.step_ms, 0),
        positive(device.tokens_per_second, 0),
        if device.active_layers > 0 { device.active_layers.to_string() } else { "-".to_owned() },
        positive(device.agent_cpu_percent, 0),
        bytes(device.rss_bytes),
        bytes(device.peak_rss_bytes),
        number(device.temperature.map(f64::from), 1),
        age_ms.map_or_else(|| "-".to_owned(), crate::table::seconds),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    #[test]
    fn the_table_names_devices_notes_and_refusals() {
        let mut fleet = skiff_coordinator::fleet::Fleet::new(skiff_protocol::Digest([1; 32]), 9);
        let gone = skiff_protocol::messages::Gone { boot: skiff_protocol::BootId(1), clean: false };
        let device = "pi-4".parse().unwrap();
        fleet.gone(&device, &gone, skiff_protocol::Timestamp(0)).unwrap();
        fleet.note(&device, "refused an order: on battery");
        let devices = vec![skiff_coordinator::views::device(&device, fleet.get(&device).unwrap(), None)];
        let refused_messages = [("digest".to_owned(), 3)].into();
        let text = show(&Progress { devices, refused_messages, ..Progress::default() });
        for part in ["pi-4", "lost", "on battery", "refused messages: digest 3", "not connected"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(show(&Progress::default()).contains("no device"));
    }
}
