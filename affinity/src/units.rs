//! Units as types, so that a token count is never added to a byte count.

/// A number of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tokens(pub u32);

/// A number of bytes of canonical prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u32);

/// A small number that names an endpoint, given by the indexer and stable while the endpoint lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// Slots are below this: a holder is written in 15 bits, two of them the tier.
    pub const LIMIT: u16 = 1 << 13;
}

/// Where a holder keeps a block. Ordered from fastest to slowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// In the engine's own KV cache: free to use.
    #[default]
    Gpu,
    /// In host memory: must be copied back.
    Cpu,
    /// On disk or in a remote store.
    Disk,
}

impl Tier {
    /// The share of prefill that a hit on this tier saves: copying back costs time.
    /// Weights of the field (device 1.0, host 0.75, disk 0.25).
    #[must_use]
    pub fn credit(self) -> f64 {
        match self {
            Tier::Gpu => 1.0,
            Tier::Cpu => 0.75,
            Tier::Disk => 0.25,
        }
    }

    pub(crate) fn code(self) -> u16 {
        match self {
            Tier::Gpu => 0,
            Tier::Cpu => 1,
            Tier::Disk => 2,
        }
    }

    pub(crate) fn from_code(code: u16) -> Option<Self> {
        match code {
            0 => Some(Tier::Gpu),
            1 => Some(Tier::Cpu),
            2 => Some(Tier::Disk),
            _ => None,
        }
    }
}
