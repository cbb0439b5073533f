//! A gateway without an Envoy: asks the indexer what the filter asks, and keeps what the filter keeps.

use std::net::SocketAddr;

use affinity::Fingerprint;
use affinity::fleet::Fleet;
use affinity::lookup::{Layout, lookup};
use affinity::rows::{News, renewed};
use affinity::sync::{Frame, Request, Versions, read_end, read_frames};
use anyhow::{Context, Result, bail, ensure};

/// What a gateway has of an indexer.
#[derive(Debug)]
pub struct Gateway {
    client: reqwest::Client,
    url: String,
    name: u64,
    have: Versions,
    /// The fleet page, once it came.
    pub fleet: Option<Fleet>,
    pages: Vec<Option<Vec<u8>>>,
}

impl Gateway {
    /// One that has nothing yet. `name` tells it from others.
    ///
    /// # Errors
    /// If no HTTP client can be made.
    pub fn new(indexer: SocketAddr, name: u64) -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().build().context("cannot make an HTTP client")?;
        let url = format!("http://{indexer}/v1/sync");
        Ok(Self { client, url, name, have: Versions::default(), fleet: None, pages: Vec::new() })
    }

    /// Takes over what is new, until the indexer has nothing more within `wait_ms`.
    ///
    /// # Errors
    /// If the indexer does not answer as it should.
    pub async fn sync(&mut self, wait_ms: u16) -> Result<()> {
        loop {
            let request = Request { gateway: self.name, have: self.have, wait_ms, loads: Vec::new() };
            let reply = self.client.post(&self.url).body(request.encode()).send().await?.error_for_status()?;
            let (news, more) = self.take(&reply.bytes().await?)?;
            if !news && !more {
                return Ok(());
            }
        }
    }

    /// Whether a reply brought pages, and whether there is more.
    fn take(&mut self, reply: &[u8]) -> Result<(bool, bool)> {
        let Some(end) = read_end(reply) else { bail!("a sync reply of {} bytes was cut off", reply.len()) };
        ensure!(end.have.epoch != 0, "an end of no epoch");
        let (epoch, as_of) = (end.have.epoch, end.have.table);
        let mut news = false;
        for frame in read_frames(reply) {
            match frame {
                Frame::Fleet(bytes) => {
                    let fleet = Fleet::decode(bytes).context("no fleet page")?;
                    self.pages.resize(1 << fleet.table_bits, None);
                    self.fleet = Some(fleet);
                }
                Frame::Page(page, bytes) => {
                    news = true;
                    self.write(page, News::Whole(bytes))?;
                }
                Frame::Rows(page, rows) => {
                    news = true;
                    self.write(page, News::Rows { rows, epoch, as_of })?;
                }
                Frame::Profiles(_) | Frame::Placements(_) | Frame::End(_) => {}
            }
        }
        self.have = end.have;
        Ok((news, end.more))
    }

    fn write(&mut self, page: u32, news: News<'_>) -> Result<()> {
        let place = self.pages.get_mut(page as usize).context("a page beyond the table")?;
        let Ok(new) = renewed(place.as_deref(), news) else { bail!("page {page} is not there for its rows") };
        if let Some(bytes) = new {
            *place = Some(bytes.into_owned());
        }
        Ok(())
    }

    /// What a prompt's holders hold of it: address and tokens, of every endpoint that holds a quarter or more, and some
    /// others.
    pub fn matches(&self, prompt: &[Fingerprint]) -> Vec<(&str, u32)> {
        let Some(fleet) = &self.fleet else { return Vec::new() };
        let layout = Layout { epoch: fleet.epoch, bits: fleet.table_bits };
        let found = lookup(prompt, layout, 1, true, |page| self.pages.get(page as usize)?.as_deref());
        let address = |slot| fleet.endpoints.iter().find(|e| e.slot == slot).map(|e| e.address.as_str());
        found.iter().filter_map(|m| Some((address(m.slot)?, m.tokens.0))).collect()
    }
}
