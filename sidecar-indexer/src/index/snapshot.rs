//! Everything that an endpoint holds, to be kept or handed to another indexer, and put back.
//!
//! A snapshot names content as the tree does, by the state of the byte prefix at each block's end: no tokens are needed to
//! put it back, and it joins what other endpoints hold. Only orphans come with their tokens. About 30 bytes a block as
//! msgpack.
//!
//! What is read from elsewhere is checked for everything that could break the index or its memory bound, before it comes
//! near it; whether it is *true* is not: an indexer believes its peers, and has the engine prove that a snapshot is current.

use super::endpoint::Endpoint;
use super::holder::{Keeper, TIERS};
use super::orphans::Orphan;
use super::runs::RUN;
use super::{Index, Slot};
use affinity::root;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

const VERSION: u16 = 2;

/// What an endpoint holds: see [`Index::snapshot`]. It does not contradict itself, wherever it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Holdings(Unchecked);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Unchecked {
    version: u16,
    /// Bytes.
    stride: u32,
    /// The model's own namespace.
    model: u64,
    /// [`crate::tokens::Vocabulary::digest`].
    vocabulary: u64,
    /// Which of [`TIERS`] are indexed. Removals from others are passed over, so blocks there would stay for ever.
    tiers: [bool; 3],
    /// As text, and as token ids where those are kept.
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) ids: bool,
    pub(super) group: Option<u32>,
    pub(super) namespaces: Vec<u64>,
    /// Each after the one that it is attached to.
    pub(super) runs: Vec<Held>,
    /// Copies beyond one on a tier: run, offset, copies.
    pub(super) more: Vec<(u32, u8, [u16; 3])>,
    pub(super) unmatchable: Vec<(u64, [u16; 3])>,
    pub(super) orphans: Vec<Waiting>,
    /// Hash, the one before, tokens.
    pub(super) tails: Vec<(u64, Option<u64>, Vec<u32>)>,
}

/// Consecutive blocks; those that are not held themselves lie before some that are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Held {
    /// Whether `parent` is a namespace, or a run.
    pub(super) begins: bool,
    pub(super) parent: u32,
    /// To which block of the parent it is attached.
    pub(super) offset: u8,
    /// Tokens in a block.
    pub(super) size: u32,
    pub(super) states: Vec<u64>,
    /// Bytes from the run's start to each block's end.
    pub(super) ends: Vec<u16>,
    pub(super) digests: Vec<u16>,
    pub(super) prints: Vec<u64>,
    /// By tier.
    pub(super) masks: [u64; 3],
    pub(super) hashes: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) hash: u64,
    pub(super) parent: u64,
    pub(super) tokens: Vec<u32>,
    pub(super) matchable: bool,
    pub(super) copies: [u16; 3],
}

/// Why what was read are no holdings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unsound {
    #[error("the snapshot is of another version of the indexer")]
    Version,
    #[error("the snapshot is not consistent")]
    Inconsistent,
}

impl TryFrom<Unchecked> for Holdings {
    type Error = Unsound;

    fn try_from(read: Unchecked) -> Result<Self, Unsound> {
        if read.version != VERSION {
            return Err(Unsound::Version);
        }
        let sound = |part: &Part| part.is_consistent(read.stride.into()) && part.is_on(read.tiers);
        if read.stride == 0 || !read.parts.iter().all(sound) {
            return Err(Unsound::Inconsistent);
        }
        Ok(Self(read))
    }
}

impl Holdings {
    /// How many blocks it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.parts.iter().map(Part::blocks).sum()
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room that it needs in an index, in blocks.
    pub(super) fn needs(&self) -> usize {
        self.0.parts.iter().map(Part::needs).sum()
    }

    /// Memory that it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.0.parts.iter().map(Part::bytes).sum()
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.0.parts
    }

    pub(super) fn into_parts(self) -> Vec<Part> {
        self.0.parts
    }
}

impl Index {
    /// What an endpoint holds; `None` if there is no such endpoint.
    #[must_use]
    pub fn snapshot(&self, slot: Slot) -> Option<Holdings> {
        let parts: Vec<Part> = Keeper::both(slot).into_iter().filter_map(|of| self.part(of)).collect();
        parts.first()?;
        let (stride, model, vocabulary, tiers) = self.settings(slot)?;
        Some(Holdings(Unchecked { version: VERSION, stride, model, vocabulary, tiers, parts }))
    }

    /// Whether it was made of an endpoint like this one: for the same model, under the same settings.
    pub(super) fn fits(&self, slot: Slot, holdings: &Holdings) -> bool {
        let Holdings(Unchecked { stride, model, vocabulary, tiers, parts, .. }) = holdings;
        let keepers = Keeper::both(slot).into_iter().filter(|of| self.kept(*of).is_some());
        self.settings(slot) == Some((*stride, *model, *vocabulary, *tiers))
            && parts.iter().map(|part| part.ids).eq(keepers.map(Keeper::ids))
    }

    pub(super) fn kept(&self, of: Keeper) -> Option<&Endpoint> {
        self.endpoints.get(of.index())?.as_deref()
    }

    /// What has to be the same where a snapshot is put back, as the snapshot has it.
    fn settings(&self, slot: Slot) -> Option<(u32, u64, u64, [bool; 3])> {
        let endpoint = self.kept(Keeper::new(slot, false))?;
        let tiers = TIERS.map(|tier| self.options.tiers.contains(&tier));
        let stride = self.options.stride.bytes() as u32;
        Some((stride, root(&endpoint.model, None).0, endpoint.vocabulary.digest(), tiers))
    }

    fn part(&self, of: Keeper) -> Option<Part> {
        let endpoint = self.kept(of)?;
        // Runs that the keeper has a holder in are closed upwards: all above them have one, too.
        let mut order: Vec<u32> = Vec::new();
        let mut index: HashMap<u32, u32> = HashMap::new();
        for run in endpoint.residents.runs() {
            let (mut path, mut next) = (Vec::new(), run);
            while let Some(run) = self.tree.run(next).filter(|r| !r.is_root() && !index.contains_key(&next)) {
                path.push(next);
                next = run.parent.run();
            }
            for run in path.into_iter().rev() {
                index.insert(run, order.len() as u32);
                order.push(run);
            }
        }
        let mut namespaces: Vec<u64> = Vec::new();
        let mut known: HashMap<u32, u32> = HashMap::new();
        let mut runs: Vec<Held> = Vec::with_capacity(order.len());
        // How many blocks of each are needed: those that are held, and those to which something is attached.
        let mut needed = vec![0; order.len()];
        for (number, run) in order.iter().enumerate().rev() {
            let run = self.tree.run(*run)?;
            let held = RUN - run.holder(of)?.resident().leading_zeros() as usize;
            let own = needed.get_mut(number)?;
            *own = held.max(*own);
            if let Some(above) = index.get(&run.parent.run()).and_then(|above| needed.get_mut(*above as usize)) {
                *above = usize::from(run.parent.offset() + 1).max(*above);
            }
        }
        for (run, needed) in order.iter().zip(&needed) {
            let run = self.tree.run(*run)?;
            let above = run.parent.run();
            let begins = self.tree.run(above)?.is_root();
            let parent = if begins {
                *known.entry(above).or_insert_with(|| {
                    namespaces.extend(self.tree.run(above).map(|r| r.prefix().0));
                    namespaces.len() as u32 - 1
                })
            } else {
                *index.get(&above)?
            };
            let holder = run.holder(of)?;
            let (states, digests) = run.states(*needed).unzip();
            runs.push(Held {
                begins,
                parent,
                offset: if begins { 0 } else { run.parent.offset() },
                size: run.size(),
                states,
                ends: (0..*needed).map(|at| run.span(at)).collect(),
                digests,
                prints: run.prints_within(&(0..*needed as u8), self.options.stride).iter().map(|p| p.0).collect(),
                masks: holder.masks(),
                hashes: holder.hashes().to_vec(),
            });
        }
        let more = endpoint.more.iter();
        let more = more.filter_map(|(block, copies)| Some((*index.get(&block.run())?, block.offset(), copies.0)));
        let waiting = |(hash, orphan): (u64, &Orphan)| Waiting {
            hash,
            parent: orphan.parent,
            tokens: orphan.tokens.to_vec(),
            matchable: orphan.matchable,
            copies: orphan.copies.0,
        };
        Some(Part {
            ids: of.ids(),
            group: endpoint.group,
            namespaces,
            runs,
            more: more.collect(),
            unmatchable: endpoint.unmatchable.iter().map(|(hash, copies)| (*hash, copies.0)).collect(),
            orphans: endpoint.orphans.iter().map(waiting).collect(),
            tails: endpoint.tails.iter().map(|(hash, tail)| (hash, tail.before, tail.tokens.to_vec())).collect(),
        })
    }
}

/// Blocks of a part that go into the tree.
fn in_tree(part: &Part) -> usize {
    part.runs.iter().map(|run| run.hashes.len()).sum()
}

impl Part {
    fn blocks(&self) -> usize {
        in_tree(self) + self.unmatchable.len() + self.orphans.len()
    }

    /// Room that it needs: blocks that are not held themselves count, too.
    fn needs(&self) -> usize {
        let runs: usize = self.runs.iter().map(|run| run.states.len()).sum();
        runs + self.unmatchable.len() + self.orphans.len()
    }

    fn bytes(&self) -> usize {
        let runs: usize = self.runs.iter().map(Held::bytes).sum();
        let orphans: usize = self.orphans.iter().map(|o| size_of::<Waiting>() + o.tokens.len() * 4).sum();
        let tails: usize = self.tails.iter().map(|(_, _, tokens)| 48 + tokens.len() * 4).sum();
        runs + orphans + tails + size_of_val(&*self.more) + size_of_val(&*self.unmatchable)
    }

    /// Whether all of it is on these tiers: what is on others could never be removed.
    fn is_on(&self, tiers: [bool; 3]) -> bool {
        let on = |copies: &[u16; 3]| tiers.iter().zip(copies).all(|(indexed, copies)| *indexed || *copies == 0);
        let held = |run: &Held| tiers.iter().zip(run.masks).all(|(indexed, mask)| *indexed || mask == 0);
        // More copies are where one is (`is_consistent`).
        self.runs.iter().all(held)
            && self.unmatchable.iter().all(|(_, copies)| on(copies))
            && self.orphans.iter().all(|orphan| on(&orphan.copies))
    }

    fn is_consistent(&self, stride: u64) -> bool {
        let mut hashes = HashSet::with_capacity(self.blocks());
        // Bytes before each run.
        let mut starts: Vec<u64> = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            let start = if run.begins {
                (run.offset == 0 && self.namespaces.get(run.parent as usize).is_some()).then_some(0)
            } else {
                let above = self.runs.get(run.parent as usize).zip(starts.get(run.parent as usize));
                above.and_then(|(above, start)| Some(start + u64::from(*above.ends.get(usize::from(run.offset))?)))
            };
            let Some(start) = start.filter(|start| run.is_consistent(*start, stride)) else { return false };
            starts.push(start);
            if !run.hashes.iter().all(|hash| hashes.insert(*hash)) {
                return false;
            }
        }
        let more = self.more.iter().all(|(run, offset, copies)| {
            let Some(run) = self.runs.get(*run as usize).filter(|_| *offset < RUN as u8) else { return false };
            // Beyond one, so there must be one.
            let there = |(mask, copies): (&u64, &u16)| *copies == 0 || mask >> offset & 1 == 1;
            *copies != [0; 3] && run.masks.iter().zip(copies).all(there)
        });
        let places: HashSet<_> = self.more.iter().map(|(run, offset, _)| (run, offset)).collect();
        let unmatchable = |(hash, copies): &(u64, [u16; 3])| *copies != [0; 3] && hashes.insert(*hash);
        more && places.len() == self.more.len()
            && self.unmatchable.iter().all(unmatchable)
            && self.orphans.iter().all(|o| o.copies != [0; 3] && !o.tokens.is_empty() && hashes.insert(o.hash))
            && self.tails.iter().all(|(_, _, tokens)| tokens.len() <= crate::canonical::TAIL)
            // What an orphan waits for is not there.
            && {
                let orphans: HashSet<_> = self.orphans.iter().map(|o| o.hash).collect();
                self.orphans.iter().all(|o| !hashes.contains(&o.parent) || orphans.contains(&o.parent))
            }
    }
}

impl Held {
    pub(super) fn bytes(&self) -> usize {
        let words = self.states.len() + self.prints.len() + self.hashes.len();
        size_of::<Self>() + words * 8 + (self.ends.len() + self.digests.len()) * 2
    }

    fn is_consistent(&self, start: u64, stride: u64) -> bool {
        let n = self.states.len();
        let held = self.masks.iter().fold(0, |all, mask| all | mask);
        let last = self.ends.last().copied().unwrap_or(u16::MAX);
        let end = start + u64::from(last);
        (1..=RUN).contains(&n)
            && (self.ends.len(), self.digests.len()) == (n, n)
            && self.ends.is_sorted()
            && last < u16::MAX
            && end <= u64::from(u32::MAX)
            && self.size > 0
            && self.prints.len() as u64 == end / stride - start / stride
            && held.checked_shr(n as u32).unwrap_or(0) == 0
            && held.count_ones() as usize == self.hashes.len()
    }
}
