//! The coordinator's interfaces: MQTT for devices ([`mqtt`]), a socket in the state folder for the operator ([`socket`], with its
//! [`client`]).

pub mod client;
pub mod mqtt;
pub mod socket;

use skiff_api::request::{Reply, Request};
use tokio::sync::{mpsc, oneshot};

/// A request on its way to the coordinator's loop, with the channel for the answer. Errors are texts for the operator.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    /// Channel for the answer.
    pub reply: oneshot::Sender<Result<Reply, String>>,
}

impl Call {
    /// Sends a request to the loop and waits for its answer.
    ///
    /// # Errors
    /// The loop refuses the request, or it has ended.
    pub async fn make(calls: &mpsc::Sender<Self>, request: Request) -> Result<Reply, String> {
        let (reply, answered) = oneshot::channel();
        let ended = || "the coordinator has stopped".to_owned();
        calls.send(Self { request, reply }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}
