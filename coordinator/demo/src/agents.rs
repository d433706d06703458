//! Starts, watches and stops the agents, each in its own process.

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use skiff_protocol::DeviceId;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Maximum time that an agent has to stop before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
const TAIL_LINES: usize = 12;

/// Settings that all agents share.
pub(super) struct Common {
    /// Path of the agent's program.
    pub(super) program: PathBuf,
    /// URL of the broker.
    pub(super) broker: String,
    /// Name of the fleet.
    pub(super) fleet: String,
    /// Public key of the coordinator.
    pub(super) coordinator_key: String,
    /// Folder of the pack.
    pub(super) pack: PathBuf,
    /// Path of ONNX Runtime; `None` for the system's.
    pub(super) onnxruntime: Option<PathBuf>,
}

/// Returns the path of the agent's program. It must be in this program's folder, together with the worker's.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program's folder")?;
    for name in ["skiff-agent", "skiff-worker"] {
        let program = own.with_file_name(name);
        ensure!(program.is_file(), "{} is missing; build it with: cargo build --release -p {name}", program.display());
    }
    Ok(own.with_file_name("skiff-agent"))
}

/// Returns the text of `agent.toml` for one agent in `folder`.
fn settings(common: &Common, device: &DeviceId, password: &str, folder: &Path) -> anyhow::Result<String> {
    let mut table = toml::Table::new();
    let mut set = |key: &str, value: &str| drop(table.insert(key.to_owned(), value.into()));
    let path =
        |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()));
    set("broker", &common.broker);
    set("fleet", &common.fleet);
    set("device", device.as_str());
    set("password", password);
    set("coordinator_key", &common.coordinator_key);
    set("pack", &path(&common.pack)?);
    set("train", &path(&folder.join("train.jsonl"))?);
    set("test", &path(&folder.join("test.jsonl"))?);
    set("state", &path(&folder.join("state"))?);
    if let Some(library) = &common.onnxruntime {
        set("onnxruntime", &path(library)?);
    }
    // Several agents share the cores of this machine.
    table.insert("threads".to_owned(), 1.into());
    table.insert("telemetry_seconds".to_owned(), 1.into());
    Ok(table.to_string())
}

struct Agent {
    device: DeviceId,
    child: Child,
    log: PathBuf,
}

/// The running agents. They are killed when this is dropped.
#[derive(Default)]
pub(super) struct Agents {
    running: Vec<Agent>,
}

impl Agents {
    /// Starts an agent in `folder`, which holds its examples.
    pub(super) fn start(
        &mut self,
        common: &Common,
        device: DeviceId,
        password: &str,
        folder: &Path,
    ) -> anyhow::Result<()> {
        let config = folder.join("agent.toml");
        let log = folder.join("agent.log");
        let settings = settings(common, &device, password, folder)?;
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&config)
            .and_then(|mut file| file.write_all(settings.as_bytes()))
            .with_context(|| format!("writing {}", config.display()))?;
        let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut command = Command::new(&common.program);
        // The user's environment may configure another agent. It must not reach these agents.
        let own = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("SKIFF_");
        for (name, _) in std::env::vars_os().filter(|(name, _)| own(name)) {
            command.env_remove(name);
        }
        command.arg("run").arg("--config").arg(&config).arg("--exit-with-parent");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C must reach only this process, which then stops the agents.
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("starting {}", common.program.display()))?;
        self.running.push(Agent { device, child, log });
        Ok(())
    }

    /// Fails if an agent has ended, with the last lines of its log.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        for agent in &mut self.running {
            if let Some(status) = agent.child.try_wait().context("checking whether an agent is running")? {
                let log = fs::read_to_string(&agent.log).unwrap_or_default();
                bail!("{}", last_words(&agent.device, status, &log));
            }
        }
        Ok(())
    }

    /// Asks all agents to stop, and kills those that do not within [`FAREWELL`].
    pub(super) async fn stop(mut self) {
        for agent in &mut self.running {
            // Never signal an agent that has ended: another process may have its process id by now.
            if matches!(agent.child.try_wait(), Ok(None)) {
                let _ = kill_process(Pid::from_child(&agent.child), Signal::TERM);
            }
        }
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline
            && self.running.iter_mut().any(|agent| matches!(agent.child.try_wait(), Ok(None)))
        {
            sleep(POLL).await;
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for agent in &mut self.running {
            let _ = agent.child.kill();
            let _ = agent.child.wait();
        }
    }
}

fn last_words(device: &DeviceId, status: ExitStatus, log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
    let tail = if tail.is_empty() { "(nothing)".to_owned() } else { tail };
    format!(
        "{device} ended early ({status}). The end of its log:\n  {tail}\nTo look closer, run the demo with --keep FOLDER, \
         then: skiff-agent doctor --config FOLDER/{device}/agent.toml"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;
    use tempfile::TempDir;

    /// Lock that lets only one test start a script at a time. A script cannot be executed while a process that another test
    /// forked has it open.
    static STARTS: Mutex<()> = Mutex::new(());

    /// Starts a script in place of the agent's program.
    fn started(script: &str) -> (TempDir, Agents) {
        let _alone = STARTS.lock().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("agent.sh");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let common = Common {
            program,
            broker: "mqtt://127.0.0.1:1".to_owned(),
            fleet: "demo".to_owned(),
            coordinator_key: "00".repeat(32),
            pack: folder.path().join("pack"),
            onnxruntime: None,
        };
        let mut agents = Agents::default();
        agents.start(&common, device(), "secret", folder.path()).unwrap();
        (folder, agents)
    }

    fn device() -> DeviceId {
        "agent-1".parse().unwrap()
    }

    #[test]
    fn an_agent_that_ends_is_quoted() {
        let (_folder, mut agents) = started("echo the pack is broken >&2; exit 3");
        agents.running[0].child.wait().unwrap();
        let error = agents.check().unwrap_err().to_string();
        for part in ["agent-1 ended early (exit status: 3)", "  the pack is broken", "--keep"] {
            assert!(error.contains(part), "{part} in\n{error}");
        }
    }

    #[tokio::test]
    async fn agents_are_stopped_and_their_settings_are_theirs_alone() {
        let (folder, mut agents) = started("exec sleep 1000");
        agents.check().unwrap();
        let config = folder.path().join("agent.toml");
        assert_eq!(fs::metadata(&config).unwrap().permissions().mode() & 0o777, 0o600);
        let table: toml::Table = fs::read_to_string(config).unwrap().parse().unwrap();
        assert_eq!(table["device"].as_str(), Some("agent-1"));
        assert_eq!(table["password"].as_str(), Some("secret"));
        let pid = Pid::from_child(&agents.running[0].child);
        agents.stop().await;
        rustix::process::test_kill_process(pid).unwrap_err();
    }

    #[test]
    fn agents_that_are_forgotten_are_killed() {
        let (_folder, agents) = started("trap '' TERM; exec sleep 1000");
        let pid = Pid::from_child(&agents.running[0].child);
        drop(agents);
        rustix::process::test_kill_process(pid).unwrap_err();
    }

    #[test]
    fn only_the_last_lines_are_quoted() {
        let log: String = (1..=40).map(|line| format!("line {line}\n")).collect();
        let words = last_words(&device(), ExitStatus::default(), &log);
        assert!(words.contains("  line 29\n") && !words.contains("line 28\n"), "{words}");
        assert!(last_words(&device(), ExitStatus::default(), "").contains("(nothing)"));
    }
}
