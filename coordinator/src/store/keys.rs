//! The coordinator's signing key in its state folder: drawn at the first start and kept from then on.

use skiff_base::files::{self, Access};
use skiff_protocol::Signer;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Name of the file with the secret key, which only its owner can read.
pub const SECRET_FILE: &str = "coordinator.key";
/// Name of the file with the public key: 64 hexadecimal digits, to be given to the devices.
pub const PUBLIC_FILE: &str = "coordinator.pub";

/// Reason why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("{attempt} {}", path.display())]
    Io {
        /// The attempted operation.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not a key.
    #[error("{} is not a key of 64 hexadecimal digits: restore it, or remove it to make a new one that every device must be given", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// Other users can read the secret key.
    #[error("other users can read {}: run chmod 600 on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
    },
    /// The system has no random numbers.
    #[error("drawing a key: {reason}")]
    Random {
        /// The system's error message.
        reason: String,
    },
}

/// Reads the secret key in the folder `state`, or draws and stores a new one. Writes its public key beside it.
///
/// # Errors
/// A key that cannot be read or stored, is malformed, or can be read by other users.
pub fn load_or_create(state: &Path) -> Result<Signer, KeyError> {
    let signer = match load(state)? {
        Some(signer) => signer,
        None => create(state)?,
    };
    let public = state.join(PUBLIC_FILE);
    fs::write(&public, format!("{}\n", signer.verifier())).map_err(io("writing", &public))?;
    Ok(signer)
}

/// Reads the secret key in the folder `state`; returns `None` if there is none yet.
///
/// # Errors
/// A key that cannot be read, is malformed, or can be read by other users.
pub fn load(state: &Path) -> Result<Option<Signer>, KeyError> {
    let path = state.join(SECRET_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("reading", &path)(error)),
    };
    let mode = fs::metadata(&path).map_err(io("looking at", &path))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path });
    }
    match blake3::Hash::from_hex(text.trim()) {
        Ok(secret) => Ok(Some(Signer::new(*secret.as_bytes()))),
        Err(_) => Err(KeyError::Malformed { path }),
    }
}

/// Draws a key and stores it. It is flushed before devices are given its public half.
fn create(state: &Path) -> Result<Signer, KeyError> {
    let path = state.join(SECRET_FILE);
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| KeyError::Random { reason: error.to_string() })?;
    let line = format!("{}\n", blake3::Hash::from_bytes(secret).to_hex());
    files::replace(&path, line.as_bytes(), Access::Owner).map_err(io("writing", &path))?;
    Ok(Signer::new(secret))
}

fn io(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError + use<> {
    let path = path.to_owned();
    move |source| KeyError::Io { attempt, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn a_key_is_drawn_once_and_kept_private() {
        let folder = TempDir::new().unwrap();
        let first = load_or_create(folder.path()).unwrap().verifier();
        assert_eq!(load_or_create(folder.path()).unwrap().verifier(), first);
        let mode = fs::metadata(folder.path().join(SECRET_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let public = fs::read_to_string(folder.path().join(PUBLIC_FILE)).unwrap();
        assert_eq!(public.trim(), first.to_string());
        let other = TempDir::new().unwrap();
        assert_ne!(load_or_create(other.path()).unwrap().verifier(), first);
    }

    #[test]
    fn an_exposed_or_broken_key_is_refused() {
        let folder = TempDir::new().unwrap();
        load_or_create(folder.path()).unwrap();
        let path = folder.path().join(SECRET_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load_or_create(folder.path()).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "abc").unwrap();
        assert!(load_or_create(folder.path()).unwrap_err().to_string().contains("64 hexadecimal digits"));
    }
}
