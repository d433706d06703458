//! The messages between agent and worker, over the worker's standard input and output, after the [`greeting`](crate::greeting).
//!
//! A frame is its length in bytes (u32, little-endian) and a message in postcard. The agent requests, the worker replies:
//!
//! ```text
//! agent                                    worker
//! Open(Setup)                       ──►
//! TakeInventory | Examine | Work    ──►
//!                                   ◄──    Step        (only for Work, any number of times)
//! Continue | Stop                   ──►
//!                                   ◄──    Done | Failed
//! ```
//! The worker ends when the agent closes its end of the pipes.

use crate::settings::Setup;
use crate::work::Work;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use skiff_protocol::messages::WorkSample;
use skiff_protocol::transfer::MAX_TRANSFER_BYTES;
use std::io::{self, ErrorKind, Read, Write};

/// Size of the largest frame in bytes: an update, the layers that stay on the device, and a report.
const MAX_FRAME_BYTES: u64 = 2 * MAX_TRANSFER_BYTES + (1 << 20);

/// A message of the agent.
#[derive(PartialEq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Sets the worker up. Sent once, as the first message, without a reply.
    Open(Setup),
    /// Asks for the pack's and the examples' properties. The reply is an [`Inventory`](crate::Inventory).
    TakeInventory,
    /// Asks for problems that keep the device from training. The reply is a list of names and [`Finding`](crate::Finding)s.
    Examine,
    /// Orders work. The reply is a [`Product`](crate::Product).
    Work(Work),
    /// Allows the next step.
    Continue,
    /// Forbids the next step, because the product is not needed any more.
    Stop,
}

/// A message of the worker; `T` is the type that the request asks for.
#[derive(PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply<T> {
    /// A step is done. It has a sample unless it was skipped.
    Step(Option<WorkSample>),
    /// The request is carried out.
    Done(T),
    /// The request failed, for this reason.
    Failed(String),
}

/// Writes a frame.
///
/// # Errors
/// `InvalidInput` if the message cannot be written, for example because a path is not UTF-8 or the frame would be too large; other
/// kinds if the other end is closed.
pub fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let refused = |reason: String| io::Error::new(ErrorKind::InvalidInput, reason);
    let bytes =
        postcard::to_stdvec(message).map_err(|error| refused(format!("a message cannot be written: {error}")))?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| u64::from(*length) <= MAX_FRAME_BYTES);
    let length = length.ok_or_else(|| refused(format!("a frame of {} bytes is too large", bytes.len())))?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&bytes)?;
    to.flush()
}

/// Reads a frame; returns `None` if the other end was closed between two frames.
///
/// # Errors
/// A truncated frame, a frame that is too large, bytes that cannot be read as a `T`.
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
    match postcard::take_from_bytes(&bytes) {
        Ok((message, [])) => Ok(Some(message)),
        Ok((_, rest)) => {
            let text = format!("a frame is {} bytes longer than its message", rest.len());
            Err(io::Error::new(ErrorKind::InvalidData, text))
        }
        Err(error) => Err(io::Error::new(ErrorKind::InvalidData, error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::work::Product;
    use proptest::prelude::*;

    type ProductReply = Reply<Product>;

    #[test]
    fn a_message_is_received_as_it_was_sent_until_the_pipe_ends() {
        let mut pipe = Vec::new();
        send(&mut pipe, &ProductReply::Failed("no luck".to_owned())).unwrap();
        send(&mut pipe, &ProductReply::Step(None)).unwrap();
        let mut from = pipe.as_slice();
        assert!(matches!(receive(&mut from).unwrap(), Some(ProductReply::Failed(reason)) if reason == "no luck"));
        assert!(matches!(receive(&mut from).unwrap(), Some(ProductReply::Step(None))));
        assert!(receive::<ProductReply>(&mut from).unwrap().is_none());
    }

    #[test]
    fn a_torn_frame_is_an_error() {
        let mut pipe = Vec::new();
        send(&mut pipe, &ProductReply::Failed("no luck".to_owned())).unwrap();
        for end in 1..pipe.len() {
            assert!(receive::<ProductReply>(&mut &pipe[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn a_length_beyond_any_frame_is_refused_before_it_is_read() {
        let error = receive::<ProductReply>(&mut [0xff_u8; 8].as_slice()).unwrap_err();
        assert!(error.to_string().contains("too large"), "{error}");
    }

    #[test]
    fn bytes_after_a_message_are_an_error() {
        let error = receive::<Request>(&mut [2, 0, 0, 0, 4, 0].as_slice()).unwrap_err();
        assert!(error.to_string().contains("1 bytes longer"), "{error}");
    }

    proptest! {
        #[test]
        fn noise_is_an_error_or_a_message_and_no_panic(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = receive::<ProductReply>(&mut noise.as_slice());
            let _ = receive::<Request>(&mut noise.as_slice());
        }
    }
}
