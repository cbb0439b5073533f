//! The Warmpath filter: a thin proxy-wasm host around [`affinity`].
//!
//! It holds a request until its prompt is known, looks the prompt's prefix up in the affinity table (Envoy's shared
//! data), chooses an endpoint and names it in a header that the cluster's override_host policy reads.
//!
//! **Invariants.** Nothing here panics: a panic takes the worker's whole VM down with every stream on it. Nothing here
//! fails a request: when in doubt it goes on unrouted. Only [`host`] touches Envoy.

mod config;
mod decide;
mod host;
mod loads;
mod plugin;
mod stream;
mod sync;
mod view;

use config::Config;
use plugin::Plugin;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{ContextType, LogLevel};
use std::rc::Rc;
use stream::Stream;
use sync::Sync;

mod start {
    use super::{LogLevel, Root};
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|id| Box::new(Root { id, running: None }));
    }}
}

/// A stream of a plugin that has no configuration: it passes.
struct Unconfigured;

impl Context for Unconfigured {}
impl HttpContext for Unconfigured {}

/// One plugin configuration in one VM.
struct Root {
    id: u32,
    /// `None` until configured.
    running: Option<(Rc<Plugin>, Sync)>,
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, headers: usize, size: usize, _: usize) {
        if let Some((plugin, sync)) = &mut self.running {
            sync.answered(plugin, token, headers, size);
        }
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, size: usize) -> bool {
        let json = host::buffer(host::Buffer::PluginConfiguration, 0, size).unwrap_or_default();
        let config = match Config::parse(&json) {
            Ok(config) => config,
            Err(why) => {
                log::error!("warmpath: the plugin's configuration is wrong: {why}");
                return false;
            }
        };
        let Some(plugin) = Plugin::new(config) else {
            log::error!("warmpath: Envoy refused to define metrics, without which loads cannot be counted");
            return false;
        };
        let sync = Sync::new(plugin.random(), &plugin.config.fleet);
        self.running = Some((plugin, sync));
        host::tick_every(sync::TICK);
        true
    }

    fn on_tick(&mut self) {
        if let Some((plugin, sync)) = &mut self.running {
            plugin.paused.tick(self.id);
            sync.tick(plugin);
        }
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        // The SDK panics on `None`.
        Some(match &self.running {
            Some((plugin, _)) => Box::new(Stream::new(id, Rc::clone(plugin))),
            None => Box::new(Unconfigured),
        })
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
