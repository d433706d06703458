//! `skiff policy`: who shares which layers.

use crate::door::Door;
use crate::table::table;
use clap::{Args, Subcommand};
use skiff_coordinator::doors::socket::{PolicyView, Request, ask_once};
use skiff_coordinator::run::sharing::{Change, Policy};
use std::io::Write as _;
use std::path::PathBuf;

/// What to do with the policy.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Show the policy, and what it means for every device that is known
    Show(ShowArguments),
    /// Say which devices another policy would touch, and how; nothing is changed
    Diff(FileArguments),
    /// Set another policy: for the run that is going on, from its next round, and for those to come
    Set(SetArguments),
}

/// What to show.
#[derive(Args, Debug)]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    door: Door,
    /// Only the policy, as it stands in a file: `skiff policy show --toml > policy.toml` is where to begin
    #[arg(long, conflicts_with = "json")]
    toml: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Another policy.
#[derive(Args, Debug)]
pub(crate) struct FileArguments {
    #[command(flatten)]
    door: Door,
    /// The other policy: keys `sharing` and `groups`, as in table [run] of the configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// As JSON, an object for every device that is known
    #[arg(long)]
    json: bool,
}

/// How to set it.
#[derive(Args, Debug)]
pub(crate) struct SetArguments {
    #[command(flatten)]
    file: FileArguments,
    /// Only say which devices it would touch
    #[arg(long)]
    dry_run: bool,
}

/// Does it.
///
/// # Errors
/// No coordinator to ask, a file that is no policy, or one that the model cannot keep.
pub(crate) async fn run(action: Action) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match action {
        Action::Show(arguments) => {
            let view: PolicyView = ask_once(&arguments.door.state()?, &Request::ShowPolicy).await?;
            let text = match (arguments.toml, arguments.json) {
                (true, _) => view.policy.to_string(),
                (false, true) => format!("{}\n", serde_json::to_string(&view)?),
                (false, false) => shown(&view),
            };
            Ok(write!(out, "{text}")?)
        }
        Action::Diff(arguments) => compare(arguments, false).await,
        Action::Set(SetArguments { file, dry_run }) => compare(file, !dry_run).await,
    }
}

async fn compare(arguments: FileArguments, sets: bool) -> anyhow::Result<()> {
    let policy = Policy::open(&arguments.file)?;
    let request = if sets { Request::SetPolicy(policy) } else { Request::ComparePolicy(policy) };
    let changes: Vec<Change> = ask_once(&arguments.door.state()?, &request).await?;
    let mut out = std::io::stdout();
    if arguments.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&changes)?)?);
    }
    Ok(write!(out, "{}", told(&changes, sets))?)
}

fn shown(view: &PolicyView) -> String {
    let mut rows = vec![vec!["device".to_owned(), "shares".to_owned()]];
    rows.extend(view.shares.iter().map(|(device, share)| vec![device.to_string(), share.to_string()]));
    let devices = if view.shares.is_empty() { "no device has been heard of\n".to_owned() } else { table(&rows) };
    format!("{}\n{devices}", view.policy)
}

fn told(changes: &[Change], sets: bool) -> String {
    let touched: Vec<&Change> = changes.iter().filter(|change| change.is_one()).collect();
    let mut text = String::new();
    for Change { device, before, after } in &touched {
        text += &format!("{device}\n  - {before}\n  + {after}\n");
    }
    let verb = if sets { "touches" } else { "would touch" };
    text += &format!("the policy {verb} {} of {} known devices\n", touched.len(), changes.len());
    if sets {
        text += "it is set, from the next round on\n";
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_protocol::messages::Place;

    #[test]
    fn only_devices_that_would_share_otherwise_are_told_of() {
        let before = Policy::default();
        let after: Policy =
            toml::from_str("groups = [{ name = 'small', class = 'pi', sharing = { least_important = 2 }, rank = 4 }]")
                .unwrap();
        let change = |device: &str, class: &str| {
            let place = Place { class: class.to_owned(), ..Place::default() };
            let share = |policy: &Policy| policy.share(&place, 6).unwrap();
            Change { device: device.parse().unwrap(), before: share(&before), after: share(&after) }
        };
        let text = told(&[change("a", "pi"), change("b", "jetson")], false);
        assert_eq!(
            text,
            "a\n  - all layers\n  + its 2 least important layers at rank 4, by group \"small\"\n\
             the policy would touch 1 of 2 known devices\n"
        );
    }
}
