//! Stands in for the index's own snapshots until it has them.

use crate::index::Index;
use affinity::Slot;
use serde::{Deserialize, Serialize};

/// Everything held by an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Holdings {}

impl Index {
    /// Everything held by the slot.
    #[must_use]
    pub fn snapshot(&self, _slot: Slot) -> Option<Holdings> {
        None
    }

    /// Puts it back.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn restore(&mut self, _slot: Slot, _holdings: &Holdings) -> anyhow::Result<()> {
        anyhow::bail!("the index has no snapshots yet")
    }
}
