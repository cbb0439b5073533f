//! Ports for programs that must be told theirs.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

/// A port of 127.0.0.1 that nothing listens on and that this process has not handed out before.
///
/// It lies below the range that systems take for outgoing connections, so that none of those takes it away before
/// the program binds it.
///
/// # Errors
/// If a thousand tries find none.
pub fn free_port() -> Result<SocketAddr> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    for _ in 0..1000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::random_range(15_000..32_000)));
        if !given.contains(&address.port()) && TcpListener::bind(address).is_ok() {
            given.insert(address.port());
            return Ok(address);
        }
    }
    bail!("no free port between 15000 and 32000 on 127.0.0.1: does something hold them all?")
}
