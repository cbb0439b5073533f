//! The Istio manifests: valid, consistent, and doing in a real Envoy what their comments say.

use serde_json::{Value, json};
use warmpath_tests::harness::{Client, Envoy, EnvoyConfig, EnvoyOptions, module};

use crate::backend::{Backend, ENDPOINT, addresses, answered_by, assert_clients_cannot_choose};
use crate::schema::{complaints, documents};

const FILES: [&str; 3] = ["istio/services.yaml", "istio/gateway.yaml", "istio/warmpath.yaml"];

/// The one object of this kind and name.
fn object(kind: &str, name: &str) -> Value {
    let all = FILES.into_iter().flat_map(documents);
    let mut found = all.filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    let object = found.next().unwrap_or_else(|| panic!("no {kind} {name}"));
    assert!(found.next().is_none(), "two objects {kind} {name}");
    object
}

/// The patches of one sort that the EnvoyFilter makes.
fn patches(apply_to: &str, operation: &str) -> Vec<Value> {
    let filter = object("EnvoyFilter", "warmpath");
    let patches = filter["spec"]["configPatches"].as_array().unwrap().clone();
    let chosen = |patch: &Value| patch["applyTo"] == apply_to && patch["patch"]["operation"] == operation;
    patches.into_iter().filter(chosen).collect()
}

fn host_and_port(service: &Value) -> (String, &Value) {
    let metadata = &service["metadata"];
    let name = |key: &str| metadata[key].as_str().unwrap().to_owned();
    let host = format!("{}.{}.svc.cluster.local", name("name"), name("namespace"));
    (host, &service["spec"]["ports"][0]["port"])
}

#[test]
fn every_manifest_follows_its_schema() {
    let mut checked = 0;
    for file in FILES {
        for object in documents(file) {
            assert_eq!(complaints(&object), Vec::<String>::new(), "{file}: {} is not valid", object["kind"]);
            assert_eq!(object["metadata"]["namespace"], "llm", "{file}: one namespace for all");
            checked += 1;
        }
    }
    assert_eq!(checked, 6);
}

#[test]
fn the_manifests_agree_on_each_others_names() {
    let (plugin, filter) = (object("WasmPlugin", "warmpath"), object("EnvoyFilter", "warmpath"));
    assert_eq!(plugin["spec"]["targetRefs"], filter["spec"]["targetRefs"]);
    object("Gateway", plugin["spec"]["targetRefs"][0]["name"].as_str().unwrap());

    let engines = object("Service", "engines");
    let route = object("HTTPRoute", "engines");
    let backend = &route["spec"]["rules"][0]["backendRefs"][0];
    let (host, port) = host_and_port(&engines);
    assert_eq!((&backend["name"], &backend["port"]), (&json!("engines"), port));
    let [engines_patch] = patches("CLUSTER", "MERGE").try_into().unwrap();
    assert_eq!(engines_patch["match"]["cluster"], json!({"service": host, "portNumber": port}));
    assert_eq!(engines["spec"]["clusterIP"], "None");

    let [indexer] = patches("CLUSTER", "ADD").try_into().unwrap();
    let cluster = &indexer["patch"]["value"];
    assert_eq!(plugin["spec"]["pluginConfig"]["indexer_cluster"], cluster["name"]);
    let service = object("Service", "warmpath-indexer");
    let (host, port) = host_and_port(&service);
    let address = cluster.pointer("/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address");
    assert_eq!(address.unwrap(), &json!({"address": host, "port_value": port}));
    assert_eq!(plugin["spec"]["pluginConfig"]["hold"], "buffer");
}

/// The gateway's configuration as Istio makes it of these manifests: its own filters around ours, its own cluster
/// settings under ours, and the small listener limit of its EDGE profile. EDS is replaced by a list of backends.
fn gateway(backends: &[Backend], with_plugin: bool) -> EnvoyConfig {
    let mut http_filters = Vec::new();
    if with_plugin {
        let spec = &object("WasmPlugin", "warmpath")["spec"];
        assert_eq!(spec["failStrategy"], "FAIL_OPEN");
        let configuration = spec["pluginConfig"].to_string();
        http_filters.push(json!({
            "name": "extensions.istio.io/wasmplugin/llm.warmpath",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": "llm.warmpath",
                    "root_id": spec["pluginName"],
                    "failure_policy": "FAIL_OPEN",
                    "vm_config": {
                        "runtime": "envoy.wasm.runtime.v8",
                        "code": {"local": {"filename": module().unwrap()}},
                    },
                    "configuration": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": configuration,
                    },
                },
            },
        }));
    }
    for (name, kind) in [("cors", "cors.v3.Cors"), ("fault", "fault.v3.HTTPFault"), ("router", "router.v3.Router")] {
        if name == "router" {
            // INSERT_BEFORE the router, one after the other.
            http_filters.extend(patches("HTTP_FILTER", "INSERT_BEFORE").into_iter().map(|mut patch| {
                let place = &patch["match"]["listener"]["filterChain"]["filter"];
                assert_eq!(place["subFilter"]["name"], "envoy.filters.http.router");
                patch["patch"]["value"].take()
            }));
        }
        http_filters.push(json!({
            "name": format!("envoy.filters.http.{name}"),
            "typed_config": {"@type": format!("type.googleapis.com/envoy.extensions.filters.http.{kind}")},
        }));
    }
    let retry_policy = json!({
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": 2,
        "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            },
        }],
        "host_selection_retry_max_attempts": "5",
    });

    let [merged] = patches("CLUSTER", "MERGE").try_into().unwrap();
    let name = format!("outbound|8000||{}", merged["match"]["cluster"]["service"].as_str().unwrap());
    let max = u32::MAX;
    let limits = json!({"max_connections": max, "max_pending_requests": max, "max_requests": max, "max_retries": max});
    let mut engines = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {},
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": []}]},
    });
    for (key, value) in merged["patch"]["value"].as_object().unwrap() {
        assert!(engines.get(key).is_none(), "merging {key} into Istio's own needs more than setting it");
        engines[key] = value.clone();
    }
    let mut clusters = vec![engines];
    clusters.extend(patches("CLUSTER", "ADD").into_iter().map(|mut patch| patch["patch"]["value"].take()));

    let route = json!({
        "match": {"prefix": "/"},
        "route": {"cluster": name, "timeout": "0s", "retry_policy": retry_policy},
    });
    let manager = json!({
        "@type":
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "outbound_0.0.0.0_80",
        "stream_idle_timeout": "0s",
        "http_filters": http_filters,
        "route_config": {"virtual_hosts": [{"name": "*:80", "domains": ["*"], "routes": [route]}]},
    });
    let local = json!({"socket_address": {"address": "127.0.0.1", "port_value": 0}});
    let filters = json!([{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]);
    let mut config = EnvoyConfig::from(json!({
        "admin": {"address": local},
        "static_resources": {
            "listeners": [{
                "name": "0.0.0.0_80",
                "address": local,
                "per_connection_buffer_limit_bytes": 32768,
                "filter_chains": [{"filters": filters}],
            }],
            "clusters": clusters,
        },
    }));
    config.set_endpoints(&name, &addresses(backends)).unwrap();
    // The cluster's real name is no one's here, and asking a resolver for it leaves this machine.
    config.set_endpoints("warmpath_indexer", &[([127, 0, 0, 1], 9).into()]).unwrap();
    config
}

#[tokio::test]
async fn envoy_serves_istios_gateway_with_the_patches_and_the_plugin() {
    let backends = Backend::start_some::<2>().await;
    let envoy = Envoy::start(EnvoyOptions::new(gateway(&backends, true))).await.unwrap();
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(5 << 20)}]});
    let reply = Client::new().unwrap().post(&envoy.url("/v1/chat/completions"), &[], &body).await.unwrap();
    assert_eq!(reply.json().unwrap()["bytes"], body.to_string().len(), "a body of 5 MiB over a listener's 32 KiB");
}

#[tokio::test]
async fn a_client_cannot_choose_the_pod_while_the_plugin_is_missing() {
    let backends = Backend::start_some::<3>().await;
    let envoy = Envoy::start(EnvoyOptions::new(gateway(&backends, false))).await.unwrap();
    assert_clients_cannot_choose("Istio's gateway", &envoy, &backends).await;
}

#[tokio::test]
async fn the_engines_cluster_follows_the_header_once_it_is_set() {
    let backends = Backend::start_some::<3>().await;
    let mut config = gateway(&backends, false);
    // In the plugin's place: what sets the header that the client may not.
    config.http_filters().unwrap().retain(|filter| filter["name"] != "warmpath.set-endpoint");
    let envoy = Envoy::start(EnvoyOptions::new(config)).await.unwrap();
    let (client, wanted) = (Client::new().unwrap(), backends[2].address.to_string());
    for _ in 0..10 {
        let headers = [(ENDPOINT, wanted.as_str())];
        let reply = client.post(&envoy.url("/v1/completions"), &headers, &"a prompt".into()).await.unwrap();
        assert_eq!(answered_by(&reply.json().unwrap()), backends[2].address);
    }
}
