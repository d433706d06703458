//! Cost of training, each line a process of its own on two threads: steps on three sizes of BERT, real text, and with `--xxl` a
//! large DeBERTa in little memory. If `--peers PYTHON` is given, PyTorch and PEFT run between Skiff's lines. Prints tables, and
//! writes them as JSON if `--json FILE` is given. `--quick` measures only `MiniLM` and less text. `--data FOLDER` uses your
//! texts in place of the generated ones.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may stop")]

mod limited;
mod packs;
mod peers;
mod process;
mod sizes;
mod texts;

use peers::Peers;
use skiff_tests::results;

fn main() {
    let flag = |name: &str| std::env::args().any(|argument| argument == name);
    let quick = flag("--quick");
    let peers = Peers::find();
    results::store("steps", sizes::measure(quick, peers.as_ref()).into());
    results::store("text", texts::measure(quick, peers.as_ref()).into());
    if flag("--xxl") {
        results::store("limited", limited::measure().into());
    }
}
