#!/usr/bin/env python3
"""Makes variants of the tiny model, to check prompts with.

usage: make_variants.py MODEL DIRECTORY

DIRECTORY/lora  an adapter for it, of random weights
DIRECTORY/bos   the same model with a tokenizer that puts a BOS token before every text, and a template that prints it, too
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file

RANK = 8
BOS = "<|endoftext|>"


def make_adapter(model, directory):
    """Of one projection in each layer, as PEFT writes it."""
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((model / "config.json").read_text())
    hidden, query = config["hidden_size"], config["num_attention_heads"] * config["head_dim"]
    torch.manual_seed(1)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(RANK, hidden)
        weights[f"{name}.lora_B.weight"] = torch.randn(query, RANK)
    save_file(weights, directory / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"], "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))


def make_bos(model, directory):
    """A copy with another end of the tokenizer's pipeline."""
    shutil.copytree(model, directory, dirs_exist_ok=True)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    text, pair = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    number = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == BOS)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, text],
        "pair": [bos, text, bos, pair],
        "special_tokens": {BOS: {"id": BOS, "ids": [number], "tokens": [BOS]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["bos_token"] = BOS
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    model, directory = map(pathlib.Path, sys.argv[1:])
    make_adapter(model, directory / "lora")
    make_bos(model, directory / "bos")


main()
