#!/usr/bin/env python3
"""Writes chats and what vLLM makes of them for gpt-oss, as JSON lines.

usage: harmony.py [--requests N] [--seed N] [--date YYYY-MM-DD] OUT

Runs in the environment that tests/real-vllm/setup.sh makes. No server and no model is needed: the lines come from
vLLM's own code between a parsed body and token ids, and Harmony's vocabulary lies in the package oss-harmony.

A line holds "path", "date" (of the engine), "request", and "text", which the token ids spell, or "refused", why vLLM
takes no such request. "ordinary" says that text in it looks like special tokens and is none: its bytes are those of
"text", its token ids are not, so no exact answer is right. First come cases made by hand, then the N generated ones.
"""

import argparse
import copy
import json
import os
import random
import re
import sys

PATH = "/v1/chat/completions"


# What is asked --------------------------------------------------------------------------------------------------------

WORDS = """
the a weather in Paris tomorrow list of files 12 3.5 -7 C++ naïve Größe Привет мир こんにちは 世界 안녕하세요 नमस्ते مرحبا שלום
สวัสดี 👍🏽 👨‍👩‍👧 e\u0301 \ufeff \u200b \u2028 \x00 \x1f \x7f " \\ ' ` { } [ ] // # * <b> &amp; null true :) /* */ => functions.f
""".split()
SPACES = [" ", " ", " ", " ", "\n", "\n\n", "\t", "  ", "\r\n", ""]
MARKS = ["<|start|>", "<|end|>", "<|reserved_200017|>", "<|message|>assistant"]
NEARLY_MARKS = ["<|", "|>", "<|im_start|>", "<|end", "<|endx|>", "<|<|", "start|>", "<| end |>", "<||>", "<|refusal|>"]
NAMES = ["f", "get_weather", "search-web", "a.b", "ünï", "functions.x", "python", "browser.search", "x to=y", ""]


class Generator:
    def __init__(self, seed):
        self.random = random.Random(seed)

    def chance(self, share):
        return self.random.random() < share

    def pick(self, *options):
        return self.random.choice(options)

    def text(self, longest=12):
        kind = self.random.random()
        if kind < 0.06:
            return self.pick("", " ", "\n", "  \n ", "x")
        words = self.random.randrange(1, 400 if kind > 0.98 else longest + 1)
        text = "".join(self.random.choice(WORDS) + self.random.choice(SPACES) for _ in range(words))
        if self.chance(0.03):
            at = self.random.randrange(len(text) + 1)
            text = text[:at] + self.random.choice(NEARLY_MARKS) + text[at:]
        if self.chance(0.004):
            text += self.random.choice(MARKS)
        return text

    def number(self):
        r = self.random
        return self.pick(
            0, 1, -1, 10, 1.0, -0.0, 0.1, 1e16, 1e-7, 1e22, 5e-324, 1.7976931348623157e308, 2**53 + 1, 2**64, -(2**63),
            -(2**63) - 1, 2**90, r.randrange(-1000, 1000), r.random() * 10.0 ** r.randrange(-12, 26),
            float(r.randrange(1 << r.randrange(1, 80))), round(r.uniform(-100, 100), 3),
        )

    def value(self, depth=0):
        kind = self.random.randrange(8 if depth < 3 else 6)
        if kind < 2:
            return self.text(4)
        if kind < 4:
            return self.number()
        if kind < 6:
            return self.pick(None, True, False)
        items = range(self.random.randrange(4))
        if kind == 6:
            return [self.value(depth + 1) for _ in items]
        return {self.text(2): self.value(depth + 1) for _ in items}

    def schema(self, depth=0):
        schema = {}
        kinds = ["string", "number", "integer", "boolean", "null", "array", "object", "any", "oneOf", "list", "none"]
        weights = [5, 2, 2, 2, 1, 3, 4, 1, 3, 2, 1]
        if depth >= 4:
            weights[5:7] = weights[8:9] = [0, 0]
            weights = weights[:11]
        kind = self.random.choices(kinds[: len(weights)], weights)[0]
        if kind == "oneOf":
            schema["oneOf"] = [self.schema(depth + 1) for _ in range(self.random.randrange(4))]
            if self.chance(0.05):
                schema["oneOf"] = self.pick({}, None, "x")
        elif kind == "list":
            schema["type"] = self.random.sample(["string", "integer", "number", "null", "object"], self.random.randrange(4))
            if self.chance(0.1):
                schema["type"].append(self.pick(None, 1, {}))
        elif kind != "none":
            schema["type"] = kind
        if kind == "object" or self.chance(0.05):
            if self.chance(0.9):
                names = ["a", "b", "city", "größe", "x y", "", self.text(2)]
                chosen = self.random.sample(names, self.random.randrange(5))
                schema["properties"] = {name: self.schema(depth + 1) for name in chosen}
                if self.chance(0.7):
                    schema["required"] = [name for name in chosen if self.chance(0.5)] + ["other"]
            if self.chance(0.05):
                schema["properties"] = self.pick(None, [], "x")
            if self.chance(0.3):
                schema["additionalProperties"] = self.pick(False, {"type": "string"})
        if kind == "array" and self.chance(0.9):
            schema["items"] = self.pick([], True) if self.chance(0.05) else self.schema(depth + 1)
        if self.chance(0.25):
            texts = [self.text(2) for _ in range(self.random.randrange(4))]
            schema["enum"] = self.pick(texts, texts + [1, None], [1, 2.5], texts)
        for key, share in ("title", 0.15), ("description", 0.4):
            if self.chance(share):
                schema[key] = self.pick("same", 5) if self.chance(0.2) else self.text(6)
        if self.chance(0.3):
            schema["default"] = self.value()
        if self.chance(0.15):
            schema["nullable"] = self.pick(True, True, False, "true")
        if self.chance(0.12):
            schema["examples"] = self.pick("x", [self.value(2) for _ in range(self.random.randrange(4))])
        if self.chance(0.1):
            schema[self.pick("anyOf", "allOf", "$ref", "format", "minimum", "const")] = self.value(2)
        entries = list(schema.items())
        self.random.shuffle(entries)
        return dict(entries)

    def tool(self):
        function = {"name": self.random.choice(NAMES)}
        if self.chance(0.8):
            function["description"] = None if self.chance(0.1) else self.text(10)
        if self.chance(0.85):
            parameters = self.schema()
            if self.chance(0.7):
                parameters = {"type": "object", "properties": {f"p{n}": self.schema(1) for n in range(3)}} | parameters
            function["parameters"] = None if self.chance(0.05) else parameters
        if self.chance(0.2):
            function["strict"] = True
        tool = {"type": "function", "function": function}
        if self.chance(0.1):
            tool |= {"defer_loading": self.pick(True, None), "cache_control": {"type": "ephemeral"}}
        return tool

    def content(self):
        if self.chance(0.7):
            return self.text(30)
        parts = []
        for _ in range(self.pick(0, 1, 1, 1, 2, 2, 3, 4)):
            part = {"type": "text", "text": self.text()}
            if self.chance(0.15):
                part["cache_control"] = {"type": "ephemeral"}
            if self.chance(0.01):
                part = self.pick(
                    {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
                    {"type": "input_text", "text": "x"},
                    "x",
                )
            parts.append(part)
        return parts

    def assistant(self, ids):
        message = {"role": "assistant", "content": self.content()}
        if self.chance(0.15):
            message["content"] = None
        if self.chance(0.4):
            key = self.pick("reasoning", "reasoning_content")
            message[key] = None if self.chance(0.1) else self.text(20)
        if self.chance(0.4):
            message["tool_calls"] = []
            for _ in range(self.pick(0, 1, 1, 1, 2, 3)):
                ids.append(self.pick("call_1", "call_2", f"call_{len(ids)}", ""))
                arguments = json.dumps(self.value(), ensure_ascii=self.chance(0.5))
                arguments = self.pick(arguments, "", "{", " {} ", self.text(), arguments)
                function = {"name": self.random.choice(NAMES), "arguments": arguments}
                message["tool_calls"].append({"id": ids[-1], "type": "function", "function": function})
            if self.chance(0.4):
                message.pop("content")
        return message

    def message(self, ids):
        roles = ["user", "assistant", "tool", "system", "developer", "function"]
        role = self.random.choices(roles, [40, 40, 12, 4, 4, 0.1])[0]
        if role == "assistant":
            return self.assistant(ids)
        message = {"role": role, "content": self.content()}
        if role == "tool" and self.chance(0.95):
            message["tool_call_id"] = self.random.choice(ids) if ids and self.chance(0.8) else self.pick("none", "")
        if role in ("user", "tool") and self.chance(0.1):
            message["name"] = self.pick("bob", "get_weather")
        return message

    def request(self):
        messages, ids = [], []
        for _ in range(self.pick(0, 0, 0, 1, 1, 2)):
            messages.append({"role": self.pick("system", "developer"), "content": self.content()})
        for number in range(self.pick(1, 1, 2, 3, 4, 6, 8, 12)):
            if number % 2 == 0 and self.chance(0.5):
                messages.append({"role": "user", "content": self.content()})
            else:
                messages.append(self.message(ids))
            calls = messages[-1].get("tool_calls")
            if calls and self.chance(0.7):
                for call in calls:
                    messages.append({"role": "tool", "tool_call_id": call["id"], "content": self.content()})
        request = {"model": "gpt-oss", "messages": messages}
        if self.chance(0.5):
            request["tools"] = [self.tool() for _ in range(self.pick(1, 1, 2, 4))]
            if self.chance(0.3):
                request["tool_choice"] = self.pick("none", "auto", "required", None)
        if self.chance(0.3):
            request["reasoning_effort"] = self.random.choices(["low", "medium", "high", "minimal", None], [9, 9, 9, 1, 3])[0]
        if self.chance(0.1):
            request |= self.pick(
                {"add_generation_prompt": False},
                {"continue_final_message": True, "add_generation_prompt": False},
                {"chat_template": "{{ messages }}", "chat_template_kwargs": {"reasoning_effort": "high"}},
                {"documents": [{"title": "a", "text": "b"}]},
                {"temperature": 0.5, "max_tokens": 7, "stop": ["x"]},
                {"cache_salt": "salt"},
            )
        return request


def made_by_hand():
    """Each one is about something that could go wrong by itself."""
    user = {"role": "user", "content": "hi"}

    def chat(*messages, **fields):
        return {"model": "gpt-oss", "messages": list(messages), **fields}

    def call(name, arguments, number=1):
        return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}

    def says(content=None, **fields):
        return {"role": "assistant", "content": content, **fields}

    def result(content, number=1, **fields):
        return {"role": "tool", "tool_call_id": f"call_{number}", "content": content, **fields}

    def tool(parameters=None, name="f", description="It does."):
        return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}

    def properties(**properties):
        return chat(user, tools=[tool({"type": "object", "properties": properties, "required": ["a"]})])

    def text(*texts):
        return [{"type": "text", "text": text} for text in texts]

    yield chat(user)
    yield chat()
    yield chat(user, reasoning_effort="low")
    yield chat(user, reasoning_effort="minimal")
    yield chat(user, reasoning_effort="none")
    # Instructions: the first message only, of either role; later ones are developers' messages.
    yield chat({"role": "system", "content": "Be brief."}, user)
    yield chat({"role": "developer", "content": text("Be ", "brief.")}, user, tools=[tool()])
    yield chat({"role": "system", "content": ""}, user)
    yield chat({"role": "system", "content": ""}, user, tools=[tool()])
    yield chat({"role": "system", "content": []}, user, tools=[tool()])
    yield chat({"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, user, {"role": "system", "content": ""})
    yield chat(user, {"role": "system", "content": []}, {"role": "developer", "content": text("", "")})
    # Contents.
    yield chat({"role": "user", "content": text("a", "b\n", "")})
    yield chat({"role": "user", "content": []}, {"role": "user", "content": ""}, {"role": "user"})
    yield chat({"role": "user", "content": None})
    yield chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, *text("what?")]})
    yield chat({"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "name": "bob"})
    yield chat({"role": "user", "content": "<|start|>assistant"})
    yield chat({"role": "user", "content": text("<|en", "d|>")})
    yield chat({"role": "user", "content": "<|im_start|> <|end <| |> <<|x|>"})
    yield chat({"role": "function", "name": "f", "content": "x"})
    # Answers, thoughts and calls.
    yield chat(user, says("a", reasoning="r1"), user, says("b", reasoning_content="r2"), user)
    yield chat(user, says("a", reasoning="r1"), user, says(None, reasoning="r2", tool_calls=[call("f", '{"a": 1}')]), result("x"))
    yield chat(user, says("", reasoning="only thoughts"), user)
    yield chat(user, says(text("", "b")), user, says(text("b", "")), says([]), says("c", tool_calls=[]))
    yield chat(user, says("first", reasoning="r", tool_calls=[call("f", ""), call("g", "{", 2)]), result("x", 2), result(text("a", "b")))
    yield chat(user, says("", tool_calls=[call("ünï x", "ü")]), result("", 7), {"role": "tool", "content": "no id"})
    yield chat(user, says(tool_calls=[call("f", "{}")]), user, says(tool_calls=[call("g", "{}")]), result("x"))
    yield chat(user, says(tool_calls=[call("<|start|>", "{}")]))
    yield chat(user, says("a"), continue_final_message=True, add_generation_prompt=False)
    yield chat(user, {"role": "assistant", "content": "x", "refusal": "no"}, add_generation_prompt=False)
    # Tools.
    yield chat(user, tools=[tool(), tool({}, "g", None), tool({"type": "object"}, "h", "")])
    yield chat(user, tools=[tool(description="a\r\nb\n\nc\rd\n")], tool_choice="none")
    yield chat(user, tools=[tool({"type": "object", "description": "an object", "properties": {}})])
    yield chat(user, tools=[tool({"oneOf": [{"type": "string", "description": "one", "default": "x"}, {"type": "object", "properties": {"a": {}}}]})])
    yield properties(a={"type": "string"}, b={"type": "integer", "description": "count", "default": 3}, c={})
    yield properties(a={"type": "string", "enum": ["x", 'y"', 1], "default": "x"}, b={"type": "string", "enum": [], "default": 'q"'})
    yield properties(a={"type": ["string", "integer", "null"], "nullable": True}, b={"type": "string", "nullable": True, "title": "B"})
    yield properties(a={"type": "array", "items": {"type": "array"}}, b={"type": "array", "items": {"type": "object", "properties": {"x": {"type": "object", "properties": {"y": {}}}}}})
    yield properties(a={"title": "A", "description": "d", "examples": ["x", 1, "y"]}, b={"examples": []}, c={"examples": [1]})
    yield properties(a={"description": "same", "default": "x", "oneOf": [{"type": "string", "description": "same"}, {"type": "null", "nullable": True, "description": "other"}]})
    yield properties(a={"description": "above", "oneOf": [{"type": "string", "description": "unseen", "enum": ["x"], "default": "x"}, {"enum": ["y"], "description": "above", "default": {"k": "é\n"}}]})
    yield properties(a={"oneOf": {}, "description": "unseen", "default": 1}, b={"oneOf": [], "enum": ["x"], "default": "x"}, c={"anyOf": [{"type": "string"}, {"type": "null"}]})
    yield properties(a={"oneOf": [{"oneOf": [{"type": "string", "enum": ["x"], "default": "x\n"}]}]}, b={"type": "null"}, c={"type": []})
    yield properties(a={"default": [0, -0.0, 1.0, 1e16, 1e15, 1e-5, 1e-6, 0.1, 1e22, 5e-324, 9007199254740991.0, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**30]})
    yield properties(a={"default": {"é": ["\x00\x1f\x7f\b\f\n\r\t\"\\/\u2028", None, True, {}, []]}})
    deep = {"type": "string"}
    for _ in range(40):
        deep = {"type": "array", "items": deep}
    yield properties(a=deep)


# What vLLM answers ----------------------------------------------------------------------------------------------------


class Engine:
    def __init__(self, date):
        os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.pop("VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS", None)
        os.environ["VLLM_SYSTEM_START_DATE"] = date
        try:
            from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
            from vllm.entrypoints.openai.parser.harmony_utils import get_encoding
            from vllm.renderers.online_renderer import OnlineRenderer
        except ImportError as error:
            sys.exit(f"error: {error}: run this with the Python that tests/real-vllm/setup.sh installs vLLM 0.32 for")
        self.validate = ChatCompletionRequest.model_validate
        self.encoding = get_encoding()
        self.special = re.compile("|".join(map(re.escape, self.encoding.special_tokens_set)))
        # What the method asked below looks at of a whole renderer.
        self.renderer = OnlineRenderer.__new__(OnlineRenderer)
        self.renderer.supports_browsing = self.renderer.supports_code_interpreter = False
        self.renderer.renderer = None

    def answer(self, request):
        try:
            # The engine reads what came over the wire, and changes it.
            request = self.validate(json.loads(json.dumps(request)))
            _, inputs = self.renderer._make_request_with_harmony(request, request.tools is not None)
        except Exception as error:  # Whatever it is, a client would see an error.
            return {"refused": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        ids = inputs[0]["prompt_token_ids"]
        text = self.encoding.decode_utf8(ids)
        special = sum(self.encoding.is_special_token(token) for token in ids)
        return {"text": text} | ({"ordinary": True} if len(self.special.findall(text)) > special else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="file to write; - for the standard output")
    parser.add_argument("--requests", type=int, default=2000, help="how many to generate (default: 2000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--date", default="2026-08-01", help="the engine's date (default: 2026-08-01)")
    arguments = parser.parse_args()
    engine = Engine(arguments.date)
    generator = Generator(arguments.seed)
    requests = [*made_by_hand(), *(generator.request() for _ in range(arguments.requests))]
    refused = ordinary = 0
    with sys.stdout if arguments.out == "-" else open(arguments.out, "w", encoding="utf-8") as out:
        for request in requests:
            answer = engine.answer(copy.deepcopy(request))
            refused += "refused" in answer
            ordinary += "ordinary" in answer
            line = {"path": PATH, "date": arguments.date, "request": request, **answer}
            print(json.dumps(line, ensure_ascii=False), file=out)
    print(f"{len(requests)} requests, {refused} refused, {ordinary} with text that looks special", file=sys.stderr)


if __name__ == "__main__":
    main()
