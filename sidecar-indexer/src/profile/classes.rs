//! Which of transformers' tokenizer classes an engine loads for a model, and what that class makes of tokenizer.json.
//!
//! The generic class takes the file as it is. Others take only vocabulary, merges and post-processor out of it and set
//! up the rest by themselves: the file's normalizer and pre-tokenizer are not what counts then. As in transformers 5.19
//! (`AutoTokenizer.from_pretrained`, and the `__init__` of each class), called as vLLM calls it.

use super::read::{flag, text};
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

/// What sets a tokenizer up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// tokenizer.json as it is.
    File,
    /// `LlamaTokenizer`.
    Llama,
    /// `Qwen2Tokenizer`.
    Qwen2,
    /// `Qwen3_5Tokenizer`.
    Qwen35,
    /// `GemmaTokenizer`.
    Gemma,
    /// `CohereTokenizer`.
    Cohere,
    /// `GPT2Tokenizer`.
    Gpt2,
    /// `GPTNeoXTokenizer`.
    GptNeoX,
    /// `CodeGenTokenizer`.
    CodeGen,
}

use Class::{CodeGen, Cohere, File, Gemma, Gpt2, GptNeoX, Llama, Qwen2, Qwen35};

/// Classes by name, with the model types they are registered for.
const CLASSES: [(&str, Class, &str); 8] = [
    ("LlamaTokenizer", Llama, "idefics idefics2"),
    (
        "Qwen2Tokenizer",
        Qwen2,
        "audioflamingo3 colqwen2 cosmos3_omni fun_asr_nano hunyuan_vl internvl lighton_ocr ovis2 qianfan_ocr qwen2 \
         qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_asr qwen3_moe qwen3_next \
         qwen3_omni_moe qwen3_vl qwen3_vl_moe vibevoice",
    ),
    ("Qwen3_5Tokenizer", Qwen35, "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen4_exp"),
    (
        "GemmaTokenizer",
        Gemma,
        "diffusion_gemma gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text recurrent_gemma shieldgemma2 t5gemma \
         zaya",
    ),
    ("CohereTokenizer", Cohere, "aya_vision cohere cohere2"),
    (
        "GPT2Tokenizer",
        Gpt2,
        "blip-2 codegen dbrx emu3 gpt2 gpt_neo gptj hyperclovax_vision_v2 instructblip instructblipvideo jais2 opt \
         phi starcoder2",
    ),
    ("GPTNeoXTokenizer", GptNeoX, "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm"),
    ("CodeGenTokenizer", CodeGen, ""),
];

/// Model types for which the generic class serves whatever class their files name (vLLM's own list included).
const GENERIC: &str = "aria arctic bigbird_pegasus camembertv2-base canary chameleon chatlm cohere_asr deepseek_ocr deepseek_ocr2 \
     deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 deepseek_vl deepseek_vl_hybrid deepseek_vl_v2 ernie4_5 \
     ernie4_5_moe flex_olmo fuyu glm glm4 glm4_moe glm4_moe_lite glm4v glm4v_moe glm_image glmasr got_ocr2 \
     gpt_bigcode granite granitemoe granitemoehybrid granitemoeshared h2ovl_chat hyperclovax hyperclovax_vlm \
     internlm2 jamba janus kimi_k25 kimi_linear kosmos-2 llava llava_next mimo_v2_flash minicpm3 minicpmv \
     minicpmv4_6 minicpmv4_7 minimax_m2 ministral ministral3 mistral mistral3 mixtral modernbert molmo molmo2 \
     nemotron nvfp4 olmo2 olmo3 olmo_hybrid opencua openvla paddleocr_vl persimmon phi3 phi3_v phimoe pixtral \
     smolvlm stablelm step3_vl step3p5 vipllava voxtral voxtral_realtime";

/// The same in vLLM's own list, where even the right class is set aside.
const GENERIC_IN_VLLM: &str = "internlm2 step3_vl step3p7 unlimited-ocr unlimited_ocr";

/// Model types whose registered class serves though their files name another.
const NAMED_WRONGLY: &str = "hyperclovax_vision_v2 qwen2 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen4_exp";

/// Classes that exist and whose set-up is not reproduced here. Names that transformers does not know mean the generic.
const OTHERS: &str = "Albert Bart Barthez Bartpho BertGeneration BertJapanese Bert Bertweet BigBird BioGpt BlenderbotSmall \
     Blenderbot ByT5 CLIP CTRL Camembert Canine Clvp CodeLlama CpmAnt Cpm Deberta DebertaV2 Dia DistilBert Electra \
     Esm Esmc FSMT Flaubert Funnel GPTNeoXJapanese GPTSw3 Herbert Lasr LayoutLMv2 LayoutLMv3 LayoutXLM Luke M2M100 \
     MBart50 MBart MLuke MPNet Marian MyT5 Nllb Nougat OpenAIGPT PLBart Pegasus Perceiver Phobert ProphetNet \
     Reformer RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip2 Siglip Speech2Text SpeechT5 Splinter T5 Tipsv2 \
     Udop Whisper XGLM XLM XLMRoberta XLNet MistralCommonBackend";

/// Whether a name is one of those listed.
fn listed(names: &str, name: &str) -> bool {
    names.split(' ').any(|listed| listed == name)
}

impl Class {
    /// The class for a model with this config.json and tokenizer_config.json.
    ///
    /// # Errors
    /// When it is one whose set-up is not reproduced, or the model's own code.
    pub fn of(model: &Value, config: &Value, trust_remote_code: bool) -> Result<Self> {
        let kind = text(model, "model_type").unwrap_or_default();
        let named = text(config, "tokenizer_class").or_else(|| text(model, "tokenizer_class"));
        let named = named.map(|name| name.strip_suffix("Fast").unwrap_or(name));
        if listed(GENERIC_IN_VLLM, kind) {
            return Ok(File);
        }
        let (generic, registered) = (listed(GENERIC, kind), Self::registered(kind));
        let own_code = config.get("auto_map").is_some_and(|map| map.is_array() || map.get("AutoTokenizer").is_some());
        if own_code {
            // Ignored for models whose files name the wrong class, unless it is trusted.
            if trust_remote_code {
                bail!("its tokenizer is code of its own (auto_map), run by --trust-remote-code");
            }
        } else if generic {
            return Ok(File);
        } else if let Some((name, class)) = registered.filter(|(name, _)| named.is_some_and(|named| named != *name)) {
            return if listed(NAMED_WRONGLY, kind) { Ok(class) } else { Self::named(named.unwrap_or(name)) };
        }
        match (named, registered) {
            (Some(name), _) => Self::named(name),
            (None, Some((_, class))) => Ok(class),
            (None, None) => Ok(File),
        }
    }

    fn registered(kind: &str) -> Option<(&'static str, Self)> {
        CLASSES.into_iter().find(|(_, _, kinds)| listed(kinds, kind)).map(|(name, class, _)| (name, class))
    }

    fn named(name: &str) -> Result<Self> {
        if let Some((_, class, _)) = CLASSES.into_iter().find(|(known, ..)| *known == name) {
            return Ok(class);
        }
        if listed(OTHERS, name.strip_suffix("Tokenizer").unwrap_or(name)) {
            bail!("its tokenizer class is {name}, whose set-up is not reproduced");
        }
        Ok(File)
    }

    /// Special tokens that the class has where the files do not say otherwise.
    pub fn special_tokens(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            File => &[],
            Llama => &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
            Qwen2 | Qwen35 => &[("unk_token", END), ("eos_token", END), ("pad_token", END)],
            Gemma => &[
                ("unk_token", "<unk>"),
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Cohere => &[
                ("unk_token", "<UNK>"),
                ("bos_token", "<BOS_TOKEN>"),
                ("eos_token", "<|END_OF_TURN_TOKEN|>"),
                ("pad_token", "<PAD>"),
                ("cls_token", "<CLS>"),
                ("sep_token", "<SEP>"),
                ("mask_token", "<MASK_TOKEN>"),
            ],
            Gpt2 | CodeGen => &[("unk_token", END), ("bos_token", END), ("eos_token", END)],
            GptNeoX => &[("unk_token", END), ("bos_token", END), ("eos_token", END), ("pad_token", "<|padding|>")],
        }
    }

    /// What the class puts in the place of tokenizer.json's parts.
    pub fn rebuild(self, tokenizer: &mut Map<String, Value>, config: &Value) {
        if self == File {
            return;
        }
        let space = flag(config, "add_prefix_space");
        let byte_level = |space: bool, regex: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex});
        let (nfc, bytes) = (json!({"type": "NFC"}), byte_level(true, true));
        let (normalizer, pre_tokenizer, decoder) = match self {
            Llama => {
                let legacy = flag(config, "legacy") == Some(true);
                let scheme = match (space, legacy) {
                    (Some(false), _) => "never",
                    (_, true) => "always",
                    (_, false) => "first",
                };
                let metaspace = json!({
                    "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false
                });
                (Value::Null, metaspace, fallback())
            }
            Gemma => {
                let marks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
                let split = split(&json!({"String": " "}), "MergedWithPrevious");
                (marks, split, fallback())
            }
            Qwen2 | Qwen35 => {
                let words = split(&json!({"Regex": if self == Qwen2 { QWEN2 } else { QWEN35 }}), "Isolated");
                let parts = [words, byte_level(space == Some(true), false)];
                (nfc, json!({"type": "Sequence", "pretokenizers": parts}), bytes)
            }
            Cohere => {
                let parts =
                    [json!({"type": "Digits", "individual_digits": true}), byte_level(space == Some(true), true)];
                (nfc, json!({"type": "Sequence", "pretokenizers": parts}), bytes)
            }
            GptNeoX => (nfc, byte_level(space == Some(true), true), bytes),
            Gpt2 | CodeGen | File => (Value::Null, byte_level(space == Some(true), true), bytes),
        };
        let falls_back = matches!(self, Llama | Gemma);
        if let Some(model) = tokenizer.get_mut("model").and_then(Value::as_object_mut) {
            let kept = ["type", "vocab", "merges"];
            model.retain(|name, _| kept.contains(&name.as_str()));
            model.insert("byte_fallback".to_owned(), falls_back.into());
            model.insert("fuse_unk".to_owned(), falls_back.into());
        }
        // The next turn's tokens are those that the files list; see `added`.
        tokenizer.insert("added_tokens".to_owned(), json!([]));
        tokenizer.insert("normalizer".to_owned(), normalizer);
        tokenizer.insert("pre_tokenizer".to_owned(), pre_tokenizer);
        tokenizer.insert("decoder".to_owned(), decoder);
        if self == GptNeoX {
            tokenizer.insert("post_processor".to_owned(), Value::Null);
        }
    }
}

const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn split(pattern: &Value, behavior: &str) -> Value {
    json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": false})
}

fn fallback() -> Value {
    let marks = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
    json!({"type": "Sequence", "decoders": [marks, {"type": "ByteFallback"}, {"type": "Fuse"}]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_depends_on_the_model_as_much_as_on_what_its_files_name() {
        let class = |kind: &str, named: &str| {
            Class::of(&json!({"model_type": kind}), &json!({"tokenizer_class": named}), false).unwrap()
        };
        assert_eq!(class("llama", "LlamaTokenizer"), Llama);
        assert_eq!(class("llama", "PreTrainedTokenizerFast"), File);
        // Generic whatever is named.
        assert_eq!(class("phi3", "LlamaTokenizerFast"), File);
        assert_eq!(class("mistral", "LlamaTokenizer"), File);
        assert_eq!(class("deepseek_v3", "LlamaTokenizerFast"), File);
        // Named wrongly, and known to be.
        assert_eq!(class("qwen2", "LlamaTokenizerFast"), Qwen2);
        assert_eq!(class("qwen3_5", "Qwen2Tokenizer"), Qwen35);
        assert_eq!(class("qwen3", "LlamaTokenizerFast"), Llama);
        // Unknown to transformers.
        assert_eq!(class("llama", "GreatTokenizer"), File);
        let nothing = json!({});
        assert_eq!(Class::of(&json!({"model_type": "gemma3"}), &nothing, false).unwrap(), Gemma);
        assert_eq!(Class::of(&json!({"model_type": "llama"}), &nothing, false).unwrap(), File);
    }

    #[test]
    fn classes_that_are_not_reproduced_are_refused() {
        let model = json!({"model_type": "t5"});
        assert!(Class::of(&model, &json!({"tokenizer_class": "T5TokenizerFast"}), false).is_err());
        assert!(Class::of(&model, &json!({"tokenizer_class": "CodeLlamaTokenizer"}), false).is_err());
        let own = json!({"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", null]}, "tokenizer_class": "OwnTokenizer"});
        assert!(Class::of(&model, &own, true).is_err());
        assert_eq!(Class::of(&model, &own, false).unwrap(), File);
    }
}
