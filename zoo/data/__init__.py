"""Prepare text for training: corpus, split, tokenizer and tokens, made once and kept in a cache."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from zoo.data.corpus import Corpus, join_pieces, open_stdlib_corpus, open_text_corpus, split_corpus
from zoo.data.tokenizer import Tokenizer, find_tokenizer_file, make_byte_tokenizer, train_bpe
from zoo.data.tokens import (
    Batch,
    Batches,
    Progress,
    TokenFile,
    fill_cache,
    open_tokens,
    read_evaluation_batches,
    write_tokens,
)
from zoo.errors import ConfigError, ZooError, did_you_mean

__all__ = [
    "Batch",
    "Batches",
    "DataSettings",
    "Prepared",
    "TokenFile",
    "Tokenizer",
    "TokenizerSettings",
    "prepare",
    "read_evaluation_batches",
]

LAYOUT = 2  # version of a cached folder; folders of another one are not used
BPE_SIZE = 4096
BPE_SAMPLE = 16 << 20  # bytes of text that a BPE is trained on, evenly spread: more of the same text changes few merges


class TokenizerSettings(BaseModel):
    """`data.tokenizer`. A field that the kind does not read must stay null."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["bpe", "byte", "file"] = "bpe"
    vocab_size: int | None = Field(default=None, ge=257, validate_default=True)
    path: str | None = Field(default=None, validate_default=True)
    eos: str | None = None

    @field_validator("vocab_size")
    @classmethod
    def only_bpe_has_a_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        kind = info.data.get("kind", "bpe")
        if kind != "bpe" and value is not None:
            raise ValueError(f"a {kind} tokenizer has the size it has, found {value} (null, or kind: bpe)")
        return value

    @field_validator("path")
    @classmethod
    def only_a_file_has_a_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if kind == "file" and not value:
            raise ValueError("kind: file needs a tokenizer.json, found none (a file, or a folder that has one)")
        if kind in ("bpe", "byte") and value is not None:
            raise ValueError(f"a {kind} tokenizer is read from no file, found {value!r} (null, or kind: file)")
        return value

    @field_validator("eos")
    @classmethod
    def only_a_file_names_its_eos(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("kind") in ("bpe", "byte"):
            raise ValueError(f"only kind: file has an end of text of its own, found {value!r} (null)")
        return value


class DataSettings(BaseModel):
    """The `data` node of a training config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stdlib", "text"] = "stdlib"
    path: str | None = Field(default=None, validate_default=True)
    tokenizer: TokenizerSettings = TokenizerSettings()
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    max_bytes: int | None = Field(default=None, gt=0)
    documents: bool = False

    @field_validator("path")
    @classmethod
    def only_text_has_a_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if kind == "text" and not value:
            raise ValueError("data=text needs a text, found none (data.path=FILE_OR_FOLDER)")
        if kind == "stdlib" and value is not None:
            raise ValueError(f"data=stdlib reads Python's own source, found {value!r} (data=text data.path={value})")
        return value

    @classmethod
    def read(cls, node: Mapping[Any, Any], where: str = "data") -> DataSettings:
        """Validate a resolved node at the path `where`. Raises ConfigError with every fault in it."""
        try:
            return cls.model_validate(dict(node))
        except ValidationError as error:
            raise ConfigError(*(describe_fault(found, where) for found in error.errors())) from error


def describe_fault(found: Any, where: str) -> str:
    """Describe one of pydantic's errors in one line."""
    path = ".".join([where, *map(str, found["loc"])])
    if found["type"] == "extra_forbidden":
        settings = TokenizerSettings if found["loc"][0] == "tokenizer" else DataSettings
        return f"{path}: no such setting{did_you_mean(str(found['loc'][-1]), settings.model_fields)}"
    if found["type"] == "value_error":
        return f"{path}: {found['ctx']['error']}"
    options = re.findall(r"'([^']+)'", str(found.get("ctx", {}).get("expected", "")))
    hint = did_you_mean(str(found["input"]), options)
    return f"{path}: {found['msg'][0].lower()}{found['msg'][1:]}, found {found['input']!r}{hint}"


@dataclass(frozen=True)
class Prepared:
    """Both parts of a corpus as tokens. Equal keys mean equal tokens: a resumed run compares the two keys."""

    tokenizer: Tokenizer
    train: TokenFile
    validation: TokenFile
    key: str
    folder: Path


def prepare(settings: DataSettings, progress: Progress | None = None) -> Prepared:
    """Read and split a corpus, train a tokenizer and encode; or find all that in the cache. Raises ConfigError.

    `progress(what, done, total)` is called with bytes of text.
    """
    progress = progress or (lambda what, done, total: None)
    corpus = open_text_corpus(settings.path) if settings.path else open_stdlib_corpus()
    progress("reading", 0, corpus.n_bytes)
    fingerprint = corpus.fingerprint()
    progress("reading", corpus.n_bytes, corpus.n_bytes)
    key = hash_settings(settings, fingerprint)

    def build(folder: Path) -> None:
        write_prepared(folder, corpus, settings, progress)
        if corpus.fingerprint() != fingerprint:
            raise ZooError("data: the corpus changed while it was read (start again)")

    folder = fill_cache(f"{settings.kind}-{key}", build)
    tokens = open_tokens(folder)
    return Prepared(Tokenizer.load(folder), tokens["train"], tokens["validation"], key, folder)


def hash_settings(settings: DataSettings, fingerprint: str) -> str:
    """Hash everything that the tokens depend on. `documents` is left out: it is about batches."""
    import tokenizers

    on = settings.model_dump(include={"validation_fraction", "max_bytes"})
    on |= {"layout": LAYOUT, "corpus": fingerprint, "tokenizers": tokenizers.__version__}
    on["tokenizer"] = settings.tokenizer.model_dump(exclude={"path"})
    if settings.tokenizer.path is not None:
        file = find_tokenizer_file(settings.tokenizer.path, "data.tokenizer")
        beside = file.with_name("tokenizer_config.json")
        on["files"] = [hashlib.blake2b(f.read_bytes()).hexdigest() for f in (file, beside) if f.is_file()]
    return hashlib.blake2b(json.dumps(on, sort_keys=True).encode(), digest_size=8).hexdigest()


def write_prepared(folder: Path, corpus: Corpus, settings: DataSettings, progress: Progress) -> None:
    """Write the tokenizer and the tokens of a corpus into an empty folder."""
    total = min(corpus.n_bytes, settings.max_bytes or corpus.n_bytes)
    parts = split_corpus(corpus, settings.validation_fraction, settings.max_bytes)

    def texts_to_learn() -> Iterator[str]:
        every = -(-total // BPE_SAMPLE)
        done = 0
        for number, text in enumerate(text for part, text in join_pieces(corpus, parts) if part == "train"):
            if number % every == 0:
                yield text
            done += len(text.encode())
            progress("learning the vocabulary", min(done, total), total)

    tokenizer = make_tokenizer(settings.tokenizer, texts_to_learn())
    tokenizer.save(folder)
    write_tokens(
        folder, join_pieces(corpus, parts), tokenizer, lambda done: progress("encoding", min(done, total), total)
    )
    progress("encoding", total, total)


def make_tokenizer(settings: TokenizerSettings, texts: Iterator[str]) -> Tokenizer:
    """Make the tokenizer that the settings name. Only a BPE reads the texts."""
    if settings.kind == "byte":
        return make_byte_tokenizer()
    if settings.path is not None:
        return Tokenizer.load(settings.path, settings.eos, where="data.tokenizer")
    return train_bpe(texts, settings.vocab_size or BPE_SIZE)
