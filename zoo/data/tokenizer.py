"""Encode text to token ids and back, with Hugging Face `tokenizers`: bytes, byte-level BPE, or any tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.beside import TOKENIZER, copy_beside, list_beside
from zoo.checkpoint.tokenizer_file import LARGEST, TokenizerConfig, TokenizerJson, check_tokenizer, read_special_tokens
from zoo.data.token_bytes import tabulate_byte_level
from zoo.errors import CheckpointError, ConfigError, did_you_mean, short
from zoo.families.described import read_json
from zoo.runs import TEMPLATE
from zoo.untrusted.json_file import SETTINGS
from zoo.untrusted.printable import check_text

if TYPE_CHECKING:
    import numpy as np
    import tokenizers

    TokenizerSource = str | Path | tokenizers.Tokenizer  # what `open_backend` takes

EOS = "<|endoftext|>"
MASKS = ("[MASK]", "<mask>")
"""Spellings of the mask token in published tokenizers."""
# The end of text in published tokenizers, for a tokenizer without a tokenizer_config.json that names it.
KNOWN_EOS = (EOS, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
KNOWN = {
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "unk_token": ("<unk>", "[UNK]"),
    "mask_token": MASKS,
}
"""Other special tokens of published tokenizers, for a tokenizer.json that comes alone."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with its end-of-text token, and one way to encode text for training, evaluation and
    generation.

    `split` (transformers' `split_special_tokens`): if true, special tokens spelled in a text are plain characters, so
    that no text can end a document. `adds` (its `add_special_tokens`): if true, `encode` adds the tokens that the
    tokenizer's file puts around a text, such as a start token. `files` is the folder whose files `save` copies: the
    tokenizer's own, and others that travel with a run's model (`zoo.checkpoint.beside`).
    """

    files: Path | None = None
    template: str | None = None
    """A chat template that `save` writes in place of the one in `files`."""

    def __init__(
        self, backend: tokenizers.Tokenizer, eos: str = EOS, *, split: bool = False, adds: bool = True
    ) -> None:
        eos_id = backend.token_to_id(eos)
        if eos_id is None:
            hint = did_you_mean(eos, backend.get_vocab()) or " (a token of the vocabulary)"
            raise ConfigError(f"data.tokenizer.eos: the vocabulary has no such token, found {eos!r}{hint}")
        self.backend = backend
        self.eos = eos
        self.eos_id: int = eos_id
        self.split = split
        self.adds = adds
        self.grown = False  # by tokens that its files do not have

    @cached_property
    def vocab_size(self) -> int:
        """The number of rows an embedding needs: the largest id plus one, because some vocabularies have gaps."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def add_special(self, names: Sequence[str]) -> None:
        """Append the special tokens that the vocabulary lacks. `split` becomes false, because texts spell these tokens
        (`<mask>`)."""
        if self.backend.add_special_tokens([name for name in names if self.backend.token_to_id(name) is None]):
            self.grown, self.split = True, False
        self.__dict__.pop("vocab_size", None)

    def ids_of(self, names: Sequence[str]) -> list[int]:
        """Return the ids of tokens that the vocabulary has."""
        found = [self.backend.token_to_id(name) for name in names]
        assert None not in found, f"of {names} some are no tokens"
        return found  # type: ignore[return-value]

    @cached_property
    def around(self) -> tuple[list[int], list[int]]:
        """The tokens that `encode` adds before and after a text."""
        if not self.adds:
            return [], []
        with naming_panics():
            found = self.backend.encode("a", add_special_tokens=True)
        marked = list(zip(found.ids, found.special_tokens_mask, strict=True))
        before, after = (list(takewhile(lambda pair: pair[1], each)) for each in (marked, reversed(marked)))
        return [token for token, _ in before], [token for token, _ in reversed(after)]

    def encode(self, text: str, *, bare: bool = False) -> list[int]:
        """Encode text as `transformers` does with this tokenizer. With `bare` no tokens are added around it."""
        self.backend.encode_special_tokens = self.split
        check_text(text, "text")
        with naming_panics():
            return self.backend.encode(text, add_special_tokens=self.adds and not bare).ids

    def encode_rendered(self, text: str) -> list[int]:
        """Encode the output of a chat template: special tokens spelled in the text are special; no others are added."""
        self.backend.encode_special_tokens = False
        check_text(text, "text")
        with naming_panics():
            return self.backend.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str], *, bare: bool = False) -> list[tokenizers.Encoding]:
        """Encode many texts on all cores, as `encode` does. Neither offsets nor Python lists of ids are made, so a
        thread can encode while other Python code runs."""
        self.backend.encode_special_tokens = self.split
        with naming_panics():
            return self.backend.encode_batch_fast(list(texts), add_special_tokens=self.adds and not bare)

    def encode_with_offsets(self, texts: Sequence[str], rendered: bool) -> list[tokenizers.Encoding]:
        """Encode many texts on all cores, with the place of each token in its text. `rendered` texts are encoded as by
        `encode_rendered`, others as by `encode`."""
        self.backend.encode_special_tokens = self.split and not rendered
        with naming_panics():
            return self.backend.encode_batch(list(texts), add_special_tokens=self.adds and not rendered)

    def find_offsets(self, text: str) -> list[tuple[int, int]]:
        """Find the start and end of each token of a text, in characters, with no tokens added around it."""
        self.backend.encode_special_tokens = self.split
        with naming_panics():
            return self.backend.encode(text, add_special_tokens=False).offsets

    @cached_property
    def byte_lengths(self) -> np.ndarray | None:
        """The number of bytes that each token of a byte-level vocabulary stands for, by id [V]; None for a vocabulary
        of another kind."""
        return tabulate_byte_level(self)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Decode ids. Bytes that are not UTF-8 become U+FFFD; special tokens are left out unless `special`."""
        with naming_panics():
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=not special)

    def save(self, folder: str | Path, limit: int | None = None) -> None:
        """Write the tokenizer for this package and for transformers. Files that it was read from are copied unchanged.

        tokenizer.json is written anew only if tokens were added, and tokenizer_config.json only if the run named
        another end of text or another `split`. A tokenizer that was trained here, or a tokenizer.json that came alone,
        gets a tokenizer_config.json; `limit` is the model's longest text in tokens (`model_max_length`).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.files is not None:
            copy_beside(self.files, folder)
        if self.template is not None:
            (folder / TEMPLATE).write_text(self.template, encoding="utf-8")
        file, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if self.files is None or self.grown or not file.exists():
            file.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        if self.files is None or {*list_beside(folder, TOKENIZER)} <= {file.name, TEMPLATE}:
            _write_json(config, self._describe(limit))
            return
        stated = json.loads(config.read_bytes()) if config.is_file() else {}
        other: dict[str, Any] = {}
        if find_eos(self.backend, file, "tokenizer") != self.eos:
            other["eos_token"] = self.eos
        if bool(stated.get("split_special_tokens")) != self.split:
            other["split_special_tokens"] = self.split
        if other:
            _write_json(config, {**stated, **other})

    def find_padding(self, folder: Path | None) -> int | None:
        """Find the id of the padding token that transformers uses: from the tokenizer's files in `folder`, or, if they
        name no special token, from the file that `save` would write. None if there is none."""
        stated = (read_special_tokens(folder) if folder else {}) or self._describe(None)
        return self.backend.token_to_id(stated["pad_token"]) if "pad_token" in stated else None

    def _describe(self, limit: int | None) -> dict[str, Any]:
        """Make the tokenizer_config.json of a tokenizer that has none. The end of text pads if there is no padding
        token."""
        known = {**KNOWN, "pad_token": ("<pad>", "[PAD]", self.eos)}
        there = {
            name: next((each for each in spelled if self.backend.token_to_id(each) is not None), None)
            for name, spelled in known.items()
        }
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos,
            **{name: found for name, found in there.items() if found is not None},
            **({} if limit is None else {"model_max_length": limit}),
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": self.split,
        }

    @classmethod
    def load(
        cls,
        path: str | Path,
        eos: str | None = None,
        *,
        split: bool | None = None,
        adds: bool = True,
        where: str = "tokenizer",
    ) -> Tokenizer:
        """Read a tokenizer.json, or a folder that holds one; `where` names the setting in messages. If `split` is None,
        the tokenizer_config.json in the same folder decides; the default is false.

        The end of a text is `eos`, else the `eos_token` of that tokenizer_config.json, else the first of KNOWN_EOS in
        the vocabulary. Raises ConfigError for a missing or malformed file, and if there is no such token.
        """
        file = find_tokenizer_file(path, where)
        backend = open_backend(file, where)
        eos = eos if eos is not None else find_eos(backend, file, where)
        if eos is None:
            raise ConfigError(f"{where}.eos: which token ends a text is not known, found none in {file} (name it)")
        if split is None:
            split = bool(read_settings(file, where).get("split_special_tokens", False))
        return cls(backend, eos, split=split, adds=adds)


def find_eos(backend: tokenizers.Tokenizer, file: Path, where: str) -> str | None:
    """Find the token that ends a text: the `eos_token` of the tokenizer_config.json next to `file`, else the first of
    KNOWN_EOS in the vocabulary; None if there is none."""
    stated = read_special_token(file, "eos_token", where)
    return stated or next((known for known in KNOWN_EOS if backend.token_to_id(known) is not None), None)


def _write_json(file: Path, node: Any) -> None:
    file.write_text(json.dumps(node, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def naming_panics() -> Iterator[None]:
    """Turn failures of `tokenizers` into CheckpointError. The library raises a bare Exception, or, if its Rust code
    panics, a PanicException that it does not export."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"tokenizer: cannot do its work, found {short(error)} (another tokenizer.json)"
        ) from error


def read_backend(file: Path, where: str) -> tokenizers.Tokenizer:
    """Read a tokenizer.json. Raises ConfigError for a file that is malformed or exceeds a bound of
    `check_tokenizer`."""
    import tokenizers

    node = _read_checked(file, where, TokenizerJson, LARGEST)
    check_tokenizer(node, str(file))
    try:
        with naming_panics():
            return tokenizers.Tokenizer.from_file(str(file))
    except CheckpointError as error:
        found = short(error.__cause__ or error)
        raise ConfigError(f"{where}.path: cannot read {file}, found {found} (a tokenizer.json)") from error


def open_backend(given: TokenizerSource, where: str) -> tokenizers.Tokenizer:
    """Read a tokenizer.json or a folder that has one; a `tokenizers.Tokenizer` is used as it is. Padding and
    truncation, which some files switch on, are switched off. Raises ConfigError for a missing or malformed file."""
    backend = read_backend(find_tokenizer_file(given, where), where) if isinstance(given, str | Path) else given
    backend.no_truncation()
    backend.no_padding()
    return backend


def find_tokenizer_file(path: str | Path, where: str) -> Path:
    """Find tokenizer.json: `path` itself, or a file in the folder `path`. Raises ConfigError if there is none."""
    path = Path(path).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"{where}.path: no such file, found {file} (a tokenizer.json, or a folder that has one)")
    return file


def _read_checked(file: Path, where: str, shape: Any, most: int = SETTINGS) -> dict[str, Any]:
    """Read a JSON object of a tokenizer and check it against `shape`. Raises ConfigError under the setting `where`."""
    try:
        return read_json(file, shape, most)
    except CheckpointError as error:
        raise ConfigError(*(f"{where}.path: {fault}" for fault in error.faults)) from error


def read_settings(file: Path, where: str) -> dict[str, Any]:
    """Read the tokenizer_config.json next to a tokenizer.json; empty if there is none."""
    config = file.with_name("tokenizer_config.json")
    return _read_checked(config, where, TokenizerConfig) if config.is_file() else {}


def read_special_token(file: Path, name: str, where: str) -> str | None:
    """Read a special token (`eos_token`, `mask_token`) from the tokenizer_config.json next to a tokenizer.json: a
    string, or an object with its `content`. None if there is none."""
    stated = read_settings(file, where).get(name)
    return stated.get("content") if isinstance(stated, dict) else stated


def make_byte_tokenizer() -> Tokenizer:
    """Make the tokenizer of bytes: an id is the byte's value, and 256 ends a text."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    backend = Backend(models.BPE(vocab={spelled: byte for byte, spelled in enumerate(spell_bytes())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    backend.add_special_tokens([EOS])
    return Tokenizer(backend, split=True)


def spell_bytes() -> list[str]:
    """List the character that spells each byte in a byte-level vocabulary (GPT-2, 2019): itself if printable, else one
    from code point 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with GPT-2's word pattern; `vocab_size` counts the 256 bytes and the end of a text.

    A short corpus gives fewer tokens, because only pairs that occur twice are merged. The result depends on the texts
    alone.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    backend.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[EOS],
        initial_alphabet=spell_bytes(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, split=True)
