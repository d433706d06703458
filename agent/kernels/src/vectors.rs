//! The widest vectors of the processor, and functions of numbers that vectors can compute.

/// Number of partial sums of a long sum: the number of elements in the widest vector.
pub(crate) const LANES: usize = 16;

/// Instructions for which a function is compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// AVX-512.
    Wide,
    /// AVX2 with fused multiply-add.
    Narrow,
    /// Vector instructions of every processor of the architecture: NEON or SSE2.
    Common,
}

/// Returns the widest vectors of this processor.
#[must_use]
pub fn width() -> Width {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            return Width::Wide;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Width::Narrow;
        }
    }
    Width::Common
}

/// Whether every processor of the architecture has a fused multiply-add.
pub(crate) const COMMON_FMA: bool = cfg!(target_arch = "aarch64");

/// Defines a function that runs `$body`, compiled for the processor's [`width`]. A generic parameter tells the body whether
/// there is a fused multiply-add. The body and all functions that it calls must be `#[inline(always)]`.
macro_rules! vectorised {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) = $wide:path, $narrow:path, $common:path) => {
        $(#[$meta])*
        $visibility fn $name($($argument: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")]
                fn wide($($argument: $kind),*) {
                    $wide($($argument),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn narrow($($argument: $kind),*) {
                    $narrow($($argument),*);
                }
                #[expect(unsafe_code, reason = "the processor was asked whether it has these instructions")]
                match $crate::vectors::width() {
                    $crate::vectors::Width::Wide => return unsafe { wide($($argument),*) },
                    $crate::vectors::Width::Narrow => return unsafe { narrow($($argument),*) },
                    $crate::vectors::Width::Common => {}
                }
            }
            $common($($argument),*);
        }
    };
}
pub(crate) use vectorised;

/// Returns `a b + c`.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Returns `exp(x)` to about one unit in the last place for `x` from -87 to 88. Outside that range, returns the value at its
/// nearer end.
///
/// `exp(x) = 2^n exp(r)` with `n = round(x / ln 2)`; `exp(r)` by its Taylor polynomial of degree 7 on `|r| <= ln(2) / 2`.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds a number to an integer, which is then in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN_2_HIGH, x);
    let r = fma::<FMA>(n, -LN_2_LOW, r);
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = fma::<FMA>(sum, r, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) << 23;
    f32::from_bits(sum.to_bits().wrapping_add(exponent))
}

/// Returns the sum of `f(i)` over `0..count`, as [`LANES`] partial sums that are added at the end.
#[inline(always)]
pub(crate) fn sum(count: usize, mut f: impl FnMut(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = count - count % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    for at in whole..count {
        lanes[at - whole] += f(at);
    }
    lanes.iter().sum()
}

/// Returns the largest of `values`.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = lane.max(value);
    }
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_exponential_agrees_with_the_librarys(x in -87.0_f32..88.0) {
            let expected = f64::from(x).exp();
            for found in [exp::<true>(x), exp::<false>(x)] {
                prop_assert!((f64::from(found) / expected - 1.0).abs() < 2e-7, "{x}: {found}, {expected}");
            }
        }

        #[test]
        fn sums_and_maxima_count_every_number_once(values in proptest::collection::vec(-1e3_f32..1e3, 0..70)) {
            let expected: f64 = values.iter().map(|&value| f64::from(value)).sum();
            let found = f64::from(sum(values.len(), |at| values[at]));
            prop_assert!((found - expected).abs() < 1e-2);
            let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assert_eq!(largest(&values).to_bits(), most.to_bits());
        }
    }

    #[test]
    fn the_exponential_of_large_numbers_is_finite() {
        assert!(exp::<true>(f32::MAX).is_finite() && exp::<true>(f32::MIN) < 2e-38);
    }
}
