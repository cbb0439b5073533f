//! Which names an engine serves: its `/v1/models`.

use crate::answer;
use crate::app::App;
use crate::models::Listed;
use affinity::Slot;
use anyhow::{Context, Result};
use reqwest::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// How often an engine is asked: adapters come and go while it runs.
const EVERY: Duration = Duration::from_secs(30);
/// How soon one that does not answer is asked again.
const RETRY: Duration = Duration::from_secs(5);
/// An engine answers within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer read, in bytes.
const LIMIT: usize = 4 << 20;

/// Asks an endpoint again and again, and at once when it was started anew.
pub async fn follow(app: Arc<App>, client: Client, slot: Slot, address: String, model: String) {
    let Some(mut restarted) = app.retests(slot) else { return };
    let url = format!("http://{address}/v1/models");
    let mut told = false;
    let mut ticks = tokio::time::interval(RETRY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = restarted.changed() => if changed.is_err() { return },
        }
        match ask(&client, &url).await {
            Ok(listed) => {
                let names: Vec<String> = listed.names.iter().map(|(name, _)| name.clone()).collect();
                if !app.heard(slot, listed) && !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        model,
                        endpoint = address,
                        ?names,
                        "the engine serves neither the model's name nor an alias of it: requests by these names would \
                         fail there; see the endpoint's model, and that model's name and aliases"
                    );
                }
                ticks.reset_after(EVERY);
            }
            Err(error) => tracing::debug!(url, %error, "the engine does not say what it serves"),
        }
    }
}

async fn ask(client: &Client, url: &str) -> Result<Listed> {
    let response = client.get(url).timeout(PATIENCE).send().await?.error_for_status()?;
    Listed::read(&serde_json::from_slice(&answer::body(response, LIMIT).await?)?).context("this is no list of models")
}
