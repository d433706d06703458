//! The greeting by which agent and worker check, before any frame, that they understand each other.
//!
//! The two programs may come from different builds: a package was upgraded while the agent ran, or a file was copied by hand. Frames
//! do not describe themselves, so a build with other frames would misread them without noticing. Therefore:
//!
//! 1. The agent starts `skiff-worker work AGENT_VERSION FRAMES`.
//! 2. The worker writes its greeting, and ends if FRAMES is not its own.
//! 3. The agent reads the greeting, and sends nothing unless the worker's frames are its own.
//!
//! These three lines and the greeting's layout never change, so that builds of any age can tell each other apart:
//!
//! ```text
//! 8 bytes   SKIFFWRK
//! 4 bytes   version of the frames, little-endian
//! 4 bytes   digest of the frames, little-endian
//! 1 byte    n
//! n bytes   version of the program, UTF-8
//! ```

use crate::samples;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};

/// Version of the frames. Raise it with every change of a frame's bytes or meaning, and add the bytes to `golden/`.
pub const FRAMES_VERSION: u32 = 3;

const MAGIC: [u8; 8] = *b"SKIFFWRK";
const FIXED_BYTES: usize = MAGIC.len() + 4 + 4 + 1;

/// Identifies the frames of a build: `1-89abcdef`.
///
/// The digest covers one value of every frame, as this build writes it. Two builds therefore differ here if one of them has
/// swapped two fields, even if somebody forgot to raise the version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FramesId {
    /// [`FRAMES_VERSION`] of the build.
    pub version: u32,
    /// First four bytes of the BLAKE3 digest of the [`samples`].
    pub digest: u32,
}

impl FramesId {
    /// Returns the identity of this build's frames.
    #[must_use]
    pub fn current() -> Self {
        let mut hasher = blake3::Hasher::new();
        for (name, bytes) in samples::frames() {
            hasher.update(name.as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
        let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
        Self { version: FRAMES_VERSION, digest: u32::from_le_bytes([a, b, c, d]) }
    }
}

impl fmt::Display for FramesId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.version, self.digest)
    }
}

/// The version of a program and of its frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Version of the program, for error messages.
    pub program: String,
    /// Identity of its frames.
    pub frames: FramesId,
}

/// Reason why an agent and a worker do not work together.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "skiff-agent {agent} (frames {agent_frames}) cannot use skiff-worker {worker} (frames {worker_frames}): install both from \
     one package and restart skiff-agent"
)]
pub struct Mismatch {
    /// Version of the agent.
    pub agent: String,
    /// Frames of the agent.
    pub agent_frames: String,
    /// Version of the worker.
    pub worker: String,
    /// Frames of the worker.
    pub worker_frames: String,
}

impl Greeting {
    /// Returns the greeting of this build, for a program of version `program`.
    #[must_use]
    pub fn current(program: &str) -> Self {
        Self { program: program.to_owned(), frames: FramesId::current() }
    }

    /// Writes the greeting.
    ///
    /// # Errors
    /// The other end is closed.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let program = &self.program[..self.program.floor_char_boundary(usize::from(u8::MAX))];
        let length = [u8::try_from(program.len()).unwrap_or(u8::MAX)];
        let (version, digest) = (self.frames.version.to_le_bytes(), self.frames.digest.to_le_bytes());
        to.write_all(&[&MAGIC[..], &version, &digest, &length, program.as_bytes()].concat())?;
        to.flush()
    }

    /// Reads a greeting.
    ///
    /// # Errors
    /// `UnexpectedEof` if the other end closed before the greeting was complete; `InvalidData` if the bytes are not a greeting.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut fixed = [0; FIXED_BYTES];
        let (magic, rest) = fixed.split_at_mut(MAGIC.len());
        from.read_exact(magic)?;
        if magic != MAGIC {
            return Err(io::Error::new(ErrorKind::InvalidData, "it does not greet as a skiff-worker does"));
        }
        from.read_exact(rest)?;
        let mut numbers =
            rest.chunks_exact(4).map(|four| four.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
        let (version, digest) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let mut program = vec![0; usize::from(rest[8])];
        from.read_exact(&mut program)?;
        Ok(Self { program: String::from_utf8_lossy(&program).into_owned(), frames: FramesId { version, digest } })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn greeting() -> Greeting {
        Greeting { program: "0.1.0".to_owned(), frames: FramesId { version: 7, digest: 0x89ab_cdef } }
    }

    #[test]
    fn the_layout_of_a_greeting_never_changes() {
        let mut bytes = Vec::new();
        greeting().write(&mut bytes).unwrap();
        assert_eq!(bytes, b"SKIFFWRK\x07\0\0\0\xef\xcd\xab\x89\x050.1.0");
        assert_eq!(Greeting::read(&mut bytes.as_slice()).unwrap(), greeting());
        assert_eq!(greeting().frames.to_string(), "7-89abcdef");
    }

    #[test]
    fn a_torn_greeting_and_other_bytes_are_told_apart() {
        let mut bytes = Vec::new();
        greeting().write(&mut bytes).unwrap();
        for end in 0..bytes.len() {
            let error = Greeting::read(&mut &bytes[..end]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{end} bytes");
        }
        let error = Greeting::read(&mut [0_u8; 64].as_slice()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_mismatch_fits_into_a_refusal_that_the_coordinator_reads() {
        let mismatch = Mismatch {
            agent: "10.10.10".to_owned(),
            agent_frames: "100-89abcdef".to_owned(),
            worker: "10.10.10".to_owned(),
            worker_frames: "101-01234567".to_owned(),
        };
        let text = mismatch.to_string();
        assert_eq!(skiff_protocol::messages::short_reason(&text), text);
    }
}
