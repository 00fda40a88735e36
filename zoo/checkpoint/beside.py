"""List and copy the files that travel with a model unchanged: tokenizer, chat template, generation options, processors,
and the modules of sentence-transformers. Code that writes a checkpoint or an export copies them byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from zoo.untrusted.stated_paths import find_inside

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "vocab.bpe", "merges.txt", "bpe.codes", "tokenizer.model*", "spiece.model"),
    *("*.bpe.model", "*.spm", "*.tiktoken", "tekken.json", "normalizer.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
"""Files of the tokenizer and its chat templates, as glob patterns."""

MODULES = "modules.json"
SENTENCE = (MODULES, "config_sentence_transformers.json", "sentence_*_config.json", "[1-9]_*/**/*")
"""Files that sentence-transformers reads after the model: the list of its modules, and a folder for each module."""

ROUND_TEXT = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", *SENTENCE)
"""Files that do not depend on the tokenizer: processors, and modules of sentence-transformers."""

GENERATION = "generation_config.json"
BESIDE = (*TOKENIZER, GENERATION, *ROUND_TEXT)


def list_beside(folder: Path, patterns: Iterable[str] = BESIDE) -> list[str]:
    """List the files of a folder that travel with its model, as sorted relative paths."""
    found = (each for pattern in patterns for each in folder.glob(pattern) if each.is_file())
    return sorted({each.relative_to(folder).as_posix() for each in found})


def copy_beside(folder: Path, out: Path, patterns: Iterable[str] = BESIDE) -> None:
    """Copy the files that travel with the model of a folder, unless `out` has them already. Modules of
    sentence-transformers are left out if `out` has some. Raises CheckpointError for a link out of the folder."""
    kept = {*list_beside(folder, SENTENCE)} if (out / MODULES).is_file() else set()
    for name in list_beside(folder, patterns):
        if name not in kept and not (out / name).exists():
            copy_inside(folder, name, out)


def copy_inside(folder: Path, name: str, out: Path) -> None:
    """Copy a file of a folder to the same place in another. Raises CheckpointError for a link that leads out of the
    folder: its target may be a private file, and the copy may be published."""
    source = find_inside(folder, name, f"{folder}: file")
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, out / name)
