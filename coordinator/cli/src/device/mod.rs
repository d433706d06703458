//! `skiff device`: the devices of a fleet, one by one.

mod list;
mod remove;
mod show;

use clap::Subcommand;

/// Subcommands of `skiff device`.
#[derive(Subcommand, Debug)]
pub(crate) enum Action {
    /// List the devices of the fleet, or with --removed those that an operator removed
    List(list::Arguments),
    /// Show a device: its properties, its work in the last runs, and its removals
    Show(show::Arguments),
    /// Remove a device that is gone for good. The journal keeps its history
    Remove(remove::Arguments),
}

/// Runs the subcommand.
///
/// # Errors
/// No coordinator is reachable, it refuses the request, or the journal cannot be read.
pub(crate) async fn run(action: Action) -> anyhow::Result<()> {
    match action {
        Action::List(arguments) => list::run(arguments).await,
        Action::Show(arguments) => show::run(arguments).await,
        Action::Remove(arguments) => remove::run(arguments).await,
    }
}
