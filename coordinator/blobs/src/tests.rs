//! The laws of [`Blobs`], for each implementation.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use skiff_protocol::transfer::CHUNK_BYTES;

const QUOTA: u64 = 4 * CHUNK_BYTES as u64;

fn laws(blobs: &dyn Blobs) {
    assert_eq!(blobs.owner().unwrap(), None);
    blobs.set_owner("one").unwrap();
    blobs.set_owner("two").unwrap();
    assert_eq!(blobs.owner().unwrap().as_deref(), Some("two"));

    let small = blobs.put(b"small").unwrap();
    assert_eq!(blobs.put(b"small").unwrap(), small);
    assert_eq!((blobs.read(small).unwrap(), blobs.size_bytes(small).unwrap()), (b"small".to_vec(), 5));
    assert_eq!((blobs.list().unwrap(), blobs.room_bytes()), (vec![(small, 5)], QUOTA - 5));
    assert!(blobs.disk_free_bytes().unwrap() > 0);

    // Two chunks, the last one first, one of them twice.
    let bytes: Vec<u8> = (0..CHUNK_BYTES + 3).map(|at| (at % 251) as u8).collect();
    let (digest, total) = (Digest::of(&bytes), bytes.len() as u64);
    assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Incomplete);
    for index in [1, 0, 1] {
        blobs.put_chunk(digest, total, index, bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap()).unwrap();
    }
    assert_eq!((blobs.partials().unwrap(), blobs.held(digest, total).unwrap().count(2)), (vec![digest], 2));
    assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
    assert_eq!(blobs.assemble(digest, total).unwrap(), Assembly::Whole);
    assert_eq!((blobs.read(digest).unwrap(), blobs.partials().unwrap()), (bytes.clone(), vec![]));
    assert_eq!((blobs.chunk(digest, 1).unwrap().len(), blobs.chunk(digest, 2).unwrap().len()), (3, 0));
    assert_eq!(blobs.room_bytes(), QUOTA - 5 - total);

    // Refusals change nothing.
    let wrong = Digest::of(b"right");
    assert!(matches!(blobs.put_chunk(wrong, 5, 0, b"four"), Err(BlobError::WrongChunk { expected: 5, .. })));
    blobs.put_chunk(wrong, 5, 0, b"wrong").unwrap();
    assert_eq!(blobs.assemble(wrong, 5).unwrap(), Assembly::WrongDigest);
    assert!(!blobs.contains(wrong) && blobs.partials().unwrap().is_empty());
    assert!(matches!(blobs.put(&vec![1; 3 * CHUNK_BYTES]), Err(BlobError::QuotaExceeded { .. })));
    blobs.put_chunk(wrong, 5, 0, b"right").unwrap();
    blobs.abandon(wrong).unwrap();
    blobs.remove(digest).unwrap();
    blobs.remove(digest).unwrap();
    assert!(matches!(blobs.read(digest), Err(BlobError::Missing { .. })));
    assert_eq!((blobs.list().unwrap(), blobs.room_bytes()), (vec![(small, 5)], QUOTA - 5));
}

#[test]
fn blobs_on_disk_obey_the_laws() {
    let folder = tempfile::tempdir().unwrap();
    laws(&DiskBlobs::open(folder.path(), QUOTA).unwrap());
}

#[test]
fn blobs_in_memory_obey_the_laws() {
    laws(&MemoryBlobs::new(QUOTA));
}
