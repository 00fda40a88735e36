"""Folders of random reference models, and the command line run on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import zoo
import zoo.cli

SIZES = {
    **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64},
}


def folder(path: Path, config="LlamaConfig", model="LlamaForCausalLM", **changes) -> Path:
    """A random reference model's folder."""
    torch.manual_seed(0)
    getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **changes})).save_pretrained(path)
    return path


def edit(path: Path, **changes) -> Path:
    """Fields of a folder's config.json set, or taken out where they are None."""
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = zoo.cli.run([str(arg) for arg in args])
    printed = capsys.readouterr()
    return code, printed.out, printed.err
