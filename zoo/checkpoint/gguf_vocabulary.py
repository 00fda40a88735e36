"""Make the metadata `tokenizer.*` of a GGUF file from a folder's tokenizer: the inverse of gguf_tokenizer.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.checkpoint.beside import GENERATION
from zoo.checkpoint.gguf.gguf_tokenizer import CONTROL, NORMAL, UNKNOWN, USER, find_merges
from zoo.checkpoint.tokenizer_file import LARGEST, TokenizerJson, check_tokenizer, read_special_tokens
from zoo.errors import CheckpointError
from zoo.families.config_types import GenerationFile
from zoo.families.described import read_json
from zoo.families.gguf import read_catalogue

UNUSED, BYTE = 5, 6
"""llama.cpp's numbers for more types of tokens."""

IDS = {"bos": "bos_token", "unknown": "unk_token", "padding": "pad_token"}
"""llama.cpp's names of special tokens, without that which ends a text, and transformers'."""

DIGITS = r"\p{N}"


def describe_vocabulary(folder: Path, size: int) -> dict[str, Any]:
    """Make the metadata of a folder's tokenizer, for a model with `size` embeddings; `no_vocab` if the folder has none.
    Raises CheckpointError for a tokenizer that is not written."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {"tokenizer.ggml.model": "no_vocab"}
    node = read_json(file, TokenizerJson, LARGEST)
    check_tokenizer(node, str(file))
    kind, model = _find_kind(node, file), node["model"]
    added = {each["content"]: each for each in node.get("added_tokens") or []}
    places = {**model["vocab"], **{name: each["id"] for name, each in added.items()}}
    if max(places.values()) >= size:
        raise CheckpointError(f"{file}: has token {max(places.values()):,}, the model has {size:,} embeddings (fewer)")
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    for name, number in places.items():
        control = CONTROL if added.get(name, {}).get("special") else USER
        plain = BYTE if kind == "llama" and _is_byte(name) else NORMAL
        tokens[number], types[number] = name, control if name in added else plain
    made: dict[str, Any] = {"model": kind}
    if kind == "gpt2":
        made |= {"pre": _find_split(node, file), "merges": [" ".join(_pair(each)) for each in model["merges"]]}
    else:
        if model.get("unk_token") is not None:
            types[places[model["unk_token"]]] = UNKNOWN
        made |= _describe_sentencepiece(node, tokens, types, file)
    made |= {"tokens": tokens, "token_type": types, **_find_ids(folder, places, size)}
    made = {f"tokenizer.ggml.{name}": each for name, each in made.items()}
    template = _read_template(folder)
    return made | ({"tokenizer.chat_template": template} if template else {})


def _find_kind(node: Mapping[str, Any], file: Path) -> str:
    """Find llama.cpp's name of a tokenizer's kind. Raises CheckpointError for one that is not written."""
    model = node["model"]
    steps = [each["type"] for each in _list_steps(node.get("pre_tokenizer"))]
    if model.get("type") == "BPE" and "ByteLevel" in steps:
        return "gpt2"
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return "llama"
    would = "byte-level BPE, or BPE with byte_fallback"
    raise CheckpointError(f"{file}: model: is {model.get('type')}, which is not written to GGUF ({would})")


def _list_steps(node: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a normalizer or a pre-tokenizer; a Sequence is flattened."""
    if node is None:
        return
    if node["type"] == "Sequence":
        for each in node.get("pretokenizers") or node.get("normalizers") or ():
            yield from _list_steps(each)
    else:
        yield node


def _pair(merge: Any) -> list[str]:
    return merge if isinstance(merge, list) else merge.split(" ", 1)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _find_split(node: Mapping[str, Any], file: Path) -> str:
    """Find llama.cpp's name of the way a byte-level vocabulary splits a text. Raises CheckpointError for another."""
    patterns, plain = [], True
    for step in _list_steps(node["pre_tokenizer"]):
        if step["type"] == "Split":
            patterns.append(step["pattern"].get("Regex"))
            plain &= step["behavior"] == "Isolated" and not step.get("invert")
        elif step["type"] == "Digits":
            patterns.append(DIGITS if step["individual_digits"] else None)
        elif step["type"] == "ByteLevel":
            patterns += ["gpt2"] if step.get("use_regex", True) else []
            plain &= not step["add_prefix_space"]
        else:
            plain = False
    forms = [each["type"].lower() for each in _list_steps(node.get("normalizer"))]
    whole = bool(node["model"].get("ignore_merges"))
    for row in read_catalogue()["splits"].values():
        own = [row["normalizer"]] if "normalizer" in row else []
        if plain and (row["patterns"], row.get("whole", False), own) == (patterns, whole, forms):
            return str(row["names"][0])
    raise CheckpointError(f"{file}: pre_tokenizer: splits a text as no architecture of llama.cpp does that is written")


def _describe_sentencepiece(node: Mapping[str, Any], tokens: list[str], types: list[int], file: Path) -> dict[str, Any]:
    """Make the scores of SentencePiece's BPE: a merged token's is minus the rank of its first merge. Raises
    CheckpointError if they give other merges than the tokenizer has."""
    merges = [tuple(_pair(each)) for each in node["model"]["merges"]]
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    scores = [-float(ranks.get(each, len(ranks))) for each in tokens]
    if [left + right for left, right in find_merges(tokens, types, scores)] != [left + right for left, right in merges]:
        raise CheckpointError(
            f"{file}: model.merges: are not those of SentencePiece's scores, so cannot be written to GGUF"
        )
    steps = [*_list_steps(node.get("normalizer")), *_list_steps(node.get("pre_tokenizer"))]
    prefix = any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("always", "first") for step in steps)
    return {"scores": scores, "add_space_prefix": prefix}


def _find_ids(folder: Path, places: Mapping[str, int], size: int) -> dict[str, Any]:
    """Find the ids of special tokens, and whether a text begins and ends with its marks."""
    from tokenizers import Tokenizer

    named, file = read_special_tokens(folder), folder / GENERATION
    stated: Mapping[str, Any] = read_json(file, GenerationFile) if file.is_file() else {}
    found = {name: places[named[theirs]] for name, theirs in IDS.items() if named.get(theirs) in places}
    ends = stated.get("eos_token_id")
    ends = places.get(named.get("eos_token", "")) if ends is None else ends
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    found |= dict(zip(("eos", "eot", "eom"), listed, strict=False))
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a").ids
    around = {"add_bos_token": ids[:1] == [found.get("bos")], "add_eos_token": ids[-1:] == [found.get("eos")]}
    return {**{f"{name}_token_id": each for name, each in found.items() if each < size}, **around}


def _read_template(folder: Path) -> str | None:
    """Read the chat template of a folder: its file, else that in tokenizer_config.json."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    stated = read_json(config).get("chat_template") if config.is_file() else None
    return stated if isinstance(stated, str) else None
