//! What is asked of Warmpath, counted from what was seen.

use std::net::SocketAddr;

use serde::Serialize;

/// One request: what the filter said before the engine saw it, and what the engines said afterwards. In tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// Which system prompt, from 0.
    pub group: usize,
    /// Which turn of its conversation, from 0.
    pub turn: usize,
    /// The filter's word for how it chose.
    pub decision: String,
    /// Whether the filter knew the prompt: "exact", or why not.
    pub prompt: String,
    /// The endpoint that the filter chose.
    pub endpoint: SocketAddr,
    /// The endpoint whose own metrics counted this prompt.
    pub served_by: SocketAddr,
    /// What the chosen endpoint holds, by the table that the filter used.
    pub predicted: u64,
    /// What the engine took from its cache, by its response.
    pub cached: u64,
    /// The same by its metrics.
    pub cached_by_metrics: u64,
    /// The prompt's length.
    pub prompt_tokens: u64,
    /// How many tokens it begins with that were also the tokens of the turn before, prompt and answer. `None` for a
    /// first turn. An answer's text may make other tokens when it is read than those it was written with; the engine
    /// finds nothing in its cache from there on.
    pub shared_with_last_turn: Option<usize>,
    /// Blocks that the engines had evicted by then.
    pub evictions: u64,
    /// Every holder, with what it holds.
    pub matches: Vec<(SocketAddr, u64)>,
}

/// The counts.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub requests: usize,
    /// Predicted more than a block above what the engine reported. None may be.
    pub over_by_more_than_one_block: usize,
    /// Predicted more than a block below. One in a hundred may be.
    pub under_by_more_than_one_block: usize,
    /// Predicted to the token.
    pub exact: usize,
    /// Requests of which somebody held something.
    pub with_holder: usize,
    /// Of these: sent where the most was held.
    pub to_deepest_holder: usize,
    /// Of these: sent elsewhere, because of load.
    pub load_decided: usize,
    /// Of these: sent elsewhere, because so little was held that the prompt counted as cold.
    pub spread_as_cold: usize,
    /// Requests that another endpoint answered than the one chosen, or whose response and metrics disagree.
    pub contradicted: usize,
    /// Requests whose prompt the filter did not know, so that it predicted nothing.
    pub unknown_prompts: usize,
    /// Blocks that the engines evicted.
    pub evictions: u64,
    pub prompt_tokens: u64,
    pub predicted_tokens: u64,
    pub cached_tokens: u64,
}

impl Seen {
    /// Whether the prediction was more than `block` tokens too high.
    pub fn over(&self, block: u64) -> bool {
        self.predicted > self.cached + block
    }

    /// Whether the prediction was more than `block` tokens too low.
    pub fn under(&self, block: u64) -> bool {
        self.predicted + block < self.cached
    }

    fn deepest(&self) -> Option<u64> {
        self.matches.iter().map(|(_, tokens)| *tokens).max()
    }

    /// Whether nobody held more than the chosen endpoint.
    fn to_deepest(&self) -> bool {
        self.matches.iter().any(|(endpoint, tokens)| *endpoint == self.endpoint && Some(*tokens) == self.deepest())
    }
}

impl Counts {
    /// Counts what was seen of requests to engines with blocks of `block` tokens.
    pub fn of(seen: &[Seen], block: u64) -> Self {
        let count = |is_so: &dyn Fn(&Seen) -> bool| seen.iter().filter(|s| is_so(s)).count();
        let elsewhere = |s: &Seen, why: &str| s.deepest().is_some() && !s.to_deepest() && s.decision == why;
        Self {
            requests: seen.len(),
            over_by_more_than_one_block: count(&|s| s.over(block)),
            under_by_more_than_one_block: count(&|s| s.under(block)),
            exact: count(&|s| s.predicted == s.cached),
            with_holder: count(&|s| s.deepest().is_some()),
            to_deepest_holder: count(&Seen::to_deepest),
            load_decided: count(&|s| elsewhere(s, "load")),
            spread_as_cold: count(&|s| elsewhere(s, "cold")),
            contradicted: count(&|s| s.served_by != s.endpoint || s.cached_by_metrics != s.cached),
            unknown_prompts: count(&|s| s.prompt != "exact"),
            evictions: seen.iter().map(|s| s.evictions).max().unwrap_or(0),
            prompt_tokens: seen.iter().map(|s| s.prompt_tokens).sum(),
            predicted_tokens: seen.iter().map(|s| s.predicted).sum(),
            cached_tokens: seen.iter().map(|s| s.cached).sum(),
        }
    }

    /// What is not as it should be; empty when all is well.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut expect = |is_so: bool, complaint: String| {
            if !is_so {
                complaints.push(complaint);
            }
        };
        let Self { requests, with_holder, .. } = *self;
        let over = self.over_by_more_than_one_block;
        expect(over == 0, format!("{over} predictions were more than a block too high: none may be"));
        let under = self.under_by_more_than_one_block;
        expect(
            under * 100 <= requests,
            format!("{under} of {requests} predictions were more than a block too low: 1 in 100 may be"),
        );
        let lost = with_holder.saturating_sub(self.to_deepest_holder + self.load_decided);
        expect(
            lost == 0,
            format!("{lost} of {with_holder} requests with a holder went elsewhere, and not because of load"),
        );
        let contradicted = self.contradicted;
        expect(contradicted == 0, format!("the engines' metrics contradict {contradicted} of the responses"));
        let unknown = self.unknown_prompts;
        expect(unknown == 0, format!("the filter did not know the prompt of {unknown} requests"));
        // Without these the rest would be true of a Warmpath that does nothing.
        expect(self.evictions > 0, "nothing was evicted: run with fewer blocks or more requests".to_owned());
        expect(
            with_holder * 2 > requests,
            format!("only {with_holder} of {requests} requests had a holder: the check saw too little"),
        );
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// A request that went to engine 1, which holds 320 tokens, of which the engine took all.
    fn seen() -> Seen {
        Seen {
            group: 0,
            turn: 1,
            decision: "holder".into(),
            prompt: "exact".into(),
            endpoint: engine(1),
            served_by: engine(1),
            predicted: 320,
            cached: 320,
            cached_by_metrics: 320,
            prompt_tokens: 400,
            shared_with_last_turn: Some(330),
            evictions: 7,
            matches: vec![(engine(1), 320), (engine(2), 96)],
        }
    }

    fn complaints(seen: Seen) -> String {
        Counts::of(&[seen], 32).complaints().join("; ")
    }

    #[test]
    fn what_is_as_it_should_be_gives_no_complaint() {
        let counts = Counts::of(&[seen()], 32);
        assert_eq!((counts.requests, counts.with_holder, counts.to_deepest_holder, counts.exact), (1, 1, 1, 1));
        assert_eq!(counts.complaints(), Vec::<String>::new());
    }

    #[test]
    fn one_block_beside_is_within_bounds_and_one_token_more_is_not() {
        let reported = |cached| Seen { cached, cached_by_metrics: cached, ..seen() };
        assert_eq!(complaints(reported(288)) + &complaints(reported(352)), "");
        assert!(complaints(reported(287)).contains("too high"));
        assert!(complaints(reported(353)).contains("too low"));
    }

    #[test]
    fn a_request_past_its_deepest_holder_is_excused_by_load_alone() {
        let past =
            |decision: &str| Seen { endpoint: engine(2), served_by: engine(2), decision: decision.into(), ..seen() };
        assert_eq!(complaints(past("load")), "");
        for decision in ["holder", "predicted", "cold", "none"] {
            assert!(complaints(past(decision)).contains("went elsewhere"), "{decision}");
        }
        let counts = Counts::of(&[past("load"), past("cold"), seen()], 32);
        assert_eq!((counts.load_decided, counts.spread_as_cold, counts.to_deepest_holder), (1, 1, 1));
    }

    #[test]
    fn either_of_two_equal_holders_is_a_deepest_one() {
        let tie = Seen {
            endpoint: engine(2),
            served_by: engine(2),
            matches: vec![(engine(1), 96), (engine(2), 96)],
            ..seen()
        };
        assert_eq!(Counts::of(&[tie], 32).to_deepest_holder, 1);
    }

    #[test]
    fn an_answer_from_another_engine_or_other_metrics_contradict() {
        assert!(complaints(Seen { served_by: engine(2), ..seen() }).contains("contradict"));
        assert!(complaints(Seen { cached_by_metrics: 0, ..seen() }).contains("contradict"));
    }

    #[test]
    fn a_run_that_could_not_show_anything_does_not_pass() {
        assert!(complaints(Seen { evictions: 0, ..seen() }).contains("evicted"));
        assert!(
            complaints(Seen { matches: Vec::new(), predicted: 0, cached: 0, cached_by_metrics: 0, ..seen() })
                .contains("too little")
        );
        assert!(complaints(Seen { prompt: "model".into(), ..seen() }).contains("did not know"));
    }
}
