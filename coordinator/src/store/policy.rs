//! The file of the sharing policy that was set last, `policy.toml` in the state folder.

use skiff_api::policy::Policy;
use skiff_base::files::{self, Access};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Name of the policy's file in the state folder. It exists once a policy was set.
pub const FILE: &str = "policy.toml";

/// Reason why a policy cannot be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read or written.
    #[error("reading or writing the policy {}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The file is not a policy.
    #[error("in the policy {}", path.display())]
    Parse {
        /// Path of the file.
        path: PathBuf,
        /// Position and cause.
        source: Box<toml::de::Error>,
    },
}

/// Reads a policy's file.
///
/// # Errors
/// A file that cannot be read, or is not a policy.
pub fn open(path: &Path) -> Result<Policy, PolicyError> {
    let text = fs::read_to_string(path).map_err(|source| PolicyError::File { path: path.to_owned(), source })?;
    let parsed = toml::from_str(&text);
    parsed.map_err(|source| PolicyError::Parse { path: path.to_owned(), source: Box::new(source) })
}

/// Reads the policy that was set for the coordinator of the folder `state`; `None` if none was set.
///
/// # Errors
/// Same as [`open`].
pub fn read(state: &Path) -> Result<Option<Policy>, PolicyError> {
    match open(&state.join(FILE)) {
        Err(PolicyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Stores the policy for the coordinator of the folder `state`, completely or not at all.
///
/// # Errors
/// A file that cannot be written.
pub fn write(policy: &Policy, state: &Path) -> Result<(), PolicyError> {
    let path = state.join(FILE);
    files::replace(&path, to_toml(policy).as_bytes(), Access::Owner)
        .map_err(|source| PolicyError::File { path, source })
}

/// Returns the policy in the format of its file.
#[must_use]
pub fn to_toml(policy: &Policy) -> String {
    toml::to_string(policy).expect("a policy is plain values with text keys")
}
