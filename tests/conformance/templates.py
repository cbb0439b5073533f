#!/usr/bin/env python3
"""Renders chat requests as transformers does, with their messages as they are.

usage: templates.py MODEL_DIRECTORY TEMPLATES_DIRECTORY < requests.jsonl > answers.jsonl

Reads {"template": NAME, "body": TEXT OF A REQUEST'S BODY} a line and writes {"text": ...} or {"refused": WHY} for each.
The first line written is the tokenizer's map of special tokens.
"""

import json
import pathlib
import sys

from transformers import AutoTokenizer


def render(tokenizer, template, body):
    """What a program does that hands a request to transformers."""
    kwargs = dict(body.get("chat_template_kwargs") or {})
    kwargs["add_generation_prompt"] = body.get("add_generation_prompt", True)
    kwargs["continue_final_message"] = body.get("continue_final_message", False)
    if body.get("reasoning_effort") is not None:
        kwargs["reasoning_effort"] = body["reasoning_effort"]
    return tokenizer.apply_chat_template(
        body["messages"],
        tools=body.get("tools"),
        documents=body.get("documents"),
        chat_template=template,
        tokenize=False,
        **kwargs,
    )


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    directory = pathlib.Path(sys.argv[2])
    templates = {file.stem: file.read_text(encoding="utf-8") for file in directory.glob("*.jinja")}
    print(json.dumps(tokenizer.special_tokens_map), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"text": render(tokenizer, templates[request["template"]], json.loads(request["body"]))}
        except Exception as error:
            answer = {"refused": f"{type(error).__name__}: {error}"[:300]}
        # Escaped: a text may hold half a surrogate pair.
        print(json.dumps(answer), flush=True)


main()
