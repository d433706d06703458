//! The program `skiff-worker`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    skiff_worker::program::main()
}
