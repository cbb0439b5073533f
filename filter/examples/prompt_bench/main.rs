//! Times what the filter does with a chat's body, and tokenising, inside the wasm runtime that the filter runs in.
//!
//! Not shipped: `cargo xtask bench prompt` builds this module, starts it in Envoy and sends it requests. The body of
//! each is a case as JSON; the answer is what one round of it took.

mod measure;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

mod start {
    use super::Root;
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(Root));
    }}
}

struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream))
    }
}

struct Stream;

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        Action::Pause
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        if end {
            let body = self.get_http_request_body(0, size).unwrap_or_default();
            let case = serde_json::from_slice(&body).map_err(|error| error.to_string());
            let round = case.and_then(|case| measure::measure(&case));
            match round.and_then(|round| serde_json::to_string(&round).map_err(|error| error.to_string())) {
                Ok(answer) => self.send_http_response(200, vec![], Some(answer.as_bytes())),
                Err(why) => self.send_http_response(500, vec![], Some(why.as_bytes())),
            }
        }
        Action::Pause
    }
}
