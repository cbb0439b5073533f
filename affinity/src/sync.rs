//! The codec of `POST /v1/sync` and `POST /v1/placements`, between a gateway's filter and the indexer.
//!
//! Up goes a [`Request`]: what the gateway has, and its loads. Down come frames, each written to shared data as it
//! is or, of a page's rows, laid over it ([`crate::rows`]), and an [`End`] that says what the gateway has now. Versions live
//! with the data they describe: a reply that is lost is simply asked for again.
//!
//! **Invariant:** what a gateway's pages say of a fingerprint is what the indexer's said of it at the version that the
//! gateway claims in [`Versions::table`], or later.

use crate::fingerprint::Fingerprint;
use crate::units::{Slot, Tokens};
use crate::wire::{Reader, Write};

const VERSION: u8 = 2;

/// Versions of the three kinds of data, within an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The indexer's run and table layout; 0 = nothing yet. Another epoch makes the other versions void.
    pub epoch: u32,
    /// All changes of the table up to this version are had.
    pub table: u64,
    /// While whole pages are sent in several replies: up to which version those are had that changed last by then; the
    /// others are at least as of `table`. Not above `table` otherwise.
    pub pages: u64,
    /// Version of the fleet page.
    pub fleet: u64,
    /// Version of the profiles page.
    pub profiles: u64,
    /// Last relayed placement seen.
    pub placements: u64,
}

/// One gateway's load on one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The endpoint.
    pub slot: Slot,
    /// Requests dispatched and not ended.
    pub in_flight: u32,
    /// Uncached tokens dispatched and not yet answered by a first byte.
    pub queued_tokens: u32,
}

/// What a gateway asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Names the gateway: random, kept in its shared data.
    pub gateway: u64,
    /// What it has.
    pub have: Versions,
    /// How long the indexer may hold the request when nothing is new, in milliseconds.
    pub wait_ms: u16,
    /// Its loads; endpoints that are idle are left out.
    pub loads: Vec<Load>,
}

/// A predicted holder: a request was sent to `slot`, so it will soon hold these strides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where the request went.
    pub slot: Slot,
    /// Fingerprints at the prompt's marks ([`crate::predicted`]), with the tokens up to there.
    pub marks: Vec<(Fingerprint, Tokens)>,
}

/// One piece of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The table's page of this number ([`crate::page`]).
    Page(u32, &'a [u8]),
    /// What changed in the page of this number, as of the version and epoch that the reply's end names.
    Rows(u32, &'a [u8]),
    /// The fleet page ([`crate::fleet::Fleet`]).
    Fleet(&'a [u8]),
    /// The profiles page ([`crate::profile::Profiles`]).
    Profiles(&'a [u8]),
    /// Placements of other gateways, as [`decode_placements`] reads them.
    Placements(&'a [u8]),
    /// The last frame. A reply without it was cut off and must not be believed to be whole.
    End(End),
}

/// What the gateway has after a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// What it has now.
    pub have: Versions,
    /// Whether more is ready: ask again at once.
    pub more: bool,
}

impl Request {
    /// The request's body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.loads.len() * 10);
        out.u8(VERSION);
        out.u64(self.gateway);
        versions(&mut out, &self.have);
        out.u16(self.wait_ms);
        out.list(&self.loads, |out, l| {
            out.u16(l.slot.0);
            out.u32(l.in_flight);
            out.u32(l.queued_tokens);
        });
        out
    }

    /// `None` if this is not a request.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut r = Reader::of_version(body, VERSION)?;
        Some(Self {
            gateway: r.u64()?,
            have: read_versions(&mut r)?,
            wait_ms: r.u16()?,
            loads: r.list(10, |r| Some(Load { slot: Slot(r.u16()?), in_flight: r.u32()?, queued_tokens: r.u32()? }))?,
        })
    }
}

/// The body of `POST /v1/placements`, and of [`Frame::Placements`]. `gateway` is the sender.
#[must_use]
pub fn encode_placements(gateway: u64, placements: &[Placement]) -> Vec<u8> {
    let mut out = Vec::new();
    out.u8(VERSION);
    out.u64(gateway);
    out.list(placements, |out, p| {
        out.u16(p.slot.0);
        out.list(&p.marks, |out, (fp, tokens)| {
            out.u64(fp.0);
            out.u32(tokens.0);
        });
    });
    out
}

/// Mirror of [`encode_placements`]; `None` if these are not placements.
#[must_use]
pub fn decode_placements(body: &[u8]) -> Option<(u64, Vec<Placement>)> {
    let mut r = Reader::of_version(body, VERSION)?;
    let gateway = r.u64()?;
    let placements = r.list(6, |r| {
        Some(Placement {
            slot: Slot(r.u16()?),
            marks: r.list(12, |r| Some((Fingerprint(r.u64()?), Tokens(r.u32()?))))?,
        })
    })?;
    Some((gateway, placements))
}

/// Appends a frame to a reply.
pub fn write_frame(out: &mut Vec<u8>, frame: &Frame<'_>) {
    let mut end = Vec::new();
    let (kind, key, bytes) = match frame {
        Frame::Page(page, bytes) => (1, *page, *bytes),
        Frame::Fleet(bytes) => (2, 0, *bytes),
        Frame::Profiles(bytes) => (3, 0, *bytes),
        Frame::Placements(bytes) => (4, 0, *bytes),
        Frame::Rows(page, bytes) => (6, *page, *bytes),
        Frame::End(e) => {
            versions(&mut end, &e.have);
            end.u8(u8::from(e.more));
            (5, 0, end.as_slice())
        }
    };
    out.u8(kind);
    out.u32(key);
    out.u32(bytes.len() as u32);
    out.extend_from_slice(bytes);
}

/// The frames of a reply, in order. Stops at the end or where the bytes make no sense.
pub fn read_frames(body: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut r = Reader(body);
    std::iter::from_fn(move || {
        let (kind, key, len) = (r.u8()?, r.u32()?, r.u32()? as usize);
        let bytes = r.take(len)?;
        Some(match kind {
            1 => Frame::Page(key, bytes),
            2 => Frame::Fleet(bytes),
            3 => Frame::Profiles(bytes),
            4 => Frame::Placements(bytes),
            6 => Frame::Rows(key, bytes),
            5 => {
                let mut r = Reader(bytes);
                Frame::End(End { have: read_versions(&mut r)?, more: r.u8()? != 0 })
            }
            _ => return None,
        })
    })
}

/// What a reply says at its end; `None`: it was cut off.
#[must_use]
pub fn read_end(body: &[u8]) -> Option<End> {
    read_frames(body).find_map(|frame| if let Frame::End(end) = frame { Some(end) } else { None })
}

fn versions(out: &mut Vec<u8>, v: &Versions) {
    out.u32(v.epoch);
    out.u64(v.table);
    out.u64(v.pages);
    out.u64(v.fleet);
    out.u64(v.profiles);
    out.u64(v.placements);
}

fn read_versions(r: &mut Reader<'_>) -> Option<Versions> {
    Some(Versions {
        epoch: r.u32()?,
        table: r.u64()?,
        pages: r.u64()?,
        fleet: r.u64()?,
        profiles: r.u64()?,
        placements: r.u64()?,
    })
}

impl Versions {
    /// The form in which a gateway keeps its versions in shared data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(44);
        versions(&mut out, self);
        out
    }

    /// Mirror of [`Versions::encode`].
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        read_versions(&mut Reader(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn have() -> Versions {
        Versions { epoch: 1, table: 2, pages: 6, fleet: 3, profiles: 4, placements: 5 }
    }

    fn request() -> Request {
        let loads = vec![Load { slot: Slot(1), in_flight: 2, queued_tokens: 3 }];
        Request { gateway: 7, have: have(), wait_ms: 1000, loads }
    }

    fn reply() -> Vec<u8> {
        let mut out = Vec::new();
        for frame in [
            Frame::Page(5, b"page"),
            Frame::Rows(6, b"rows"),
            Frame::Fleet(b""),
            Frame::Profiles(b"p"),
            Frame::Placements(b"x"),
            Frame::End(End { have: have(), more: true }),
        ] {
            write_frame(&mut out, &frame);
        }
        out
    }

    #[test]
    fn requests_replies_and_placements_survive_the_round_trip() {
        assert_eq!(Request::decode(&request().encode()), Some(request()));
        assert_eq!(Versions::decode(&have().encode()), Some(have()));
        let bytes = reply();
        let frames: Vec<_> = read_frames(&bytes).collect();
        assert_eq!(frames.len(), 6);
        assert_eq!(frames[..2], [Frame::Page(5, b"page"), Frame::Rows(6, b"rows")]);
        assert_eq!(frames.last(), Some(&Frame::End(End { have: have(), more: true })));
        let placements = vec![Placement { slot: Slot(2), marks: vec![(Fingerprint(9), Tokens(16))] }];
        assert_eq!(decode_placements(&encode_placements(7, &placements)), Some((7, placements)));
    }

    proptest! {
        #[test]
        fn a_cut_reply_never_shows_its_end(cut in 0usize..1000) {
            let bytes = reply();
            let cut = cut % bytes.len();
            prop_assert!(!read_frames(&bytes[..cut]).any(|f| matches!(f, Frame::End(_))));
        }

        #[test]
        fn any_bytes_are_refused_or_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (Request::decode(&bytes), decode_placements(&bytes), read_frames(&bytes).count());
        }
    }
}
