//! A server that says what reached it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use warmpath_tests::harness::{Client, Envoy};

/// The header that names endpoints.
pub const ENDPOINT: &str = "x-gateway-destination-endpoint";

/// The header that names a data-parallel rank.
pub const RANK: &str = "x-data-parallel-rank";

/// Answers each request with JSON: its own address, the body's length, and the routing headers if there were any.
pub struct Backend {
    pub address: SocketAddr,
    status: Arc<AtomicU16>,
    requests: Arc<AtomicUsize>,
}

impl Backend {
    /// Serves until the test's runtime ends.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (status, requests) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (answered, counted) = (status.clone(), requests.clone());
        let answer = async move |headers: HeaderMap, body: Bytes| {
            counted.fetch_add(1, Ordering::Relaxed);
            let [endpoint, rank] = [ENDPOINT, RANK].map(|name| headers.get(name).map(|value| value.to_str().unwrap()));
            let answer = json!({"by": address, "bytes": body.len(), "endpoint": endpoint, "rank": rank});
            (StatusCode::from_u16(answered.load(Ordering::Relaxed)).unwrap(), answer.to_string())
        };
        let app = Router::new().fallback(answer).layer(DefaultBodyLimit::disable());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, status, requests }
    }

    /// Answers with this status from now on.
    pub fn answer_with(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// How many requests have reached it.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Several of them.
    pub async fn start_some<const N: usize>() -> [Self; N] {
        let mut backends = Vec::new();
        for _ in 0..N {
            backends.push(Self::start().await);
        }
        backends.try_into().unwrap_or_else(|_| unreachable!("pushed N"))
    }
}

/// Addresses as a cluster's endpoints.
pub fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.address).collect()
}

/// Which backend gave this answer.
pub fn answered_by(answer: &Value) -> SocketAddr {
    answer["by"].as_str().unwrap().parse().unwrap()
}

/// Asks a gateway 30 times for the first backend and its rank 1 by the routing headers, which must not be listened to
/// nor passed on. `what` names the gateway where it is.
pub async fn assert_clients_cannot_choose(what: &str, envoy: &Envoy, backends: &[Backend]) {
    let (client, wanted) = (Client::new().unwrap(), backends[0].address.to_string());
    let mut answering = HashSet::new();
    for _ in 0..30 {
        let headers = [(ENDPOINT, wanted.as_str()), (RANK, "1")];
        let reply = client.post(&envoy.url("/v1/completions"), &headers, &"a prompt".into()).await.unwrap();
        let answer = reply.json().unwrap();
        let passed = !answer["endpoint"].is_null() || !answer["rank"].is_null();
        assert!(!passed, "{what} passed the client's headers on: {answer}");
        answering.insert(answered_by(&answer));
    }
    assert!(answering.len() > 1, "{what} sent all 30 requests to the backend the client named");
}
