#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
use super::*;
use crate::doors::client::ask_once;
use crate::merge::model::tests::{blob, tiny};
use crate::merge::{Merging, Rule};
use crate::run::MergeInput;
use skiff_api::progress::{Phase, Progress};
use skiff_blobs::MemoryBlobs;
use tempfile::TempDir;

/// Address at which no broker listens. Everything except the fleet works without a broker.
const NOWHERE: &str = "mqtt://127.0.0.1:1";

fn config(state: &TempDir) -> Config {
    Config::new("home".parse().unwrap(), "unused".into(), state.path().into(), NOWHERE)
}

async fn start(state: &TempDir) -> Coordinator {
    Coordinator::start_with(config(state), tiny()).await.unwrap()
}

#[tokio::test]
async fn a_run_goes_on_after_a_restart_and_is_stopped_through_the_socket() {
    let state = TempDir::new().unwrap();
    let coordinator = start(&state).await;
    let key = coordinator.public_key().to_owned();
    let run = coordinator.start_run(&RunSettings { rounds: 3, ..RunSettings::default() }).await.unwrap();
    coordinator.shutdown().await.unwrap();

    let coordinator = start(&state).await;
    assert_eq!(coordinator.public_key(), key);
    let resumed: Progress = ask_once(state.path(), &Request::Progress).await.unwrap();
    let resumed = resumed.run.unwrap();
    assert_eq!((resumed.run.as_str(), resumed.phase, resumed.rounds), (run.as_str(), Phase::Gathering, 3));
    ask_once::<()>(state.path(), &Request::StopRun).await.unwrap();
    let mut progress = coordinator.progress();
    let stopped = |progress: &Progress| progress.run.as_ref().is_some_and(|run| run.phase == Phase::Stopped);
    progress.wait_for(stopped).await.unwrap();
    coordinator.shutdown().await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_by_name() {
    let state = TempDir::new().unwrap();
    let coordinator = start(&state).await;
    let refused = |text: &'static str| {
        let path = state.path().to_owned();
        async move {
            let settings = serde_json::from_str(text).unwrap();
            ask_once::<String>(&path, &Request::StartRun(settings)).await.unwrap_err().to_string()
        }
    };
    assert!(refused(r#"{"round": 3}"#).await.contains("unknown field `round`"));
    assert!(refused(r#"{"rounds": 0}"#).await.contains("rounds is 0"));
    assert!(refused(r#"{"rounds": "many"}"#).await.contains("invalid type"));
    coordinator.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_policy_is_compared_set_and_outlives_a_restart() {
    let state = TempDir::new().unwrap();
    let coordinator = start(&state).await;
    let policy = |text: &str| toml::from_str::<Policy>(text).unwrap();
    let (one, none) = (policy("sharing = { least_important = 1 }"), policy("sharing = { least_important = 3 }"));
    let view = || async { ask_once::<PolicyView>(state.path(), &Request::ShowPolicy).await.unwrap().policy };
    let refused = ask_once::<Vec<Change>>(state.path(), &Request::SetPolicy(none)).await.unwrap_err().to_string();
    assert!(refused.contains("3 layers, but the model has 2"), "{refused}");
    ask_once::<Vec<Change>>(state.path(), &Request::ComparePolicy(one.clone())).await.unwrap();
    assert_eq!(view().await, Policy::default(), "a comparison changes nothing");
    coordinator.start_run(&RunSettings::default()).await.unwrap();
    ask_once::<Vec<Change>>(state.path(), &Request::SetPolicy(one.clone())).await.unwrap();
    assert_eq!(view().await, one);
    coordinator.shutdown().await.unwrap();

    let coordinator = start(&state).await;
    assert_eq!(view().await, one, "of the current run");
    coordinator.stop_run().await.unwrap();
    assert_eq!(view().await, one, "of the next run");
    coordinator.shutdown().await.unwrap();

    std::fs::write(state.path().join("policy.toml"), "sharing = 7").unwrap();
    let error = Coordinator::start_with(config(&state), tiny()).await.err().unwrap();
    assert!(format!("{error:#}").contains("policy.toml"), "{error:#}");
}

#[tokio::test]
async fn one_coordinator_works_with_a_state_folder() {
    let state = TempDir::new().unwrap();
    let first = start(&state).await;
    let second = Coordinator::start_with(config(&state), tiny()).await.err().unwrap();
    assert!(format!("{second:#}").contains("another coordinator is using the state folder"));
    first.shutdown().await.unwrap();
    start(&state).await.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let state = TempDir::new().unwrap();
    let missing = Config { pack: "/no/such/pack".into(), ..config(&state) };
    let error = Coordinator::start(missing).await.err().unwrap();
    assert!(format!("{error:#}").contains("/no/such/pack"), "{error:#}");
    let mut odd = config(&state);
    odd.broker.url = "http://broker".into();
    let error = Coordinator::start_with(odd, tiny()).await.err().unwrap();
    assert!(format!("{error:#}").contains("http://"), "{error:#}");
}

#[tokio::test]
async fn a_new_state_folder_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("var/skiff");
    let config = Config { state: state.clone(), ..config(&folder) };
    Coordinator::start_with(config, tiny()).await.unwrap().shutdown().await.unwrap();
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_merge_that_panics_ends_with_a_reason() {
    let (model, blobs) = (Arc::new(tiny()), MemoryBlobs::new(1 << 20));
    let base = blobs.put(&model.initial).unwrap();
    let update = blobs.put(&blob(&[("head", 1.0)])).unwrap();
    let input = |name: &str| MergeInput {
        device: name.parse().unwrap(),
        update,
        examples: 1,
        shared_layers: vec![],
        rank: 0,
        stale: None,
    };
    // No settings allow this share: it takes more values away than there are.
    let merging = Merging { rule: Rule::TrimmedMean { share: 0.9 }, ..Merging::default() };
    let updates = ["a", "b", "c", "d"].map(input).to_vec();
    let job = MergeJob { run: RunId(1), epoch: 2, base, moments: None, merging, updates };
    let (about, merged) = merge(model, Arc::new(blobs), job).await;
    assert_eq!(about, (RunId(1), 2));
    let reason = merged.unwrap_err();
    assert!(reason.contains("fault in the coordinator's code") && reason.contains("panicked"), "{reason}");
}
