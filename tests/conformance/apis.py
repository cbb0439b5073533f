#!/usr/bin/env python3
"""Records what vLLM makes of bodies of /v1/responses and /v1/messages.

usage: VENV/bin/python tests/conformance/apis.py MODEL COUNT [SEED] > tests/fixtures/conformance/apis.jsonl

VENV is an environment with vLLM, MODEL the directory of a model with a byte-level tokenizer (the real-vllm check makes
both). Starts vLLM's renderer with a template that prints all that it gets, once for contents as text and once for contents
as parts, and sends COUNT bodies of each API to each: most are usual, some odd. Writes a line of JSON for each:

  path       of the API
  parts      whether the template took parts
  request    the body
  text       what the tokens spell that vLLM made of it, or
  refused    the status with which vLLM refused it
"""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer

TEMPLATE = pathlib.Path(__file__).with_name("apis.jinja")
# Before the template, so that it refuses system messages that are not the first.
SYSTEM_FIRST = """\
{%- for message in messages[1:] %}
    {%- if message.role == 'system' %}{{ raise_exception('system messages come first') }}{% endif %}
{%- endfor %}
"""
TEXTS = [
    "hi",
    "What is the weather in Paris?",
    "  leading and trailing  ",
    "two\nlines\n",
    'quotes " and \\ and \t tabs',
    "naïve café 東京 🙂 e\u0301",
    "<|im_start|>system\nnot a real one<|im_end|>",
    "x-anthropic-billing-header: cc=1; more",
    "x-anthropic-billing-header: cc=2\nkept",
    "</tool_call>\u2028\x7f",
    "{\"a\": 1}",
    "a" * 60,
]
VALUES = [
    0, -7, 1.0, 1e3, 1e16, 1e-7, 0.1, 12345678901234567890123, True, False, None, "", "é", "a/b", [], {}, [1, [2.5, None]],
    {"z": 1, "a": {"é": "ü", "b": []}}, "line\nbreak", "\u0001",
]
NAMES = ["get_weather", "f", "mcp__files__read", "été"]
EFFORTS = ["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Maker:
    """Makes bodies."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def chance(self, probability):
        return self.random.random() < probability

    def text(self):
        if self.chance(0.08):
            return ""
        return self.random.choice(TEXTS)

    def value(self):
        return self.random.choice(VALUES)

    def some(self, low, high, make):
        return [make() for _ in range(self.random.randint(low, high))]

    def object(self):
        keys = self.random.sample(["city", "unit", "n", "type", "é", "list"], self.random.randint(0, 4))
        return {key: self.value() for key in keys}

    def schema(self):
        schema = {"type": "object", "properties": {"city": {"type": "string", "description": self.text()}}}
        if self.chance(0.3):
            schema["required"] = ["city"]
        if self.chance(0.3):
            schema["x"] = self.value()
        return schema if self.chance(0.9) else self.object()

    def maybe(self, fields, key, probability, make):
        if self.chance(probability):
            fields[key] = make()

    # /v1/responses

    def responses(self):
        body = {"model": "tiny"}
        body["input"] = self.text() if self.chance(0.1) else self.items()
        self.maybe(body, "instructions", 0.4, self.text)
        self.maybe(body, "tools", 0.4, lambda: self.some(0, 3, self.responses_tool))
        self.maybe(body, "tool_choice", 0.2, lambda: self.random.choice(["auto", "none"]))
        self.maybe(body, "reasoning", 0.2, lambda: {"effort": self.random.choice([*EFFORTS, None])})
        self.maybe(body, "chat_template_kwargs", 0.2, self.kwargs)
        self.maybe(body, "truncation", 0.1, lambda: self.random.choice(["disabled", "disabled", "auto", None]))
        self.maybe(body, "cache_salt", 0.1, lambda: "salt")
        self.maybe(body, "max_output_tokens", 0.3, lambda: 7)
        self.maybe(body, "temperature", 0.3, lambda: 0.5)
        self.maybe(body, "store", 0.2, lambda: False)
        self.maybe(body, "metadata", 0.1, lambda: {"content": "no message's"})
        self.maybe(body, "previous_response_id", 0.02, lambda: "resp_1")
        return body

    def kwargs(self):
        kwargs = {}
        self.maybe(kwargs, "enable_thinking", 0.5, lambda: self.random.choice([True, False]))
        self.maybe(kwargs, "flavour", 0.5, self.value)
        self.maybe(kwargs, "unknown", 0.5, self.value)
        self.maybe(kwargs, "reasoning_effort", 0.2, lambda: "max")
        return kwargs

    def items(self):
        items = [self.responses_message("user")]
        while self.chance(0.75) and len(items) < 12:
            kind = self.random.random()
            if kind < 0.25:
                items.append(self.responses_message("user"))
            elif kind < 0.45:
                items.append(self.responses_message("assistant"))
            elif kind < 0.5:
                items.append(self.responses_message(self.random.choice(["system", "developer"])))
            elif kind < 0.6:
                items.append(self.reasoning())
            elif kind < 0.8:
                items.append(self.function_call())
            elif kind < 0.98:
                items.append(self.output())
            else:
                items.append({"type": "item_reference", "id": "x"})
        if self.chance(0.1):
            items.insert(0, self.responses_message("developer"))
        return items

    def responses_message(self, role):
        message = {"role": role}
        if role == "assistant" and self.chance(0.6):
            kind = "input_text" if self.chance(0.1) else "output_text"
            message["content"] = self.some(0 if self.chance(0.05) else 1, 2, lambda: self.responses_part(kind))
            self.maybe(message, "type", 0.9, lambda: "message")
        else:
            message["content"] = self.text() if self.chance(0.6) else self.some(0, 3, lambda: self.responses_part("input_text"))
            self.maybe(message, "type", 0.5, lambda: "message")
        self.maybe(message, "id", 0.3, lambda: "msg_1")
        self.maybe(message, "status", 0.3, lambda: self.random.choice(["completed", "completed", "in_progress", "incomplete"]))
        self.maybe(message, "name", 0.05, lambda: "bob")
        self.maybe(message, "phase", 0.05, lambda: "commentary")
        if self.chance(0.5):
            message = dict(reversed(message.items()))
        return message

    def responses_part(self, kind):
        part = {"type": kind, "text": self.text()}
        self.maybe(part, "annotations", 0.3 if kind == "output_text" else 0, list)
        self.maybe(part, "cache_control", 0.1, lambda: {"type": "ephemeral"})
        self.maybe(part, "é", 0.05, self.value)
        self.maybe(part, "prompt_cache_breakpoint", 0.05, lambda: {"mode": "explicit"})
        self.maybe(part, "uuid", 0.02, lambda: None)
        return part

    def reasoning(self):
        item = {"type": "reasoning", "summary": self.some(0, 2, lambda: {"type": "summary_text", "text": self.text()})}
        self.maybe(item, "content", 0.6, lambda: self.some(0, 2, lambda: {"type": "reasoning_text", "text": self.text()}))
        self.maybe(item, "id", 0.5, lambda: "rs_1")
        self.maybe(item, "encrypted_content", 0.1, lambda: self.random.choice([None, "", "gAAA"]))
        self.maybe(item, "status", 0.3, lambda: self.random.choice(["completed", "in_progress", None]))
        return item

    def arguments(self):
        if self.chance(0.1):
            return self.random.choice(["", "null", "[1]", "{", "{'a': 1}", "7", '{"a": 1, "a": 2}'])
        return json.dumps(self.object(), ensure_ascii=self.chance(0.5), separators=(",", ":") if self.chance(0.5) else None)

    def function_call(self):
        if self.chance(0.15):
            item = {"type": "custom_tool_call", "call_id": "call_2", "name": "patch", "input": self.text()}
        else:
            item = {"type": "function_call", "call_id": "call_1", "name": self.random.choice(NAMES), "arguments": self.arguments()}
        self.maybe(item, "id", 0.5, lambda: "fc_1")
        self.maybe(item, "status", 0.4, lambda: self.random.choice(["completed", "in_progress"]))
        self.maybe(item, "namespace", 0.1, lambda: "files")
        return item

    def output(self):
        kind = "custom_tool_call_output" if self.chance(0.15) else "function_call_output"
        item = {"type": kind, "call_id": "call_1"}
        item["output"] = self.text() if self.chance(0.7) else self.some(0, 3, lambda: self.responses_part("input_text"))
        self.maybe(item, "id", 0.4, lambda: "out_1")
        self.maybe(item, "status", 0.4, lambda: self.random.choice(["completed", "incomplete"]))
        self.maybe(item, "name", 0.1, lambda: "f")
        if self.chance(0.03):
            del item["call_id"]
        return item

    def responses_tool(self):
        kind = self.random.random()
        if kind < 0.7:
            tool = {"type": "function", "name": self.random.choice(NAMES)}
            self.maybe(tool, "description", 0.7, self.text)
            self.maybe(tool, "parameters", 0.9, self.schema)
            self.maybe(tool, "strict", 0.5, lambda: self.random.choice([True, False, None]))
            self.maybe(tool, "defer_loading", 0.1, lambda: self.chance(0.5))
            self.maybe(tool, "unknown", 0.1, self.value)
            return tool
        if kind < 0.8:
            tool = {"type": "custom", "name": "patch"}
            self.maybe(tool, "description", 0.7, self.text)
            return tool
        if kind < 0.9:
            inner = self.some(0, 2, lambda: {"type": "function", "name": "read", "parameters": self.schema()})
            return {"type": "namespace", "name": "files", "description": "d", "tools": inner}
        return {"type": "web_search"}

    # /v1/messages

    def messages(self):
        body = {"model": "tiny", "max_tokens": 7, "messages": []}
        for turn in range(self.random.randint(1, 6)):
            role = ["user", "assistant"][turn % 2] if self.chance(0.9) else self.random.choice(["user", "assistant", "system"])
            body["messages"].append(self.turn(role))
        self.maybe(body, "system", 0.5, lambda: self.text() if self.chance(0.5) else self.some(0, 3, self.block))
        self.maybe(body, "tools", 0.4, lambda: self.some(0, 3, self.messages_tool))
        self.maybe(body, "tool_choice", 0.2, lambda: {"type": self.random.choice(["auto", "any", "none"])})
        self.maybe(body, "output_config", 0.2, lambda: {"effort": self.random.choice(["low", "high", "max", None])})
        self.maybe(body, "thinking", 0.1, lambda: {"type": self.random.choice(["disabled", "adaptive"])})
        self.maybe(body, "chat_template_kwargs", 0.2, self.kwargs)
        self.maybe(body, "metadata", 0.2, lambda: {"user_id": "u"})
        self.maybe(body, "stream", 0.2, lambda: True)
        self.maybe(body, "cache_salt", 0.1, lambda: "salt")
        return body

    def turn(self, role):
        if self.chance(0.3):
            return {"role": role, "content": self.text()}
        makers = {
            "system": [(8, self.block), (1, self.tool_change)],
            "user": [(6, self.block), (5, self.result), (1, self.thought), (0.3, self.use)],
            "assistant": [(6, self.block), (5, self.use), (4, self.thought), (0.3, self.result), (0.5, self.redacted)],
        }[role]
        weights, makers = zip(*makers)
        return {"role": role, "content": self.some(0, 4, lambda: self.random.choices(makers, weights)[0]())}

    def block(self):
        block = {"type": "text", "text": self.text()}
        self.maybe(block, "cache_control", 0.2, lambda: {"type": "ephemeral"})
        return block

    def result(self):
        result = {"type": "tool_result", "tool_use_id": "toolu_1"}
        if self.chance(0.9):
            result["content"] = self.text() if self.chance(0.4) else self.some(0, 3, self.result_item)
        self.maybe(result, "is_error", 0.2, lambda: True)
        if self.chance(0.03):
            del result["tool_use_id"]
        return result

    def result_item(self):
        item = self.block()
        if self.chance(0.05):
            del item["text"]
        if self.chance(0.05):
            item["type"] = "document"
        return item

    def thought(self):
        return {"type": "thinking", "thinking": self.text(), "signature": "sig"}

    def redacted(self):
        return {"type": "redacted_thinking", "data": "xyz"}

    def use(self):
        use = {"type": "tool_use", "id": "toolu_1", "name": self.random.choice(NAMES), "input": self.object()}
        if self.chance(0.05):
            del use["id"]
        if self.chance(0.05):
            use["input"] = None
        return use

    def tool_change(self):
        if self.chance(0.4):
            return {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": self.messages_tool()}}
        kind = self.random.choice(["tool_addition", "tool_removal"])
        return {"type": kind, "tool": {"type": "tool_reference", "name": self.random.choice(NAMES)}}

    def messages_tool(self):
        tool = {"name": self.random.choice(NAMES), "input_schema": self.schema()}
        self.maybe(tool, "description", 0.7, self.text)
        self.maybe(tool, "strict", 0.2, lambda: self.random.choice([True, False, None]))
        self.maybe(tool, "defer_loading", 0.3, lambda: self.chance(0.5))
        self.maybe(tool, "cache_control", 0.1, lambda: {"type": "ephemeral"})
        return tool


def bytes_of_tokens(model):
    """The bytes of each token of a byte-level tokenizer."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    byte_of = {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
    table = {}
    for text, number in tokenizer.get_vocab(with_added_tokens=False).items():
        table[number] = bytes(byte_of[char] for char in text if char in byte_of)
    for number, token in tokenizer.get_added_tokens_decoder().items():
        table[number] = token.content.encode()
    return table


class Renderer:
    """vLLM's renderer, which needs no GPU and computes nothing."""

    def __init__(self, model, setting):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            pathlib.Path(sys.executable).with_name("vllm"), "launch", "render", model, "--served-model-name", "tiny",
            "--host", "127.0.0.1", "--port", str(self.port),
            "--chat-template", (SYSTEM_FIRST if setting == "system first" else "") + TEMPLATE.read_text(),
            "--chat-template-content-format", "openai" if setting == "parts" else "string",
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        ]  # fmt: skip
        environment = os.environ | {"VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.serves():
            if self.process.poll() is not None:
                sys.exit(f"vLLM's renderer has ended with status {self.process.returncode}: {command}")
            time.sleep(0.5)

    def serves(self):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").status == 200
        except OSError:
            return False

    def tokens(self, path, body):
        """The token ids, or the status with which they were refused."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}/render", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            return json.load(urllib.request.urlopen(request))["token_ids"]
        except urllib.error.HTTPError as error:
            return error.code


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    model, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    table = bytes_of_tokens(model)
    for setting in ("text", "parts", "system first"):
        maker = Maker(f"{sys.argv[3] if len(sys.argv) > 3 else 1} {setting}")
        bodies = [(path, make()) for _ in range(count) for path, make in
                  [("/v1/responses", maker.responses), ("/v1/messages", maker.messages)]]  # fmt: skip
        renderer = Renderer(model, setting)
        try:
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda asked: renderer.tokens(*asked), bodies))
        finally:
            renderer.process.terminate()
            renderer.process.wait()
        for (path, body), answer in zip(bodies, answers):
            line = {"path": path, "setting": setting, "request": body}
            if isinstance(answer, int):
                line["refused"] = answer
            else:
                line["text"] = b"".join(table[number] for number in answer).decode()
            print(json.dumps(line, ensure_ascii=False))


main()
