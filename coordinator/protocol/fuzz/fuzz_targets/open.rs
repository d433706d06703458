//! Opens any bytes. The result is a message or a refusal; a message must survive being sealed and opened again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_protocol::codec::{open, seal};

fuzz_target!(|input: (Option<bool>, u8, Vec<u8>)| {
    let (newest, kind, bytes) = input;
    // Behind a header that fits, or the fuzzer would have to guess a digest.
    let bytes = match newest {
        Some(newest) => frame(if newest { 3 } else { 2 }, kind, &bytes),
        None => bytes,
    };
    if let Ok((message, version)) = open(&bytes, "topic", None) {
        let sealed = seal(&message, version, "topic", None);
        let (again, same) = open(&sealed, "topic", None).expect("what was sealed opens");
        assert_eq!(same, version);
        // Bytes, not values: a NaN is not equal to itself.
        assert_eq!(seal(&again, version, "topic", None), sealed);
    }
});

fn frame(version: u16, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = [&b"SKIF"[..], &version.to_le_bytes(), &[kind, 0]].concat();
    head.extend((payload.len() as u32).to_le_bytes());
    let digest = blake3::Hasher::new().update(&head).update(payload).finalize();
    [&head[..], digest.as_bytes(), payload].concat()
}
