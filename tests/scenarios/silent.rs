//! ONNX Runtime in our hands talks to nobody. This file has one test, because it looks at the whole process.
#![allow(clippy::unwrap_used, reason = "a failing test may panic")]

use skiff_trainer::Runtime;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn the_library_starts_no_thread_but_those_that_compute() {
    let before = threads();
    let _runtime = Runtime::load(None, 3).unwrap();
    // The one that asks computes too. Its telemetry client would be one more thread.
    assert_eq!(threads() - before, 2);
}
