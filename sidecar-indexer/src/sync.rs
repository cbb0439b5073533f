//! What a gateway is sent: the reply to its sync request, and when it is worth sending.

use crate::endpoints::Wanted;
use crate::fleet::Fleet;
use crate::gateways::Gateways;
use crate::index::Index;
use crate::models::Models;
use crate::tokens::Vocabulary;
use affinity::fleet;
use affinity::sync::{End, Frame, Request, Versions, write_frame};
use affinity::{Slot, Stride};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a reply may be: gateways write it to shared data in one go.
const REPLY_BYTES: usize = 900 << 10;
/// Loads alone are sent this often at most.
const LOADS_EVERY: Duration = Duration::from_millis(100);

/// All that gateways are told of.
pub struct State {
    /// Who holds what.
    pub index: Index,
    /// Who is there.
    pub fleet: Fleet,
    /// Who asks.
    pub gateways: Gateways,
    /// How prompts are made.
    pub models: Models,
    stride: Stride,
    /// A reply is ended with more to come once it is this long.
    reply_bytes: usize,
}

/// Whether a gateway should be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// It has everything.
    Nothing,
    /// Only loads changed: answer at this time, or when there is news.
    Loads(Instant),
    /// There is news: answer at this time.
    News(Instant),
    /// It has nothing yet, or was told that there is more: answer at once.
    Now,
}

/// A reply's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Whole pages of the table.
    pub pages: usize,
    /// Rows of other pages.
    pub rows: usize,
    /// Whether there are more whole pages.
    pub more: bool,
}

impl State {
    /// The state before anything happened.
    #[must_use]
    pub fn new(index: Index, models: Models, stride: Stride) -> Self {
        Self { index, fleet: Fleet::default(), gateways: Gateways::new(0), models, stride, reply_bytes: REPLY_BYTES }
    }

    /// Starts with an empty index of another epoch, which voids all that gateways have of the table.
    pub fn replace_index(&mut self, index: Index, stride: Stride) {
        (self.index, self.stride) = (index, stride);
        self.gateways.fleet_changed(true);
    }

    /// An endpoint comes into a slot that holds nothing.
    pub fn enter(&mut self, slot: Slot, wanted: &Wanted, vocabulary: &Arc<Vocabulary>, ids: bool) {
        self.index.add(slot, &wanted.model, vocabulary, ids);
        self.index.settle();
        self.fleet.enter(slot, wanted, self.index.table().version());
    }

    /// An endpoint is not there any more: nothing of it is kept.
    pub fn leave(&mut self, slot: Slot) {
        self.index.retire(slot);
        self.index.settle();
        self.fleet.leave(slot);
        self.models.leave(slot);
    }

    /// Whether this gateway should be answered, whose request came at `arrived`: with news no sooner than `coalesce` after
    /// its last answer.
    #[must_use]
    pub fn pending(&self, request: &Request, arrived: Instant, coalesce: Duration) -> Pending {
        let (id, have) = (request.gateway, self.have(request));
        let table = self.index.table();
        // Gateways beyond those that are kept are slowed down as well.
        let last = self.gateways.last_answer(id).unwrap_or(arrived);
        if have.epoch == 0 || (self.gateways.expects_more(id) && table.version() > have.table) {
            return Pending::Now;
        }
        if table.version() > have.table
            || have.profiles != self.models.version()
            || self.gateways.urgent_version() > have.fleet
            || self.gateways.placements_for(id, have.placements).next().is_some()
        {
            return Pending::News(last + coalesce);
        }
        if self.gateways.view(id) > have.fleet {
            return Pending::Loads(last + LOADS_EVERY);
        }
        Pending::Nothing
    }

    /// Writes the reply: what the gateway does not have yet.
    pub fn reply(&mut self, request: &Request, now: Instant) -> (Vec<u8>, Sent) {
        let (id, have) = (request.gateway, self.have(request));
        let table = self.index.table();
        let mut out = Vec::new();
        let mut view = self.gateways.view(id);
        if view > have.fleet {
            let remote = |slot| self.gateways.remote(id, slot);
            let (endpoints, early) = self.fleet.endpoints(now, have.table, |model| self.models.number(model), remote);
            let page = fleet::Fleet {
                epoch: table.epoch(),
                table_bits: table.bits(),
                stride: self.stride,
                gateways: u16::try_from(self.gateways.len()).unwrap_or(u16::MAX).max(1),
                endpoints,
            };
            write_frame(&mut out, &Frame::Fleet(&page.encode()));
            if early {
                // Not all there is to say: the rest follows when the gateway has the table that goes with it.
                view = have.fleet;
            }
        }
        if have.profiles != self.models.version() {
            write_frame(&mut out, &Frame::Profiles(self.models.page()));
        }
        for placements in self.gateways.placements_for(id, have.placements) {
            write_frame(&mut out, &Frame::Placements(placements));
        }
        let (table, pages, sent) = self.write_table(&mut out, &have);
        let have = Versions {
            epoch: self.index.table().epoch(),
            table,
            pages,
            fleet: view,
            profiles: self.models.version(),
            placements: self.gateways.relayed(),
        };
        write_frame(&mut out, &Frame::End(End { have, more: sent.more }));
        self.gateways.answered(id, sent.more, now);
        (out, sent)
    }

    /// Writes what the gateway lacks of the table: rows, if it is not far behind, or whole pages. Says what it has then.
    fn write_table(&self, out: &mut Vec<u8>, have: &Versions) -> (u64, u64, Sent) {
        let (table, start) = (self.index.table(), out.len());
        let newest = table.version();
        // In between whole pages some are older than others: rows would leave holes.
        let keys = if have.pages > have.table { None } else { table.keys_changed_since(have.table) };
        if let Some(sent) = keys.and_then(|keys| self.write_rows(out, &keys)) {
            return (newest, newest, sent);
        }
        out.truncate(start);
        let mut sent = Sent::default();
        // What changed last before the table's newest version comes last; all of it sent, that version is had.
        let mut version = have.pages.max(have.table);
        for (changed, page) in table.changed_since(version) {
            let bytes = self.index.page(page);
            if sent.pages > 0 && out.len() - start + bytes.len() > self.reply_bytes {
                return (have.table, version, Sent { more: true, ..sent });
            }
            write_frame(out, &Frame::Page(page, &bytes));
            version = changed;
            sent.pages += 1;
        }
        (newest, newest, sent)
    }

    /// Writes the rows of these keys; pages of which most changed as a whole. `None` if that gets too long.
    fn write_rows(&self, out: &mut Vec<u8>, keys: &[(u32, u32)]) -> Option<Sent> {
        let (start, mut sent) = (out.len(), Sent::default());
        for keys in keys.chunk_by(|a, b| a.0 == b.0) {
            let page = keys.first()?.0;
            if keys.len() < self.index.table().rows_per_page() {
                write_frame(out, &Frame::Rows(page, &self.index.rows(page, keys.iter().map(|(_, key)| *key))));
                sent.rows += keys.len();
            } else {
                write_frame(out, &Frame::Page(page, &self.index.page(page)));
                sent.pages += 1;
            }
            if out.len() - start > self.reply_bytes {
                return None;
            }
        }
        Some(sent)
    }

    /// What the gateway has of this epoch; nothing, if it speaks of another.
    fn have(&self, request: &Request) -> Versions {
        if request.have.epoch == self.index.table().epoch() { request.have } else { Versions::default() }
    }
}

#[cfg(test)]
mod late_tests;
#[cfg(test)]
mod tests;
