//! What the shipped configurations promise without any help from the filter.

use std::net::SocketAddr;

use warmpath_tests::harness::{Client, Envoy, EnvoyConfig, EnvoyOptions, free_port, repository};

use crate::backend::{Backend, ENDPOINT, addresses, answered_by, assert_clients_cannot_choose};

/// A shipped configuration in front of these addresses, without the filter. What is tested so holds when the filter is
/// taken out, or has let a request through without a word.
async fn start_without_filter(file: &str, engines: &[SocketAddr]) -> Envoy {
    Envoy::start(EnvoyOptions::new(without_filter(file, engines))).await.unwrap()
}

/// The same, and what clients say of the endpoint passes: they stand in for the filter.
async fn start_with_clients_that_choose(engines: &[SocketAddr]) -> Envoy {
    let mut config = without_filter("warmpath.yaml", engines);
    let manager = config.at("/static_resources/listeners/0/filter_chains/0/filters/0/typed_config").unwrap();
    manager.as_object_mut().unwrap().remove("early_header_mutation_extensions").unwrap();
    Envoy::start(EnvoyOptions::new(config)).await.unwrap()
}

fn without_filter(file: &str, engines: &[SocketAddr]) -> EnvoyConfig {
    let mut config = EnvoyConfig::read(&repository().join("envoy").join(file)).unwrap();
    config.leave_ports_to_the_system().unwrap();
    config.set_endpoints("engines", engines).unwrap();
    let http_filters = config.http_filters().unwrap();
    let before = http_filters.len();
    http_filters.retain(|filter| filter["name"] != "warmpath");
    assert_eq!(before - http_filters.len(), 1, "{file} should have the filter");
    config
}

#[tokio::test]
async fn envoy_accepts_every_shipped_configuration_with_the_module() {
    for file in ["warmpath.yaml", "warmpath-buffer.yaml", "round-robin.yaml"] {
        Envoy::validate(&EnvoyConfig::shipped(file).unwrap()).unwrap();
    }
}

#[tokio::test]
async fn a_client_cannot_choose_the_engine_even_without_the_filter() {
    for file in ["warmpath.yaml", "warmpath-buffer.yaml"] {
        let backends = Backend::start_some::<3>().await;
        let envoy = start_without_filter(file, &addresses(&backends)).await;
        assert_clients_cannot_choose(file, &envoy, &backends).await;
    }
}

#[tokio::test]
async fn a_retry_walks_the_list_of_endpoints() {
    let backends = Backend::start_some::<3>().await;
    let envoy = start_with_clients_that_choose(&addresses(&backends)).await;
    let client = Client::new().unwrap();
    backends[0].answer_with(503);
    let list = format!("{},{}", backends[0].address, backends[1].address);
    for _ in 0..10 {
        let reply = client.post(&envoy.url("/v1/completions"), &[(ENDPOINT, &list)], &"a prompt".into()).await.unwrap();
        assert_eq!(answered_by(&reply.json().unwrap()), backends[1].address);
    }
    assert_eq!((backends[0].requests(), backends[2].requests()), (10, 0));
}

#[tokio::test]
async fn a_retry_beyond_the_list_takes_an_engine_not_yet_tried() {
    let backends = Backend::start_some::<3>().await;
    let envoy = start_with_clients_that_choose(&addresses(&backends)).await;
    let (client, list) = (Client::new().unwrap(), backends[0].address.to_string());
    backends[0].answer_with(503);
    for _ in 0..20 {
        let reply = client.post(&envoy.url("/v1/completions"), &[(ENDPOINT, &list)], &"a prompt".into()).await.unwrap();
        assert_eq!(reply.status, 200);
    }
    assert_eq!(backends[0].requests(), 20, "each request should have tried the failing engine once");
}

#[tokio::test]
async fn a_long_body_survives_an_engine_that_refuses_connections() {
    let [backend] = Backend::start_some::<1>().await;
    let dead = free_port().unwrap();
    let engines = [dead, backend.address];
    let envoy = start_with_clients_that_choose(&engines).await;
    let (client, prompt) = (Client::new().unwrap(), "x".repeat(8 << 20));
    let headers = [(ENDPOINT, dead.to_string())];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let reply = client.post(&envoy.url("/v1/completions"), &headers, &prompt.clone().into()).await.unwrap();
    assert_eq!(reply.json().unwrap()["bytes"], prompt.len() + 2);
}

#[tokio::test]
async fn an_endpoint_that_the_cluster_does_not_have_is_passed_over() {
    let [backend, stranger] = Backend::start_some::<2>().await;
    let envoy = start_with_clients_that_choose(&[backend.address]).await;
    let (client, list) = (Client::new().unwrap(), stranger.address.to_string());
    let reply = client.post(&envoy.url("/v1/completions"), &[(ENDPOINT, &list)], &"a prompt".into()).await.unwrap();
    assert_eq!(answered_by(&reply.json().unwrap()), backend.address);
    assert_eq!(stranger.requests(), 0);
}
