//! Prompt profiles: what the indexer tells the filter of models.

use crate::units::Slot;
use crate::wire::{Reader, Write};

const VERSION: u8 = 3;

/// How the models' prompts are made: what the filter needs to spell a request's canonical bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profiles {
    /// Index = the model's number in [`Endpoint::models`](crate::fleet::Endpoint::models).
    pub models: Vec<Profile>,
}

/// [`Profile::opaque`] of a model whose prompts were found to differ from what an engine makes of them.
pub const SELF_TEST: &str = "self_test";

/// How one model's prompt is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// The canonical name: the namespace of the base model's prompts.
    pub name: String,
    /// Other names under which clients ask for the same model.
    pub aliases: Vec<String>,
    /// LoRA adapters it serves: each is a namespace of its own.
    pub adapters: Vec<String>,
    /// Of these names, those that not every endpoint of the model serves: a request for one of them elsewhere would fail.
    pub partial: Vec<Partial>,
    /// What renders its chats.
    pub renderer: Renderer,
    /// Special tokens by the names templates use: `bos_token`, `eos_token`, ...
    pub special_tokens: Vec<(String, String)>,
    /// The engine's `--default-chat-template-kwargs`: a JSON object, or empty.
    pub default_kwargs: String,
    /// The engine runs with `--exclude-tools-when-tool-choice-none`.
    pub exclude_unused_tools: bool,
    /// Requests may bring a template of their own. Only for tools: it is never published, as a client's template could
    /// take a worker's stack or all its memory.
    pub trust_request_template: bool,
    /// Text the tokenizer puts before a completions prompt: the BOS token where it adds one, else empty.
    pub completion_prefix: String,
    /// Text the tokenizer puts behind one: hardly ever any.
    pub completion_suffix: String,
    /// What the tokenizer does to a text before it cuts it into tokens.
    pub spelling: Spelling,
    /// The engine's clock against UTC, in seconds east.
    pub utc_offset: i32,
    /// Why none of its prompts can be known, in a word; empty if they can. [`SELF_TEST`] if an engine does not agree.
    pub opaque: String,
    /// Prompts given as token ids are in the table, in a namespace of their own.
    pub token_ids: bool,
    /// Bytes of prompt per token, roughly: estimates the length of prompts nobody holds.
    pub bytes_per_token: u8,
}

/// A name that only some endpoints serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partial {
    /// An alias or adapter.
    pub name: String,
    /// The endpoints that serve it.
    pub slots: Vec<Slot>,
}

/// What turns a chat into text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Renderer {
    /// Nothing known here: chats are unknown.
    #[default]
    None,
    /// The model's Jinja templates. The one named `default` serves, but `tool_use` serves requests with tools, if there.
    Jinja(Vec<Template>),
    /// OpenAI's format of gpt-oss.
    Harmony,
    /// Mistral's own, as `mistral-common` writes it.
    Mistral(MistralFormat),
}

/// A chat template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// `default`, `tool_use`, or another.
    pub name: String,
    /// Its Jinja source.
    pub source: String,
    /// Contents are handed to it as lists of parts (vLLM's content format `openai`), not as text.
    pub takes_parts: bool,
}

/// One of Mistral's formats, as the tokenizer's file tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MistralFormat {
    /// 1, 2, 3, 7, 11, 13 or 15: of `config.version` in `tekken.json`, or of the name `tokenizer.model.v3`.
    pub version: u8,
    /// Tekken, not SentencePiece.
    pub tekken: bool,
    /// `[THINK]` and `[/THINK]` are among its special tokens.
    pub thinks: bool,
    /// The reasoning efforts it takes, its default first; empty if it knows no such setting. From version 15 on, of
    /// `model_settings_builder.reasoning_effort`.
    pub efforts: Vec<String>,
}

/// What a tokenizer does to a text before it cuts it into tokens, as far as the tokens' bytes tell.
///
/// In this order: the text is split at added tokens that are not `normalized`; the steps are done to each piece; the
/// pieces are split at the other added tokens; what is left between them may get a space in front.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spelling {
    /// Added tokens, of which no two have the same text. None where it makes no difference: where no token swallows
    /// whitespace and pieces stay as they are.
    pub added: Vec<AddedToken>,
    /// Done to each piece of text between added tokens, in this order.
    pub steps: Vec<SpellingStep>,
    /// Whether pieces get a space in front.
    pub prefix_space: PrefixSpace,
    /// The vocabulary writes spaces as `▁`, so one in the text comes out as a space, too (SentencePiece).
    pub marks: bool,
}

/// A token that is found in a text before anything else is done to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub text: String,
    /// Swallows the whitespace before it.
    pub lstrip: bool,
    /// Swallows the whitespace behind it.
    pub rstrip: bool,
    /// Only found as a word of its own.
    pub single_word: bool,
    /// Looked for after the steps, not before, in the form that they give it.
    pub normalized: bool,
}

/// One thing done to a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpellingStep {
    /// Unicode's canonical composition.
    Nfc,
    /// Puts this before every piece that is not empty.
    Prepend(String),
    /// Replaces one text by another, from left to right.
    Replace(String, String),
}

/// Which pieces get a space in front. One that begins with a space never does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixSpace {
    /// None.
    #[default]
    Never,
    /// The one that the text begins with.
    First,
    /// All.
    Always,
}

impl Profile {
    /// The template of chats with or without tools, as transformers chooses it.
    #[must_use]
    pub fn template(&self, tools: bool) -> Option<&Template> {
        let Renderer::Jinja(templates) = &self.renderer else { return None };
        let named = |name: &str| templates.iter().find(|template| template.name == name);
        named("tool_use").filter(|_| tools).or_else(|| named("default"))
    }
}

impl Profiles {
    /// The bytes of the profiles page.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.u8(VERSION);
        out.list(&self.models, |out, p| {
            out.string(&p.name);
            out.list(&p.aliases, |out, s| out.string(s));
            out.list(&p.adapters, |out, s| out.string(s));
            out.list(&p.partial, |out, partial| {
                out.string(&partial.name);
                out.list(&partial.slots, |out, slot| out.u16(slot.0));
            });
            match &p.renderer {
                Renderer::None => out.u8(0),
                Renderer::Jinja(templates) => {
                    out.u8(1);
                    out.list(templates, |out, t| {
                        out.string(&t.name);
                        out.string(&t.source);
                        out.u8(u8::from(t.takes_parts));
                    });
                }
                Renderer::Harmony => out.u8(2),
                Renderer::Mistral(format) => {
                    out.u8(3);
                    out.u8(format.version);
                    out.u8(u8::from(format.tekken));
                    out.u8(u8::from(format.thinks));
                    out.list(&format.efforts, |out, effort| out.string(effort));
                }
            }
            out.list(&p.special_tokens, |out, (name, text)| {
                out.string(name);
                out.string(text);
            });
            out.string(&p.default_kwargs);
            out.u8(u8::from(p.exclude_unused_tools));
            out.string(&p.completion_prefix);
            out.string(&p.completion_suffix);
            p.spelling.encode(out);
            out.u32(p.utc_offset.cast_unsigned());
            out.string(&p.opaque);
            out.u8(u8::from(p.token_ids));
            out.u8(p.bytes_per_token);
        });
        out
    }

    /// `None` if these are not the bytes of a profiles page.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::of_version(bytes, VERSION)?;
        let models = r.list(32, |r| {
            Some(Profile {
                name: r.string()?,
                aliases: r.list(4, Reader::string)?,
                adapters: r.list(4, Reader::string)?,
                partial: r
                    .list(8, |r| Some(Partial { name: r.string()?, slots: r.list(2, |r| Some(Slot(r.u16()?)))? }))?,
                renderer: match r.u8()? {
                    0 => Renderer::None,
                    1 => Renderer::Jinja(r.list(9, |r| {
                        Some(Template { name: r.string()?, source: r.string()?, takes_parts: r.u8()? != 0 })
                    })?),
                    2 => Renderer::Harmony,
                    3 => Renderer::Mistral(MistralFormat {
                        version: r.u8()?,
                        tekken: r.u8()? != 0,
                        thinks: r.u8()? != 0,
                        efforts: r.list(4, Reader::string)?,
                    }),
                    _ => return None,
                },
                special_tokens: r.list(8, |r| Some((r.string()?, r.string()?)))?,
                default_kwargs: r.string()?,
                exclude_unused_tools: r.u8()? != 0,
                trust_request_template: false,
                completion_prefix: r.string()?,
                completion_suffix: r.string()?,
                spelling: Spelling::decode(r)?,
                utc_offset: r.u32()?.cast_signed(),
                opaque: r.string()?,
                token_ids: r.u8()? != 0,
                bytes_per_token: r.u8()?,
            })
        })?;
        Some(Self { models })
    }
}

impl Spelling {
    fn encode(&self, out: &mut Vec<u8>) {
        out.list(&self.added, |out, token| {
            out.string(&token.text);
            let flags = [token.lstrip, token.rstrip, token.single_word, token.normalized];
            out.u8(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
        });
        out.list(&self.steps, |out, step| match step {
            SpellingStep::Nfc => out.u8(0),
            SpellingStep::Prepend(text) => {
                out.u8(1);
                out.string(text);
            }
            SpellingStep::Replace(from, to) => {
                out.u8(2);
                out.string(from);
                out.string(to);
            }
        });
        out.u8(match self.prefix_space {
            PrefixSpace::Never => 0,
            PrefixSpace::First => 1,
            PrefixSpace::Always => 2,
        });
        out.u8(u8::from(self.marks));
    }

    fn decode(r: &mut Reader<'_>) -> Option<Self> {
        let added = r.list(5, |r| {
            let text = r.string()?;
            let flags = r.u8()?;
            let flag = |bit: u8| flags >> bit & 1 == 1;
            Some(AddedToken { text, lstrip: flag(0), rstrip: flag(1), single_word: flag(2), normalized: flag(3) })
        })?;
        let steps = r.list(1, |r| {
            Some(match r.u8()? {
                0 => SpellingStep::Nfc,
                1 => SpellingStep::Prepend(r.string()?),
                2 => SpellingStep::Replace(r.string()?, r.string()?),
                _ => return None,
            })
        })?;
        let prefix_space = match r.u8()? {
            0 => PrefixSpace::Never,
            1 => PrefixSpace::First,
            2 => PrefixSpace::Always,
            _ => return None,
        };
        Some(Self { added, steps, prefix_space, marks: r.u8()? != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Fleet;
    use proptest::prelude::*;

    fn profiles() -> Profiles {
        let profile = Profile {
            name: "tiny".into(),
            aliases: vec!["t".into()],
            adapters: vec!["lora".into()],
            partial: vec![Partial { name: "lora".into(), slots: vec![Slot(1), Slot(7)] }],
            renderer: Renderer::Jinja(vec![Template {
                name: "default".into(),
                source: "{{ messages }}".into(),
                takes_parts: true,
            }]),
            special_tokens: vec![("bos_token".into(), "<s>".into())],
            default_kwargs: "{}".into(),
            exclude_unused_tools: true,
            trust_request_template: false,
            completion_prefix: "<s>".into(),
            completion_suffix: "</s>".into(),
            spelling: Spelling {
                added: vec![AddedToken {
                    text: "<|user|>".into(),
                    rstrip: true,
                    normalized: true,
                    ..AddedToken::default()
                }],
                steps: vec![
                    SpellingStep::Nfc,
                    SpellingStep::Prepend(" ".into()),
                    SpellingStep::Replace("a".into(), "b".into()),
                ],
                prefix_space: PrefixSpace::Always,
                marks: true,
            },
            utc_offset: -3600,
            opaque: "self_test".into(),
            token_ids: true,
            bytes_per_token: 4,
        };
        let of = |renderer| Profile { renderer, ..Profile::default() };
        let mistral =
            MistralFormat { version: 15, tekken: true, thinks: true, efforts: vec!["none".into(), "high".into()] };
        Profiles { models: vec![profile, of(Renderer::None), of(Renderer::Harmony), of(Renderer::Mistral(mistral))] }
    }

    #[test]
    fn a_page_survives_the_round_trip() {
        assert_eq!(Profiles::decode(&profiles().encode()), Some(profiles()));
    }

    proptest! {
        #[test]
        fn a_cut_or_changed_page_is_refused_or_read_without_panic(cut in 0usize..200, at in 0usize..200, flip in any::<u8>()) {
            let bytes = profiles().encode();
            let mut bytes = bytes.get(..cut).unwrap_or(&bytes).to_vec();
            if let Some(b) = bytes.get_mut(at) {
                *b ^= flip;
            }
            let _ = (Fleet::decode(&bytes), Profiles::decode(&bytes));
        }
    }
}
