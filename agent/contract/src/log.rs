//! Log lines of both programs on standard error, which systemd keeps.

use skiff_screen::output::colours_log;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// Name of the variable that sets which lines are shown.
const VARIABLE: &str = "SKIFF_LOG";

/// Starts the log. A program calls it once.
pub fn start() {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| "info".to_owned()).parse::<Targets>();
    let (filter, refused) = match wanted {
        Ok(filter) => (filter, None),
        Err(error) => (Targets::new().with_default(LevelFilter::INFO), Some(error)),
    };
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours_log()).with_target(false);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    if let Some(error) = refused {
        tracing::warn!(%error, "{VARIABLE} cannot be read; showing messages of level info");
    }
}
