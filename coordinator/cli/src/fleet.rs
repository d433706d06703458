//! `skiff fleet`: shows which devices are connected, and what they report.

use crate::door::Door;
use crate::watch::presence;
use clap::Args;
use skiff_api::progress::{DeviceProgress, Progress};
use skiff_api::request::Request;
use skiff_coordinator::doors::client::{Watch, ask_once};
use skiff_screen::frame::Frame;
use skiff_screen::output::{stdout, width};
use skiff_screen::table::{Column, Table};
use skiff_screen::text::fold;
use skiff_screen::units::{UNKNOWN, figure, measured_bytes, millis};
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
    if !arguments.watch {
        return show_once(&arguments.door, arguments.json).await;
    }
    let mut frame = Frame::new();
    let mut watch = Watch::start(&arguments.door.state()?).await?;
    loop {
        show_frame(&mut frame, watch.next().await?, arguments.json)?;
    }
}

/// Prints the devices of the fleet once.
///
/// # Errors
/// No coordinator is reachable.
pub(crate) async fn show_once(door: &Door, json: bool) -> anyhow::Result<()> {
    show_frame(&mut Frame::new(), &ask_once(&door.state()?, &Request::Progress).await?, json)
}

fn show_frame(frame: &mut Frame, progress: &Progress, json: bool) -> anyhow::Result<()> {
    match json {
        true => writeln!(stdout(), "{}", serde_json::to_string(progress)?)?,
        false => frame.show(&show(progress, width()))?,
    }
    Ok(())
}

fn show(progress: &Progress, width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::text("device"),
        Column::text("presence"),
        Column::text("state"),
        Column::number("step").rank(4),
        Column::number("ms/step").rank(5),
        Column::number("tokens/s").rank(9),
        Column::number("layers").rank(7),
        Column::number("agent cpu").rank(8),
        Column::number("memory").rank(6),
        Column::number("peak").rank(2),
        Column::number("temp").rank(3),
        Column::number("age").rank(1),
    ]);
    progress.devices.iter().for_each(|device| table.add(cells(device, progress.now_ms)));
    let mut text = table.text(width);
    for device in &progress.devices {
        if let Some(note) = &device.note {
            let _ = writeln!(text, "{}", fold(&format!("{}: {note}", device.device), 2, width));
        }
    }
    if progress.devices.is_empty() {
        text = "no device is in the fleet: none has connected yet, or all were removed\n".to_owned();
    }
    for warning in &progress.warnings {
        let _ = writeln!(text, "{}", fold(&format!("warning: {warning}"), 2, width));
    }
    if !progress.connected {
        text.push_str("not connected to the broker\n");
    }
    if !progress.refused_messages.is_empty() {
        let refused: Vec<String> = progress.refused_messages.iter().map(|(label, n)| format!("{label} {n}")).collect();
        let _ = writeln!(text, "{}", fold(&format!("refused messages: {}", refused.join(", ")), 2, width));
    }
    text
}

fn cells(device: &DeviceProgress, now_ms: u64) -> [String; 12] {
    let positive = |value: f32, places| figure((value > 0.0).then_some(value.into()), places);
    let counted = |number: u32, text: String| if number > 0 { text } else { UNKNOWN.to_owned() };
    let age_ms = device.telemetry_at_ms.map(|at_ms| now_ms.saturating_sub(at_ms));
    let percent = positive(device.agent_cpu_percent, 0);
    [
        device.device.to_string(),
        presence(device.presence).to_owned(),
        device.state.clone(),
        counted(device.steps, format!("{}/{}", device.step, device.steps)),
        positive(device.step_ms, 0),
        positive(device.tokens_per_second, 0),
        counted(device.active_layers, device.active_layers.to_string()),
        if percent == UNKNOWN { percent } else { percent + "%" },
        measured_bytes(device.rss_bytes),
        measured_bytes(device.peak_rss_bytes),
        device.temperature.map_or_else(|| UNKNOWN.to_owned(), |celsius| format!("{celsius:.0} °C")),
        age_ms.map_or_else(|| UNKNOWN.to_owned(), millis),
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
        let warnings = vec!["another coordinator is online: stop one".to_owned()];
        let progress = Progress { devices, refused_messages, warnings, ..Progress::default() };
        let text = show(&progress, None);
        for part in [
            "pi-4",
            "lost",
            "on battery",
            "refused messages: digest 3",
            "warning: another coordinator",
            "not connected",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        for width in [60, 80, 120, 200] {
            let text = show(&progress, Some(width));
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            assert!(text.contains("presence") && text.contains("on battery"), "{width}:\n{text}");
        }
        assert!(show(&Progress::default(), None).contains("no device"));
    }
}
