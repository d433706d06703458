#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
use super::*;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_assert_eq, proptest};
use tempfile::TempDir;

const QUOTA: u64 = 1 << 20;

fn store() -> (TempDir, DiskBlobs) {
    let folder = tempfile::tempdir().unwrap();
    let blobs = DiskBlobs::open(folder.path().join("a/b"), QUOTA).unwrap();
    (folder, blobs)
}

fn reopened(blobs: &DiskBlobs) -> DiskBlobs {
    DiskBlobs::open(&blobs.root, blobs.quota_bytes).unwrap()
}

fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

fn chunk_of(bytes: &[u8], index: u32) -> &[u8] {
    bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap()
}

#[test]
fn a_blob_is_there_for_the_next_process_until_it_is_removed() {
    let (_folder, blobs) = store();
    let bytes = payload(100_000);
    let digest = blobs.put(&bytes).unwrap();
    assert_eq!(blobs.put(&bytes).unwrap(), digest);
    let blobs = reopened(&blobs);
    assert_eq!(blobs.read(digest).unwrap(), bytes);
    assert_eq!(blobs.size_bytes(digest).unwrap(), 100_000);
    assert_eq!(blobs.list().unwrap(), [(digest, 100_000)]);
    assert_eq!(blobs.room_bytes(), QUOTA - 100_000);
    assert_eq!(blobs.chunk(digest, 1).unwrap(), chunk_of(&bytes, 1));
    assert!(blobs.chunk(digest, 2).unwrap().is_empty());
    blobs.remove(digest).unwrap();
    blobs.remove(digest).unwrap();
    assert!(matches!(blobs.read(digest), Err(BlobError::Missing { .. })));
    assert_eq!(blobs.room_bytes(), QUOTA);
}

#[test]
fn a_blob_that_the_disk_changed_is_not_let_out() {
    let (_folder, blobs) = store();
    let digest = blobs.put(&payload(1000)).unwrap();
    fs::write(blobs.blob_path(digest), payload(999)).unwrap();
    let message = blobs.read(digest).unwrap_err().to_string();
    assert!(message.contains(&digest.to_string()) && message.contains("remove it"), "{message}");
}

#[test]
fn a_transfer_goes_on_after_a_restart_where_the_chunks_are() {
    let (_folder, blobs) = store();
    let bytes = payload(150_000);
    let (digest, total) = (Digest::of(&bytes), 150_000);
    blobs.put_chunk(digest, total, 2, chunk_of(&bytes, 2)).unwrap();
    blobs.put_chunk(digest, total, 0, chunk_of(&bytes, 0)).unwrap();
    blobs.put_chunk(digest, total, 0, chunk_of(&bytes, 0)).unwrap();
    // A chunk that was torn by the crash, and one whose writing was interrupted.
    fs::write(blobs.partial_path(digest).join("1"), b"torn").unwrap();
    fs::write(blobs.root.join("aside/7"), b"half").unwrap();

    let blobs = reopened(&blobs);
    assert_eq!(blobs.partials().unwrap(), [digest]);
    let held = blobs.held(digest, total).unwrap();
    assert_eq!(held.missing(3).collect::<Vec<_>>(), [1]);
    assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Incomplete);
    blobs.put_chunk(digest, total, 1, chunk_of(&bytes, 1)).unwrap();
    assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
    assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
    assert_eq!(blobs.read(digest).unwrap(), bytes);
    assert_eq!(blobs.partials().unwrap(), []);
    assert_eq!(blobs.room_bytes(), QUOTA - total);
    assert_eq!(reopened(&blobs).room_bytes(), QUOTA - total);
    assert_eq!(entries(&blobs.root.join("aside")).unwrap().len(), 0);
}

#[test]
fn chunks_of_something_else_are_thrown_away() {
    let (_folder, blobs) = store();
    let digest = Digest::of(b"right");
    blobs.put_chunk(digest, 5, 0, b"wrong").unwrap();
    assert_eq!(blobs.assemble(digest, 5).unwrap(), Assembly::WrongDigest);
    assert!(!blobs.contains(digest));
    assert_eq!(blobs.held(digest, 5).unwrap(), Held::default());
    assert_eq!(blobs.room_bytes(), QUOTA);
    assert_eq!(entries(&blobs.root.join("aside")).unwrap().len(), 0);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (_folder, blobs) = store();
    let kept = blobs.put(&payload(1_000_000)).unwrap();
    let message = blobs.put(&payload(60_000)).unwrap_err().to_string();
    assert!(message.contains("60000") && message.contains("raise the quota"), "{message}");
    let bytes = payload(CHUNK_BYTES);
    let refused = blobs.put_chunk(Digest::of(&bytes), CHUNK_BYTES as u64, 0, &bytes);
    assert!(matches!(refused, Err(BlobError::QuotaExceeded { .. })));
    assert_eq!(blobs.list().unwrap(), [(kept, 1_000_000)]);
    assert_eq!(blobs.room_bytes(), QUOTA - 1_000_000);
    blobs.remove(kept).unwrap();
    blobs.put(&payload(60_000)).unwrap();
}

#[test]
fn what_cannot_be_put_in_place_leaves_nothing_aside() {
    let (_folder, blobs) = store();
    let digest = Digest::of(b"right");
    // A folder where the file should be: it cannot be renamed there.
    fs::create_dir_all(blobs.partial_path(digest).join("0")).unwrap();
    assert!(matches!(blobs.put_chunk(digest, 5, 0, b"right"), Err(BlobError::Io { .. })));
    fs::create_dir(blobs.blob_path(digest)).unwrap();
    assert!(matches!(blobs.put(b"right"), Err(BlobError::Io { .. })));
    assert_eq!(entries(&blobs.root.join("aside")).unwrap().len(), 0);
    assert_eq!(blobs.room_bytes(), QUOTA);
}

#[test]
fn a_chunk_of_the_wrong_size_is_named() {
    let (_folder, blobs) = store();
    let digest = Digest::of(b"x");
    for (index, bytes) in [(0, 4), (0, 6), (1, 5), (1, 0), (u32::MAX, 5)] {
        let refused = blobs.put_chunk(digest, 5, index, &payload(bytes));
        assert!(matches!(refused, Err(BlobError::WrongChunk { .. })), "{index} {bytes}");
    }
    assert_eq!(blobs.room_bytes(), QUOTA);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Chunks in any order, repeated any number of times, assemble to the payload once all have arrived.
    #[test]
    fn any_order_of_chunks_makes_the_same_blob(
        (bytes, order) in (1..400_000_usize).prop_flat_map(|bytes| {
            let all: Vec<u32> = (0..chunk_count(bytes as u64)).chain(0..chunk_count(bytes as u64)).collect();
            (Just(bytes), Just(all).prop_shuffle())
        }),
    ) {
        let (_folder, blobs) = store();
        let bytes = payload(bytes);
        let (digest, total) = (Digest::of(&bytes), bytes.len() as u64);
        for index in order {
            blobs.put_chunk(digest, total, index, chunk_of(&bytes, index)).unwrap();
        }
        prop_assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
        prop_assert_eq!(blobs.read(digest).unwrap(), bytes);
        prop_assert_eq!(blobs.room_bytes(), QUOTA - total);
    }
}

#[test]
fn threads_store_and_assemble_one_payload_at_the_same_time() {
    let folder = TempDir::new().unwrap();
    let store = DiskBlobs::open(folder.path(), 1 << 24).unwrap();
    for round in 0..50_u8 {
        let bytes = vec![round; 2 * CHUNK_BYTES];
        let (digest, total) = (Digest::of(&bytes), bytes.len() as u64);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for (index, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
                        store.put_chunk(digest, total, index as u32, chunk).unwrap();
                    }
                    store.assemble(digest, total).unwrap();
                });
            }
        });
        assert_eq!(store.read(digest).unwrap(), bytes);
        // A thread that was late may have begun the chunks again.
        store.abandon(digest).unwrap();
        assert_eq!(
            store.room_bytes(),
            (1 << 24) - u64::from(round + 1) * total,
            "no byte is counted twice or forgotten"
        );
    }
}
