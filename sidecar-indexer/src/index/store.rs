//! Stores and removals, as they come in events.

use super::endpoint::Place;
use super::holder::{Keeper, TIERS};
use super::orphans::Orphan;
use super::runs::{BlockId, Content, NO_RUN};
use super::spelling::Spelling;
use super::{Copies, Index};
use crate::canonical::GENERATED_AT_MOST;
use crate::events::{Removed, Stored};
use affinity::prompt::ids_namespace;
use affinity::{Chain, Tier, root};
use std::borrow::Cow;

/// About so many tokens are spelled in one go: with more, the first would be out of the innermost cache again.
const TOGETHER: usize = 1024;

/// What a block comes after.
#[derive(Clone, Copy)]
enum Anchor {
    Tree(BlockId, Chain),
    Unmatchable,
    /// A block of this hash, which is not there or an orphan.
    Unknown(u64),
}

/// One block of an event.
#[derive(Clone, Copy)]
struct New<'b> {
    hash: u64,
    tokens: &'b [u32],
    /// `None` if no prompt can have these tokens.
    bytes: Option<&'b [u8]>,
    /// How many blocks of the event come after it.
    more: usize,
}

/// Tells apart tokens that spell the same.
fn digest(tokens: &[u32]) -> u16 {
    let (pairs, last) = tokens.as_chunks::<2>();
    let mix = |h: u64, word: u64| {
        let h = (h ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        h ^ h >> 29
    };
    let h = pairs.iter().fold(tokens.len() as u64, |h, [a, b]| mix(h, u64::from(*a) | u64::from(*b) << 32));
    (last.iter().fold(h, |h, last| mix(h, u64::from(*last))) >> 48) as u16
}

impl Index {
    pub(super) fn store(&mut self, of: Keeper, stored: &Stored<'_>) {
        if !self.options.tiers.contains(&stored.tier) || !self.endpoint(of).is_some_and(|e| e.accepts(stored)) {
            return;
        }
        if stored.block_size == 0 {
            for hash in stored.hashes {
                self.add_copy(of, *hash, stored.tier, false);
            }
            return;
        }
        if let Some(endpoint) = self.endpoint(of) {
            endpoint.residents.warm(stored.hashes);
        }
        let (Some(mut anchor), mut before) = (self.start(of, stored), stored.parent) else { return };
        if let (Anchor::Tree(root, _), None) = (anchor, stored.parent) {
            self.tree.pin(root.run());
        }
        let size = stored.block_size as usize;
        let together = (TOGETHER / size).max(1);
        let (mut spelling, mut spelled) = (std::mem::take(&mut self.spelling), 0..0);
        let blocks = stored.hashes.iter().zip(stored.tokens.chunks(size));
        for (i, (hash, tokens)) in blocks.enumerate() {
            let more = stored.hashes.len() - i - 1;
            if self.add_copy(of, *hash, stored.tier, stored.may_repeat) {
                anchor = self.anchor(of, *hash);
            } else {
                if !self.make_room(anchor.run()) {
                    // What follows would only be orphans.
                    self.stats.evicted += more as u64 + 1;
                    break;
                }
                let matchable = i < stored.readable && self.is_canonical(of, stored, before, tokens);
                if matchable && !spelled.contains(&i) {
                    spelled = i..i + together;
                    let tokens = stored.tokens.get(i * size..).unwrap_or_default();
                    self.spell(of, tokens.get(..together * size).unwrap_or(tokens), size, &mut spelling);
                }
                let bytes = if matchable { spelling.block(i - spelled.start) } else { None };
                let new = New { hash: *hash, tokens, bytes, more };
                // Before it is kept: an orphan of more tokens than there is room for is forgotten at once.
                self.stats.blocks += 1;
                anchor = match anchor {
                    Anchor::Unknown(parent) => self.wait(of, parent, new, stored.tier),
                    known => self.place(of, known, new, Copies::one(stored.tier)),
                };
                self.adopt(of, *hash, anchor);
            }
            before = Some(*hash);
        }
        self.spelling = spelling;
        self.keep_tail(of, stored);
        self.tree.tell_held();
        self.tree.pin(NO_RUN);
    }

    /// Spells blocks as this keeper's are.
    fn spell(&self, of: Keeper, tokens: &[u32], size: usize, spelling: &mut Spelling) {
        if let Some(Some(endpoint)) = self.endpoints.get(of.index()) {
            spelling.spell((!of.ids()).then_some(&endpoint.vocabulary), tokens, size);
        }
    }

    /// What an event's first block comes after.
    fn start(&mut self, of: Keeper, stored: &Stored<'_>) -> Option<Anchor> {
        if let Some(parent) = stored.parent {
            return Some(self.anchor(of, parent));
        }
        let endpoint = self.endpoints.get(of.index())?.as_deref()?;
        let name = stored.adapter.unwrap_or(&endpoint.model);
        let name = if of.ids() { ids_namespace(name) } else { Cow::Borrowed(name) };
        let namespace = root(&name, stored.salt);
        Some(self.tree.root(namespace).map_or(Anchor::Unmatchable, |root| Anchor::Tree(root, Chain::new(namespace))))
    }

    fn anchor(&mut self, of: Keeper, hash: u64) -> Anchor {
        let Some(Some(endpoint)) = self.endpoints.get_mut(of.index()) else { return Anchor::Unknown(hash) };
        match endpoint.place(hash, &self.tree, of) {
            Some(Place::Tree(block)) => self.tree.chain(block).map_or(Anchor::Unmatchable, |c| Anchor::Tree(block, c)),
            Some(Place::Unmatchable) => Anchor::Unmatchable,
            Some(Place::Orphan) | None => Anchor::Unknown(hash),
        }
    }

    /// False for a block that was generated with tokens that no prompt will have. Not asked of one more copy of a
    /// block: its place is known.
    fn is_canonical(&mut self, of: Keeper, stored: &Stored<'_>, before: Option<u64>, tokens: &[u32]) -> bool {
        let (Some(before), false) = (before, of.ids()) else { return true };
        if stored.parent.is_none() || stored.hashes.len() > GENERATED_AT_MOST {
            return true;
        }
        let Some(endpoint) = self.endpoint(of) else { return true };
        let own = stored.hashes.iter().zip(stored.tokens.chunks(stored.block_size as usize));
        let tail = own.rev().find(|(hash, _)| **hash == before).map(|(_, tokens)| tokens);
        endpoint.vocabulary.is_canonical(tail.unwrap_or_else(|| endpoint.tails.get(before)), tokens)
    }

    /// Keeps the end of an event's last block as context for the block after it.
    fn keep_tail(&mut self, of: Keeper, stored: &Stored<'_>) {
        let size = stored.block_size as usize;
        if let Some(hash) = stored.hashes.last()
            && let Some(tokens) = stored.tokens.rchunks(size).next()
            && let Some(endpoint) = self.endpoint(of).filter(|e| !of.ids() && e.vocabulary.encoder().is_some())
        {
            endpoint.tails.put(*hash, stored.parent, tokens);
        }
    }

    /// Finds the place of a block after a known one, and puts it there. Says what comes after it.
    fn place(&mut self, of: Keeper, anchor: Anchor, new: New<'_>, copies: Copies) -> Anchor {
        if let (Anchor::Tree(parent, chain), Some(bytes)) = (anchor, new.bytes)
            && let Some(after) = self.place_in_tree(of, parent, chain, new, bytes, copies)
        {
            return after;
        }
        if let Some(endpoint) = self.endpoint(of) {
            endpoint.unmatchable.insert(new.hash, copies);
            self.stats.unmatchable += 1;
        }
        Anchor::Unmatchable
    }

    fn place_in_tree(
        &mut self,
        of: Keeper,
        parent: BlockId,
        mut chain: Chain,
        new: New<'_>,
        bytes: &[u8],
        copies: Copies,
    ) -> Option<Anchor> {
        let endpoint = self.endpoints.get_mut(of.index())?.as_deref_mut()?;
        self.prints.clear();
        chain.push(self.options.stride, bytes, |print| self.prints.push(print));
        let content = Content { chain, size: u32::try_from(new.tokens.len()).ok()?, digest: digest(new.tokens) };
        let block = self.tree.child(parent, of, &content, &self.prints, new.more)?;
        let mut tiers = TIERS.into_iter().zip(copies.0).filter(|(_, n)| *n > 0).map(|(tier, _)| tier);
        self.tree.hold(block, of, new.hash, tiers.next()?, new.more);
        tiers.for_each(|tier| self.tree.set_tier(block, of, tier, true));
        if block.run() != parent.run() || new.more == 0 {
            self.tree.touch(block.run());
        }
        endpoint.residents.insert(new.hash, block);
        let more = Copies(copies.0.map(|n| n.saturating_sub(1)));
        if !more.is_none() {
            endpoint.more.insert(block, more);
        }
        Some(Anchor::Tree(block, chain))
    }

    /// Keeps a block until its parent is stored.
    fn wait(&mut self, of: Keeper, parent: u64, new: New<'_>, tier: Tier) -> Anchor {
        let most = self.orphan_tokens();
        if let Some(endpoint) = self.endpoint(of) {
            let orphan =
                Orphan { parent, tokens: new.tokens.into(), matchable: new.bytes.is_some(), copies: Copies::one(tier) };
            let forgotten = endpoint.orphans.insert(new.hash, orphan, most);
            self.stats.orphans += 1;
            self.forgot(0, 0, forgotten);
        }
        Anchor::Unknown(new.hash)
    }

    /// Places the orphans that waited for a block, then those that waited for them.
    fn adopt(&mut self, of: Keeper, hash: u64, anchor: Anchor) {
        // Mostly there are none: no list is made then.
        let (mut next, mut parents) = (Some((hash, anchor)), Vec::new());
        while let Some((parent, anchor)) = next.take().or_else(|| parents.pop()) {
            let Some(endpoint) = self.endpoint(of).filter(|e| !e.orphans.is_empty()) else { return };
            if matches!(anchor, Anchor::Unknown(_)) {
                continue;
            }
            for (child, orphan) in endpoint.orphans.take(parent) {
                self.stats.orphans -= 1;
                let mut spelling = Spelling::default();
                self.spell(of, &orphan.tokens, orphan.tokens.len(), &mut spelling);
                let bytes = spelling.block(0).filter(|_| orphan.matchable);
                let new = New { hash: child, tokens: &orphan.tokens, bytes, more: 0 };
                parents.push((child, self.place(of, anchor, new, orphan.copies)));
            }
        }
    }

    /// One more copy of a block; `false` if there is none yet. `repeated`: where the tier has one this may be that one,
    /// said again, and does not count.
    fn add_copy(&mut self, of: Keeper, hash: u64, tier: Tier, repeated: bool) -> bool {
        let Some(Some(endpoint)) = self.endpoints.get_mut(of.index()) else { return false };
        match endpoint.place(hash, &self.tree, of) {
            None => return false,
            Some(Place::Tree(block)) => {
                let on = self.tree.run(block.run()).and_then(|r| r.holder(of)).map(|h| h.on(block.offset()));
                if on.is_some_and(|on| TIERS.into_iter().zip(on).any(|(t, on)| on && t == tier)) {
                    if !repeated {
                        endpoint.more.entry(block).or_default().add(tier);
                    }
                } else {
                    self.tree.set_tier(block, of, tier, true);
                }
                self.tree.touch(block.run());
            }
            Some(Place::Unmatchable) => endpoint.unmatchable.entry(hash).or_default().add_unless(tier, repeated),
            Some(Place::Orphan) => {
                if let Some(orphan) = endpoint.orphans.get_mut(hash) {
                    orphan.copies.add_unless(tier, repeated);
                }
            }
        }
        true
    }

    pub(super) fn remove(&mut self, of: Keeper, removed: &Removed<'_>) {
        let group = self.endpoint(of).and_then(|e| e.group);
        if !self.options.tiers.contains(&removed.tier) || removed.group.is_some_and(|g| Some(g) != group) {
            return;
        }
        for hash in removed.hashes {
            self.remove_copy(of, *hash, removed.tier);
        }
    }

    fn remove_copy(&mut self, of: Keeper, hash: u64, tier: Tier) {
        let Some(Some(endpoint)) = self.endpoints.get_mut(of.index()) else { return };
        match endpoint.place(hash, &self.tree, of) {
            None => return,
            Some(Place::Tree(block)) => {
                if let Some(more) = endpoint.more.get_mut(&block)
                    && *more.on(tier) > 0
                {
                    more.remove(tier);
                    if more.is_none() {
                        endpoint.more.remove(&block);
                    }
                    return;
                }
                let on = self.tree.run(block.run()).and_then(|r| r.holder(of)).map(|h| h.on(block.offset()));
                let others = TIERS.into_iter().zip(on.unwrap_or_default()).any(|(t, on)| on && t != tier);
                if others {
                    self.tree.set_tier(block, of, tier, false);
                    return;
                }
                if !TIERS.into_iter().zip(on.unwrap_or_default()).any(|(t, on)| on && t == tier) {
                    return;
                }
                endpoint.residents.remove(hash, block);
                endpoint.tails.remove(hash);
                self.tree.unhold(block, of);
            }
            Some(Place::Unmatchable) => {
                let Some(copies) = endpoint.unmatchable.get_mut(&hash) else { return };
                copies.remove(tier);
                if !copies.is_none() {
                    return;
                }
                endpoint.unmatchable.remove(&hash);
                endpoint.tails.remove(hash);
                self.stats.unmatchable -= 1;
            }
            Some(Place::Orphan) => {
                let Some(orphan) = endpoint.orphans.get_mut(hash) else { return };
                orphan.copies.remove(tier);
                if !orphan.copies.is_none() {
                    return;
                }
                endpoint.orphans.remove(hash);
                self.stats.orphans -= 1;
            }
        }
        self.stats.blocks -= 1;
    }
}

impl Anchor {
    /// The run that must stay, as something is about to be attached to it.
    fn run(self) -> u32 {
        match self {
            Self::Tree(block, _) => block.run(),
            Self::Unmatchable | Self::Unknown(_) => NO_RUN,
        }
    }
}
