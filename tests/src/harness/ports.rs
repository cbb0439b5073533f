//! Ports for programs that must be told theirs.

use std::collections::BTreeSet;
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
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)?)))
}

/// The first of so many such ports that follow each other.
///
/// # Errors
/// If a thousand tries find none.
pub fn free_ports(count: u16) -> Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1000 {
        let first = rand::random_range(15_000..32_000 - count);
        let free = |port: u16| !given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first + count).all(free) {
            given.extend(first..first + count);
            return Ok(first);
        }
    }
    bail!("no {count} free ports in a row between 15000 and 32000 on 127.0.0.1: does something hold them all?")
}
