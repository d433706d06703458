//! Releases: which weights of which run the devices of a group use outside training.
//!
//! This module is empty so far. It is reserved for the record of a release (a run, a round, a digest), the groups of devices that
//! it is for, its stages from a few devices to all, and the way back to the release before. Like `run/`, it will decide only: no
//! clock, no disk, no socket.
