//! Which fingerprints changed of late: a gateway that is not far behind is sent their rows instead of whole pages.

use affinity::Fingerprint;

/// Changes kept: some seconds of a busy fleet, 512 KiB.
const KEPT: usize = 1 << 16;

/// The last changes of a table, of which each has the number of its version.
pub(super) struct Changes {
    /// A ring: change `v` lies at `v % KEPT`.
    prints: Vec<u64>,
    /// Those up to this one are not kept.
    before: u64,
}

impl Changes {
    pub(super) fn new() -> Self {
        Self { prints: vec![0; KEPT], before: 0 }
    }

    /// The table got `version` by a change of this fingerprint. No version is left out but by [`Changes::forget`].
    #[inline]
    pub(super) fn note(&mut self, version: u64, fingerprint: Fingerprint) {
        if let Some(place) = self.prints.get_mut(version as usize & (KEPT - 1)) {
            *place = fingerprint.0;
        }
    }

    /// The table got `version` in another way.
    pub(super) fn forget(&mut self, version: u64) {
        self.before = version;
    }

    /// What changed after `version`, up to `now`; `None` if that is not known any more.
    pub(super) fn since(&self, version: u64, now: u64) -> Option<impl Iterator<Item = Fingerprint> + '_> {
        let known = version >= self.before && now.checked_sub(version)? <= KEPT as u64;
        let print = |version: u64| self.prints.get(version as usize & (KEPT - 1)).copied();
        known.then(|| (version + 1..=now).filter_map(print).map(Fingerprint))
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        super::allocated::<u64>(self.prints.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(changes: &Changes, version: u64, now: u64) -> Option<Vec<u64>> {
        Some(changes.since(version, now)?.map(|print| print.0).collect())
    }

    #[test]
    fn the_last_changes_are_known_and_no_others() {
        let (mut changes, kept) = (Changes::new(), KEPT as u64);
        let now = 2 * kept + 5;
        (1..=now).for_each(|version| changes.note(version, Fingerprint(version * 3)));
        assert_eq!(after(&changes, now - 2, now), Some(vec![(now - 1) * 3, now * 3]));
        assert_eq!(after(&changes, now, now), Some(vec![]));
        assert_eq!(after(&changes, now - kept, now).unwrap().len(), KEPT);
        assert_eq!(after(&changes, now - kept - 1, now), None);
        assert_eq!(after(&changes, now + 1, now), None, "a version that is not there yet");
        changes.forget(now + 10);
        changes.note(now + 11, Fingerprint(1));
        assert_eq!(after(&changes, now + 9, now + 11), None);
        assert_eq!(after(&changes, now + 10, now + 11), Some(vec![1]));
    }
}
