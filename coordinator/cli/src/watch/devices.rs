//! The line of a device below the rounds.

use skiff_api::progress::{DeviceProgress, Presence};
use skiff_screen::live::Part;
use skiff_screen::units::{bytes, counted};

/// Returns the line of a device. Its most important parts come first, because a narrow terminal cuts the end.
pub(super) fn part(device: &DeviceProgress) -> Part {
    let mut parts = vec![match device.presence {
        Presence::Here => device.state.clone(),
        Presence::WrongPack | Presence::Left | Presence::Lost => presence(device.presence).to_owned(),
    }];
    parts.extend(device.note.clone());
    if device.step_ms > 0.0 && device.presence == Presence::Here {
        parts.push(counted(device.active_layers as usize, "layer"));
        parts.push(format!("{:.0} ms/step", device.step_ms));
    }
    if device.peak_rss_bytes > 0 {
        parts.push(format!("peak {}", bytes(device.peak_rss_bytes)));
    }
    parts.extend(device.temperature.map(|celsius| format!("{celsius:.0} °C")));
    if device.step_ms > 0.0 && device.presence == Presence::Here {
        parts.push(format!("{:.0} tokens/s", device.tokens_per_second));
    }
    Part {
        name: device.device.to_string(),
        done: device.step.into(),
        total: device.steps.into(),
        text: parts.join(", "),
    }
}

/// Returns the presence of a device in words.
#[must_use]
pub const fn presence(presence: Presence) -> &'static str {
    match presence {
        Presence::Here => "here",
        Presence::WrongPack => "wrong pack",
        Presence::Left => "left",
        Presence::Lost => "lost",
    }
}

/// Returns how many devices can train.
pub(super) fn connected(devices: &[DeviceProgress]) -> String {
    let number = |wanted| devices.iter().filter(|device| device.presence == wanted).count();
    let mut text = format!("{} of {} can train", number(Presence::Here), counted(devices.len(), "device"));
    if number(Presence::WrongPack) > 0 {
        text += &format!(", {} with another pack", number(Presence::WrongPack));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples::device;
    use super::*;

    #[test]
    fn a_line_begins_with_what_matters() {
        let expected = "training, 4 layers, 140 ms/step, peak 200.0 MB, 41 °C, 412 tokens/s";
        assert_eq!(
            part(&device("kitchen")),
            Part { name: "kitchen".to_owned(), done: 3, total: 20, text: expected.to_owned() }
        );
        let note = Some("refused an order: on battery".to_owned());
        let lost = DeviceProgress { presence: Presence::Lost, note, temperature: None, ..device("kitchen") };
        assert_eq!(part(&lost).text, "lost, refused an order: on battery, peak 200.0 MB");
    }

    #[test]
    fn devices_that_cannot_train_are_counted() {
        let other = DeviceProgress { presence: Presence::WrongPack, ..device("hall") };
        assert_eq!(connected(&[device("kitchen"), other]), "1 of 2 devices can train, 1 with another pack");
        assert_eq!(connected(&[]), "0 of 0 devices can train");
    }
}
