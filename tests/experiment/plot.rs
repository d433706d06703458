//! Accuracy over virtual time, as SVG.

use anyhow::anyhow;
use plotters::prelude::*;
use std::path::Path;

/// A method's mean accuracy over time.
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Seconds and accuracy in percent.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Colours that colour-blind people can tell apart (Wong, Nature Methods 8, 441, 2011), then shades.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(128, 128, 128),
];

/// Draws the curves, and the target as a line.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn curves(path: &Path, title: &str, curves: &[Curve], target: Option<f64>) -> anyhow::Result<()> {
    draw(path, title, curves, target).map_err(|error| anyhow!("drawing {}: {error}", path.display()))
}

fn draw(path: &Path, title: &str, curves: &[Curve], target: Option<f64>) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let longest = points().map(|point| point.0).fold(1.0, f64::max);
    let highest = points().map(|point| point.1).fold(1.0, f64::max);
    let height = 420.max(60 + 22 * (curves.len() as u32 + 2));
    let root = SVGBackend::new(path, (900, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(700);
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..longest * 1.02, 0.0..(highest * 1.05).min(100.0))?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_desc("virtual seconds")
        .y_desc("personal accuracy, %")
        .label_style(("sans-serif", 13))
        .draw()?;
    if let Some(target) = target {
        let line = (0..=60).map(|at| f64::from(at) / 60.0 * longest);
        let dashes: Vec<f64> = line.collect();
        for pair in dashes.chunks_exact(2) {
            chart.draw_series(LineSeries::new([(pair[0], target), (pair[1], target)], RGBColor(150, 150, 150)))?;
        }
    }
    for (at, curve) in curves.iter().enumerate() {
        let style = ShapeStyle { color: COLOURS[at % COLOURS.len()].into(), filled: false, stroke_width: 2 };
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), style))?;
        if at >= COLOURS.len() {
            let dots = curve.points.iter().map(|&point| Circle::new(point, 3, style.filled()));
            chart.draw_series(dots)?;
        }
        let y = 40 + 22 * at as i32;
        right.draw(&PathElement::new(vec![(4, y + 6), (26, y + 6)], style))?;
        if at >= COLOURS.len() {
            right.draw(&Circle::new((15, y + 6), 3, style.filled()))?;
        }
        right.draw(&Text::new(curve.name.clone(), (32, y), ("sans-serif", 13)))?;
    }
    if target.is_some() {
        let y = 40 + 22 * curves.len() as i32;
        let style = RGBColor(150, 150, 150);
        right.draw(&PathElement::new(vec![(4, y + 6), (12, y + 6)], style))?;
        right.draw(&PathElement::new(vec![(18, y + 6), (26, y + 6)], style))?;
        right.draw(&Text::new("target", (32, y), ("sans-serif", 13)))?;
    }
    root.present()?;
    Ok(())
}
