//! The filter's own word on a prompt, for the conformance check and its golden vectors.

use std::panic::{AssertUnwindSafe, catch_unwind};

use affinity::profile::{Profile, Profiles, Renderer, Template};
use affinity::prompt::{Api, Prompts, takes_parts};

/// The special tokens templates ask for, all different. The tiny model has no BOS, so it gets tokens of its own: their
/// ids lie beyond its vocabulary, which matters to nobody who only renders.
pub const SPECIAL_TOKENS: [(&str, &str); 4] =
    [("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")];

/// The engine's clock against UTC in seconds: not the tests' own, so that time zones count.
pub const UTC_OFFSET: i32 = 19_800;

/// The filter's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ours {
    /// The prompt.
    Text(String),
    /// How it begins, and why the rest is not known.
    Begins(String, &'static str),
    /// Not known, and why.
    Declined(&'static str),
    /// It panicked, which must never be.
    Panicked,
}

/// The prompts of one model with one template.
pub struct Renders {
    prompts: Prompts,
}

impl Renders {
    /// With the tiny model's tokenizer, [`SPECIAL_TOKENS`] and [`UTC_OFFSET`].
    #[must_use]
    pub fn jinja(source: &str) -> Self {
        let template =
            Template { name: "default".to_owned(), source: source.to_owned(), takes_parts: takes_parts(source) };
        let special_tokens = SPECIAL_TOKENS.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
        let renderer = Renderer::Jinja(vec![template]);
        Self::of(Profile { renderer, special_tokens, utc_offset: UTC_OFFSET, ..Profile::default() })
    }

    /// Of any profile; its name becomes `tiny`.
    #[must_use]
    pub fn of(profile: Profile) -> Self {
        let profile = Profile { name: "tiny".to_owned(), ..profile };
        Self { prompts: Prompts::new(Profiles { models: vec![profile] }).0 }
    }

    /// Reads a chat's body at a time in seconds since 1970.
    #[must_use]
    pub fn read(&self, body: &str, now: i64) -> Ours {
        self.read_as(Api::Chat, body, now)
    }

    /// Reads any body.
    #[must_use]
    pub fn read_as(&self, api: Api, body: &str, now: i64) -> Ours {
        let read = || self.prompts.read(api, body.as_bytes(), now).prompt;
        match catch_unwind(AssertUnwindSafe(read)) {
            Ok(Ok(canonical)) => {
                let text = String::from_utf8_lossy(&canonical.bytes).into_owned();
                match canonical.cut {
                    None => Ours::Text(text),
                    Some(why) => Ours::Begins(text, why.as_str()),
                }
            }
            Ok(Err(why)) => Ours::Declined(why.as_str()),
            Err(_) => Ours::Panicked,
        }
    }
}
