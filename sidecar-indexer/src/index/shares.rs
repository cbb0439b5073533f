//! Who holds a fingerprint whose one row does not say it: several endpoints, or one in several ways.

use affinity::page::{holder, slot_of};
use affinity::{Slot, Tier, Tokens};

/// A block that completes a fingerprint has this holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    /// As pages have it: [`affinity::page::one_holder`].
    pub(super) holder: u16,
    /// Of the blocks that end at or before the stride's end.
    pub(super) tokens: Tokens,
}

/// Shares and how many blocks have each.
///
/// **Invariant:** sorted by slot, then tier, then tokens; no count is 0.
#[derive(Default)]
pub(super) struct Shares(Vec<(Share, u32)>);

impl Share {
    fn key(&self) -> (u16, u16, u32) {
        (slot_of(self.holder), self.holder, self.tokens.0)
    }
}

impl Shares {
    /// One more of this share.
    pub(super) fn add(&mut self, share: Share, count: u32) {
        match self.0.binary_search_by_key(&share.key(), |(s, _)| s.key()) {
            Ok(at) => {
                if let Some((_, n)) = self.0.get_mut(at) {
                    *n = n.saturating_add(count);
                }
            }
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    self.0.reserve_exact(self.0.len() / 4 + 1);
                }
                self.0.insert(at, (share, count));
            }
        }
    }

    /// One less of this share.
    pub(super) fn remove(&mut self, share: Share) {
        let Ok(at) = self.0.binary_search_by_key(&share.key(), |(s, _)| s.key()) else { return };
        let Some((_, count)) = self.0.get_mut(at) else { return };
        *count -= 1;
        if *count == 0 {
            self.0.remove(at);
            if self.0.len() * 2 + 4 < self.0.capacity() {
                self.0.shrink_to(self.0.len() + self.0.len() / 4);
            }
        }
    }

    /// The share, if there is but one, and its count.
    pub(super) fn only(&self) -> Option<(Share, u32)> {
        match self.0.as_slice() {
            [only] => Some(*only),
            _ => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Two tokenisations of the same bytes: what is said must be true of both.
    pub(super) fn tokens(&self) -> Tokens {
        self.0.iter().map(|(share, _)| share.tokens).min().unwrap_or_default()
    }

    /// Each slot once, with its fastest tier, in order.
    pub(super) fn holders(&self) -> impl Iterator<Item = (Slot, Tier)> {
        let mut before = None;
        let holders = self.0.iter().filter_map(|(share, _)| holder(share.holder));
        holders.filter(move |(slot, _)| before.replace(*slot) != Some(*slot))
    }

    pub(super) fn bytes(&self) -> usize {
        super::allocated::<(Share, u32)>(self.0.capacity())
    }
}
