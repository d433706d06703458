//! `skiff-agent`: reads the command line, runs a verb, and prints an error once.

use crate::commands::{config, doctor, export, own, owner, run, sent};
use crate::config::{Config, Settings};
use crate::executor::Program;
use crate::owner::{Left, Wish, now_ms};
use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use skiff_screen::output::{exit_status, stdout, width};
use skiff_screen::report::Report;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Default settings file, for calls without --config.
const USUAL_CONFIG: &str = "/etc/skiff/agent.toml";
const FAILED: u8 = 1;
const BAD_SETTINGS: u8 = 2;

/// Trains on this device's own texts, alone or as part of a fleet.
#[derive(Parser)]
#[command(
    version,
    disable_help_subcommand = true,
    after_help = "Start here:\n  \
        skiff-agent config init agent.toml                                       write a commented settings file\n  \
        skiff-agent train --pack minilm.pack --train train.csv --test test.csv   train alone, to see how fast it is\n  \
        skiff-agent doctor --config agent.toml                                   see whether a fleet can be joined\n  \
        skiff-agent run --config agent.toml                                      join it\n  \
        skiff-agent evaluate --own                                               see how good the device's model is\n  \
        echo 'turn on the lamp' | skiff-agent predict --own                      ask it\n  \
        skiff-agent sent                                                         see what left the device\n  \
        skiff-agent pause                                                        stop its part until resume\n\n\
        Precedence: flag, environment variable, agent.toml, default.\n\
        SKIFF_LOG=debug shows more (error, warn, info, debug, trace; or filters such as info,skiff_link=debug).\n\n\
        Exit status: 0 done or stopped in order; 1 failed, or doctor found something broken; 2 wrong usage or settings,\n\
        or the owner has taken the device out of the fleet (leave)."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Joins a fleet: connects, reports and trains on command, until SIGTERM or Ctrl-C
    #[command(after_help = "Example:\n  skiff-agent run --config agent.toml\n  \
        skiff-agent run --broker mqtts://broker.example --device kitchen --password-file secret \\\n      \
        --coordinator-key 7c3f… --pack minilm.pack --train train.csv --test test.csv --state state")]
    Run(FleetArguments),
    /// Trains on local files, without a fleet, and prints speed and accuracy
    #[command(disable_help_flag = true)]
    Train(HandedOver),
    /// Prints the answers of a pack, with any weights, to texts
    #[command(disable_help_flag = true)]
    Predict(HandedOver),
    /// Judges a pack with any weights on examples with labels
    #[command(disable_help_flag = true)]
    Evaluate(HandedOver),
    /// Times training steps on random tokens: seconds, share of the machine's peak, memory
    #[command(disable_help_flag = true)]
    Bench(HandedOver),
    /// Does one training step on tensors from a file and writes loss, scores and gradients
    #[command(disable_help_flag = true)]
    Step(HandedOver),
    /// Checks what a fleet needs of this device, a line each: ok, warn or FAIL with what to do
    #[command(after_help = "Example:\n  skiff-agent doctor --config agent.toml")]
    Doctor(DoctorArguments),
    /// Writes this device's model: the newest weights of the fleet, with the layers that the device keeps for itself
    #[command(after_help = "Example:\n  skiff-agent export --config agent.toml --out adapter\n\n\
        The adapter loads with peft.PeftModel.from_pretrained(model, \"adapter\"). The agent may run meanwhile.")]
    Export(ExportArguments),
    /// Writes a commented settings file, or checks one
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Stops work and connection until `resume`; also for an agent that starts later
    Pause(OwnerArguments),
    /// Ends a pause, or lets a device that left take part again
    Resume(OwnerArguments),
    /// Signs off from the fleet and ends the agent, which does not start again until `resume`. Keeps all that was trained
    Leave(OwnerArguments),
    /// Shows what left this device: when, for which run, how much, from how many examples
    #[command(after_help = "Example:\n  skiff-agent sent --config agent.toml --last 20")]
    Sent(SentArguments),
}

#[derive(Subcommand)]
enum ConfigVerb {
    /// Writes a settings file with every setting, its default and a comment
    Init {
        /// File to write; an existing one is not changed. Without it, the text goes to the standard output
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Reads the settings as `run` does, and prints what it would use. Exit status 2 if they are wrong, 1 if a file is missing
    Check {
        /// Print one JSON object; `missing` lists the settings whose file does not exist
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        fleet: Box<FleetArguments>,
    },
}

#[derive(Args)]
struct OwnerArguments {
    /// Print one JSON object: wish, and done (now, at_next_start or late)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct SentArguments {
    #[command(flatten)]
    choice: sent::Choice,
    #[command(flatten)]
    place: Place,
}

/// Arguments that name the state folder of the agent.
#[derive(Args)]
struct Place {
    /// Settings file [default: /etc/skiff/agent.toml, if it exists]
    #[arg(long, env = "SKIFF_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// State folder of the agent [default: the one in the settings]
    #[arg(long, env = "SKIFF_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
}

impl Place {
    fn state(&self) -> anyhow::Result<PathBuf> {
        let usual = Path::new(USUAL_CONFIG);
        let file = self.config.as_deref().or_else(|| usual.exists().then_some(usual));
        let written = file.map_or_else(|| Ok(Settings::default()), Settings::read)?;
        Ok(Settings { state: self.state.clone(), ..Settings::default() }.or(written).state_folder())
    }
}

#[derive(Args)]
struct DoctorArguments {
    /// Print the checks as one line of JSON: check, verdict (ok, warn or fail) and text of each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fleet: FleetArguments,
}

#[derive(Args)]
struct ExportArguments {
    #[command(flatten)]
    output: export::Output,
    #[command(flatten)]
    fleet: FleetArguments,
}

/// Arguments for a verb that `skiff-worker` carries out, because everything that trains is in that program.
#[derive(Args)]
struct HandedOver {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

/// The settings of the fleet for a verb that `skiff-worker` carries out with the model of this device.
#[derive(Parser)]
struct OwnModel {
    #[command(flatten)]
    fleet: FleetArguments,
}

#[derive(Args)]
struct FleetArguments {
    /// Settings file [default: /etc/skiff/agent.toml, if it exists]
    #[arg(long, env = "SKIFF_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Stop when the parent process ends
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Returns the whole command line, for completions and manual pages. The verbs that the worker carries out have no options here.
#[must_use]
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Reads the command line, runs the verb, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    skiff_contract::log::start();
    let done = match &cli.verb {
        Verb::Run(arguments) => fleet(arguments, |config| run::run(config).map(|()| true)),
        Verb::Doctor(DoctorArguments { json, fleet: arguments }) => {
            fleet(arguments, |config| Ok(doctor::run(config, Report::new(stdout(), width(), *json))?))
        }
        Verb::Export(arguments) => {
            fleet(&arguments.fleet, |config| Err(become_worker(export::worker_arguments(config, &arguments.output)?)))
        }
        Verb::Config(ConfigVerb::Init { file }) => config::init(file.as_deref(), &mut stdout()).map(|()| true),
        Verb::Config(ConfigVerb::Check { json, fleet: arguments }) => {
            fleet(arguments, |config| config::check(config, *json, width(), &mut stdout()))
        }
        Verb::Pause(arguments) => owner(arguments, Wish::Pause { since_ms: now_ms() }),
        Verb::Resume(arguments) => owner(arguments, Wish::TakePart),
        Verb::Leave(arguments) => owner(arguments, Wish::Leave { since_ms: now_ms() }),
        Verb::Sent(SentArguments { choice, place }) => {
            place.state().and_then(|state| sent::run(&state, choice, width(), &mut stdout())).map(|()| true)
        }
        Verb::Predict(_) | Verb::Evaluate(_) if own::is_wanted(&words()) => with_own_model(&words()),
        Verb::Predict(_) | Verb::Evaluate(_) | Verb::Train(_) | Verb::Bench(_) | Verb::Step(_) => {
            Err(become_worker(words()))
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            let bad_settings = error.is::<crate::config::ConfigError>() || error.is::<Left>();
            let status = if bad_settings { BAD_SETTINGS } else { FAILED };
            exit_status("skiff-agent", &error, ExitCode::from(status))
        }
    }
}

fn owner(arguments: &OwnerArguments, wish: Wish) -> anyhow::Result<bool> {
    owner::run(wish, &arguments.place.state()?, arguments.json, &mut stdout())
}

/// Returns the command line, beginning with the verb.
fn words() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// Lets the worker carry out a verb with the model of this device. Fleet settings come from the file and the environment.
fn with_own_model(words: &[OsString]) -> anyhow::Result<bool> {
    let file = own::config_file(words).map(|file| [OsString::from("--config"), file.into()]);
    let settings = file.into_iter().flatten();
    let arguments = OwnModel::parse_from([OsString::from("skiff-agent")].into_iter().chain(settings));
    fleet(&arguments.fleet, |config| Err(become_worker(own::worker_arguments(config, words)?)))
}

/// Replaces this process by the worker's program.
fn become_worker(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Error {
    match Program::beside_this().context("finding this program's folder") {
        Ok(program) => program.become_it(arguments.into_iter()),
        Err(error) => error,
    }
}

fn fleet(arguments: &FleetArguments, verb: impl Fn(&Config) -> anyhow::Result<bool>) -> anyhow::Result<bool> {
    if arguments.exit_with_parent {
        let parent = rustix::process::getppid();
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
            .context("asking for a signal at the parent's end")?;
        // If the parent ended before the line above, there will be no signal.
        if rustix::process::getppid() != parent {
            bail!("the parent process has ended");
        }
    }
    let usual = Path::new(USUAL_CONFIG);
    let file = arguments.config.as_deref().or_else(|| usual.exists().then_some(usual));
    let written = file.map_or_else(|| Ok(Settings::default()), Settings::read)?;
    let host = sysinfo::System::host_name().ok();
    let config = arguments.settings.clone().or(written).check(host.as_deref())?;
    verb(&config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_are_flags_of_run() {
        let line = ["skiff-agent", "run", "--broker", "mqtt://h", "--protected", "0,5", "--allow-unsigned"];
        let Verb::Run(arguments) = Cli::parse_from(line).verb else { panic!("another verb") };
        assert_eq!(arguments.settings.broker.as_deref(), Some("mqtt://h"));
        assert_eq!(arguments.settings.protected, Some(vec![0, 5]));
        assert_eq!(arguments.settings.allow_unsigned, Some(true));
    }
}
