//! Manual pages and shell completions of the programs, made from their own command lines, for the packages.
//!
//! It is a program of its own, so that the programs on devices do not carry it.

use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;
use std::fs;
use std::path::{Path, PathBuf};

/// Shells with completions: the folder, and the way a shell names the file of a program.
const SHELLS: [(Shell, &str); 3] = [(Shell::Bash, "bash"), (Shell::Zsh, "zsh"), (Shell::Fish, "fish")];

/// Returns the command lines of all programs for people.
#[must_use]
pub fn programs() -> Vec<Command> {
    vec![skiff_cli::command(), agent(), skiff_pack::command()]
}

/// Returns the agent's command line, with the options of the verbs that the worker carries out.
fn agent() -> Command {
    let agent = skiff_agent::program::command().name("skiff-agent");
    let names: Vec<String> = agent.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    names.iter().fold(agent, |agent, name| match skiff_worker::program::handed_over(name) {
        Some(theirs) => agent.mut_subcommand(name, |ours| {
            let about = ours.get_about().cloned();
            let verb = theirs.clone().disable_help_flag(false);
            if let Some(about) = about { verb.about(about) } else { verb }
        }),
        None => agent,
    })
}

/// Writes `man/*.1` and the completions for each shell below `folder`. Returns the paths.
///
/// # Errors
/// A file cannot be written.
pub fn write(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    for program in programs() {
        let name = program.get_name().to_owned();
        for (shell, place) in SHELLS {
            let place = folder.join(place);
            fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
            let made = clap_complete::generate_to(shell, &mut program.clone(), &name, &place);
            written.push(made.with_context(|| format!("writing completions to {}", place.display()))?);
        }
        let man = folder.join("man");
        fs::create_dir_all(&man).with_context(|| format!("making {}", man.display()))?;
        pages(&program.bin_name(name.clone()), &name, &man, &mut written)?;
    }
    Ok(written)
}

/// Writes the page of a command and of each of its verbs.
fn pages(command: &Command, name: &str, folder: &Path, written: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    // The page of a verb is called by its whole name; the usage line has blanks in place of the dashes.
    let usage = name_in_usage(command, name);
    let page = command.clone().name(leak(name)).bin_name(usage.clone()).disable_help_subcommand(true);
    let path = folder.join(format!("{name}.1"));
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    written.push(path);
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let verb_usage = format!("{usage} {}", verb.get_name());
        pages(&verb.clone().bin_name(verb_usage), &format!("{name}-{}", verb.get_name()), folder, written)?;
    }
    Ok(())
}

fn name_in_usage(command: &Command, name: &str) -> String {
    command.get_bin_name().map_or_else(|| name.to_owned(), str::to_owned)
}

/// Keeps a name until the process ends, as clap requires. There are some dozens of them.
fn leak(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;

    /// Returns every verb without verbs of its own, with its whole name.
    fn leaves(command: &Command, name: &str) -> Vec<(String, Command)> {
        let verbs: Vec<&Command> = command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
        if verbs.is_empty() {
            return vec![(name.to_owned(), command.clone())];
        }
        verbs.iter().flat_map(|verb| leaves(verb, &format!("{name} {}", verb.get_name()))).collect()
    }

    fn all_leaves() -> Vec<(String, Command)> {
        programs().iter().flat_map(|program| leaves(program, program.get_name())).collect()
    }

    #[test]
    fn every_verb_has_a_page_and_every_program_completions() {
        let folder = tempfile::tempdir().unwrap();
        let written = write(folder.path()).unwrap();
        for (name, _) in all_leaves() {
            let page = folder.path().join("man").join(format!("{}.1", name.replace(' ', "-")));
            assert!(written.contains(&page), "{name} has no page");
            let text = fs::read_to_string(page).unwrap();
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}:\n{text}");
        }
        for (place, file) in [("bash", "skiff.bash"), ("zsh", "_skiff-agent"), ("fish", "skiff-pack.fish")] {
            let text = fs::read_to_string(folder.path().join(place).join(file)).unwrap();
            assert!(text.len() > 1_000, "{file}");
        }
        let train = fs::read_to_string(folder.path().join("man/skiff-agent-train.1")).unwrap();
        assert!(train.contains("\\-\\-steps"), "the worker's options are in the agent's page");
    }

    #[test]
    fn every_verb_prints_json() {
        // Verbs whose result is not a text: a service, a file, or the settings themselves.
        let without =
            ["skiff serve", "skiff config init", "skiff-agent run", "skiff-agent config init", "skiff-agent step"];
        let has_json = |command: &Command| command.get_arguments().any(|argument| argument.get_long() == Some("json"));
        let lacking: Vec<String> = all_leaves()
            .into_iter()
            .filter(|(name, command)| !has_json(command) && !without.contains(&name.as_str()))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(lacking, [""; 0], "these verbs have no --json");
    }
}
