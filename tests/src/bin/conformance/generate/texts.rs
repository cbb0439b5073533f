//! Texts: of many scripts, of no length and of much, with white space around and with markers in them.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::Generator;

/// What people write.
const PHRASES: &[&str] = &[
    "Hello",
    "What is the weather in Paris tomorrow?",
    "Write a function that adds two numbers.",
    "Résumé: naïve café, Straße, İstanbul, ǆ ǅ",
    "e\u{301}a\u{308}n\u{303}: combining marks stay as they are",
    "今日の天気はどうですか？東京は晴れです。",
    "你好，世界！请用中文回答。",
    "안녕하세요, 오늘 날씨가 어때요?",
    "مرحبا بالعالم، كيف حالك؟ \u{200f}١٢٣",
    "שלום עולם",
    "नमस्ते दुनिया, क्षत्रिय",
    "สวัสดีชาวโลก",
    "Привет, мир! Ёлка.",
    "Καλημέρα κόσμε, ΟΔΥΣΣΕΥΣ",
    "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☺️ 🇩🇪",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \u{10ffff}",
    "a\u{a0}b\u{2003}c\u{3000}d\u{feff}e\u{200b}f\u{2028}g\u{2029}h\u{85}i",
    "tabs\tand\tmore\r\nwindows line\rold mac\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{1f}end",
    "control \u{1}\u{7f}\u{80} characters",
    "fn main() {\n    println!(\"{}\", 1 + 1);\n}\n",
    "```json\n{\"a\": [1, 2.50, null], \"b\": \"x\\\"y\"}\n```",
    "{\"key\": \"value\", \"n\": 1.0, \"list\": []}",
    "[1, 2, 3]",
    "ﬁ ŉ ǰ ΐ ß ẞ ª º ⅷ Ⓐ ŉa ΣΑΣ ıI iİ ᾳ ՙև",
    "² ½ ٣ 三 Ⅷ ① 1_000 0x10 ١٢",
    "looks like a mark \u{f8e0}1\u{f8e1} \u{f8e0}\u{f8e1}",
    "private \u{e000}\u{f000}\u{f8ff}\u{fdd0}\u{ffff} use",
    "'it''s' \"so\" \\' \\\" \\n",
    " 12 ",
    "1e3",
    "nan",
    "null",
    "None",
    "true",
    "0",
    "-0.0",
    "3.14",
    "<b>bold</b> & \"quoted\" 'single' &amp; &#39;",
    "back\\slash \\n not a newline \\u0041 / slash",
    "%s %d {0} {name} $HOME `tick`",
    "A sentence. Another one!  Two spaces before this.",
    "line one\nline two\n\nline four",
];

/// What looks as if it were part of a template or of what one prints.
const MARKERS: &[&str] = &[
    "<think>",
    "</think>",
    "<think>\nsome thoughts\n</think>\n\nthe answer",
    "<think></think>",
    "thoughts without a start</think>answer",
    "<think>thoughts without an end",
    "a</think>b</think>c",
    "<|im_start|>user\nfake<|im_end|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "[INST] x [/INST]",
    "<|start_header_id|>system<|end_header_id|>\n\nx<|eot_id|>",
    "<|eot_id|>",
    "<start_of_turn>user\nx<end_of_turn>",
    "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>",
    "</tool_call>",
    "<tool_response>\nx\n</tool_response>",
    "<tool_response>",
    "</tool_response>",
    "<|tool_call|>",
    "<|channel|>analysis<|message|>x<|end|>",
    "/no_think",
    "/think",
    "detailed thinking on",
    "detailed thinking off",
    "{{ messages }}",
    "{% if true %}x{% endif %}",
    "{# comment #}",
    "{{ raise_exception('x') }}",
    "CONTINUE_FINAL_MESSAGE_TAG",
    "<__media__>",
    "<reasoning>x</reasoning>",
    "<seed:think>x</seed:think>",
    "[THINK]x[/THINK]",
    "<answer>x</answer>",
];

const WHITESPACE: &[&str] =
    &[" ", "  ", "\n", "\n\n", "\t", " \n ", "\r\n", "\u{a0}", "\u{3000}", "\u{1f}", "\u{2028}"];

impl Generator<'_> {
    /// Any text, mostly a short one.
    pub fn text(&mut self) -> String {
        match self.rng.random_range(0..100) {
            0..3 => String::new(),
            3..5 => self.pick(WHITESPACE).to_owned(),
            5..7 => self.long_text(),
            _ => {
                let pieces = if self.rng.random_bool(0.6) { 1 } else { self.rng.random_range(2..5) };
                let mut text: String = (0..pieces).map(|_| self.piece()).collect();
                if self.rng.random_bool(0.15) {
                    text.insert_str(0, self.pick(WHITESPACE));
                }
                if self.rng.random_bool(0.2) {
                    text.push_str(self.pick(WHITESPACE));
                }
                text
            }
        }
    }

    /// A few words without surprises.
    pub fn word(&mut self) -> String {
        const WORDS: &[&str] =
            &["city", "unit", "query", "max_results", "date", "x", "naïve", "名前", "id", "value", "a b", "_k"];
        self.pick(WORDS).to_owned()
    }

    fn piece(&mut self) -> String {
        match self.rng.random_range(0..20) {
            0..3 => self.pick(MARKERS).to_owned(),
            3..5 => self.literal().unwrap_or_default(),
            5 => self.pick(WHITESPACE).to_owned(),
            _ => self.pick(PHRASES).to_owned(),
        }
    }

    /// A text from the template itself.
    pub fn literal(&mut self) -> Option<String> {
        self.hints.literals.choose(&mut self.rng).cloned()
    }

    fn long_text(&mut self) -> String {
        let length = self.rng.random_range(500..8000);
        let mut text = String::new();
        while text.len() < length {
            text.push_str(&self.piece());
            text.push_str(if self.rng.random_bool(0.2) { "\n" } else { " " });
        }
        text
    }

    /// One of a list of constants.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.random_range(0..from.len())]
    }
}
