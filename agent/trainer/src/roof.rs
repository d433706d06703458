//! Measures this machine's speed at matrix products, the upper limit for a step.

use crate::clock::monotonic;
use crate::error::TrainerError;
use crate::runtime::Runtime;
use ndarray::Array2;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;
use skiff_models::graph::{DType, Graph, Op};
use skiff_models::onnx;
use std::collections::BTreeSet;
use std::time::Duration;

/// Rows, columns and sum length of the timed product, which resembles a feed-forward layer's.
const SIZES: [usize; 3] = [1024, 3072, 768];
/// Maximum number of measurements; the best one counts. After [`PATIENCE`], [`FEWEST`] measurements are enough.
const TIMES: usize = 48;
const FEWEST: usize = 6;
const PATIENCE: Duration = Duration::from_secs(2);

/// Measures the operations per second of ONNX Runtime's single-precision product of `[1024, 768]` and the transpose of
/// `[3072, 768]`: `2 m n k` divided by the shortest of up to 48 times. It runs on the runtime's threads or its provider; the
/// times then include the transfer of the operands and the result.
///
/// # Errors
/// A graph that fails.
pub fn roof(runtime: &Runtime) -> Result<f64, TrainerError> {
    let failed = |source| TrainerError::Run { graph: "the timed product".to_owned(), source };
    let [m, n, k] = SIZES;
    let mut graph = Graph::default();
    let a = graph.input("a", DType::F32, vec![m.into(), k.into()]);
    let b = graph.input("b", DType::F32, vec![n.into(), k.into()]);
    let product = graph.op(Op::Gemm { alpha: 1.0, trans_a: false, trans_b: true }, &[a, b]);
    let bytes = product.and_then(|product| {
        graph.rename(product, "c");
        onnx::write("roof", &graph, &graph.extract(&[product], &BTreeSet::new()))
    });
    let bytes = bytes.map_err(|error| TrainerError::Stages { what: error.to_string() })?;
    let mut session = Session::builder(runtime.environment())
        .and_then(|builder| Ok(builder.with_env_allocators()?))
        .and_then(|builder| Ok(builder.with_execution_providers(runtime.providers())?))
        .and_then(|builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::All)?))
        .and_then(|mut builder| builder.commit_from_memory(&bytes))
        .map_err(failed)?;
    let (left, right) = (Array2::from_elem((m, k), 0.5_f32), Array2::from_elem((n, k), 0.25_f32));
    let mut shortest = f64::INFINITY;
    let first = monotonic();
    for time in 0..TIMES {
        if time >= FEWEST && monotonic().saturating_sub(first) > PATIENCE {
            break;
        }
        let inputs =
            (TensorRef::from_array_view(&left).map_err(failed)?, TensorRef::from_array_view(&right).map_err(failed)?);
        let begun = monotonic();
        session.run(ort::inputs![inputs.0, inputs.1]).map_err(failed)?;
        shortest = shortest.min((monotonic().saturating_sub(begun)).as_secs_f64());
    }
    Ok(2.0 * (m * n * k) as f64 / shortest)
}
