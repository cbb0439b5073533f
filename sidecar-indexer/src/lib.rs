//! The Warmpath indexer: listens to engines' KV events and turns them into the affinity table that filters read.
//!
//! Pure parts, in the order in which data flows: [`events`] reads messages, [`stream`] decides which of them count,
//! [`tokens`] turns token ids into bytes, [`index`] keeps what each endpoint holds, shares contents between endpoints and
//! cuts the result into pages; [`fleet`] and [`gateways`] keep who is there; [`sync`] writes replies. I/O around them: [`subscriber`] (ZeroMQ), [`company`] (other indexers), [`scrape`]
//! (engines' metrics), [`answer`], [`http`].
//!
//! [`server`] starts all. The fleet changes while it runs: [`endpoints`] says who is wanted, [`roster`] gives slots,
//! [`reconciler`] starts and ends what follows an endpoint, and [`reload`] brings changes of the configuration.

pub mod answer;
pub mod app;
pub mod canonical;
pub mod company;
pub mod config;
pub mod endpoints;
pub mod events;
pub mod fleet;
pub mod gateways;
pub mod http;
pub mod index;
pub mod library;
pub mod models;
pub mod observe;
pub mod profile;
pub mod reasons;
pub mod reconciler;
pub mod reload;
pub mod roster;
pub mod scrape;
pub mod selftest;
pub mod served;
pub mod server;
pub mod stream;
pub mod subscriber;
pub mod sync;
pub mod tokens;
pub mod zone;
