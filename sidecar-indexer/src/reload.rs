//! The configuration file while the indexer runs: read again when it changes, or at SIGHUP.
//!
//! Its content is compared, not its time or inode: that follows the symbolic links that Kubernetes swaps under a mounted
//! ConfigMap, and costs a few KiB a second. A change counts once it has been the same for two looks, so that a file is
//! not read while it is being written. A file that cannot be used changes nothing.

use crate::app::App;
use crate::config::Config;
use crate::library::Plan;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Looks at the file again and again, and sends what is to be run from then on. `plan` runs now; `text` is what it was
/// read from.
pub async fn follow(path: PathBuf, text: String, plan: Plan, app: Arc<App>, news: mpsc::Sender<Plan>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    let mut seen = Seen { taken: text, candidate: None };
    let mut plan = Arc::new(plan);
    app.metrics.reloaded(None);
    loop {
        let now = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(EVERY) => false,
        };
        // A file that is not there just now is being replaced, or its volume is.
        let Ok(text) = tokio::fs::read_to_string(&path).await else { continue };
        if !seen.is_new(&text, now) {
            if now {
                tracing::info!(path = %path.display(), "told to read the configuration again: it has not changed");
            }
            continue;
        }
        let (before, place) = (plan.clone(), path.clone());
        let read = tokio::task::spawn_blocking(move || read(&text, &place, &before)).await;
        match read.context("it cannot be read").and_then(|read| read) {
            Ok(new) => {
                tracing::info!(path = %path.display(), "the configuration has changed and is taken over");
                for (model, note) in new.library.notes() {
                    tracing::warn!(model, "{note}");
                }
                app.metrics.reloaded(Some(true));
                plan = Arc::new(new.clone());
                if news.send(new).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "the changed configuration is not usable; the indexer runs on with the one before"
                );
                app.metrics.reloaded(Some(false));
            }
        }
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
