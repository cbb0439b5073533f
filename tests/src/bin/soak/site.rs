//! One simulated engine: its cache, its event port, and what befalls it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use warmpath_tests::harness::{MODEL, eventually, free_port};
use warmpath_tests::index_bench::engine::Engine;
use warmpath_tests::index_bench::work::BLOCK;
use warmpath_tests::sim::cache::CacheEvent;
use warmpath_tests::sim::events::Encoding;
use warmpath_tests::sim::publisher::{Format, Publisher};

use crate::conversations::Conversation;

/// Blocks in an event, at most: a step of prefill.
const EVENT: usize = 32;
/// Batches kept for replay.
const BUFFER: usize = 256;

pub struct Site {
    /// Its name; nobody listens there.
    pub address: SocketAddr,
    events: SocketAddr,
    replay: SocketAddr,
    pub engine: Engine,
    blocks: usize,
    publisher: Option<Publisher>,
    /// Hashes of a process are its own.
    seed: u64,
    /// Whether it is part of the fleet.
    pub present: bool,
    counts: [u64; Fault::ALL.len()],
    /// Events published since the start, by all its processes.
    pub told: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed and started anew.
    Restart,
    /// The cache is dropped.
    Reset,
    /// Live messages are lost on the way.
    Lose,
    /// Live messages come late.
    Stall,
}

impl Fault {
    const ALL: [Self; 4] = [Self::Restart, Self::Reset, Self::Lose, Self::Stall];

    /// Something in one of 500 requests.
    pub fn by_chance(random: &mut StdRng) -> Option<Self> {
        let (what, whether) = (random.random_range(0..10), random.random_range(0..500));
        let fault = match what {
            0 => Self::Restart,
            1 => Self::Reset,
            2..=6 => Self::Lose,
            _ => Self::Stall,
        };
        (whether == 0).then_some(fault)
    }
}

/// How often each fault befell an engine.
pub fn totals(sites: &[Site]) -> Vec<String> {
    let total = |n: usize| sites.iter().map(|site| site.counts[n]).sum::<u64>();
    Fault::ALL.iter().enumerate().map(|(n, fault)| format!("{fault:?} {}", total(n))).collect()
}

impl Site {
    pub async fn start(blocks: usize, seed: u64) -> Result<Self> {
        let (address, events, replay) = (free_port()?, free_port()?, free_port()?);
        let engine = Engine::new(blocks);
        let (publisher, counts) = (None, [0; Fault::ALL.len()]);
        let mut site =
            Self { address, events, replay, engine, blocks, publisher, seed, present: true, counts, told: 0 };
        site.publish().await?;
        Ok(site)
    }

    /// What the indexer's configuration says of it.
    pub fn endpoint(&self) -> Value {
        let (events, replay) = (format!("tcp://{}", self.events), format!("tcp://{}", self.replay));
        json!({"address": self.address, "model": MODEL, "events": events, "replay": replay, "metrics": "none"})
    }

    /// Takes the ports of a process before, once they are free.
    async fn publish(&mut self) -> Result<()> {
        self.publisher = None;
        let (events, replay) = (self.events.port(), self.replay.port());
        let mut bound = None;
        eventually("an engine's ports are free", Duration::from_secs(10), async || {
            let format = Format { topic: String::new(), encoding: Encoding::Map, block_size: BLOCK, buffer: BUFFER };
            bound = Publisher::bind(format, events, replay).await.ok();
            Ok(bound.is_some())
        })
        .await?;
        self.publisher = bound.map(|(publisher, ..)| publisher);
        Ok(())
    }

    /// Hashes of a conversation's blocks, as this process makes them.
    pub fn hashes(&self, conversation: &Conversation) -> Vec<u64> {
        let hash = |name: &u64| (name ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        conversation.names.iter().map(hash).collect()
    }

    /// Serves a request; says how many blocks were stored or removed.
    pub fn serve(&mut self, conversation: &Conversation) -> u64 {
        let mut events = Vec::new();
        self.engine.serve(&self.hashes(conversation), conversation.tokens(), EVENT, &mut events);
        self.tell(&events);
        let blocks = |event: &CacheEvent| match event {
            CacheEvent::Stored { hashes, .. } => hashes.len(),
            CacheEvent::Removed(_) => 1,
            CacheEvent::Cleared => 0,
        };
        events.iter().map(blocks).sum::<usize>() as u64
    }

    pub async fn suffer(&mut self, fault: Fault, random: &mut StdRng) -> Result<()> {
        self.counts[fault as usize] += 1;
        let publisher = self.publisher.as_ref().context("a process that was not started")?;
        match fault {
            Fault::Restart => {
                self.engine = Engine::new(self.blocks);
                self.seed = random.random();
                self.publish().await?;
            }
            Fault::Reset => {
                let mut events = Vec::new();
                self.engine.reset(&mut events);
                self.tell(&events);
            }
            Fault::Lose => publisher.lose(random.random_range(1..5)),
            Fault::Stall => publisher.pause(random.random()),
        }
        Ok(())
    }

    /// No message is kept back or lost any more, and there is one more, from which the indexer sees what it lacks.
    pub fn wake(&mut self) {
        if let Some(publisher) = &self.publisher {
            publisher.pause(false);
            publisher.lose(0);
            publisher.publish(&[]);
        }
    }

    fn tell(&mut self, events: &[CacheEvent]) {
        self.told += events.len() as u64;
        if let Some(publisher) = &self.publisher
            && !events.is_empty()
        {
            publisher.publish(events);
        }
    }
}
