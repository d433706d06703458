//! The command line `skiff`: a file for each verb, above the library `skiff-coordinator`. Results go to standard output,
//! everything else goes to standard error. All rules of a run are in the library.
//!
//! [`watch`] is the screen of a run, which `skiff-demo` shows too.

pub mod watch;

mod config;
mod device;
mod doctor;
mod door;
mod explain;
mod fleet;
mod policy;
mod run;
mod serve;
mod store;

use clap::{Parser, Subcommand};
use skiff_coordinator::doors::client::ControlError;
use skiff_screen::output::{colours_log, exit_status};
use std::process::ExitCode;

/// Fine-tunes a model on a fleet of small devices, without moving their data.
///
/// `skiff serve` is the coordinator: it tells devices (`skiff-agent run`) over an MQTT broker when to train, merges what
/// they learned, and keeps a journal. It can be killed at any moment: the next start resumes the run. `skiff run` and
/// `skiff fleet` talk to it through a socket in its state folder.
#[derive(Parser, Debug)]
#[command(name = "skiff", version, after_help = AFTER)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
Start here:
  skiff config init coordinator.toml                write a commented configuration file
  skiff doctor --config coordinator.toml            see whether a coordinator can work
  skiff serve --config coordinator.toml             run the coordinator
  skiff fleet --config coordinator.toml --watch     show which devices are connected, and their reports
  skiff device show DEVICE --config coordinator.toml   show one device; `skiff device remove` removes one that is gone
  skiff run start --config coordinator.toml --rounds 10 --dropout 0.4 --watch
  skiff explain last --config coordinator.toml --round 1   show why each device got its order
  skiff policy diff --config coordinator.toml policy.toml  show which devices another sharing policy would change

Environment: SKIFF_CONFIG, SKIFF_STATE, SKIFF_BROKER, SKIFF_USER, SKIFF_PASSWORD and others: each is named like its
option, and agents use the same names. SKIFF_LOG=debug shows more of what `serve` does.

Exit codes: 0 done, 1 failed, or doctor found something broken, 2 wrong usage, or wrong settings of `serve`,
3 no coordinator is reachable, 4 the watched run ended without a single merged update,
130 Ctrl-C (a run that was watched continues).";

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the coordinator, until Ctrl-C or SIGTERM
    Serve(Box<serve::Arguments>),
    /// Write a commented configuration file, or check one
    #[command(subcommand)]
    Config(config::Action),
    /// Check pack, state folder, broker and access list, and print one line for each. Changes nothing
    Doctor(Box<doctor::Arguments>),
    /// Show which devices are connected, and what they report
    Fleet(fleet::Arguments),
    /// List the devices of the fleet, show one, or remove one that is gone
    #[command(subcommand)]
    Device(device::Action),
    /// Explain why each device got its order, and how the order ended
    Explain(explain::Arguments),
    /// Start, watch, stop, list, export or delete training runs
    #[command(subcommand)]
    Run(run::Action),
    /// Show, compare or change the sharing policy: which layers each device shares
    #[command(subcommand)]
    Policy(policy::Action),
    /// Check, migrate or clean up a state folder while no coordinator uses it
    #[command(subcommand)]
    Store(store::Action),
}

/// Returns the whole command line, for completions and manual pages.
#[must_use]
pub fn command() -> clap::Command {
    <Line as clap::CommandFactory>::command()
}

/// Reads the command line, runs the verb, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Line::parse().command {
        Command::Serve(arguments) => {
            let filter = std::env::var("SKIFF_LOG").unwrap_or_else(|_| "info".to_owned());
            let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
            lines.with_ansi(colours_log()).init();
            in_runtime(serve::run(*arguments))
        }
        Command::Config(action) => config::run(&action).map(|()| ExitCode::SUCCESS),
        Command::Doctor(arguments) => in_runtime(doctor::run(*arguments)),
        Command::Fleet(arguments) => in_runtime(fleet::run(arguments)),
        Command::Device(action) => in_runtime(device::run(action)),
        Command::Explain(arguments) => explain::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Run(action) => in_runtime(run::run(action)),
        Command::Policy(action) => in_runtime(policy::run(action)),
        Command::Store(action) => store::run(&action).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        let failed = match error.downcast_ref::<ControlError>() {
            Some(ControlError::Unreachable { .. }) => ExitCode::from(3),
            _ if error.is::<serve::WrongSettings>() => ExitCode::from(2),
            _ if error.is::<run::RunFailed>() => ExitCode::from(4),
            _ if error.is::<run::Interrupted>() => ExitCode::from(130),
            _ => ExitCode::FAILURE,
        };
        exit_status("skiff", &error, failed)
    })
}

fn in_runtime(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command).map(|()| ExitCode::SUCCESS)
}
