"""Make the metadata `tokenizer.*` of a GGUF file from a folder's tokenizer: the inverse of gguf_tokenizer.py."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.beside import GENERATION
from zoo.checkpoint.gguf.gguf_tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER, find_merges, unmark_piece
from zoo.checkpoint.tokenizer_file import LARGEST, TokenizerJson, check_tokenizer, list_steps, read_special_tokens
from zoo.errors import CheckpointError
from zoo.families.config_types import GenerationFile
from zoo.families.described import read_json
from zoo.families.gguf import read_catalogue

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IDS = {
    "bos": "bos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "seperator": "sep_token",
    "mask": "mask_token",
}
"""transformers' names of special tokens, by llama.cpp's names. The tokens that end a text are found by `_find_ids`."""

NEVER = -1000.0
"""Score of tokens outside the unigram vocabulary: too low ever to be chosen."""

DIGITS = r"\p{N}"
BYTE_TOKEN = "<0x.{2}>"


def describe_vocabulary(folder: Path, size: int) -> dict[str, Any]:
    """Make the metadata of a folder's tokenizer, for a model with `size` embeddings; `no_vocab` if the folder has none.
    Raises CheckpointError for an unsupported tokenizer, and for a token id of `size` or more."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return {"tokenizer.ggml.model": "no_vocab"}
    node = read_json(file, TokenizerJson, LARGEST)
    check_tokenizer(node, str(file))
    kind, model = _find_kind(node, file), node["model"]
    added = {each["content"]: each for each in node.get("added_tokens") or []}
    vocab = model["vocab"]
    ids = vocab if isinstance(vocab, dict) else {token: number for number, (token, _) in enumerate(vocab)}
    places = {**ids, **{name: each["id"] for name, each in added.items()}}
    if max(places.values()) >= size:
        raise CheckpointError(f"{file}: has token {max(places.values()):,}, the model has {size:,} embeddings (fewer)")
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    for name, number in places.items():
        control = CONTROL if added.get(name, {}).get("special") else USER
        plain = BYTE if kind in ("llama", "t5") and re.fullmatch(BYTE_TOKEN, name) else NORMAL
        tokens[number], types[number] = name, control if name in added else plain
    made: dict[str, Any] = {"model": kind, "tokens": tokens, "token_type": types}
    made |= MAKERS[kind](node, made, places, file) | _find_ids(folder, places, size)
    made = {f"tokenizer.ggml.{name}": each for name, each in made.items()}
    template = _read_template(folder)
    return made | ({"tokenizer.chat_template": template} if template else {})


OTHERS = {"WordPiece": "bert", "Unigram": "t5"}
"""llama.cpp's names of the kinds of tokenizers other than BPE, by the types in tokenizer.json."""


def _find_kind(node: Mapping[str, Any], file: Path) -> str:
    """Find llama.cpp's name of a tokenizer's kind. Raises CheckpointError for an unsupported kind."""
    model = node["model"]
    steps = [each["type"] for _, each in list_steps(node, "pre_tokenizer")]
    if model.get("type") == "BPE" and "ByteLevel" in steps:
        return "gpt2"
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        return "llama"
    if model.get("type") in OTHERS:
        return OTHERS[model["type"]]
    would = f"byte-level BPE, BPE with byte_fallback, {' or '.join(OTHERS)}"
    raise CheckpointError(f"{file}: model: is {model.get('type')}, which is not written to GGUF ({would})")


def _pair(merge: Any) -> list[str]:
    return merge if isinstance(merge, list) else merge.split(" ", 1)


def _find_split(node: Mapping[str, Any], file: Path) -> str:
    """Find llama.cpp's name of a byte-level tokenizer's split patterns. Raises CheckpointError for unknown patterns."""
    patterns, plain = [], True
    for _, step in list_steps(node, "pre_tokenizer"):
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
    forms = [each["type"].lower() for _, each in list_steps(node, "normalizer")]
    whole = bool(node["model"].get("ignore_merges"))
    for row in read_catalogue()["splits"].values():
        own = [row["normalizer"]] if "normalizer" in row else []
        if plain and (row["patterns"], row.get("whole", False), own) == (patterns, whole, forms):
            return str(row["names"][0])
    found = "splits a text as no architecture of llama.cpp does that is written"
    raise CheckpointError(f"{file}: pre_tokenizer: {found} (data.tokenizer=bpe has a form in GGUF, byte has none)")


def _describe_byte_level(node: Any, made: Mapping[str, Any], places: Mapping[str, int], file: Path) -> dict[str, Any]:
    if not node["model"]["merges"]:  # llama.cpp opens no such vocabulary without them
        raise CheckpointError(f"{file}: model.merges: are none, so cannot be written to GGUF (data.tokenizer=bpe)")
    return {"pre": _find_split(node, file), "merges": [" ".join(_pair(each)) for each in node["model"]["merges"]]}


def _describe_sentencepiece(
    node: Mapping[str, Any], made: Mapping[str, Any], places: Mapping[str, int], file: Path
) -> dict[str, Any]:
    """Make the scores of SentencePiece's BPE: minus the rank of a token's first merge. Raises CheckpointError if these
    scores imply other merges than the tokenizer's."""
    tokens, types = made["tokens"], made["token_type"]
    if node["model"].get("unk_token") is not None:
        types[places[node["model"]["unk_token"]]] = UNKNOWN
    merges = [tuple(_pair(each)) for each in node["model"]["merges"]]
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    scores = [-float(ranks.get(each, len(ranks))) for each in tokens]
    if [left + right for left, right in find_merges(tokens, types, scores)] != [left + right for left, right in merges]:
        raise CheckpointError(
            f"{file}: model.merges: are not those of SentencePiece's scores, so cannot be written to GGUF"
        )
    steps = [step for part in ("normalizer", "pre_tokenizer") for _, step in list_steps(node, part)]
    prefix = any(step["type"] == "Prepend" or step.get("prepend_scheme") in ("always", "first") for step in steps)
    return {"scores": scores, "add_space_prefix": prefix}


def _describe_unigram(
    node: Mapping[str, Any], made: Mapping[str, Any], places: Mapping[str, int], file: Path
) -> dict[str, Any]:
    """Make the scores of a unigram vocabulary, and store the normalizer's table of characters. Raises CheckpointError
    for a normalizer other than such a table (Precompiled)."""
    scores = [NEVER] * len(made["tokens"])
    for number, (_, score) in enumerate(node["model"]["vocab"]):
        scores[number] = float(score)
    if node["model"].get("unk_id") is not None:
        made["token_type"][node["model"]["unk_id"]] = UNKNOWN
    forms, steps = ([each for _, each in list_steps(node, part)] for part in ("normalizer", "pre_tokenizer"))
    if [each["type"] for each in forms] not in ([], ["Precompiled"]):
        found = ", ".join(each["type"] for each in forms)
        raise CheckpointError(f"{file}: normalizer: is {found}, which is not written to GGUF (Precompiled)")
    prefix = any(step.get("prepend_scheme") in ("always", "first") for step in steps)
    whole = any(step["type"] == "WhitespaceSplit" for step in steps)
    said = {"scores": scores, "add_space_prefix": prefix, "remove_extra_whitespaces": whole}
    return said | ({"precompiled_charsmap": base64.b64decode(forms[0]["precompiled_charsmap"])} if forms else {})


def _describe_wordpiece(
    node: Mapping[str, Any], made: Mapping[str, Any], places: Mapping[str, int], file: Path
) -> dict[str, Any]:
    """Mark the pieces that begin a word instead of those that continue a word, and state lower-casing and stripping of
    accents. Raises CheckpointError for a normalizer other than BERT's."""
    form = node.get("normalizer") or {}
    if form.get("type") != "BertNormalizer" or not (form["clean_text"] and form["handle_chinese_chars"]):
        raise CheckpointError(f"{file}: normalizer: is not BERT's, so is not written to GGUF (BertNormalizer)")
    marked = zip(made["tokens"], made["token_type"], strict=True)
    tokens = [each if kind == CONTROL else unmark_piece(each) for each, kind in marked]
    lower, accents = form["lowercase"], form.get("strip_accents")
    said = {"normalizer.lowercase": lower, "normalizer.strip_accents": lower if accents is None else accents}
    return {"tokens": tokens, **said}


MAKERS = {
    "gpt2": _describe_byte_level,
    "llama": _describe_sentencepiece,
    "t5": _describe_unigram,
    "bert": _describe_wordpiece,
}
"""The function that makes the metadata of one kind of tokenizer only, by kind. It may change `token_type` in place."""


def open_tokenizer(folder: Path) -> Tokenizer:
    """Open a folder's tokenizer, without padding and truncation."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_padding()
    made.no_truncation()
    return made


def _find_ids(folder: Path, places: Mapping[str, int], size: int) -> dict[str, Any]:
    """Find the ids of special tokens, and whether a text begins with BOS and ends with EOS. A tokenizer without BOS and
    EOS has BERT's [CLS] and [SEP] in their place."""
    named, file = read_special_tokens(folder), folder / GENERATION
    named = {"bos_token": named.get("cls_token", ""), "eos_token": named.get("sep_token", ""), **named}
    stated: Mapping[str, Any] = read_json(file, GenerationFile) if file.is_file() else {}
    found = {name: places[named[theirs]] for name, theirs in IDS.items() if named.get(theirs) in places}
    ends = stated.get("eos_token_id")
    ends = places.get(named.get("eos_token", "")) if ends is None else ends
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    found |= dict(zip(("eos", "eot", "eom"), listed, strict=False))
    ids = open_tokenizer(folder).encode("a").ids
    around = {"add_bos_token": ids[:1] == [found.get("bos")], "add_eos_token": ids[-1:] == [found.get("eos")]}
    return {**{f"{name}_token_id": each for name, each in found.items() if each < size}, **around}


def _read_template(folder: Path) -> str | None:
    """Read a folder's chat template, from its own file or else from tokenizer_config.json."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    stated = read_json(config).get("chat_template") if config.is_file() else None
    return stated if isinstance(stated, str) else None
