//! Shows the progress of building and exporting.

use skiff_models::pack::Progress;
use skiff_screen::live::Live;
use skiff_screen::units::bytes;

/// Shows the current work, with a bar if bytes are counted.
pub(crate) fn show(live: &Live, progress: Progress<'_>) {
    match progress.bytes {
        Some((done, total)) => {
            live.count(&format!("{}, {} of {}", progress.doing, bytes(done), bytes(total)), done, total);
        }
        None => live.say(progress.doing),
    }
}
