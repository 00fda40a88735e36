"""GGUF files, written by hand so that every field may be odd: metadata of any type, shapes, offsets, counts."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from ..mutate import mutate_bytes
from ..values import Place

U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    **{f"self_attn.{each}_proj.weight": f"attn_{each}.weight" for each in "qkv"},
    "self_attn.o_proj.weight": "attn_output.weight",
    **{f"mlp.{each}_proj.weight": f"ffn_{each}.weight" for each in ("gate", "up", "down")},
}

Entry = tuple[str, int, Any]
Tensor = tuple[str, tuple[int, ...], int, int]


def write_model(folder: Path, file: Path) -> None:
    """Write a Hugging Face folder with a Llama as a GGUF file. (Rows of queries stay in transformers' order.)"""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    tokens += [f"<|{n}|>" for n in range(config["vocab_size"] - len(tokens))]
    merges = [each if isinstance(each, str) else " ".join(each) for each in vocabulary["merges"]]
    entries: list[Entry] = [
        ("general.architecture", TEXT, "llama"),
        ("general.alignment", U32, 32),
        ("general.file_type", U32, 0),
        *((f"llama.{name}", U32, config[key]) for name, key in COUNTS.items()),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("llama.rope.freq_base", F32, 10000.0),
        ("tokenizer.ggml.model", TEXT, "gpt2"),
        ("tokenizer.ggml.pre", TEXT, "default"),
        ("tokenizer.ggml.tokens", ARRAY, (TEXT, tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [1] * len(tokens))),
        ("tokenizer.ggml.merges", ARRAY, (TEXT, merges)),
        ("tokenizer.ggml.eos_token_id", U32, 1),
        ("tokenizer.ggml.bos_token_id", U32, 0),
        ("tokenizer.chat_template", TEXT, "{% for m in messages %}{{ m['content'] }}{% endfor %}"),
    ]
    tensors, data = [], b""
    for name, values in load_file(folder / "model.safetensors").items():
        tensors.append((rename(name), values.shape[::-1], 0, len(data)))
        data += values.astype("float32").tobytes()
        data += bytes(-len(data) % 32)
    file.write_bytes(write_file(entries, tensors, data))


COUNTS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "vocab_size": "vocab_size",
}


def rename(name: str) -> str:
    """Give llama.cpp's name of a tensor."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}"


def write_file(
    entries: list[Entry], tensors: list[Tensor], data: bytes, counts: tuple[int, int] | None = None
) -> bytes:
    """Write a GGUF file of version 3; `counts` in place of the true ones."""
    count, pairs = counts or (len(tensors), len(entries))
    made = b"GGUF" + struct.pack("<IQQ", 3, count & (2**64 - 1), pairs & (2**64 - 1))
    for key, kind, value in entries:
        made += _text(key) + struct.pack("<I", kind) + _value(kind, value)
    for name, shape, kind, offset in tensors:
        sizes = struct.pack(f"<{len(shape)}Q", *(each & (2**64 - 1) for each in shape))
        made += _text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset & (2**64 - 1))
    return made + bytes(-len(made) % 32) + data


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if kind == TEXT:
        return _text(str(value))
    if kind == ARRAY:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(_value(inner, each) for each in values)
    form = FORMS.get(kind, "I")
    if form in "fd":
        return struct.pack(f"<{form}", value)
    return (int(value) % 2 ** (8 * struct.calcsize(form))).to_bytes(struct.calcsize(form), "little")


def read_file(data: bytes) -> tuple[list[Entry], list[Tensor], bytes]:
    """Read a GGUF file that `write_file` has written."""
    at = 8

    def take(form: str) -> Any:
        nonlocal at
        (found,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return found

    def text() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return data[at - size : at].decode()

    def value(kind: int) -> Any:
        if kind == TEXT:
            return text()
        if kind == ARRAY:
            inner, size = take("I"), take("Q")
            return inner, [value(inner) for _ in range(size)]
        return take(FORMS[kind])

    count, pairs = take("Q"), take("Q")
    entries = []
    for _ in range(pairs):
        key, kind = text(), take("I")
        entries.append((key, kind, value(kind)))
    tensors = [(text(), tuple(take("Q") for _ in range(take("I"))), take("I"), take("Q")) for _ in range(count)]
    return entries, tensors, data[at + -at % 32 :]


def mutate_gguf(rng: Random, file: Path, place: Place) -> str:
    """Mutate a GGUF file in its place: an entry of the metadata, a tensor's place or shape, the counts, or bytes."""
    data = file.read_bytes()
    entries, tensors, rest = read_file(data)
    what = rng.choice(["entry"] * 6 + ["tensor"] * 3 + ["counts", "bytes", "head"])
    if what == "entry":
        entries, said = mutate_entry(rng, entries, place)
        made = write_file(entries, tensors, rest)
    elif what == "tensor":
        tensors, said = mutate_tensor(rng, tensors)
        made = write_file(entries, tensors, rest)
    elif what == "counts":
        wrong = rng.choice([0, 1, -1, 2**16, 2**31, 2**62]), rng.choice([0, 1, len(entries), 2**20, 2**62])
        made, said = write_file(entries, tensors, rest, wrong), f"counts of tensors and entries {wrong}"
    elif what == "head":
        head, said = mutate_bytes(rng, data[:2000])
        made, said = head + data[2000:], f"head: {said}"
    else:
        made, said = mutate_bytes(rng, data)
    file.write_bytes(made)
    return said


def mutate_entry(rng: Random, entries: list[Entry], place: Place) -> tuple[list[Entry], str]:
    """Change, delete, repeat or add an entry of the metadata."""
    at = rng.randrange(len(entries))
    key, _, value = entries[at]
    how = rng.choice(["value", "value", "value", "deleted", "repeated", "renamed", "added"])
    if how == "deleted":
        return entries[:at] + entries[at + 1 :], f"{key}: deleted"
    if how == "repeated":
        return [*entries, entries[at]], f"{key}: repeated"
    if how == "renamed":
        name = rng.choice(["general.alignment", "split.count", "llama.expert_count", "", "\0", "x" * 300, "llama.x"])
        return [*entries[:at], (name, *entries[at][1:]), *entries[at + 1 :]], f"{key}: is called {name[:30]!r}"
    new = choose_entry(rng, value)
    if how == "added":
        key, at = rng.choice(ADDED), len(entries)
    return [*entries[:at], (key, *new), *entries[at + 1 :]], f"{key}: {ascii(new)[:80]}"


ADDED = (
    *("split.count", "split.no", "split.tensors.count", "llama.expert_count", "llama.expert_used_count"),
    *(
        "llama.rope.dimension_count",
        "llama.rope.scaling.type",
        "llama.rope.scaling.factor",
        "llama.attention.key_length",
    ),
    *("llama.attention.sliding_window", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.padding_token_id"),
    *("general.alignment", "general.quantization_version", "tokenizer.ggml.scores", "tokenizer.chat_template"),
)


def choose_entry(rng: Random, value: Any) -> tuple[int, Any]:
    """Choose a type and a value of metadata; the value of an array often has one odd member."""
    if isinstance(value, tuple) and rng.random() < 0.6:
        kind, held = value
        held = list(held)
        if held:
            held[rng.randrange(len(held))] = rng.choice(["", "a", "\0", "<|0|>"] if kind == TEXT else [0, 7, 99])
        return ARRAY, rng.choice([(kind, held), (kind, []), (kind, held[:3]), (kind, held * 2), (U32, [1, 2, 3])])
    return rng.choice(
        [
            *((kind, number) for kind in (U8, I8, U32, I32, U64, I64) for number in (0, 1, 3, 2**31, 2**64 - 1, -1)),
            *((F32, number) for number in (0.0, -1.0, float("nan"), float("inf"), 1e38)),
            *((TEXT, text) for text in ("", "abc", "\0", "\x1b]0;x\x07", "llama", "gpt2", "9" * 5000, "{{ 1 / 0 }}")),
            *((BOOL, False), (BOOL, True), (ARRAY, (TEXT, [])), (ARRAY, (ARRAY, [(U8, [1])] * 3)), (99, 0)),
            (TEXT, "{% for i in range(10**9) %}x{% endfor %}"),
        ]
    )


def mutate_tensor(rng: Random, tensors: list[Tensor]) -> tuple[list[Tensor], str]:
    """Change a tensor's name, shape, type or offset, or delete or repeat it."""
    at = rng.randrange(len(tensors))
    name, shape, kind, offset = tensors[at]
    odd = rng.choice([0, 1, 31, -1, 2**20, 2**31, 2**62, 2**63])
    made = rng.choice(
        [
            *(
                [(name, (odd, *shape[1:]), kind, offset)],
                [(name, shape[::-1], kind, offset)],
                [(name, (), kind, offset)],
            ),
            *([(name, shape * 3, kind, offset)], [(name, shape, kind, odd)], []),
            *([(name, shape, rng.choice([1, 2, 8, 12, 14, 30, 99, 2**31]), offset)], [tensors[at]] * 2),
            [(rng.choice(["", "x" * 300, "blk.99.attn_q.weight", "output.weight", "\0"]), shape, kind, offset)],
        ]
    )
    return [*tensors[:at], *made, *tensors[at + 1 :]], f"{name}: {ascii(made)[:100]}"
