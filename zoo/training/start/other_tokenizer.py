"""Keep the tokenizer of the weights that a run starts from: compare it with the run's, and copy its files unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from zoo.checkpoint.beside import BESIDE, ROUND_TEXT, TOKENIZER, copy_beside
from zoo.checkpoint.finding import find
from zoo.data import TokenizerSettings, make_tokenizer
from zoo.data.tokenizer import find_tokenizer_file, open_backend
from zoo.disk import replace_folder
from zoo.errors import ConfigError
from zoo.untrusted.printable import shorten


def check_tokens(weights: str, stated: TokenizerSettings, other: bool, say: Callable[[str], object]) -> None:
    """Check that the run's tokenizer gives each token the id that it has in the weights' folder. Raises ConfigError
    unless the setting `other_tokenizer` allows other ids."""
    folder = find(weights)
    if not (folder / "tokenizer.json").is_file():
        say(f"weights: {folder} has no tokenizer.json, so whether its embeddings are of these tokens is not known")
        return
    found = describe_moved(folder, stated)
    if found and not other:
        would = "the weights' own tokenizer, or other_tokenizer=true"
        raise ConfigError(f"data.tokenizer: is not that of {folder}, {found} ({would})")
    if found:
        say(f"weights: their embeddings are kept under another tokenizer: {found}")


def describe_moved(folder: Path, stated: TokenizerSettings) -> str | None:
    """Describe the tokens of a folder's tokenizer whose ids belong to other tokens in the run's tokenizer; None if
    there are none."""
    if stated.kind == "bpe":
        return "found a BPE that is trained on this data"
    if stated.path is not None and holds_same(find_tokenizer_file(stated.path, "data.tokenizer"), folder):
        return None
    theirs = open_backend(folder, "weights").get_vocab()
    tokenizer = make_tokenizer(stated, lambda: iter(()))
    ours = {number: token for token, number in tokenizer.backend.get_vocab().items()}
    moved = sorted((number, token) for token, number in theirs.items() if ours.get(number, token) != token)
    if not moved:
        return None
    number, token = moved[0]
    names = " not ".join(f"{shorten(repr(each), 40)}," for each in (ours[number], token)).rstrip(",")
    return f"found {len(moved):,} of {len(theirs):,} ids of other tokens, {number} of {names}"


def keep_files(tokenizer: TokenizerSettings, weights: str | None, out: Path) -> None:
    """Copy to `out`, byte for byte, the files that a run does not change: the tokenizer's files, if it has a path, and
    the files beside the `weights`. Files about tokens are copied from the weights only if the run uses their
    tokenizer."""
    path, folder = tokenizer.path, None if weights is None else find(weights)
    if path is None and folder is None:
        return
    with replace_folder(out) as draft:
        own = False
        if path is not None:
            file = find_tokenizer_file(path, "data.tokenizer")
            own = folder is not None and holds_same(file, folder)
            if file.name == "tokenizer.json":
                copy_beside(file.parent, draft, TOKENIZER)
            else:  # files beside it may be another tokenizer's
                shutil.copyfile(file, draft / "tokenizer.json")
                copy_beside(file.parent, draft, ["tokenizer_config.json"])
        if folder is not None:
            copy_beside(folder, draft, BESIDE if own else ROUND_TEXT)


def holds_same(file: Path, folder: Path) -> bool:
    """Whether a folder's tokenizer.json has the content of a file."""
    other = folder / "tokenizer.json"
    return other.is_file() and file.read_bytes() == other.read_bytes()
