"""Prepare text for training: read, split, train a tokenizer and encode. The result is kept in a cache."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.data.chat.forms import Conversations
from zoo.data.chat.template import ChatTemplate, find_chat_template
from zoo.data.chat.turns import find_fault
from zoo.data.checked import FileShape, read_sealed, record_file, verify_file, write_sealed
from zoo.data.corpus import Documents, WithValidation
from zoo.data.encode import INDEX, PARTS, SEQUENCES, open_tokens, write_tokens
from zoo.data.held_out_rows import hold_out, read_evaluation_batches
from zoo.data.settings import SPLIT_TEMPLATE, DataSettings, make_paths_absolute
from zoo.data.split import Part, describe_copies, join_pieces, keep_whole, split_units
from zoo.data.survey import Fingerprint, Survey, survey
from zoo.data.tokenizer import Tokenizer, find_tokenizer_file, make_byte_tokenizer, train_bpe
from zoo.data.tokenizer_settings import TokenizerSettings
from zoo.data.tokens import (
    Batch,
    Batches,
    Progress,
    Source,
    TokenFile,
    refuse_old_position,
)
from zoo.disk import complete_folder, remove_drafts
from zoo.errors import ConfigError
from zoo.paths import find_cache_folder

__all__ = [
    "Batch",
    "Batches",
    "DataSettings",
    "PreparedData",
    "Source",
    "TokenFile",
    "Tokenizer",
    "TokenizerSettings",
    "hold_out",
    "make_paths_absolute",
    "make_tokenizer",
    "prepare",
    "read_evaluation_batches",
    "refuse_old_position",
]

LAYOUT = 3  # version of the cached folders; folders of any other version are not used
BPE_SIZE = 4096
BPE_SAMPLE = 16 << 20  # bytes of text, sampled by hash, that a BPE is trained on: more text changes few merges
SEALS = "tokenizer.seal.json"
ENCODING = ("tokenizer.json", "tokenizer_config.json")
"""The files that determine a tokenizer's token ids and its end-of-text token."""


@dataclass(frozen=True)
class PreparedData:
    """The training and validation tokens of each source. Equal `key`s mean equal tokens."""

    tokenizer: Tokenizer
    sources: tuple[Source, ...]
    held_out: tuple[Source, ...]
    key: str
    special: Path | None
    """The folder of the tokenizer_config.json that names the special tokens: the given tokenizer's folder, or the cache
    folder if that has no such file. None for a labelled set whose tokenizer Zoo makes."""
    notes: tuple[str, ...] = ()
    """Warnings for the user: validation texts that are also trained on, and conversations that get no loss."""
    template: ChatTemplate | None = None
    """The chat template of the conversations; None for other data, and for pairs of plain texts."""

    @property
    def train(self) -> TokenFile:
        """The training tokens of the only source."""
        (source,) = self.sources
        return source.tokens

    @property
    def validation(self) -> TokenFile:
        """The validation tokens of the only source."""
        (source,) = self.held_out
        return source.tokens


def prepare(settings: DataSettings, progress: Progress | None = None, *, whole: bool = False) -> PreparedData:
    """Return the tokens of a corpus: open the cached result, or read, split, train a tokenizer and encode. Raises
    ConfigError for a corpus that cannot be read, split or used to train the tokenizer.

    With `whole` nothing is split: all documents, duplicates too, go to validation. The tokenizer must then not be of
    kind `bpe`, which is trained on the training split. The text is read once to compute the cache key, and a second
    time if the cache lacks this key (`zoo.data.survey` says why). `progress(what, done, total)` is called with bytes of
    text.
    """
    progress = progress or (lambda what, done, total: None)
    surveys, template = {}, find_template(settings)
    for name, source in settings.sources.items():
        with faults_of_source(name):
            surveys[name] = survey_source(source.settings.open(template, whole=whole), settings, progress)
    read = [each for found in surveys.values() for each in list_conversations(found.documents)]
    rendered = any(each.counts["rendered"] for each in read)
    if rendered and settings.tokenizer.split_special_tokens:
        raise ConfigError(SPLIT_TEMPLATE)
    key = hash_settings(settings, {name: found.fingerprint for name, found in surveys.items()}, whole)
    folder = fill_cache(f"{settings.kind}-{key}", lambda at: write_prepared(at, settings, surveys, progress, whole))
    prepared = open_prepared(folder, settings, key, whole)
    if template is not None and settings.chosen_template is not None:
        prepared.tokenizer.template = template.default
    units = [unit for found in surveys.values() for unit in found.units]
    train, held = ([each.key for each in units if each.validates is part] for part in (False, True))
    notes = (*describe_copies(train, held), *(line for each in read for line in each.describe_passed()))
    if not rendered:
        return replace(prepared, notes=notes)
    # What a template writes has special tokens, which transformers would split if the exported files said so.
    prepared.tokenizer.split = False
    return replace(prepared, notes=notes, template=template)


def list_conversations(documents: Documents) -> list[Conversations]:
    """List the `Conversations` of a source: the source itself, or its training and validation parts."""
    parts = [documents.train, documents.validation] if isinstance(documents, WithValidation) else [documents]
    return [each for each in parts if isinstance(each, Conversations)]


def find_template(settings: DataSettings) -> ChatTemplate | None:
    """Find the chat template of the data; None if the data are no conversations, or the tokenizer has no template.
    Raises ConfigError for a chosen template that is unknown or unreadable."""
    if not settings.written:
        return None
    path = settings.tokenizer.path
    folder = None if path is None else find_tokenizer_file(path, "data.tokenizer").parent
    template = find_chat_template(folder, settings.chosen_template, "data.template=")
    byte = settings.tokenizer.kind == "bpe"  # whose special tokens are those of bytes
    tokenizer = make_byte_tokenizer() if byte else make_tokenizer(settings.tokenizer, lambda: iter(()))
    return None if template is None else replace(template, fault=find_fault(template, tokenizer))


def fill_cache(name: str, build: Callable[[Path], object]) -> Path:
    """Return the cache folder `name`; if it is missing, `build` fills a draft folder, renamed when complete.

    `build` continues in the draft that a killed process left. Two processes that build at once use separate drafts, and
    the slower one drops its own, which holds the same files. Raises ConfigError if the cache is not writable.
    """
    folder = find_cache_folder() / "data" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(folder.parent)
        tempfile.TemporaryFile(dir=folder.parent).close()  # raises if the folder is not writable
    except OSError as error:
        what = f"cannot write to {folder.parent}, found {error.strerror}"
        raise ConfigError(f"ZOO_CACHE: {what} (set ZOO_CACHE to a folder of yours)") from error
    with complete_folder(folder) as draft:
        build(draft)
    return folder


@contextmanager
def faults_of_source(name: str) -> Iterator[None]:
    """Context manager that renames the keys in a mix source's ConfigErrors: `data.path` becomes `data.of.NAME.path`."""
    try:
        yield
    except ConfigError as error:
        if not name:
            raise
        raise ConfigError(
            *(re.sub(r"^data(?=[.:])(?!\.template)", f"data.of.{name}", fault) for fault in error.faults)
        ) from error


def survey_source(documents: Documents, settings: DataSettings, progress: Progress) -> Survey:
    """Make the first of two passes over a source: hash its documents, and sample text for a BPE."""
    total = documents.n_bytes
    room = BPE_SAMPLE if settings.tokenizer.kind == "bpe" else 0
    progress("reading", 0, total)
    return survey(documents, room, lambda done: progress("reading", min(done, total), total))


def open_prepared(folder: Path, settings: DataSettings, key: str, whole: bool = False) -> PreparedData:
    """Open a folder of the cache. Raises ZooError for a damaged tokenizer or index, or a shard whose length changed."""
    for name, record in read_sealed(folder / SEALS, dict[str, FileShape | str]).items():
        if name in ENCODING:
            verify_file(folder / name, record)
    parts: tuple[Part, ...] = ("validation",) if whole else PARTS
    tokens = {name: open_tokens(folder / name, parts, settings.apart) for name in settings.sources}
    sources, held_out = (
        tuple(Source(name, each.weight, tokens[name][part]) for name, each in settings.sources.items() if part in parts)
        for part in PARTS
    )
    tokenizer = Tokenizer.load(folder, split=settings.tokenizer.splits, adds=settings.tokenizer.adds)
    own = {} if settings.tokenizer.path is None else find_tokenizer_files(settings.tokenizer.path)
    return PreparedData(tokenizer, sources, held_out, key, own.get(ENCODING[1], folder / ENCODING[1]).parent)


def hash_settings(settings: DataSettings, fingerprints: Mapping[str, str], whole: bool = False) -> str:
    """Hash everything that the tokens depend on. `documents` and weights are left out: they affect batches only."""
    import tokenizers

    tokenizer = settings.tokenizer
    on = {
        "layout": LAYOUT,
        "tokenizers": tokenizers.__version__,
        "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size, "eos": tokenizer.eos},
        "validation_fraction": 1 if whole else settings.validation_fraction,
        "sources": {name: [fingerprints[name], each.settings.max_bytes] for name, each in settings.sources.items()},
    }
    if tokenizer.path is not None:
        files = find_tokenizer_files(tokenizer.path).values()
        on["files"] = [hashlib.blake2b(file.read_bytes()).hexdigest() for file in files]
    if settings.written:
        on[settings.content] = True  # a pair and a prompt with its completion have the same texts
    if tokenizer.path is not None or not tokenizer.splits:
        on["special"] = {"split": tokenizer.splits, "add": tokenizer.adds}
    return hashlib.blake2b(json.dumps(on, sort_keys=True).encode(), digest_size=8).hexdigest()


def find_tokenizer_files(path: str) -> dict[str, Path]:
    """Map `tokenizer.json` and, if present, `tokenizer_config.json` to their paths. Raises ConfigError if there is no
    tokenizer.json."""
    file = find_tokenizer_file(path, "data.tokenizer")
    files = dict(zip(ENCODING, (file, file.with_name(ENCODING[1])), strict=True))
    return {name: file for name, file in files.items() if file.is_file()}


def write_prepared(
    folder: Path, settings: DataSettings, surveys: Mapping[str, Survey], progress: Progress, whole: bool = False
) -> None:
    """Write the tokenizer and the tokens of all sources into a folder. Sources that a killed process finished are
    kept."""
    assert not (whole and settings.tokenizer.kind == "bpe"), "a BPE learns from a training split"
    parts = {}
    for name, source in settings.sources.items():
        with faults_of_source(name):
            units, most = surveys[name].units, source.settings.max_bytes
            parts[name] = keep_whole(units, most) if whole else split_units(units, settings.validation_fraction, most)
    tokenizer = make_tokenizer(settings.tokenizer, lambda: read_samples(surveys, parts, progress))
    tokenizer.save(folder)
    write_sealed(folder / SEALS, {name: record_file(folder / name) for name in ENCODING})
    for name in settings.sources:
        if not (folder / name / INDEX).is_file():
            write_source(folder / name, settings, surveys[name], parts[name], tokenizer, progress)


def read_samples(
    surveys: Mapping[str, Survey], parts: Mapping[str, list[Part | None]], progress: Progress
) -> Iterator[str]:
    """Yield the training texts in the samples of all sources. Raises ConfigError if there are none."""
    total, done = sum(found.sample.size for found in surveys.values()), 0
    progress("learning the vocabulary", 0, total)
    for name, found in surveys.items():
        for text in found.sample.texts(parts[name]):
            yield text
            done += len(text.encode())
            progress("learning the vocabulary", min(done, total), total)
    if not done:
        what = f"learns from a sample of {BPE_SAMPLE >> 20} MiB, found no training text in it"
        raise ConfigError(f"data.tokenizer: a BPE {what} (a smaller validation_fraction, or kind: byte)")


def write_source(
    folder: Path,
    settings: DataSettings,
    found: Survey,
    parts: list[Part | None],
    tokenizer: Tokenizer,
    progress: Progress,
) -> None:
    """Make the second pass over a source: encode it to shards. Raises ZooError if the source changed since the first
    pass."""
    total = sum(unit.size for unit, part in zip(found.units, parts, strict=True) if part is not None)
    fingerprint = Fingerprint()
    folder.mkdir(exist_ok=True)
    write_tokens(
        folder,
        join_pieces(fingerprint.follow(found.documents), parts),
        tokenizer,
        lambda done: progress("encoding", min(done, total), total),
        sequences=SEQUENCES[settings.content],
        unchanged=lambda: fingerprint.hexdigest() == found.fingerprint,
    )
    progress("encoding", total, total)


def make_tokenizer(settings: TokenizerSettings, texts: Callable[[], Iterator[str]]) -> Tokenizer:
    """Load or train the tokenizer of the settings. Only a BPE reads the texts. Raises ConfigError for a missing or
    malformed tokenizer file."""
    if settings.path is not None:
        split, adds = settings.splits, settings.adds
        return Tokenizer.load(settings.path, settings.eos, split=split, adds=adds, where="data.tokenizer")
    made = make_byte_tokenizer() if settings.kind == "byte" else train_bpe(texts(), settings.vocab_size or BPE_SIZE)
    made.split = bool(settings.splits)
    return made
