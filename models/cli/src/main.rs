//! The program `skiff-pack`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    skiff_pack::main()
}
