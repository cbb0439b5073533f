//! Ours against the judge's.

use std::collections::BTreeMap;

use serde::Serialize;
use warmpath_tests::conformance::Ours;

use crate::oracles::{Answer, Case};

/// What became of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same bytes.
    Exact,
    /// Not known, and why.
    Declined(String),
    /// The engine does not take it, so nothing is asked of us.
    Refused,
    /// Other bytes than the engine's: a defect.
    Wrong(Wrong),
}

/// Both sides of a defect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// What the filter says, or that it panicked.
    pub ours: String,
    /// What the engine's tokens spell.
    pub theirs: String,
}

impl Verdict {
    /// `ours` reads the request at a time in seconds since 1970. A template that prints the time may have printed any
    /// between the request and the answer.
    pub fn of(case: &Case, ours: impl Fn(i64) -> Ours) -> Self {
        let Answer::Text(theirs) = &case.vllm else {
            // It must not panic over it, though.
            return match ours(case.times.0) {
                Ours::Panicked => Self::wrong("(it panicked)".to_owned(), ""),
                _ => Self::Refused,
            };
        };
        let (first, last) = case.times;
        let mut seconds = (first..=last.min(first + 60)).map(ours);
        match seconds.next() {
            Some(Ours::Text(ours)) if ours == *theirs => Self::Exact,
            Some(Ours::Text(_)) if seconds.any(|later| later == Ours::Text(theirs.clone())) => Self::Exact,
            Some(Ours::Text(ours)) => Self::wrong(ours, theirs),
            Some(Ours::Begins(begin, why)) if theirs.starts_with(&begin) => Self::Declined(format!("{why} (in part)")),
            Some(Ours::Begins(begin, _)) => Self::wrong(begin, theirs),
            Some(Ours::Declined(why)) => Self::Declined(why.to_owned()),
            Some(Ours::Panicked) | None => Self::wrong("(it panicked)".to_owned(), theirs),
        }
    }

    fn wrong(ours: String, theirs: &str) -> Self {
        Self::Wrong(Wrong { ours, theirs: theirs.to_owned() })
    }

    /// The worse of two readings of the same request: the second may come from what the first left behind.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        let badness = |verdict: &Self| match verdict {
            Self::Refused => 0,
            Self::Exact => 1,
            Self::Declined(_) => 2,
            Self::Wrong(_) => 3,
        };
        if badness(&other) > badness(&self) { other } else { self }
    }
}

impl Wrong {
    /// Where they part, with what stands there.
    #[must_use]
    pub fn difference(&self) -> String {
        let pairs = self.ours.char_indices().zip(self.theirs.chars());
        let at = pairs.take_while(|((_, a), b)| a == b).map(|((at, a), _)| at + a.len_utf8()).last().unwrap_or(0);
        let before: String = self.ours[..at].chars().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect();
        let behind = |text: &str| text[at..].chars().take(50).collect::<String>();
        format!("at byte {at}, behind {before:?}: ours {:?}, theirs {:?}", behind(&self.ours), behind(&self.theirs))
    }
}

/// Counts of verdicts.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// All of them.
    pub requests: usize,
    /// The same bytes.
    pub exact: usize,
    /// Not known.
    pub declined: usize,
    /// Other bytes.
    pub wrong: usize,
    /// Not taken by the engine.
    pub refused: usize,
    /// Why requests were declined, and how many.
    pub reasons: BTreeMap<String, usize>,
    /// Of the requests the engine took, those of which transformers says something else. For information.
    pub transformers_differs: usize,
}

impl Tally {
    /// Counts one more.
    pub fn count(&mut self, verdict: &Verdict) {
        self.requests += 1;
        match verdict {
            Verdict::Exact => self.exact += 1,
            Verdict::Refused => self.refused += 1,
            Verdict::Wrong(_) => self.wrong += 1,
            Verdict::Declined(why) => {
                self.declined += 1;
                *self.reasons.entry(why.clone()).or_default() += 1;
            }
        }
    }

    /// Counts all that another has counted.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.exact += other.exact;
        self.declined += other.declined;
        self.wrong += other.wrong;
        self.refused += other.refused;
        self.transformers_differs += other.transformers_differs;
        for (why, count) in &other.reasons {
            *self.reasons.entry(why.clone()).or_default() += count;
        }
    }

    /// Whether everything the engine takes is exact.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        self.wrong == 0 && self.declined == 0 && self.exact > 0
    }

    /// The reasons, most frequent first.
    #[must_use]
    pub fn why(&self) -> String {
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(why, count)| (std::cmp::Reverse(**count), (*why).clone()));
        let shown = reasons.iter().take(4).map(|(why, count)| format!("{why} {count}"));
        let rest = if reasons.len() > 4 { ", ..." } else { "" };
        shown.collect::<Vec<_>>().join(", ") + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(vllm: Answer, times: (i64, i64)) -> Case {
        let transformers = Answer::Refused(String::new());
        Case { template: String::new(), body: String::new(), times, vllm, transformers }
    }

    #[test]
    fn a_prompt_may_hold_any_time_between_request_and_answer() {
        let case = case(Answer::Text("12".into()), (10, 12));
        assert_eq!(Verdict::of(&case, |now| Ours::Text(now.to_string())), Verdict::Exact);
        assert!(matches!(Verdict::of(&case, |now| Ours::Text((now + 5).to_string())), Verdict::Wrong(_)));
        assert_eq!(Verdict::of(&case, |_| Ours::Declined("x")), Verdict::Declined("x".into()));
    }

    #[test]
    fn panics_are_wrong_even_where_the_engine_refuses() {
        let refused = case(Answer::Refused("400".into()), (0, 0));
        assert_eq!(Verdict::of(&refused, |_| Ours::Text("anything".into())), Verdict::Refused);
        assert!(matches!(Verdict::of(&refused, |_| Ours::Panicked), Verdict::Wrong(_)));
    }

    #[test]
    fn the_difference_is_shown_where_it_is() {
        let wrong = Wrong { ours: "aé x".into(), theirs: "aé y".into() };
        assert_eq!(wrong.difference(), "at byte 4, behind \"aé \": ours \"x\", theirs \"y\"");
        let shorter = Wrong { ours: String::new(), theirs: "y".into() };
        assert_eq!(shorter.difference(), "at byte 0, behind \"\": ours \"\", theirs \"y\"");
    }
}
