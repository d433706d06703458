#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
use super::*;
use crate::fleet::Device;
use proptest::prelude::*;
use skiff_api::progress::Presence;
use skiff_protocol::Timestamp;

fn device(at: usize, updates: u32) -> DeviceProgress {
    let name = format!("device-{at:05}").parse().unwrap();
    let known = Device::new(Presence::Here, Timestamp(0));
    DeviceProgress { updates, ..views::device(&name, &known, None) }
}

fn line(run: u8, round: u32) -> RunProgress {
    let summary = crate::store::summary::Summary { round, rounds: 400, ..Default::default() };
    let (run, traffic) = (skiff_protocol::RunId(run.into()), Traffic::default());
    views::listed_run(&crate::store::RunRow { run, summary, records: 0, traffic, damage: None }, Timestamp(0))
}

/// Closed rounds of a run, with the traffic of the last one.
#[derive(Clone, Default)]
struct Rounds {
    closed: Vec<Arc<ClosedRound>>,
    last_bytes: u64,
}

impl Rounds {
    fn show(&self, run: u8, board: &mut Board) {
        let last = self.closed.len();
        let shown = &self.closed[last.saturating_sub(skiff_api::progress::ROUNDS_SHOWN)..];
        let traffic = |round: u32| Traffic { up: if round as usize == last { self.last_bytes } else { 7 }, down: 0 };
        board.set_run(line(run, last as u32), shown.iter().map(|closed| (closed, traffic(closed.round))));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Device(usize, u32),
    Forget(usize),
    State(bool, u64),
    Close(u8, u32),
    Evaluate,
    OtherRun,
    NoRun,
    Read(usize, usize),
    Join(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..20usize, 0..4u32).prop_map(|(at, updates)| Op::Device(at, updates)),
        2 => (0..20usize).prop_map(Op::Forget),
        1 => (any::<bool>(), 0..3u64).prop_map(|(connected, refused)| Op::State(connected, refused)),
        2 => (1..150u8, 0..3u32).prop_map(|(rounds, updates)| Op::Close(rounds, updates)),
        1 => Just(Op::Evaluate),
        1 => Just(Op::OtherRun),
        1 => Just(Op::NoRun),
        6 => (0..3usize, 0..4_000usize).prop_map(|(watcher, budget)| Op::Read(watcher, budget)),
        1 => (0..3usize).prop_map(Op::Join),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Lets watchers join, read a line of any size, or lag. Checks that all changes together give the whole state, whatever a
    /// watcher missed.
    #[test]
    fn the_fold_of_all_changes_is_the_whole(ops in prop::collection::vec(op(), 1..120)) {
        let (mut board, mut run, mut rounds) = (Board::default(), 0, Rounds::default());
        let mut watchers: Vec<(Feed, Progress)> = (0..3).map(|_| Default::default()).collect();
        for (at, op) in ops.into_iter().enumerate() {
            match op {
                Op::Device(at, updates) => board.set_device(device(at, updates)),
                Op::Forget(at) => board.remove_device(&device(at, 0).device),
                Op::State(connected, refused) => {
                    board.set_state(at as u64, connected, [("digest".to_owned(), refused)].into(), vec![format!("{refused}")]);
                }
                Op::Close(count, updates) => {
                    for _ in 0..count {
                        let round = rounds.closed.len() as u32 + 1;
                        rounds.closed.push(Arc::new(ClosedRound { round, updates, ..ClosedRound::default() }));
                    }
                    rounds.show(run, &mut board);
                }
                Op::Evaluate => {
                    rounds.last_bytes += 1;
                    if let Some(last) = rounds.closed.last_mut() {
                        Arc::make_mut(last).train_ms += 1;
                    }
                    rounds.show(run, &mut board);
                }
                Op::OtherRun => {
                    (run, rounds) = (run + 1, Rounds::default());
                    rounds.show(run, &mut board);
                }
                Op::NoRun => board.remove_run(),
                Op::Read(watcher, budget) => {
                    let (feed, state) = &mut watchers[watcher];
                    state.apply(feed.next(&board, budget));
                }
                Op::Join(watcher) => watchers[watcher].0 = Feed::default(),
            }
        }
        for (feed, state) in &mut watchers {
            state.apply(feed.next(&board, 0));
            while feed.has_more() {
                state.apply(feed.next(&board, 500));
            }
            prop_assert_eq!(&*state, &board.whole().progress());
        }
    }
}

#[test]
fn a_watcher_that_lags_gets_the_newest_value_once() {
    let (mut board, mut feed) = (Board::default(), Feed::default());
    feed.next(&board, usize::MAX);
    for updates in 1..=100 {
        board.set_device(device(1, updates));
        board.set_device(device(2, updates));
    }
    let changes = feed.next(&board, usize::MAX);
    assert_eq!(changes.devices, [device(1, 100), device(2, 100)]);
    assert!(!feed.has_more() && feed.next(&board, usize::MAX).devices.is_empty());
}

#[test]
fn a_view_that_is_the_same_is_no_change() {
    let (mut board, mut feed) = (Board::default(), Feed::default());
    board.set_device(device(1, 1));
    feed.next(&board, usize::MAX);
    board.set_device(device(1, 1));
    assert_eq!(feed.next(&board, usize::MAX), Changes::default());
}

#[test]
fn the_whole_state_is_partial_until_its_last_piece_though_devices_change_meanwhile() {
    let (mut board, mut feed) = (Board::default(), Feed::default());
    (0..9).for_each(|at| board.set_device(device(at, 0)));
    for piece in 1..=9 {
        (0..9).for_each(|at| board.set_device(device(at, piece)));
        assert_eq!(feed.next(&board, 0).is_partial, piece < 9, "{piece}");
    }
}

#[test]
fn a_watcher_that_missed_too_many_forgotten_devices_starts_again() {
    let (mut board, mut feed, mut state) = (Board::default(), Feed::default(), Progress::default());
    board.set_device(device(0, 0));
    state.apply(feed.next(&board, usize::MAX));
    for at in 0..=FORGOTTEN {
        board.set_device(device(at, 0));
        board.remove_device(&device(at, 0).device);
    }
    assert!(board.changes.len() <= FORGOTTEN, "what is remembered is bounded");
    let changes = feed.next(&board, usize::MAX);
    assert!(changes.restarts);
    state.apply(changes);
    assert_eq!(state, board.whole().progress());
}
