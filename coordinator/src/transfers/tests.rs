#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
use super::*;
use crate::stalls::STALL_MS;
use skiff_blobs::DiskBlobs;
use skiff_protocol::samples;
use skiff_protocol::transfer::CHUNK_BYTES;
use tempfile::TempDir;

const RUN: RunId = RunId(1);

fn device(name: &str) -> DeviceId {
    name.parse().unwrap()
}

fn transfers(slots: usize) -> (Transfers, TempDir) {
    let folder = TempDir::new().unwrap();
    let blobs = DiskBlobs::open(folder.path(), 1 << 24).unwrap();
    (Transfers::new(Arc::new(blobs), slots), folder)
}

fn update(bytes: &[u8]) -> Offer {
    let purpose = Purpose::Update { run: RUN, round: 1, epoch: 2, report: samples::train_report() };
    Offer { purpose, digest: Digest::of(bytes), total_bytes: bytes.len() as u64 }
}

fn wanted(_: &Offer) -> Verdict {
    Verdict::Wanted
}

fn offer(transfers: &mut Transfers, name: &str, offer: &Offer, at: u64) -> Vec<Step> {
    transfers.receive(&device(name), offer.id(), TransferMessage::Offer(offer.clone()), wanted, Timestamp(at))
}

fn sent_to(steps: &[Step]) -> Vec<(&str, &TransferMessage)> {
    steps
        .iter()
        .filter_map(|step| match step {
            Step::Send(device, _, message) => Some((device.as_str(), message)),
            Step::Arrived(..) => None,
        })
        .collect()
}

/// Sends every chunk and returns the last steps.
fn upload(transfers: &mut Transfers, name: &str, offer: &Offer, bytes: &[u8], at: u64) -> Vec<Step> {
    let chunk = |(index, bytes): (usize, &[u8])| TransferMessage::Chunk { index: index as u32, bytes: bytes.to_vec() };
    let chunks = bytes.chunks(CHUNK_BYTES).enumerate().map(chunk);
    chunks.map(|chunk| transfers.receive(&device(name), offer.id(), chunk, wanted, Timestamp(at))).last().unwrap()
}

#[test]
fn an_update_is_done_only_when_it_is_confirmed() {
    let (mut transfers, _folder) = transfers(2);
    let bytes = vec![7; CHUNK_BYTES + 10];
    let update = update(&bytes);
    assert!(matches!(sent_to(&offer(&mut transfers, "a", &update, 0))[..], [("a", TransferMessage::Grant { .. })]));
    let steps = upload(&mut transfers, "a", &update, &bytes, 1);
    assert_eq!(steps.last(), Some(&Step::Arrived(device("a"), update.clone())));
    assert!(!sent_to(&steps).iter().any(|(_, message)| **message == TransferMessage::Done));
    let steps = transfers.confirm(&device("a"), update.digest, Timestamp(2));
    assert_eq!(sent_to(&steps), [("a", &TransferMessage::Done)]);
}

#[test]
fn chunks_that_do_not_make_the_payload_are_asked_for_again() {
    let (mut transfers, _folder) = transfers(2);
    let update = update(b"right");
    offer(&mut transfers, "a", &update, 0);
    upload(&mut transfers, "a", &update, b"wrong", 1);
    let steps = transfers.start_over(&device("a"), update.digest, Timestamp(2));
    assert!(matches!(sent_to(&steps)[..], [("a", TransferMessage::Grant { held, .. })] if held.count(1) == 0));
}

#[test]
fn an_unfit_update_is_refused_with_a_reason_of_bounded_length() {
    let (mut transfers, _folder) = transfers(2);
    let update = update(b"bad");
    offer(&mut transfers, "a", &update, 0);
    upload(&mut transfers, "a", &update, b"bad", 1);
    let steps = transfers.refuse(&device("a"), update.digest, "ä".repeat(300), Timestamp(2));
    let [("a", TransferMessage::Refused { reason })] = sent_to(&steps)[..] else { panic!("{steps:?}") };
    assert!(reason.starts_with('ä') && reason.len() <= 200);
    let judge = |_: &Offer| Verdict::Refused("x".repeat(999));
    let again = TransferMessage::Offer(update.clone());
    let steps = transfers.receive(&device("a"), update.id(), again, judge, Timestamp(3));
    assert!(matches!(sent_to(&steps)[..], [(_, TransferMessage::Refused { reason })] if reason.len() == 200));
}

#[test]
fn what_was_assembled_before_a_crash_is_looked_at_again_without_being_sent() {
    let (mut transfers, _folder) = transfers(2);
    let update = update(b"whole");
    transfers.blobs.put(b"whole").unwrap();
    let steps = offer(&mut transfers, "a", &update, 0);
    assert_eq!(steps.last(), Some(&Step::Arrived(device("a"), update)));
}

#[test]
fn an_offer_under_another_name_or_of_weights_is_not_taken() {
    let (mut transfers, _folder) = transfers(2);
    let update = update(b"x");
    let message = TransferMessage::Offer(update.clone());
    assert_eq!(transfers.receive(&device("a"), TransferId(1), message, wanted, Timestamp(0)), []);
    let weights = Offer { purpose: Purpose::Weights { run: RUN }, ..update };
    let steps = offer(&mut transfers, "a", &weights, 0);
    assert!(matches!(sent_to(&steps)[..], [(_, TransferMessage::Refused { .. })]));
}

#[test]
fn uploads_wait_for_a_slot_and_take_it_when_one_ends_idles_or_leaves() {
    let (mut transfers, _folder) = transfers(1);
    let updates: Vec<Offer> = [b"a", b"b", b"c", b"d"].iter().map(|bytes| update(*bytes)).collect();
    assert_eq!(sent_to(&offer(&mut transfers, "a", &updates[0], 0)).len(), 1);
    assert_eq!(offer(&mut transfers, "b", &updates[1], 0), []);
    assert_eq!(offer(&mut transfers, "c", &updates[2], 0), []);
    upload(&mut transfers, "a", &updates[0], b"a", 1);
    let steps = transfers.confirm(&device("a"), updates[0].digest, Timestamp(2));
    let granted: Vec<&str> = sent_to(&steps).iter().map(|(device, _)| *device).collect();
    assert_eq!(granted, ["a", "b"], "Done, and the next one's turn");
    let steps = transfers.forget(&device("b"), Timestamp(3));
    assert_eq!(sent_to(&steps)[0].0, "c");
    assert_eq!(offer(&mut transfers, "d", &updates[3], 3 + IDLE_MS - 1), []);
    assert_eq!(sent_to(&offer(&mut transfers, "d", &updates[3], 3 + IDLE_MS))[0].0, "d");
}

#[test]
fn updates_of_a_closed_round_are_dropped_and_their_devices_told() {
    let (mut transfers, _folder) = transfers(1);
    offer(&mut transfers, "a", &update(b"a"), 0);
    offer(&mut transfers, "b", &update(b"b"), 0);
    let steps = transfers.judge_again(|_, _| Verdict::Refused("round 1 is closed".into()), Timestamp(1));
    assert!(matches!(sent_to(&steps)[..], [("a", TransferMessage::Refused { .. })]), "{steps:?}");
    assert!(transfers.uploads.active.is_empty() && transfers.uploads.waiting.is_empty());
}

#[test]
fn weights_are_sent_on_grant_and_newer_ones_take_their_place() {
    let (mut transfers, _folder) = transfers(2);
    let old = transfers.blobs.put(b"old").unwrap();
    let new = transfers.blobs.put(b"new").unwrap();
    let steps = transfers.offer_weights(&device("a"), RUN, old, Timestamp(0));
    let [Step::Send(_, id, TransferMessage::Offer(_))] = steps[..] else { panic!("{steps:?}") };
    let grant = TransferMessage::Grant { held: Held::default(), window: 4 };
    let steps = transfers.receive(&device("a"), id, grant.clone(), wanted, Timestamp(1));
    assert!(matches!(sent_to(&steps)[..], [(_, TransferMessage::Chunk { index: 0, bytes })] if bytes == b"old"));
    assert!(transfers.deadline().is_some());
    let steps = transfers.offer_weights(&device("a"), RUN, new, Timestamp(2));
    let [Step::Send(_, new_id, TransferMessage::Offer(_))] = steps[..] else { panic!("{steps:?}") };
    assert_eq!(transfers.receive(&device("a"), id, grant, wanted, Timestamp(3)), [], "of the older transfer");
    assert_eq!(transfers.receive(&device("a"), new_id, TransferMessage::Done, wanted, Timestamp(4)), []);
    assert_eq!(transfers.deadline(), None);
    assert_eq!(transfers.offer_weights(&device("a"), RUN, Digest([3; 32]), Timestamp(5)), [], "not there");
}

#[test]
fn a_transfer_that_does_not_move_is_reported_once_and_its_return_too() {
    let (mut transfers, _folder) = transfers(4);
    let weights = transfers.blobs.put(&[7; CHUNK_BYTES + 1]).unwrap();
    let id =
        Offer { purpose: Purpose::Weights { run: RUN }, digest: weights, total_bytes: CHUNK_BYTES as u64 + 1 }.id();
    let down = |transfers: &mut Transfers, name: &str, message, at| {
        transfers.receive(&device(name), id, message, wanted, Timestamp(at))
    };
    let grant = || TransferMessage::Grant { held: Held::default(), window: 4 };
    transfers.offer_weights(&device("mute"), RUN, weights, Timestamp(0));
    transfers.offer_weights(&device("deaf"), RUN, weights, Timestamp(0));
    down(&mut transfers, "deaf", grant(), 1);
    let update = update(&[1; CHUNK_BYTES + 1]);
    offer(&mut transfers, "full", &update, 0);
    assert_eq!(transfers.deadline().map(|at| at <= Timestamp(STALL_MS)), Some(true));
    assert_eq!(transfers.take_stalls(Timestamp(STALL_MS - 1)), []);
    let stalled = [
        (device("deaf"), Some(Stall::WeightsUnmoved)),
        (device("mute"), Some(Stall::WeightsUnanswered)),
        (device("full"), Some(Stall::UpdateUnmoved)),
    ];
    assert_eq!(transfers.take_stalls(Timestamp(STALL_MS)), stalled);
    assert_eq!(transfers.take_stalls(Timestamp(3 * STALL_MS)), [], "once");

    let mut held = Held::default();
    held.insert(0);
    down(&mut transfers, "deaf", TransferMessage::Progress { held }, 3 * STALL_MS);
    down(&mut transfers, "mute", TransferMessage::Done, 3 * STALL_MS);
    let chunk = TransferMessage::Chunk { index: 0, bytes: vec![1; CHUNK_BYTES] };
    transfers.receive(&device("full"), update.id(), chunk, wanted, Timestamp(3 * STALL_MS));
    assert_eq!(
        transfers.take_stalls(Timestamp(3 * STALL_MS)),
        [(device("deaf"), None), (device("mute"), None), (device("full"), None)]
    );
    let again = transfers.take_stalls(Timestamp(4 * STALL_MS));
    assert_eq!(again, [(device("deaf"), Some(Stall::WeightsUnmoved)), (device("full"), Some(Stall::UpdateUnmoved))]);
    transfers.forget(&device("deaf"), Timestamp(4 * STALL_MS));
    transfers.forget(&device("full"), Timestamp(4 * STALL_MS));
    assert_eq!(transfers.take_stalls(Timestamp(4 * STALL_MS)), [(device("deaf"), None), (device("full"), None)]);
    assert_eq!(transfers.deadline(), None);
}
