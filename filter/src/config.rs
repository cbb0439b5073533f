//! The plugin's configuration: the one place where its options are documented.

use serde::Deserialize;

/// Most of a placement's times: a predicted holder must have ended before its slot names another endpoint (the indexer's
/// `roster::REST`).
const LONGEST_TTL_MS: u64 = 600_000;

/// JSON in the plugin's `configuration`. Every field may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Envoy cluster of the indexer. Default `warmpath_indexer`; in Istio `outbound|9400||warmpath-indexer.NS.svc.cluster.local`.
    pub indexer_cluster: String,
    /// How a request is held until its endpoint is known. `pause` (default): this filter pauses it; needs
    /// `allow_on_headers_stop_iteration: true` beside the configuration (Envoy 1.35 or later). `buffer`: a buffer filter
    /// behind this one holds it and a `header_mutation` filter behind that sets the header; works in an Istio WasmPlugin.
    pub hold: Hold,
    /// Bodies longer than this are placed without reading them. Default 900 KiB, below Envoy's own default limit of
    /// 1 MiB; raise it together with `per_connection_buffer_limit_bytes`.
    pub max_body_bytes: usize,
    /// The table is not trusted once the indexer has been silent this long. Default 5000.
    pub stale_after_ms: u64,
    /// How long at most a placement counts as a predicted holder where events will confirm it; it is less where its
    /// prefill must be done sooner. Default 5000.
    pub predicted_ttl_ms: u64,
    /// How long it counts where no events come: an endpoint without a stream, a stale table, a prompt whose bytes are not
    /// known. Default 120000; at most 600000, after which the indexer gives an endpoint's place to another.
    pub approximate_ttl_ms: u64,
    /// Answer requests that carry `x-warmpath-debug` with `x-warmpath-*` response headers that explain the decision.
    /// Default false: who may ask can tell whether anybody holds a given prompt. The files in `envoy/` turn it on.
    pub explain: bool,
    /// Name of the fleet: gateways' state and metrics carry it, so that two fleets can share an Envoy. Default `default`.
    pub fleet: String,
}

/// How a request is held.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    Pause,
    Buffer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            indexer_cluster: "warmpath_indexer".into(),
            hold: Hold::Pause,
            max_body_bytes: 900 * 1024,
            stale_after_ms: 5_000,
            predicted_ttl_ms: 5_000,
            approximate_ttl_ms: 120_000,
            explain: false,
            fleet: "default".into(),
        }
    }
}

impl Config {
    /// Reads the configuration; an empty one means all defaults. The error says what is wrong and where.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        if json.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let config: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        if config.fleet.is_empty() || !config.fleet.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        {
            return Err(format!("fleet `{}` must be letters, digits, `-` and `_`", config.fleet));
        }
        for (option, ms) in
            [("predicted_ttl_ms", config.predicted_ttl_ms), ("approximate_ttl_ms", config.approximate_ttl_ms)]
        {
            if ms > LONGEST_TTL_MS {
                return Err(format!("{option}: {ms} is above {LONGEST_TTL_MS}"));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_may_not_outlive_its_slot() {
        assert!(Config::parse(br#"{"approximate_ttl_ms": 600000}"#).is_ok());
        for option in ["approximate_ttl_ms", "predicted_ttl_ms"] {
            let error = Config::parse(format!("{{\"{option}\": 600001}}").as_bytes()).err().unwrap_or_default();
            assert!(error.contains(option), "{error}");
        }
    }
}
