//! The configuration file while the indexer runs: read again when it changes, or at SIGHUP.
//!
//! Its content is compared, not its time or inode: that follows the symbolic links that Kubernetes swaps under a mounted
//! ConfigMap, and costs a few KiB a second. A change counts once it has been the same for two looks, so that a file is
//! not read while it is being written. A file that cannot be used changes nothing and is tried again: what it names may
//! come. SIGHUP always tries, as models' files may have changed.

use crate::app::App;
use crate::config::Config;
use crate::library::Plan;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// A file that is not there for fewer looks is being replaced, or its volume is.
const LOOKS: u32 = 3;
/// Between attempts at what could not be used.
const AGAIN: Duration = Duration::from_secs(5);

/// Looks at the file again and again, and sends what is to be run from then on. `plan` runs now; `text` is what it was
/// read from.
pub async fn follow(path: PathBuf, text: String, plan: Plan, app: Arc<App>, news: mpsc::Sender<Plan>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    let mut seen = Seen { taken: text, candidate: None };
    let mut plan = Arc::new(plan);
    let mut failed = Failed { app: app.clone(), last: None };
    let mut missing = 0;
    app.metrics.reloaded(None);
    loop {
        let now = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(EVERY) => false,
        };
        let text = match tokio::fs::read_to_string(&path).await {
            Ok(text) => text,
            Err(error) => {
                missing += 1;
                if now || missing >= LOOKS {
                    failed.tell(format!("cannot read {}: {error}", path.display()), now);
                }
                continue;
            }
        };
        missing = 0;
        if !(seen.is_new(&text, now) || now || seen.taken == text && failed.is_due()) {
            continue;
        }
        let (before, place) = (plan.clone(), path.clone());
        let read = tokio::task::spawn_blocking(move || read(&text, &place, &before)).await;
        match read.context("it cannot be read").and_then(|read| read) {
            Ok(new) => {
                let path = path.display();
                tracing::info!(%path, "the configuration has been read again and is taken over");
                for (model, note) in new.library.notes() {
                    tracing::warn!(model, "{note}");
                }
                failed.last = None;
                app.metrics.reloaded(Some(true));
                plan = Arc::new(new.clone());
                if news.send(new).await.is_err() {
                    return;
                }
            }
            Err(error) => failed.tell(format!("{error:#}"), now),
        }
    }
}

/// What could not be used last.
struct Failed {
    app: Arc<App>,
    /// Why, and when that was found.
    last: Option<(String, Instant)>,
}

impl Failed {
    /// Whether it is time to try again.
    fn is_due(&self) -> bool {
        self.last.as_ref().is_some_and(|(_, at)| at.elapsed() >= AGAIN)
    }

    /// Tells of a failure: once, however often it is found again; but who asks is answered.
    fn tell(&mut self, error: String, asked: bool) {
        if asked || self.last.as_ref().is_none_or(|(last, _)| *last != error) {
            self.app.metrics.reloaded(Some(false));
            tracing::error!(error, "the changed configuration is not usable; the indexer runs on with the one before");
        }
        self.last = Some((error, Instant::now()));
    }
}

fn read(text: &str, path: &Path, before: &Plan) -> Result<Plan> {
    let config = Config::parse(text).with_context(|| format!("{} is not usable", path.display()))?;
    Plan::new(config, path.parent().unwrap_or(Path::new("")), Some(before))
}

/// What was seen of the file.
struct Seen {
    /// The content last tried, usable or not.
    taken: String,
    /// Another one, seen once.
    candidate: Option<String>,
}

impl Seen {
    /// Whether this content should be tried. `now`: without waiting for it to stay.
    fn is_new(&mut self, text: &str, now: bool) -> bool {
        if text == self.taken {
            self.candidate = None;
            return false;
        }
        if !now && self.candidate.as_deref() != Some(text) {
            self.candidate = Some(text.to_owned());
            return false;
        }
        (self.taken, self.candidate) = (text.to_owned(), None);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_once_it_stays_the_same() {
        let mut seen = Seen { taken: "a".into(), candidate: None };
        let looks = [("a", false), ("b", false), ("bc", false), ("bc", true), ("bc", false), ("a", false), ("a", true)];
        for (text, expected) in looks {
            assert_eq!(seen.is_new(text, false), expected, "{text}");
        }
        assert!(seen.is_new("x", true) && !seen.is_new("x", true));
    }
}
