//! Memory of a process, as the kernel reports it under `/proc`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Maximum number of bytes read from a file.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OwnMemory {
    /// Resident now.
    pub resident_bytes: u64,
    /// Largest resident size so far.
    pub peak_bytes: u64,
}

/// Reads this process's own resident memory; zero if there is no `/proc` under `root`.
#[must_use]
pub fn own_memory(root: &Path) -> OwnMemory {
    process_memory(root, "self")
}

/// Reads the resident memory (`VmRSS`, `VmHWM`) of the process with this id; zero if there is none.
#[must_use]
pub fn process_memory(root: &Path, process: &str) -> OwnMemory {
    let status = read(&root.join("proc").join(process).join("status"));
    OwnMemory { resident_bytes: bytes(&status, "VmRSS:"), peak_bytes: bytes(&status, "VmHWM:") }
}

fn bytes(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0).saturating_mul(1024)
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text)) {
        Ok(_) => text,
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn root(file: &str, text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        root
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = root("proc/42/status", "Name:\tx\nVmHWM:\t    9000 kB\nVmRSS:\t    8000 kB\n");
        let expected = OwnMemory { resident_bytes: 8000 * 1024, peak_bytes: 9000 * 1024 };
        assert_eq!(process_memory(status.path(), "42"), expected);
    }

    #[test]
    fn hostile_or_missing_files_give_zero() {
        let status = root("proc/self/status", "VmRSS: 99999999999999999999 kB\nVmHWM:\n");
        assert_eq!(own_memory(status.path()), OwnMemory::default());
    }
}
