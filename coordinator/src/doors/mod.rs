//! The coordinator's interfaces: MQTT for devices ([`mqtt`]), a socket in the state folder for the operator ([`socket`]).

pub mod mqtt;
pub mod socket;
