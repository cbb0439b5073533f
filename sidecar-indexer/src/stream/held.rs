//! Live messages that wait for a replay.

use super::{HELD_BYTES, HELD_MESSAGES, Message, Position};
use std::collections::BTreeMap;

/// Live messages held back, by number.
#[derive(Clone, Debug)]
pub(super) struct Held<M> {
    messages: BTreeMap<u64, Message<M>>,
    bytes: usize,
}

impl<M> Default for Held<M> {
    fn default() -> Self {
        Self { messages: BTreeMap::new(), bytes: 0 }
    }
}

impl<M> Held<M> {
    pub(super) fn put(&mut self, message: Message<M>) {
        self.bytes += message.size;
        if let Some(old) = self.messages.insert(message.sequence, message) {
            self.bytes -= old.size;
        }
        while self.messages.len() > HELD_MESSAGES || self.bytes > HELD_BYTES {
            let Some((_, oldest)) = self.messages.pop_first() else { break };
            self.bytes -= oldest.size;
        }
    }

    pub(super) fn first(&self) -> Option<&Message<M>> {
        self.messages.values().next()
    }

    pub(super) fn last(&self) -> Option<&Message<M>> {
        self.messages.values().next_back()
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&Message<M>> {
        self.messages.get(&sequence)
    }

    /// In order.
    pub(super) fn into_messages(self) -> impl Iterator<Item = Message<M>> {
        self.messages.into_values()
    }

    /// Takes out what is before this number.
    pub(super) fn take_before(&mut self, next: u64) -> Vec<Message<M>> {
        let later = self.messages.split_off(&next);
        let before = std::mem::replace(&mut self.messages, later);
        self.bytes -= before.values().map(|message| message.size).sum::<usize>();
        before.into_values().collect()
    }

    pub(super) fn drop_before(&mut self, next: u64) {
        drop(self.take_before(next));
    }

    /// Whether they follow this position, and each other, without a hole.
    pub(super) fn follows(&self, position: Option<Position>) -> bool {
        let mut expected = position.map(|position| position.next);
        self.messages.keys().all(|sequence| {
            let fits = expected.is_none_or(|expected| expected == *sequence);
            expected = sequence.checked_add(1);
            fits
        })
    }

    /// Drops all before the last hole.
    pub(super) fn keep_newest_run(&mut self) {
        let keys = || self.messages.keys().rev();
        let after_hole = keys().zip(keys().skip(1)).find(|(later, earlier)| earlier.checked_add(1) != Some(**later));
        if let Some(first) = after_hole.map(|(later, _)| *later) {
            self.drop_before(first);
        }
    }
}
