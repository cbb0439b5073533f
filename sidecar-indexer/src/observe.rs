//! The indexer's own metrics. Their names and meanings are here and nowhere else.

use crate::app::Place;
use crate::events::{Batch, Event};
use crate::models::Verdict;
use crate::stream::{Checkpoint, Reason, Stream};
use crate::sync::{Sent, State};
use affinity::fleet::Health;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfEndpoint {
    endpoint: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfEvent {
    endpoint: String,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfClear {
    endpoint: String,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReplay {
    endpoint: String,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    endpoint: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfSource {
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReload {
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfTest {
    model: String,
    result: &'static str,
}

// All values of labels beside an endpoint's name.
const EVENT_KINDS: [&str; 4] = ["stored", "removed", "cleared", "skipped"];
const REPLAY_RESULTS: [&str; 5] = ["whole", "failed", "held", "unanswered", "reconnect"];

/// All metrics.
pub struct Metrics {
    registry: Registry,
    events: Family<OfEvent, Counter>,
    unreadable: Family<OfEndpoint, Counter>,
    clears: Family<OfClear, Counter>,
    suspends: Family<OfClear, Counter>,
    proofs: Family<OfReplay, Counter>,
    replays: Family<OfReplay, Counter>,
    audits: Family<OfReplay, Counter>,
    states: Family<OfState, Gauge>,
    next: Family<OfEndpoint, Gauge>,
    last: Family<OfEndpoint, Gauge<f64, AtomicU64>>,
    company: Family<OfSource, Counter>,
    snapshots: Counter,
    snapshot_bytes: Counter,
    store_up: Gauge,
    store_failures: Counter,
    stored: Counter,
    stored_bytes: Counter,
    unknown_topics: Counter,
    refused: Counter,
    lag: Histogram,
    in_sync: Family<OfEndpoint, Gauge>,
    partial: Family<OfEndpoint, Gauge>,
    up: Family<OfEndpoint, Gauge>,
    selftest: Family<OfTest, Gauge>,
    endpoints: Gauge,
    left_out: Gauge,
    reloads: Family<OfReload, Counter>,
    config_usable: Gauge,
    blocks: Gauge,
    orphans: Gauge,
    opaque: Gauge,
    nodes: Gauge,
    aside: Gauge,
    evicted: Counter,
    entries: Gauge,
    pages: Gauge,
    gateways: Gauge,
    replies: Counter,
    reply_bytes: Counter,
    reply_pages: Counter,
    reply_rows: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut r = Registry::with_prefix("warmpath");
        // From a tenth of a millisecond to half a minute.
        let lag = Histogram::new((0..18).map(|i| 1e-4 * f64::from(1u32 << i)));
        let this = Self {
            events: Family::default(),
            unreadable: Family::default(),
            clears: Family::default(),
            suspends: Family::default(),
            proofs: Family::default(),
            replays: Family::default(),
            audits: Family::default(),
            states: Family::default(),
            next: Family::default(),
            last: Family::default(),
            company: Family::default(),
            snapshots: Counter::default(),
            snapshot_bytes: Counter::default(),
            store_up: Gauge::default(),
            store_failures: Counter::default(),
            stored: Counter::default(),
            stored_bytes: Counter::default(),
            unknown_topics: Counter::default(),
            refused: Counter::default(),
            lag,
            in_sync: Family::default(),
            partial: Family::default(),
            up: Family::default(),
            selftest: Family::default(),
            endpoints: Gauge::default(),
            left_out: Gauge::default(),
            reloads: Family::default(),
            config_usable: Gauge::default(),
            blocks: Gauge::default(),
            orphans: Gauge::default(),
            opaque: Gauge::default(),
            nodes: Gauge::default(),
            aside: Gauge::default(),
            evicted: Counter::default(),
            entries: Gauge::default(),
            pages: Gauge::default(),
            gateways: Gauge::default(),
            replies: Counter::default(),
            reply_bytes: Counter::default(),
            reply_pages: Counter::default(),
            reply_rows: Counter::default(),
            registry: Registry::default(),
        };
        r.register(
            "events",
            "KV events read, by kind; skipped are of unknown kind or inconsistent",
            this.events.clone(),
        );
        r.register("messages_unreadable", "Event messages that cannot be read", this.unreadable.clone());
        r.register("stream_clears", "Times an endpoint's holdings were forgotten", this.clears.clone());
        r.register(
            "stream_suspends",
            "Times an endpoint's holdings were put aside until a replay proves them",
            this.suspends.clone(),
        );
        r.register(
            "stream_proofs",
            "Holdings put aside or offered by company, by whether the engine's replay proved them",
            this.proofs.clone(),
        );
        r.register("stream_replays", "Replays asked for, by result", this.replays.clone());
        r.register(
            "stream_audits",
            "Replays asked for because a stream was silent: held, unanswered, or reconnect (something was amiss)",
            this.audits.clone(),
        );
        r.register("stream_state", "1 for the state that the stream is in", this.states.clone());
        r.register("stream_next_message", "Number of the message that comes next", this.next.clone());
        r.register(
            "stream_last_message_timestamp_seconds",
            "What is known of the endpoint is as of then, by the engine's clock",
            this.last.clone(),
        );
        r.register("company_checkpoints", "Checkpoints asked of company, by who had one", this.company.clone());
        r.register("company_snapshots", "Snapshots given to peers", this.snapshots.clone());
        r.register("company_snapshot_bytes", "Bytes of them", this.snapshot_bytes.clone());
        r.register("store_up", "1 while the store answers", this.store_up.clone());
        r.register("store_failures", "Times the store failed or had what is of no use", this.store_failures.clone());
        r.register("store_checkpoints", "Checkpoints written to the store", this.stored.clone());
        r.register("store_checkpoint_bytes", "Bytes of them", this.stored_bytes.clone());
        r.register(
            "bind_unknown_topics",
            "Calls of engines whose topic names no endpoint",
            this.unknown_topics.clone(),
        );
        r.register(
            "event_peers_refused",
            "Connections for events that were ended because a message was too large",
            this.refused.clone(),
        );
        r.register("event_lag_seconds", "From an event's publication to its being indexed", this.lag.clone());
        r.register("stream_in_sync", "1 while the event stream is connected and gapless", this.in_sync.clone());
        r.register(
            "stream_partial",
            "1 while blocks older than the replay's reach may be unknown",
            this.partial.clone(),
        );
        r.register("endpoints", "Endpoints followed, each data-parallel rank counted", this.endpoints.clone());
        r.register("endpoints_left_out", "Endpoints for which there is no slot", this.left_out.clone());
        r.register("config_reloads", "Times the configuration file had changed, by result", this.reloads.clone());
        r.register(
            "config_last_reload_successful",
            "1 while the configuration file's last change could be taken over",
            this.config_usable.clone(),
        );
        r.register("endpoint_up", "1 while the endpoint may be chosen", this.up.clone());
        r.register(
            "indexer_profile_selftest",
            "Endpoints of a model by how their engine's self-test ended: one that failed switches the model's profile off",
            this.selftest.clone(),
        );
        r.register("index_blocks", "Blocks resident, counted once per endpoint", this.blocks.clone());
        r.register("index_orphans", "Of these, how many wait for their parent", this.orphans.clone());
        r.register(
            "index_unmatchable_blocks",
            "Of these, how many no prompt can match: unknown bytes, or generated with tokens no prompt will have",
            this.opaque.clone(),
        );
        r.register("index_nodes", "Distinct blocks", this.nodes.clone());
        r.register(
            "index_aside_blocks",
            "Blocks put aside until their stream proves them, which count towards the bound",
            this.aside.clone(),
        );
        r.register(
            "index_evicted_blocks",
            "Blocks forgotten or left out because the index was full",
            this.evicted.clone(),
        );
        r.register("table_entries", "Fingerprints in the table", this.entries.clone());
        r.register("table_pages", "Pages of the table", this.pages.clone());
        r.register("gateways", "Gateways in sync", this.gateways.clone());
        r.register("sync_replies", "Sync replies sent", this.replies.clone());
        r.register("sync_bytes", "Bytes of sync replies", this.reply_bytes.clone());
        r.register("sync_pages", "Whole table pages sent", this.reply_pages.clone());
        r.register("sync_rows", "Rows of table pages sent", this.reply_rows.clone());
        Self { registry: r, ..this }
    }
}

impl Metrics {
    /// Events of a batch were applied. `lag` in seconds, for live ones.
    pub fn applied(&self, endpoint: &str, batch: &Batch, lag: Option<f64>) {
        let count = |kind, n: usize| {
            if n > 0 {
                let labels = OfEvent { endpoint: endpoint.to_owned(), kind };
                self.events.get_or_create(&labels).inc_by(n as u64);
            }
        };
        count("stored", batch.events().filter(|e| matches!(e, Event::Stored(_))).count());
        count("removed", batch.events().filter(|e| matches!(e, Event::Removed(_))).count());
        count("cleared", batch.events().filter(|e| matches!(e, Event::Cleared)).count());
        count("skipped", batch.skipped as usize);
        if let Some(lag) = lag {
            self.lag.observe(lag.max(0.0));
        }
    }

    /// A message could not be read.
    pub fn unreadable(&self, endpoint: &str) {
        self.unreadable.get_or_create(&of(endpoint)).inc();
    }

    /// An endpoint's holdings were forgotten.
    pub fn cleared(&self, endpoint: &str, reason: Reason) {
        self.clears.get_or_create(&OfClear { endpoint: endpoint.to_owned(), reason: reason.word() }).inc();
    }

    /// They were put aside.
    pub fn suspended(&self, endpoint: &str, reason: Reason) {
        self.suspends.get_or_create(&OfClear { endpoint: endpoint.to_owned(), reason: reason.word() }).inc();
    }

    /// What was put aside or offered was proved, or is of no use.
    pub fn proved(&self, endpoint: &str, held: bool) {
        let result = if held { "held" } else { "failed" };
        self.proofs.get_or_create(&OfReplay { endpoint: endpoint.to_owned(), result }).inc();
    }

    /// A replay ended.
    pub fn replayed(&self, endpoint: &str, whole: bool) {
        let result = if whole { "whole" } else { "failed" };
        self.replays.get_or_create(&OfReplay { endpoint: endpoint.to_owned(), result }).inc();
    }

    /// An audit ended, if it did; and if it did, whether the connection can stay.
    pub fn audited(&self, endpoint: &str, keep: Option<bool>) {
        let result = match keep {
            Some(true) => "held",
            Some(false) => "reconnect",
            None => "unanswered",
        };
        self.audits.get_or_create(&OfReplay { endpoint: endpoint.to_owned(), result }).inc();
    }

    /// Where a stream is.
    pub fn place(&self, place: &Place) {
        let endpoint = place.key.to_string();
        self.partial.get_or_create(&of(&endpoint)).set(i64::from(place.partial));
        if let Some(Checkpoint { position, .. }) = place.checkpoint {
            self.next.get_or_create(&of(&endpoint)).set(i64::try_from(position.next).unwrap_or(i64::MAX));
            self.last.get_or_create(&of(&endpoint)).set(position.last);
        }
        for state in Stream::<()>::STATES {
            let labels = OfState { endpoint: endpoint.clone(), state };
            self.states.get_or_create(&labels).set(i64::from(state == place.state));
        }
    }

    /// Company was asked; who had something.
    pub fn sought(&self, source: &'static str) {
        self.company.get_or_create(&OfSource { source }).inc();
    }

    /// A snapshot was given to a peer.
    pub fn given(&self, bytes: usize) {
        self.snapshots.inc();
        self.snapshot_bytes.inc_by(bytes as u64);
    }

    /// Whether the store answers.
    pub fn store_up(&self, up: bool) {
        self.store_up.set(i64::from(up));
    }

    /// The store failed, or what it had is of no use.
    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    /// A checkpoint was written to the store.
    pub fn stored(&self, bytes: usize) {
        self.stored.inc();
        self.stored_bytes.inc_by(bytes as u64);
    }

    /// An engine dialled in whose topic names no endpoint.
    pub fn unknown_topic(&self) {
        self.unknown_topics.inc();
    }

    /// A peer announced a message that is too large.
    pub fn refused(&self) {
        self.refused.inc();
    }

    /// So many endpoints are followed, and so many had no slot.
    pub fn endpoints(&self, followed: usize, left_out: usize) {
        set(&self.endpoints, followed);
        set(&self.left_out, left_out);
    }

    /// The configuration file was read: at the start, or after a change, which could be taken over or not.
    pub fn reloaded(&self, usable: Option<bool>) {
        if let Some(usable) = usable {
            let result = if usable { "ok" } else { "failed" };
            self.reloads.get_or_create(&OfReload { result }).inc();
        }
        self.config_usable.set(i64::from(usable.unwrap_or(true)));
    }

    /// An endpoint is not there any more.
    pub fn forget(&self, endpoint: &str) {
        for family in [&self.in_sync, &self.partial, &self.up, &self.next] {
            family.remove(&of(endpoint));
        }
        self.last.remove(&of(endpoint));
        self.unreadable.remove(&of(endpoint));
        for kind in EVENT_KINDS {
            self.events.remove(&OfEvent { endpoint: endpoint.to_owned(), kind });
        }
        for reason in Reason::ALL {
            for family in [&self.clears, &self.suspends] {
                family.remove(&OfClear { endpoint: endpoint.to_owned(), reason: reason.word() });
            }
        }
        for result in REPLAY_RESULTS {
            for family in [&self.replays, &self.proofs, &self.audits] {
                family.remove(&OfReplay { endpoint: endpoint.to_owned(), result });
            }
        }
        for state in Stream::<()>::STATES {
            self.states.remove(&OfState { endpoint: endpoint.to_owned(), state });
        }
    }

    /// A sync reply was written.
    pub fn replied(&self, bytes: usize, sent: Sent) {
        self.replies.inc();
        self.reply_bytes.inc_by(bytes as u64);
        self.reply_pages.inc_by(sent.pages as u64);
        self.reply_rows.inc_by(sent.rows as u64);
    }

    /// Takes over what the state says of itself.
    pub fn look(&self, state: &State) {
        let (stats, table) = (state.index.stats(), state.index.table());
        set(&self.blocks, stats.blocks);
        set(&self.orphans, stats.orphans);
        set(&self.opaque, stats.unmatchable);
        set(&self.nodes, stats.nodes);
        set(&self.aside, stats.aside);
        self.evicted.inner().store(stats.evicted, Ordering::Relaxed);
        set(&self.entries, table.len());
        set(&self.pages, 1 << table.bits());
        set(&self.gateways, state.gateways.len());
        for (slot, address) in state.fleet.names() {
            let up = state.fleet.health(slot) == Some(Health::Up);
            self.up.get_or_create(&of(address)).set(i64::from(up));
            self.in_sync.get_or_create(&of(address)).set(i64::from(state.fleet.events(slot)));
        }
        for (model, verdict, endpoints) in state.models.verdicts() {
            let result = match verdict {
                Verdict::Untested => "untested",
                Verdict::Passed => "passed",
                Verdict::Failed => "failed",
            };
            set(&self.selftest.get_or_create(&OfTest { model: model.to_owned(), result }), endpoints);
        }
    }

    /// The metrics page.
    #[must_use]
    pub fn page(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut out, &self.registry);
        out
    }
}

fn set(gauge: &Gauge, n: usize) {
    gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
}

fn of(endpoint: &str) -> OfEndpoint {
    OfEndpoint { endpoint: endpoint.to_owned() }
}
