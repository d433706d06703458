//! Any bytes are a message or a refusal; a message is sealed to bytes that open to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skiff_protocol::codec::{PROTOCOL_VERSION, open, seal};

fuzz_target!(|input: (bool, u8, Vec<u8>)| {
    let (framed, kind, bytes) = input;
    // Behind a header that fits, or the fuzzer would have to guess a digest.
    let bytes = if framed { frame(kind, &bytes) } else { bytes };
    if let Ok(message) = open(&bytes, "topic", None) {
        let sealed = seal(&message, "topic", None);
        let again = open(&sealed, "topic", None).expect("what was sealed opens");
        // Bytes, not values: a NaN is not equal to itself.
        assert_eq!(seal(&again, "topic", None), sealed);
    }
});

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut head = [&b"SKIF"[..], &PROTOCOL_VERSION.to_le_bytes(), &[kind, 0]].concat();
    head.extend((payload.len() as u32).to_le_bytes());
    let digest = blake3::Hasher::new().update(&head).update(payload).finalize();
    [&head[..], digest.as_bytes(), payload].concat()
}
