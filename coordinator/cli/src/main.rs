//! The program `skiff`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    skiff_cli::main()
}
