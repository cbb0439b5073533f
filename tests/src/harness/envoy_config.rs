//! Envoy configurations, made from the shipped ones.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::paths;

/// An Envoy configuration to start from and to change.
#[derive(Clone, Debug)]
pub struct EnvoyConfig(Value);

impl EnvoyConfig {
    /// A file of `envoy/`, such as "warmpath.yaml", with ports left to the system and the module of this build.
    ///
    /// # Errors
    /// If it cannot be read, lacks a part, or the module has not been built.
    pub fn shipped(name: &str) -> Result<Self> {
        let mut config = Self::read(&paths::repository().join("envoy").join(name))?;
        config.leave_ports_to_the_system()?;
        if let Ok(filter) = config.http_filter("warmpath") {
            let code = filter.pointer_mut("/typed_config/config/vm_config/code/local/filename");
            *code.context("the filter `warmpath` names no local file")? = json!(paths::module()?);
        }
        Ok(config)
    }

    /// Any YAML or JSON file.
    ///
    /// # Errors
    /// If it cannot be read or is not YAML.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self(serde_yaml_ng::from_str(&text).with_context(|| format!("{} is not YAML", path.display()))?))
    }

    /// Lets the system choose the ports of the first listener and of the admin pages. [`super::Envoy`] tells them.
    ///
    /// # Errors
    /// If there are none.
    pub fn leave_ports_to_the_system(&mut self) -> Result<()> {
        for place in ["/admin", "/static_resources/listeners/0"] {
            *self.at(&format!("{place}/address/socket_address/port_value"))? = json!(0);
        }
        Ok(())
    }

    /// The value at a JSON pointer, to be changed.
    ///
    /// # Errors
    /// If there is none.
    pub fn at(&mut self, pointer: &str) -> Result<&mut Value> {
        self.0.pointer_mut(pointer).with_context(|| format!("the Envoy configuration has no {pointer}"))
    }

    /// A cluster, by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn cluster(&mut self, name: &str) -> Result<&mut Value> {
        named(self.at("/static_resources/clusters")?.as_array_mut().context("clusters is no list")?, name)
    }

    /// The HTTP filters of the first listener.
    ///
    /// # Errors
    /// If there are none.
    pub fn http_filters(&mut self) -> Result<&mut Vec<Value>> {
        let manager = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
        self.at(&format!("{manager}/http_filters"))?.as_array_mut().context("http_filters is no list")
    }

    /// An HTTP filter of the first listener, by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn http_filter(&mut self, name: &str) -> Result<&mut Value> {
        named(self.http_filters()?, name)
    }

    /// Puts these addresses in place of a cluster's endpoints.
    ///
    /// # Errors
    /// If there is no such cluster.
    pub fn set_endpoints(&mut self, cluster: &str, addresses: &[SocketAddr]) -> Result<()> {
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"address": address.ip(), "port_value": address.port()}))
            .map(|address| json!({"endpoint": {"address": {"socket_address": address}}}))
            .collect();
        let cluster = self.cluster(cluster)?;
        let place = cluster.pointer_mut("/load_assignment/endpoints/0/lb_endpoints");
        *place.context("the cluster lists no endpoints")? = json!(endpoints);
        Ok(())
    }

    /// Sets one option in the filter's own configuration.
    ///
    /// # Errors
    /// If the filter or its configuration is not there.
    pub fn set_filter_option(&mut self, option: &str, value: Value) -> Result<()> {
        let place = self.http_filter("warmpath")?.pointer_mut("/typed_config/config/configuration/value");
        let place = place.context("the filter `warmpath` has no configuration")?;
        let mut options: Value = serde_json::from_str(place.as_str().unwrap_or_default())?;
        match options.as_object_mut() {
            Some(options) => options.insert(option.to_owned(), value),
            None => bail!("the filter's configuration is not a JSON object: {options}"),
        };
        *place = json!(options.to_string());
        Ok(())
    }
}

impl From<Value> for EnvoyConfig {
    fn from(config: Value) -> Self {
        Self(config)
    }
}

/// JSON, which Envoy reads as well.
impl std::fmt::Display for EnvoyConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

fn named<'a>(list: &'a mut [Value], name: &str) -> Result<&'a mut Value> {
    let found = list.iter_mut().find(|item| item.get("name").and_then(Value::as_str) == Some(name));
    found.with_context(|| format!("the Envoy configuration has no `{name}` there"))
}
