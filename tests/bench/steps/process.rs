//! Programs that print a line of JSON.

use serde_json::Value;
use skiff_tests::places;
use std::process::Command;

/// Returns the agent of this build.
pub(crate) fn agent() -> Command {
    Command::new(places::binary("skiff-agent"))
}

/// Runs it and reads the last line that it prints.
pub(crate) fn last_line(command: &mut Command) -> Result<Value, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program} does not start: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program} ended with {}: {}", output.status, said.lines().last().unwrap_or_default()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .map_err(|error| format!("{program} printed no JSON: {error}"))
}

/// Returns `found` with these fields added.
pub(crate) fn labelled(mut found: Value, labels: Value) -> Value {
    if let (Value::Object(found), Value::Object(labels)) = (&mut found, labels) {
        found.extend(labels);
    }
    found
}
