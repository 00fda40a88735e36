"""GGUF files that strangers made: each fault is one line with the file, the key, what was found and what would do."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo.checkpoint.gguf.gguf_tokenizer import make_tokenizer
from zoo.checkpoint.gguf.unpacking import is_unpacked
from zoo.cli import run
from zoo.errors import CheckpointError
from zoo.families.gguf import read_gguf

U32, F32, BOOL, TEXT, LIST, U64 = 4, 6, 7, 8, 9, 10
FORMS = {U32: "<I", F32: "<f", BOOL: "<?", U64: "<Q"}
TOKENS = ["<unk>", "a", "b", "ab"]
METADATA: dict[str, tuple[int, Any]] = {
    "general.architecture": (TEXT, "llama"),
    "llama.block_count": (U32, 1),
    "llama.embedding_length": (U32, 4),
    "llama.feed_forward_length": (U32, 8),
    "llama.context_length": (U32, 16),
    "llama.attention.head_count": (U32, 2),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "tokenizer.ggml.model": (TEXT, "gpt2"),
    "tokenizer.ggml.tokens": (LIST, (TEXT, TOKENS)),
    "tokenizer.ggml.token_type": (LIST, (U32, [2, 1, 1, 1])),
    "tokenizer.ggml.merges": (LIST, (TEXT, ["a b"])),
    "tokenizer.ggml.eos_token_id": (U32, 0),
}
TENSORS = {"token_embd.weight": ((4, 4), 0, 0), "blk.0.attn_norm.weight": ((4,), 0, 64)}
"""Name: dimensions (the contiguous one first), type and offset."""


def pack_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def pack_value(kind: int, value: Any) -> bytes:
    """Pack a value of metadata by hand, after the format's page and not by the package that Zoo's reader replaces."""
    if kind == TEXT:
        return pack_text(value)
    if kind == LIST:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(pack_value(inner, each) for each in values)
    return struct.pack(FORMS[kind], value)


def write(file: Path, metadata: Any = METADATA, tensors: Any = TENSORS, *, counts: Any = None) -> Path:
    """Write a GGUF file; `metadata` and `tensors` are mappings, or lists of pairs where names are to be there twice."""
    pairs, listed = (list(each.items()) if isinstance(each, dict) else each for each in (metadata, tensors))
    made = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(listed), len(pairs))))
    for name, (kind, value) in pairs:
        made += pack_text(name) + struct.pack("<I", kind) + pack_value(kind, value)
    for name, (shape, kind, start) in listed:
        made += pack_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, start)
    file.write_bytes(made + b"\0" * (-len(made) % 32 + 128))
    return file


def refuse(file: Path, *, texts: bool = True) -> str:
    began = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        zoo.stats(str(file)) if not texts else read_gguf(file, texts=True)
    assert time.perf_counter() - began < 2
    said = str(caught.value)
    assert str(file) in said and len(said) < 600, said
    return said.replace(f"{file}: ", "")


def test_the_file_that_the_others_are_made_of_is_read(tmp_path):
    found = read_gguf(write(tmp_path / "a.gguf"), texts=True)
    assert found.metadata["tokenizer.ggml.tokens"] == TOKENS and found.tensors["token_embd.weight"].shape == (4, 4)
    assert make_tokenizer(found).encode("ab").ids == [3]


CASES: dict[str, tuple[dict[str, tuple[int, Any]], str]] = {
    "alignment 0": ({"general.alignment": (U32, 0)}, "general.alignment: is 0 (greater than or equal to 1)"),
    "alignment of a text": ({"general.alignment": (TEXT, "x")}, "general.alignment: is 'x' (a whole number)"),
    "count of parts": ({"split.count": (TEXT, "abc")}, "split.count: is 'abc' (a whole number)"),
    "large id": (
        {"tokenizer.ggml.eos_token_id": (U32, 2**31)},
        "tokenizer.ggml.eos_token_id: is 2147483648 (a token's number, below 4)",
    ),
    "tokens of numbers": ({"tokenizer.ggml.tokens": (LIST, (U32, [1]))}, "tokenizer.ggml.tokens: is a list of 1 ("),
    "types of some tokens": (
        {"tokenizer.ggml.token_type": (LIST, (U32, [1]))},
        "tokenizer.ggml.token_type: has 1 entries (one for each of 4 tokens)",
    ),
    "a merge of one": (
        {"tokenizer.ggml.merges": (LIST, (TEXT, ["ab"]))},
        "tokenizer.ggml.merges: holds 'ab' (two tokens and a space)",
    ),
    "list of lists": ({"x": (LIST, (LIST, [(U32, [1])]))}, "x: is a list of lists (of numbers or texts)"),
    "long token": (
        {"tokenizer.ggml.tokens": (LIST, (TEXT, ["a" * 5000]))},
        "tokenizer.ggml.tokens: has a text of 5,000 bytes (at most 4,096)",
    ),
    "layers of a text": ({"llama.block_count": (TEXT, "two")}, "llama.block_count: is 'two' (a whole number)"),
    "heads of several": (
        {"llama.attention.head_count_kv": (LIST, (TEXT, ["a"]))},
        "llama.attention.head_count_kv.0: is 'a' (a whole number)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_metadata_of_another_type_costs_one_line(tmp_path, case):
    changes, fault = CASES[case]
    said = refuse(write(tmp_path / "a.gguf", METADATA | changes))
    assert fault in said and "\n" not in said.replace("\ntoken", "")


def test_a_value_of_a_union_is_refused_once_with_all_that_would_do(tmp_path):
    said = refuse(write(tmp_path / "a.gguf", METADATA | {"llama.feed_forward_length": (TEXT, "x")}))
    assert said == "llama.feed_forward_length: is 'x' (a whole number or a list)"


@pytest.mark.parametrize(
    ("tensor", "fault"),
    [
        (((), 0, 0), "token_embd.weight: has 0 dimensions (1 to 4)"),
        (((1,) * 5, 0, 0), "token_embd.weight: has 5 dimensions (1 to 4)"),
        (((2**40, 2**40), 0, 0), "token_embd.weight: has the shape [1099511627776, 1099511627776] (of 1 to 2**53"),
        (((4, 0), 0, 0), "token_embd.weight: has the shape [0, 4] (of 1 to 2**53 values)"),
        (((4, 4), 0, 2**62), "token_embd.weight: is at byte 4,611,686,018,427,"),
    ],
    ids=["none", "many", "overflow", "empty", "outside"],
)
def test_tensors_that_cannot_be_there_cost_one_line(tmp_path, tensor, fault):
    assert refuse(write(tmp_path / "a.gguf", tensors=TENSORS | {"token_embd.weight": tensor})).startswith(fault)


def test_names_that_are_there_twice_are_refused(tmp_path):
    twice = [*METADATA.items(), ("llama.block_count", (U32, 3))]
    assert refuse(write(tmp_path / "a.gguf", twice)) == "llama.block_count: is there twice (once)"
    tensors = [*TENSORS.items(), ("token_embd.weight", ((4, 4), 0, 0))]
    assert refuse(write(tmp_path / "b.gguf", tensors=tensors)) == "token_embd.weight: is there twice (once)"


def test_counts_beyond_the_budget_are_refused_before_anything_is_read(tmp_path):
    assert refuse(write(tmp_path / "a.gguf", counts=(2, 2**63))).startswith("has 9,223,372,036,854,775,808 entries")
    assert refuse(write(tmp_path / "b.gguf", counts=(2**40, 1))).startswith("has 1,099,511,627,776 tensors (at most")
    assert "has 0 dimensions" in refuse(write(tmp_path / "c.gguf", tensors={}, counts=(9, len(METADATA))))


def test_every_beginning_of_a_file_is_refused_or_read(tmp_path):
    whole = write(tmp_path / "a.gguf").read_bytes()
    part = tmp_path / "b.gguf"
    for cut in range(0, len(whole) - 160, 7):
        part.write_bytes(whole[:cut])
        assert "(a whole file)" in refuse(part) or cut < 4


def test_a_model_of_more_layers_than_tensors_is_refused(tmp_path):
    file = write(tmp_path / "a.gguf", METADATA | {"llama.block_count": (U32, 2**30)})
    assert refuse(file, texts=False) == (
        "llama.block_count: is 1,073,741,824, the file has 2 tensors (no more blocks than these)"
    )


def test_a_group_that_is_a_value_and_a_field_that_lacks_are_lines(tmp_path):
    file = write(tmp_path / "a.gguf", METADATA | {"llama.rope": (U32, 5)})
    assert refuse(file, texts=False) == "llama.rope: is 5 beside others in it (one of the two)"
    lacking = {name: each for name, each in METADATA.items() if name != "llama.embedding_length"}
    assert refuse(write(tmp_path / "b.gguf", lacking), texts=False).startswith("embedding_length: is missing")


def test_a_folder_of_a_strangers_cannot_name_the_gguf_file_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gguf.json").write_text(json.dumps({"file": str(write(tmp_path / "secret.gguf"))}))
    assert not is_unpacked(tmp_path / "model")


def test_a_link_that_leads_round_is_no_file(tmp_path, capsys):
    os.symlink(tmp_path / "a.gguf", tmp_path / "a.gguf")
    assert run(["check", str(tmp_path / "a.gguf")]) == 2
    assert capsys.readouterr().err == f"zoo: error: {tmp_path / 'a.gguf'}: no such file\n"
