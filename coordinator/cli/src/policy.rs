//! `skiff policy`: shows and changes which layers each device shares.

use crate::door::Door;
use clap::{Args, Subcommand};
use skiff_api::policy::{Change, PolicyView};
use skiff_api::request::Request;
use skiff_coordinator::doors::client::ask_once;
use skiff_coordinator::store::policy;
use skiff_screen::output::{stdout, width};
use skiff_screen::table::{Column, Table};
use skiff_screen::text::fold;
use std::io::Write as _;
use std::path::PathBuf;

/// Subcommands of `skiff policy`.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// Show the policy, and what each known device shares under it
    Show(ShowArguments),
    /// Show which devices another policy would change, without setting it
    Diff(FileArguments),
    /// Set another policy, for the current run from its next round and for all later runs
    Set(SetArguments),
}

/// Arguments of `skiff policy show`.
#[derive(Args, Debug)]
pub(crate) struct ShowArguments {
    #[command(flatten)]
    door: Door,
    /// Print only the policy, as TOML. To edit it, start with `skiff policy show --toml > policy.toml`
    #[arg(long, conflicts_with = "json")]
    toml: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff policy diff`.
#[derive(Args, Debug)]
pub(crate) struct FileArguments {
    #[command(flatten)]
    door: Door,
    /// File with the other policy: keys `sharing` and `groups`, as in table [run] of the configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON, one object for each known device
    #[arg(long)]
    json: bool,
}

/// Arguments of `skiff policy set`.
#[derive(Args, Debug)]
pub(crate) struct SetArguments {
    #[command(flatten)]
    file: FileArguments,
    /// Only show which devices it would change
    #[arg(long)]
    dry_run: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// No coordinator is reachable, the file is not a policy, or the policy does not fit the model.
pub(crate) async fn run(action: Action) -> anyhow::Result<()> {
    let mut out = stdout();
    match action {
        Action::Show(arguments) => {
            let view: PolicyView = ask_once(&arguments.door.state()?, &Request::ShowPolicy).await?;
            let text = match (arguments.toml, arguments.json) {
                (true, _) => policy::to_toml(&view.policy),
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
    let policy = policy::open(&arguments.file)?;
    let request = if sets { Request::SetPolicy(policy) } else { Request::ComparePolicy(policy) };
    let changes: Vec<Change> = ask_once(&arguments.door.state()?, &request).await?;
    let mut out = stdout();
    if arguments.json {
        return Ok(writeln!(out, "{}", serde_json::to_string(&changes)?)?);
    }
    Ok(write!(out, "{}", fold(&told(&changes, sets), 4, width()))?)
}

fn shown(view: &PolicyView) -> String {
    let mut table = Table::new([Column::text("device"), Column::text("shares")]);
    for (device, share) in &view.shares {
        table.add([device.to_string(), share.to_string()]);
    }
    let devices = if view.shares.is_empty() { "no device has connected yet\n".to_owned() } else { table.text(width()) };
    format!("{}\n{devices}", policy::to_toml(&view.policy))
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
        text += "the policy is set and takes effect in the next round\n";
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use skiff_api::policy::Policy;
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
