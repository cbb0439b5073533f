//! The table in Envoy's shared data, from an indexer that sends what it is told.

use affinity::page::{PageWriter, encode_page};
use affinity::sync::{End, Frame, Request, Versions, read_frames, write_frame};
use axum::body::Bytes;
use axum::routing::post;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use warmpath_tests::harness::{Envoy, EnvoyConfig, EnvoyOptions, eventually};

const EPOCH: u32 = 7;

/// Page 0 alone, then rows of page 1 until it was asked for everything; then both pages, and rows again.
fn reply(have: &Versions, asked: &[u64]) -> Vec<u8> {
    let lost = asked.contains(&1);
    let page = |as_of| encode_page(EPOCH, as_of, &[]);
    let mut rows = PageWriter::of_rows(1);
    rows.one(5, 0, 3);
    let (first, third, rows) = (page(1), page(3), rows.finish());
    let (frames, table) = match have.table {
        0 if !lost => (vec![Frame::Page(0, first.as_slice())], 1),
        0 => (vec![Frame::Page(0, &third), Frame::Page(1, &third)], 3),
        table @ (1 | 3) => (vec![Frame::Rows(1, rows.as_slice())], table + 1),
        table => (vec![], table),
    };
    let have = Versions { epoch: EPOCH, table, pages: table, ..*have };
    let mut out = Vec::new();
    for frame in frames.into_iter().chain([Frame::End(End { have, more: false })]) {
        write_frame(&mut out, &frame);
    }
    assert!(read_frames(&out).count() > 0);
    out
}

#[tokio::test]
async fn rows_of_a_page_that_is_not_there_make_the_filter_ask_for_all_pages() {
    let asked: Arc<Mutex<Vec<u64>>> = Arc::default();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let log = asked.clone();
    let sync = move |body: Bytes| async move {
        let have = Request::decode(&body).unwrap().have;
        let reply = {
            let mut asked = log.lock().unwrap();
            let reply = reply(&have, &asked);
            if asked.last() != Some(&have.table) {
                asked.push(have.table);
            }
            reply
        };
        if have.table > 3 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        reply
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().route("/v1/sync", post(sync))).await });
    let mut config = EnvoyConfig::shipped("warmpath.yaml").unwrap();
    config.set_endpoints("warmpath_indexer", &[address]).unwrap();
    let envoy = Envoy::start(EnvoyOptions::new(config)).await.unwrap();
    eventually("the filter has the table's rows", Duration::from_secs(15), async || {
        Ok(asked.lock().unwrap().last() == Some(&4))
    })
    .await
    .unwrap();
    assert_eq!(*asked.lock().unwrap(), [0, 1, 0, 3, 4]);
    assert_eq!(envoy.stat("wasmcustom.warmpath.default.sync.lost").await.unwrap(), 1);
}
