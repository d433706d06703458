//! The product of small matrices in the processor's caches, as attention needs it for one head.
//!
//! A block of the result stays in registers while outer products are added to it. No operand is copied: the second operand is
//! read row by row, and the first may have any strides, so it may be transposed.

use crate::vectors::fma;

/// The first operand of a product, by the strides of its rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// Elements of the operand.
    pub data: &'a [f32],
    /// Number of elements from one row to the next.
    pub rows: usize,
    /// Number of elements from one column to the next.
    pub columns: usize,
}

/// The second operand of a product, or the result, in rows.
#[derive(Debug)]
pub struct Rows<T> {
    /// Elements of the operand or result.
    pub data: T,
    /// Number of elements from one row to the next.
    pub stride: usize,
}

/// Sizes of a product: `[m, k]` times `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

/// Computes `C = A B`, or `C += A B` if `add` is set.
///
/// The function is inlined into its caller and compiled for the caller's vectors. `MR` rows of `NR` columns must fit the
/// registers.
///
/// # Panics
/// If a slice is too short for its sizes.
#[inline(always)]
pub fn product<const FMA: bool, const MR: usize, const NR: usize>(
    sizes: Sizes,
    a: Strided<'_>,
    b: &Rows<&[f32]>,
    c: &mut Rows<&mut [f32]>,
    add: bool,
) {
    let Sizes { m, n, k } = sizes;
    if m == 0 || n == 0 {
        return;
    }
    assert!(k == 0 || (m - 1) * a.rows + (k - 1) * a.columns < a.data.len(), "the first operand is too short");
    assert!(k == 0 || (k - 1) * b.stride + n <= b.data.len(), "the second operand is too short");
    assert!((m - 1) * c.stride + n <= c.data.len(), "the result is too short");
    let mut column = 0;
    while column + NR <= n {
        rows_of::<FMA, MR, NR>(column, sizes, a, b, c, add);
        column += NR;
    }
    while column + 8 <= n {
        rows_of::<FMA, MR, 8>(column, sizes, a, b, c, add);
        column += 8;
    }
    while column < n {
        rows_of::<FMA, MR, 1>(column, sizes, a, b, c, add);
        column += 1;
    }
}

/// Computes `NR` columns of the result, beginning with `column`.
#[inline(always)]
fn rows_of<const FMA: bool, const MR: usize, const NR: usize>(
    column: usize,
    sizes: Sizes,
    a: Strided<'_>,
    b: &Rows<&[f32]>,
    c: &mut Rows<&mut [f32]>,
    add: bool,
) {
    let mut row = 0;
    while row + MR <= sizes.m {
        tile::<FMA, MR, NR>([row, column], sizes.k, a, b, c, add);
        row += MR;
    }
    while row < sizes.m {
        tile::<FMA, 1, NR>([row, column], sizes.k, a, b, c, add);
        row += 1;
    }
}

/// Writes an expression out for each row of a block. When the compiler optimises the whole program at once, it does not
/// unroll a loop. The index is then unknown, the block stays in memory, and a product takes twice the time.
macro_rules! for_each_row {
    ($rows:ident, $at:ident => $body:block) => {
        const { assert!($rows <= 8, "more rows are to be written out here") };
        for_each_row!($rows, $at => $body; 0 1 2 3 4 5 6 7);
    };
    ($rows:ident, $at:ident => $body:block; $($row:literal)*) => {$(
        if $row < $rows {
            let $at = $row;
            $body
        }
    )*};
}

/// Computes the block of the result with the first element at `row`, `column`.
#[inline(always)]
fn tile<const FMA: bool, const MR: usize, const NR: usize>(
    [row, column]: [usize; 2],
    k: usize,
    a: Strided<'_>,
    b: &Rows<&[f32]>,
    c: &mut Rows<&mut [f32]>,
    add: bool,
) {
    let mut block = [[0.0_f32; NR]; MR];
    for step in 0..k {
        #[expect(
            unsafe_code,
            reason = "`product` has compared every slice with the sizes; checks here halve the speed"
        )]
        let right: [f32; NR] =
            unsafe { b.data.as_ptr().add(step * b.stride + column).cast::<[f32; NR]>().read_unaligned() };
        for_each_row!(MR, at => {
            #[expect(unsafe_code, reason = "as above")]
            let left = unsafe { *a.data.get_unchecked((row + at) * a.rows + step * a.columns) };
            for (block, right) in block[at].iter_mut().zip(right) {
                *block = fma::<FMA>(left, right, *block);
            }
        });
    }
    for_each_row!(MR, at => {
        let target = &mut c.data[(row + at) * c.stride + column..][..NR];
        for (target, value) in target.iter_mut().zip(block[at]) {
            *target = if add { *target + value } else { value };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::vectorised;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct Case {
        sizes: Sizes,
        transposed: bool,
        a: Vec<f32>,
        b: Vec<f32>,
        add: bool,
    }

    vectorised! {
        fn run(case: &Case, c: &mut [f32]) = of::<true, 8, 32>, of::<true, 4, 16>, of::<false, 4, 8>
    }

    #[inline(always)]
    fn of<const FMA: bool, const MR: usize, const NR: usize>(case: &Case, c: &mut [f32]) {
        let Sizes { m, n, k } = case.sizes;
        let (rows, columns) = if case.transposed { (1, m) } else { (k, 1) };
        let a = Strided { data: &case.a, rows, columns };
        let b = Rows { data: &case.b[..], stride: n };
        product::<FMA, MR, NR>(case.sizes, a, &b, &mut Rows { data: c, stride: n + 3 }, case.add);
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_products(m in 1..21usize, n in 1..77usize, k in 0..19usize, transposed: bool, add: bool) {
            let numbers = |count: usize, salt: usize| (0..count).map(|at| ((at * 37 + salt) % 23) as f32 - 11.0).collect::<Vec<_>>();
            let case = Case { sizes: Sizes { m, n, k }, transposed, a: numbers(m * k, 1), b: numbers(k * n, 2), add };
            let before = numbers(m * (n + 3), 5);
            let mut c = before.clone();
            run(&case, &mut c);
            let product = |row: usize, column: usize| {
                let left = |step: usize| case.a[if transposed { step * m + row } else { row * k + step }];
                (0..k).map(|step| left(step) * case.b[step * n + column]).sum::<f32>()
            };
            for (at, (&found, &before)) in c.iter().zip(&before).enumerate() {
                let (row, column) = (at / (n + 3), at % (n + 3));
                let inside = column < n;
                let kept = if add || !inside { before } else { 0.0 };
                let expected = kept + if inside { product(row, column) } else { 0.0 };
                // Whole numbers below 2^24 are exact.
                prop_assert_eq!(found.to_bits(), (expected + 0.0).to_bits(), "at {}", at);
            }
        }
    }
}
