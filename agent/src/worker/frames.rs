//! What the agent and its worker's process say to each other over the pipes between them.
//!
//! A frame is its length (u32, little-endian) and so many bytes of postcard. The agent asks, the process answers: [`Ask::Open`]
//! once, unanswered; then [`Ask::Look`], [`Ask::Examine`] or [`Ask::Work`], each answered by [`Tell::Done`] or [`Tell::Failed`]. Of
//! work any number of [`Tell::Step`] come before, each of which waits for [`Ask::GoOn`] or [`Ask::Stop`]. The agent's end of the
//! pipes closed is the end of the process.

use crate::config::{Config, Training};
use crate::participant::Work;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_protocol::DeviceId;
use skiff_protocol::messages::WorkSample;
use skiff_protocol::transfer::MAX_TRANSFER_BYTES;
use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;

/// No frame is larger: the update and the layers that stay, and what is said of them.
const MAX_FRAME_BYTES: u64 = 2 * MAX_TRANSFER_BYTES + (1 << 20);

/// What the process needs before any work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// What is trained, on what, with what.
    pub training: Training,
    /// The device's name, of which masks and batches are a function.
    pub device: DeviceId,
    /// The agent's state folder. The process reads blobs there, and notes when it found the pack's weights sound.
    pub state: PathBuf,
    /// What the agent has resident: it counts within the device's limit of memory.
    pub beside_bytes: u64,
}

impl Setup {
    /// As it is configured.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let (training, device, state) = (config.training.clone(), config.device.clone(), config.state.clone());
        Self { training, device, state, beside_bytes: 0 }
    }
}

/// What the agent says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Once, before everything else.
    Open(Setup),
    /// What is there to train? [`Inventory`](crate::device::Inventory)
    Look,
    /// What keeps this device from training? [`Finding`](crate::commands::doctor::Finding)s with their names
    Examine,
    /// Do this. [`Product`](super::Product)
    Work(Work),
    /// The next step, please.
    GoOn,
    /// No further step: the product is of no interest.
    Stop,
}

/// What the process says; `T` is what was asked for.
#[derive(PartialEq, Debug, Serialize, Deserialize)]
pub enum Tell<T> {
    /// A step is done; a sample where there is something to tell.
    Step(Option<WorkSample>),
    /// It is done.
    Done(T),
    /// It could not be done, with the causes.
    Failed(String),
}

/// Writes a frame.
///
/// # Errors
/// The other end is gone, or the message is larger than any frame.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| u64::from(*length) <= MAX_FRAME_BYTES);
    let length = length.ok_or_else(|| io::Error::other(format!("a frame of {} bytes is too large", bytes.len())))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads a frame; `None` where the other end was closed between two.
///
/// # Errors
/// A torn frame, one that is too large, bytes that are no `T`.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let first = loop {
        match from.read(&mut length[..1]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..])?;
    let length = u64::from(u32::from_le_bytes(length));
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a frame of {length} bytes is too large")));
    }
    let mut bytes = Vec::new();
    if from.take(length).read_to_end(&mut bytes)? as u64 != length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    postcard::from_bytes(&bytes).map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::worker::Product;
    use proptest::prelude::*;

    type Told = Tell<Product>;

    #[test]
    fn what_was_sent_is_received_until_the_end() {
        let mut pipe = Vec::new();
        send(&mut pipe, &Told::Failed("no luck".to_owned())).unwrap();
        send(&mut pipe, &Told::Step(None)).unwrap();
        let mut from = pipe.as_slice();
        assert!(matches!(receive(&mut from).unwrap(), Some(Told::Failed(reason)) if reason == "no luck"));
        assert!(matches!(receive(&mut from).unwrap(), Some(Told::Step(None))));
        assert!(receive::<Told>(&mut from).unwrap().is_none());
    }

    #[test]
    fn a_torn_frame_is_an_error() {
        let mut pipe = Vec::new();
        send(&mut pipe, &Told::Failed("no luck".to_owned())).unwrap();
        for end in 1..pipe.len() {
            assert!(receive::<Told>(&mut &pipe[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_length_beyond_any_frame_is_refused_before_it_is_read() {
        let error = receive::<Told>(&mut [0xff_u8; 8].as_slice()).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }

    proptest! {
        #[test]
        fn noise_is_an_error_or_a_message_and_no_panic(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = receive::<Told>(&mut noise.as_slice());
            let _ = receive::<Ask>(&mut noise.as_slice());
        }
    }
}
