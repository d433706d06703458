//! Draws numbers that depend only on a seed, so that replaying a journal gives the same decisions.

/// Draws a number in 0..1 that depends only on the arguments.
#[must_use]
pub fn draw(seed: u64, purpose: &str, round: u32, of: &str) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&round.to_le_bytes());
    hasher.update(purpose.as_bytes()).update(&[0]).update(of.as_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}
