//! How far things are: a bar on a terminal; elsewhere a line now and then.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Lines that are not on a terminal come this often.
const EVERY: Duration = Duration::from_secs(15);

/// One bar; gone when dropped.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    said: Mutex<Instant>,
}

impl Progress {
    /// Of so many requests.
    #[must_use]
    pub fn new(what: &'static str, requests: usize) -> Self {
        let bar = ProgressBar::new(requests as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{msg:14} {bar:30} {pos}/{len} requests, {per_sec}, {eta} to go")
        {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar, what, said: Mutex::new(Instant::now()) }
    }

    /// So many are done.
    pub fn show(&self, done: usize) {
        self.bar.set_position(done as u64);
        if self.bar.is_hidden() {
            let mut said = self.said.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if said.elapsed() > EVERY {
                *said = Instant::now();
                crate::say(&format!("{}: {done} of {} requests", self.what, self.bar.length().unwrap_or_default()));
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
