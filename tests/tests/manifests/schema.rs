//! CRD schemas as the API server applies them with strict field validation.

use std::fs;

use serde_json::{Value, json};
use warmpath_tests::harness::repository;

/// All documents of a YAML file of the repository.
pub fn documents(path: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    let text = fs::read_to_string(repository().join(path)).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect()
}

/// What is wrong with a custom resource; nothing if its kind is not one of the fixture's.
pub fn complaints(resource: &Value) -> Vec<String> {
    let version = resource["apiVersion"].as_str().unwrap();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let crds = documents("tests/fixtures/crds/istio.yaml");
    let crd = crds.iter().find(|crd| crd["spec"]["group"] == group && crd["spec"]["names"]["kind"] == resource["kind"]);
    let Some(crd) = crd else { return Vec::new() };
    let versions = crd["spec"]["versions"].as_array().unwrap();
    let Some(version) = versions.iter().find(|candidate| candidate["name"] == version) else {
        return vec![format!("{} has no version {version}", crd["metadata"]["name"])];
    };
    let mut schema = version["schema"]["openAPIV3Schema"].clone();
    // What every object has; the API server adds it to the schema.
    for (name, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
        schema["properties"][name] = json!({"type": kind});
    }
    refuse_unknown_fields(&mut schema);
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(resource).map(|error| format!("{}: {error}", error.instance_path)).collect()
}

/// A structural schema lists its fields where it has `properties`, unless it says that it preserves others.
fn refuse_unknown_fields(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    let open = object.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if object.contains_key("properties") && !open {
        object.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    if let Some(fields) = object.get_mut("properties").and_then(Value::as_object_mut) {
        fields.values_mut().for_each(refuse_unknown_fields);
    }
    for key in ["items", "additionalProperties"] {
        object.get_mut(key).map(refuse_unknown_fields);
    }
}

#[test]
fn a_misspelt_field_is_refused() {
    let mut plugin = documents("istio/warmpath.yaml").remove(0);
    assert_eq!(complaints(&plugin), Vec::<String>::new());
    let spec = plugin["spec"].as_object_mut().unwrap();
    let strategy = spec.remove("failStrategy").unwrap();
    spec.insert("failStratgy".into(), strategy);
    assert!(complaints(&plugin)[0].contains("failStratgy"));
}

#[test]
fn a_value_that_the_crd_does_not_list_is_refused() {
    let mut filter = documents("istio/warmpath.yaml").remove(1);
    filter["spec"]["configPatches"][0]["applyTo"] = json!("HTTP_FILTERS");
    assert!(complaints(&filter)[0].contains("HTTP_FILTERS"));
}
