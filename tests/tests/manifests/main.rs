//! The files an operator applies, `envoy/` and `istio/`, checked by what will read them: the CRDs' schemas and Envoy.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a failed test")]

mod backend;
mod envoy;
mod istio;
mod schema;
