"""What the tests of data share: a poem, a folder of documents, and the lines of a refusal."""

from pathlib import Path

import pytest
from hypothesis import settings

from zoo.data.corpus import Document
from zoo.data.split import Part, join_pieces, measure_unit, split_units
from zoo.errors import ConfigError

POEM = [f"Line {n} of a poem that says {n * n}, naïvely: 漢字 🦓.\n" for n in range(400)]
FAST = settings(max_examples=60, deadline=None)


def faults_of(call) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call()
    assert not any("\n" in fault for fault in caught.value.faults)
    return caught.value.faults


def documents(*texts: str) -> list[Document]:
    return [Document(f"{number}.txt", 0, (text,)) for number, text in enumerate(texts)]


def split_corpus(documents, validation_fraction: float, max_bytes: int | None = None) -> list[Part | None]:
    return split_units([measure_unit(each) for each in documents], validation_fraction, max_bytes)


def texts_of(documents, parts) -> list[tuple]:
    """The part and the text of each document after the split, pieces joined."""
    return [(part, text) for part, (text,) in join_pieces(documents, parts)]


def write_documents(root: Path) -> Path:
    """Write forty small documents into a folder, and one of them twice."""
    (root / "deep").mkdir(parents=True)
    for n in range(40):
        (root / ("deep" if n % 2 else ".") / f"{n:02}.md").write_text("".join(POEM[n * 10 : n * 10 + 10]), "utf-8")
    (root / "copy.txt").write_text("".join(POEM[:10]), "utf-8")
    return root
