"""What a real vLLM makes of requests to models with Mistral's own tokenizers: one JSON line per request.

Run with the Python of a vLLM installation (tests/real-vllm/setup.sh); needs no weights and no network:

    VLLM_TARGET_DEVICE=cpu .../bin/python tests/conformance/mistral.py [--requests N] [--seed N] [--only NAME] > lines
    ... tests/conformance/mistral.py --requests 200 --few 6 > tests/fixtures/conformance/mistral.jsonl

The vocabularies are those that mistral-common carries, and copies of its tekken vocabulary under the versions that it
carries none of. Requests go through vLLM's own OnlineRenderer; "text" is what its token ids spell, "refused" why there
are none.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["VLLM_LOGGING_LEVEL"] = "CRITICAL"
logging.disable(logging.CRITICAL)

import mistral_common  # noqa: E402
from mistral_common.tokens.tokenizers.tekken import Tekkenizer  # noqa: E402
from vllm.config import DeviceConfig, ModelConfig, VllmConfig  # noqa: E402
from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest  # noqa: E402
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages  # noqa: E402
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402
from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # noqa: E402
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest  # noqa: E402
from vllm.renderers.online_renderer import OnlineRenderer  # noqa: E402
from vllm.renderers.registry import renderer_from_config  # noqa: E402

DATA = Path(mistral_common.__file__).parent / "data"
TEKKEN = "tekken_240718.json"
THINK = ["[THINK]", "[/THINK]"]
SETTINGS = ["[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"]
EFFORTS = {"type": "enum", "values": ["none", "low", "high"], "accepts_none": True, "default": "none"}

# Name: the file, and for copies of tekken the version, more special tokens, and the settings that it takes.
VOCABULARIES = {
    "sp-v1": ("tokenizer.model.v1",),
    "sp-v2": ("mistral_instruct_tokenizer_240216.model.v2",),
    "sp-v3": ("mistral_instruct_tokenizer_240323.model.v3",),
    "sp-v7": ("mistral_instruct_tokenizer_241114.model.v7",),
    "sp-v7m1": ("mistral_instruct_tokenizer_241114.model.v7m1",),
    "tekken-v3": (TEKKEN,),
    "tekken-v3m1": ("tekken_240911.json",),
    "tekken-v1": (TEKKEN, "v1", []),
    "tekken-v2": (TEKKEN, "v2", []),
    "tekken-v7": (TEKKEN, "v7", []),
    "tekken-v11": (TEKKEN, "v11", []),
    "tekken-v13": (TEKKEN, "v13", []),
    "tekken-v13-think": (TEKKEN, "v13", THINK),
    "tekken-v15": (TEKKEN, "v15", THINK + SETTINGS, {}),
    "tekken-v15-effort": (TEKKEN, "v15", THINK + SETTINGS, {"reasoning_effort": EFFORTS}),
    "tekken-v15-schema": (
        TEKKEN,
        "v15",
        SETTINGS,
        {
            "reasoning_effort": EFFORTS | {"values": ["high", "none"], "default": "high"},
            "json_schema": {"type": "json_schema", "accepts_none": False, "default": None},
        },
    ),
}

# No weights are ever looked for.
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 131072,
    "max_position_embeddings": 1000000,
    "torch_dtype": "float32",
}


class Engine:
    """vLLM's way from requests to token ids, and from those to the bytes they spell."""

    def __init__(self, directory, name, defaults):
        file, *derived = VOCABULARIES[name]
        Path(directory, "config.json").write_text(json.dumps(CONFIG))
        if "tekken" in file:
            write_tekken(Path(directory, "tekken.json"), file, *derived)
        else:
            shutil.copy(DATA / file, Path(directory, "tokenizer" + file[file.index(".model"):]))
        model = ModelConfig(model=directory, tokenizer_mode="mistral", config_format="hf", max_model_len=1000000)
        renderer = renderer_from_config(VllmConfig(model_config=model, device_config=DeviceConfig("cpu")))
        self.renderer = OnlineRenderer(
            model,
            renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
            default_chat_template_kwargs=defaults,
        )
        self.tokenizer = renderer.get_tokenizer().tokenizer
        self.tekken = isinstance(self.tokenizer, Tekkenizer)
        settings = derived[2].get("reasoning_effort") if len(derived) > 2 else None
        efforts = sorted(settings["values"], key=lambda value: value != settings["default"]) if settings else []
        self.format = {
            "version": self.tokenizer.version.version_num,
            "tekken": self.tekken,
            "thinks": self.tekken and THINK[0] in self.tokenizer._special_tokens_reverse_vocab,
            "efforts": efforts,
        }

    async def render(self, path, request):
        """The text, or why there is none."""
        try:
            made = await self.make(path, request)
        except Exception as refusal:  # pydantic's, vLLM's, mistral-common's, and whatever else a request trips over
            return {"refused": f"{type(refusal).__name__}: {str(refusal)[:200]}"}
        if not isinstance(made, dict):
            return {"refused": made.error.message[:200]}
        return {"text": b"".join(map(self.spell, made["prompt_token_ids"])).decode()}

    async def make(self, path, request):
        """What the engine is handed, or an error."""
        if path == "/v1/completions":
            made = await self.renderer.render_completion(CompletionRequest.model_validate(request))
            return made[0] if isinstance(made, list) else made
        if path == "/v1/responses":
            made = await self.renderer.render_responses(ResponsesRequest.model_validate(request))
            return getattr(made, "engine_input", made)
        if path == "/v1/messages":
            serving = AnthropicServingMessages
            merge = serving._should_merge_inline_system(self.renderer)
            body = AnthropicMessagesRequest.model_validate(request)
            chat = serving.to_chat_completion_request(body, merge_inline_system=merge)
        else:
            chat = ChatCompletionRequest.model_validate(request)
        made = await self.renderer.render_chat(chat)
        return made[1][0] if isinstance(made, tuple) else made

    def spell(self, token):
        if self.tekken:
            if token < self.tokenizer.num_special_tokens:
                return self.tokenizer.id_to_piece(token).encode()
            return self.tokenizer._model.decode_single_token_bytes(token - self.tokenizer.num_special_tokens)
        model = self.tokenizer._model
        piece = model.id_to_piece(token)
        if model.IsByte(token):
            return bytes([int(piece[3:-1], 16)])
        return piece.encode() if self.tokenizer.is_special(token) else piece.replace("▁", " ").encode()


def write_tekken(path, file, version=None, more=None, settings=None):
    tekken = json.loads((DATA / file).read_text())
    if version is not None:
        names = [str(token["token_str"]) for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS]
        names += ["[ARGS]", "[CALL_ID]", *more]
        tekken["special_tokens"] = [
            {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
        ]
        tekken["config"]["version"] = version
        if settings is not None:
            tekken["model_settings_builder"] = settings
    path.write_text(json.dumps(tekken))


WORDS = """the of a weather Paris 東京 Привет مرحبا שלום हिन्दी ไทย 한국어 naïve e\u0301 ﬁ Ω 😀 👩‍👩‍👧 🇫🇷 1 42 3.14 -0 $
    x=1; {"a":1} [1,2] <b> </b> a@b.c C:\\dir "quoted" 'single' `code` __init__ #tag \u00a0 \u2028 \ufeff \u200b
    ▁ ▁▁x <0x0A> [REF] [control_9] <SPECIAL_20> [INS T] \x7f \0 \x1b\\n""".split(" ")
WORDS += ["\n", "\n\n", "\t", "\r\n", "  ", "\n    "]
CONTROLS = ["[INST]", "</s>", "<s>", "[/TOOL_RESULTS]", "[THINK]", "<unk>", "[ARGS]"]
NAMES = ["get_weather", "search", "f", "a-b_C9", "x" * 64]
ID = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class Requests:
    """Random requests, most of which the engine takes."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def some(self, chance):
        return self.random.random() < chance

    def text(self, least=0):
        if self.some(0.02):
            codes = [self.random.randrange(0x110000 - 0x800) for _ in range(9)]
            return "".join(chr(code if code < 0xD800 else code + 0x800) for code in codes)
        length = self.random.choice([least, 1, 2, 3, 5, 8, 13, self.random.randint(1, 120)])
        words = self.random.choices(WORDS, k=length)
        if self.some(0.003):
            words.append(self.random.choice(CONTROLS))
        text = self.random.choice([" ", " ", "", "  "]).join(words)
        return self.random.choice(["", "", "", " ", "\n"]) + text + self.random.choice(["", "", "", " ", "  ", "\n "])

    def number(self):
        return self.random.choice([
            0, -1, 7, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.0, 1.0, 0.1, 1e15, 1e16, 1.5e300, 1e-5, 0.0001, 1e22,
            123456789.125, 1223383794756801.25, self.random.uniform(-1, 1), self.random.randint(-9999, 9999),
            self.random.uniform(-1, 1) * 10.0 ** self.random.randint(-20, 20),
        ])  # fmt: skip

    def value(self, depth=3):
        kind = self.random.randint(0, 7 if depth else 4)
        if kind == 0:
            return self.random.choice([None, True, False])
        if kind <= 2:
            return self.number()
        if kind <= 4:
            return self.text()
        if kind == 5:
            return [self.value(depth - 1) for _ in range(self.random.randint(0, 3))]
        return self.object(depth - 1)

    def object(self, depth=2):
        keys = [self.random.choice(["b", "a", "c", "x", "y", self.text(1)]) for _ in range(self.random.randint(0, 4))]
        return {key: self.value(depth) for key in keys}

    def json(self, value):
        return json.dumps(
            value,
            ensure_ascii=self.some(0.5),
            indent=self.random.choice([None, None, 2]),
            separators=self.random.choice([None, (",", ":")]),
        )

    def content(self, thinking=False):
        """A text, or a list of parts."""
        if self.some(0.7):
            return self.text()
        parts = [{"type": "text", "text": self.text()} for _ in range(self.random.randint(0, 3))]
        if thinking and self.some(0.5):
            closed = self.random.choice([{}, {"closed": False}, {"closed": True}])
            thought = {"type": "thinking", "thinking": self.text()} | closed
            parts.insert(self.random.choice([0, 0, len(parts)]), thought)
        if parts and self.some(0.2):
            parts[0]["cache_control"] = {"type": "ephemeral"}
        if self.some(0.02):
            others = [{"type": "input_text", "text": "x"}, {"type": "refusal", "refusal": "x"}, "x", {"text": "x"}]
            parts.append(self.random.choice(others))
        return parts

    def id(self):
        long = self.some(0.3)
        return ("call_" if long else "") + "".join(self.random.choices(ID, k=self.random.randint(9, 24) if long else 9))

    def tool(self):
        function = {"name": self.random.choice(NAMES)}
        if self.some(0.8):
            function["description"] = self.random.choice([None, self.text(), self.text()])
        if self.some(0.8):
            properties = {
                self.random.choice(["city", "unit", "q", "数", "n"]): {
                    "type": self.random.choice(["string", "number", "object", "array", "boolean", "integer"]),
                    "description": self.text(),
                    self.random.choice(["default", "x", "const"]): self.value(),
                }
                for _ in range(self.random.randint(0, 3))
            }
            function["parameters"] = self.random.choice([
                {"type": "object", "properties": properties, "required": list(properties)},
                {"properties": properties, "type": "object", "additionalProperties": False},
                {}, None,
            ])  # fmt: skip
        if self.some(0.2):
            function["strict"] = self.random.choice([True, False, None])
        if self.some(0.1):
            function["unknown"] = 1
        return {"type": "function", "function": function}

    def result(self):
        """What a tool says."""
        kind = self.random.randint(0, 9)
        if kind <= 3:
            return self.json(self.value())
        if kind == 4:
            return self.random.choice([
                "", "NaN", "[Infinity]", "1e400", "9" * 40, '"\\ud83d\\ude00"', "{'a': 1}", "tru", " 7 ", "-0",
                '{"a":1,"a":2}',
            ])  # fmt: skip
        return self.content()

    def arguments(self):
        if self.some(0.9):
            return self.json(self.object())
        return self.random.choice([
            "", "[]", "3", "null", "{", "not json", '{"a": NaN}', '{"a":1,"a":2}', '{"a":1e400}', '{"b":1E5}',
        ])  # fmt: skip

    def calls(self, format):
        version = format["version"]
        messages, ids = [], [self.id() for _ in range(1 if version == 2 else self.random.randint(1, 3))]
        functions = [{"name": self.random.choice(NAMES), "arguments": self.arguments()} for _ in ids]
        calls = [{"id": id, "type": "function", "function": function} for id, function in zip(ids, functions)]
        call = {"role": "assistant", "tool_calls": calls}
        if self.some(0.5):
            call["content"] = self.random.choice([None, "", self.text() if version >= 7 else None])
        if self.some(0.2) and format["thinks"]:
            call["reasoning"] = self.text()
        messages.append(call)
        if self.some(0.3):
            self.random.shuffle(ids)
        if self.some(0.03):
            ids.pop()
        for id in ids:
            message = {"role": "tool", "tool_call_id": id, "content": self.result()}
            if self.some(0.3):
                message["name"] = self.random.choice(NAMES)
            messages.append(message)
        return messages

    def assistant(self, format):
        content = self.content(thinking=format["thinks"])
        while not content and self.some(0.9):
            content = self.content()
        message = {"role": "assistant", "content": content}
        thought = isinstance(content, list) and any("thinking" in part for part in content)
        if self.some(0.01 if thought or not format["thinks"] else 0.3):
            message[self.random.choice(["reasoning", "reasoning_content"])] = self.text()
        if self.some(0.1):
            message |= {"refusal": None, "tool_calls": self.random.choice([None, []])}
        return message

    def chat(self, format):
        version, messages = format["version"], []
        system = {"role": self.random.choice(["system", "system", "developer"]), "content": self.content()}
        if self.some(0.5):
            messages.append(system)
            if self.some(0.2):
                thinking = format["thinks"] and version == 13
                messages.append({"role": "system", "content": self.content(thinking)})
        for _ in range(self.random.randint(1, 3)):
            for _ in range(self.random.choice([1, 1, 1, 2])):
                name = {"name": "Bob"} if self.some(0.1) else {}
                messages.append({"role": "user", "content": self.content()} | name)
            if self.some(0.1):
                messages.append(system)
            if version > 1:
                for _ in range(self.random.choice([0, 0, 1, 2])):
                    messages += self.calls(format)
            messages += [self.assistant(format) for _ in range(self.random.choice([0, 1, 1, 1, 2]))]
        request = {"messages": messages}
        if messages[-1]["role"] == "assistant":
            if self.some(0.5):
                request |= {"add_generation_prompt": False, "continue_final_message": True}
            else:
                messages.append({"role": "user", "content": self.content()})
        elif self.some(0.1):
            request["add_generation_prompt"] = False
        if self.some(0.5):
            request["tools"] = [self.tool() for _ in range(self.random.randint(1, 3))]
            if self.some(0.2):
                request["tool_choice"] = self.random.choice(["none", "auto", "required"])
        if self.some(0.3 if version >= 15 else 0.03):
            request["reasoning_effort"] = self.random.choice(["none", "low", "high", "high"])
        if self.some(0.02):
            request["chat_template_kwargs"] = {"x": 1}
        if self.some(0.03):
            more = [{"add_special_tokens": True}, {"documents": [{"text": "x"}]}, {"temperature": 0}]
            request |= self.random.choice(more)
        if self.some(0.03):
            self.random.shuffle(messages)
        return request

    def completion(self):
        return {"prompt": self.text(1)} | ({"add_special_tokens": False} if self.some(0.2) else {})


def as_messages(chat):
    """A chat request as one of /v1/messages."""
    body = {"model": "m", "max_tokens": 9, "messages": []}

    def blocks(content):
        return [{"type": "text", "text": content}] if isinstance(content, str) else content or []

    for message in chat["messages"]:
        role, content = message["role"], message.get("content")
        if role == "tool":
            result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": content}
            body["messages"].append({"role": "user", "content": [result]})
        elif message.get("tool_calls"):
            thought = message.get("reasoning")
            thoughts = [{"type": "thinking", "thinking": thought, "signature": "s"}] if thought else []
            uses = [
                {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": {"b": [1.5, "é"]}}
                for call in message["tool_calls"]
            ]
            body["messages"].append({"role": role, "content": thoughts + blocks(content) + uses})
        elif role in ("user", "assistant", "system"):
            body["messages"].append({"role": role, "content": content})
        else:
            body["system"] = content
    if "tools" in chat:
        body["tools"] = []
        for function in (tool["function"] for tool in chat["tools"]):
            tool = {"name": function["name"], "input_schema": function.get("parameters") or {}}
            body["tools"].append(tool | {"description": function.get("description")})
    return body


def as_responses(chat):
    """A chat request as one of /v1/responses."""
    body = {"model": "m", "input": []}
    for message in chat["messages"]:
        role, content = message["role"], message.get("content")
        if role == "tool":
            output = content if isinstance(content, str) else "x"
            body["input"].append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": output})
            continue
        if message.get("reasoning"):
            thought = {"type": "reasoning_text", "text": message["reasoning"]}
            body["input"].append({"type": "reasoning", "id": "r", "summary": [], "content": [thought]})
        if content:
            body["input"].append({"role": role, "content": content if isinstance(content, str) else "y"})
        for call in message.get("tool_calls") or []:
            body["input"].append({"type": "function_call", "call_id": call["id"], **call["function"]})
    if "tools" in chat:
        body["tools"] = [{"type": "function", "parameters": {}, **tool["function"]} for tool in chat["tools"]]
    if "reasoning_effort" in chat:
        body["reasoning"] = {"effort": chat["reasoning_effort"]}
    return body


def varied(lines, number):
    """The short lines that show most: each time the one with the most that none before it had."""
    lines = [line for line in lines if "text" in line and len(json.dumps(line)) < 2000]
    seen, chosen = set(), []

    def shows(line):
        messages = line["request"].get("messages", [])
        roles = "-".join(message["role"] for message in messages)
        keys = {key for message in messages for key in message}
        return {line["path"], roles, *keys, *line["request"], *re.findall(r"\[[A-Z_]+\]|\W", line["text"])} - seen

    while lines and len(chosen) < number:
        best = max(lines, key=lambda line: len(shows(line)))
        seen |= shows(best)
        lines.remove(best)
        chosen.append(best)
    return chosen


# Of ten requests, by their place among them; all others are chats.
PATHS = {7: "/v1/messages", 8: "/v1/responses", 9: "/v1/completions"}
AS = {"/v1/messages": as_messages, "/v1/responses": as_responses}


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="requests per vocabulary (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (default: %(default)s)")
    parser.add_argument("--few", type=int, metavar="N", help="print only N short and varied ones of each vocabulary")
    parser.add_argument("--only", choices=VOCABULARIES, help="one vocabulary")
    options = parser.parse_args()
    for name in [options.only] if options.only else VOCABULARIES:
        defaults = {"reasoning_effort": "high", "x": 1} if name == "tekken-v15-effort" else {}
        with tempfile.TemporaryDirectory() as directory:
            engine = Engine(directory, name, defaults)
        requests, refused, lines = Requests(f"{options.seed} {name}"), 0, []
        for number in range(options.requests):
            path = PATHS.get(number % 10, "/v1/chat/completions")
            if path == "/v1/completions":
                request = requests.completion()
            else:
                request = requests.chat(engine.format)
                if path in AS:
                    # They never go on with an answer but where its item says so.
                    if request["messages"][-1]["role"] == "assistant":
                        request["messages"].append({"role": "user", "content": requests.content()})
                    request = AS[path](request)
            line = {"vocabulary": name, "format": engine.format, "defaults": defaults, "path": path, "request": request}
            written = json.dumps(line)
            # The engine changes what it is given.
            answer = await engine.render(path, json.loads(written)["request"])
            refused += "refused" in answer
            lines.append(line | answer)
        for line in varied(lines, options.few) if options.few else lines:
            print(json.dumps(line))
        print(f"{name}: {options.requests} requests, {refused} refused", file=sys.stderr)


asyncio.run(main())
