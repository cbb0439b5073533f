//! The indexer's HTTP API.

use crate::app::App;
use crate::company::{Offer, POSITION};
use crate::endpoints::Key;
use crate::stream::Position;
use crate::sync::Pending;
use affinity::sync::{Request, decode_placements};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest request body: loads of all endpoints are far below it.
const BODY_LIMIT: usize = 1 << 20;

/// The routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/sync", post(sync))
        .route("/v1/placements", post(placements))
        .route("/v1/snapshot", get(snapshot))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(app)
}

/// Notes that a request is held for a gateway, for as long as this lives.
struct Held<'a> {
    app: &'a App,
    gateway: u64,
}

impl<'a> Held<'a> {
    fn new(app: &'a App, gateway: u64) -> Self {
        app.state().gateways.hold(gateway, true, Instant::now());
        Self { app, gateway }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.app.state().gateways.hold(self.gateway, false, Instant::now());
    }
}

async fn sync(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let Some(request) = Request::decode(&body) else {
        return (StatusCode::BAD_REQUEST, "not a sync request of this version; update filter or indexer\n")
            .into_response();
    };
    let arrived = Instant::now();
    if app.state().gateways.report(request.gateway, &request.loads, arrived) {
        app.changed();
    }
    let held = Held::new(&app, request.gateway);
    wait(&app, &request, arrived).await;
    let (reply, sent) = app.state().reply(&request, Instant::now());
    drop(held);
    app.metrics.replied(reply.len(), sent);
    ([(header::CONTENT_TYPE, "application/octet-stream")], reply).into_response()
}

/// Until it is time to say something to this gateway, or it has waited long enough.
async fn wait(app: &App, request: &Request, arrived: Instant) {
    let deadline = arrived + Duration::from_millis(u64::from(request.wait_ms));
    let (mut changes, mut stopping) = (app.changes(), app.stopping());
    while Instant::now() < deadline && !*stopping.borrow_and_update() {
        let pending = app.state().pending(request, arrived, app.coalesce());
        let until = match pending {
            Pending::Now => return,
            Pending::News(at) => return tokio::time::sleep_until(at.min(deadline).into()).await,
            Pending::Loads(at) if at <= Instant::now() => return,
            Pending::Loads(at) => at.min(deadline),
            Pending::Nothing => deadline,
        };
        tokio::select! {
            _ = changes.changed() => {}
            _ = stopping.changed() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }
}

async fn placements(State(app): State<Arc<App>>, body: Bytes) -> Response {
    let Some((gateway, _)) = decode_placements(&body) else {
        return (StatusCode::BAD_REQUEST, "not placements of this version; update filter or indexer\n").into_response();
    };
    app.state().gateways.relay(gateway, body.to_vec(), Instant::now());
    app.changed();
    StatusCode::NO_CONTENT.into_response()
}

#[derive(Deserialize)]
struct Wanted {
    endpoint: SocketAddr,
    rank: Option<u16>,
}

/// What an endpoint holds, for another indexer. HEAD: as of where, without the work.
async fn snapshot(State(app): State<Arc<App>>, method: Method, Query(wanted): Query<Wanted>) -> Response {
    let key = Key { address: wanted.endpoint, rank: wanted.rank };
    let place = |position: Position| [(POSITION, format!("{} {}", position.next, position.last))];
    let nothing = || (StatusCode::NOT_FOUND, "nothing can be proved of this endpoint here\n").into_response();
    if method == Method::HEAD {
        return app.checkpoint(key).map_or_else(nothing, |checkpoint| place(checkpoint.position).into_response());
    }
    match Offer::written(app.clone(), key).await {
        Ok(Some((position, body))) => {
            app.metrics.given(body.len());
            (place(position), body).into_response()
        }
        Ok(None) => nothing(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    app.look();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], app.metrics.page()).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.ready() {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "event streams are being read\n").into_response(),
    }
}
