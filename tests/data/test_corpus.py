"""Corpora and their split, against slow and obvious ways to say the same."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.corpora import FAST, POEM, documents, faults_of, split_corpus, texts_of, write_documents
from zoo.data.corpus import (
    Document,
    cut_paragraphs,
    open_stdlib_corpus,
    open_text_corpus,
)
from zoo.data.split import hash_text, join_pieces


@pytest.fixture
def folder(tmp_path):
    """Forty small documents in a folder, and one of them twice."""
    return write_documents(tmp_path / "corpus")


def test_stdlib_is_the_library_without_its_tests_and_packages():
    corpus = open_stdlib_corpus()
    names = [file.relative_to(corpus.root).as_posix() for file in corpus.files]
    assert {"argparse.py", "json/decoder.py", "unittest/case.py"} <= set(names)
    assert not [name for name in names if {"site-packages", "test", "tests"} & set(Path(name).parts)]
    assert names == sorted(names)
    assert 2_000_000 < corpus.n_bytes < 40_000_000


def test_a_folder_gives_its_text_files_in_order_and_passes_over_what_is_not_text(folder):
    (folder / ".hidden").write_text("secret", "utf-8")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.txt").write_text("secret", "utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (folder / "blank.txt").write_text(" \n\n", "utf-8")
    paths = [document.path for document in open_text_corpus(folder)]
    assert len(set(paths)) == 41
    assert paths == sorted(paths)
    assert not [path for path in paths if path.startswith(".") or path in ("picture.png", "blank.txt")]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert [document.texts[0] for document in open_text_corpus(tmp_path / "a.txt")] == ["one\r\ntwo"]


def test_a_missing_or_empty_text_is_one_line(tmp_path):
    assert "no such file or folder, found" in faults_of(lambda: open_text_corpus(tmp_path / "none"))[0]
    (tmp_path / "blank.txt").write_text("\n \n", "utf-8")
    (tmp_path / "empty").mkdir()
    for name in ("blank.txt", "empty"):
        (fault,) = faults_of(lambda name=name: list(open_text_corpus(tmp_path / name)))
        assert fault.startswith("data.path: no text to read") and name in fault


def test_files_that_are_not_utf8_are_all_named_with_the_place(tmp_path):
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("wide".encode("utf-16"))
    (tmp_path / "zero.md").write_bytes(b"ab\0")
    (tmp_path / "fine.txt").write_text("fine", "utf-8")
    faults = faults_of(lambda: list(open_text_corpus(tmp_path)))
    assert len(faults) == 3
    assert "latin.txt is not UTF-8, found byte 0xe9 at 1 (convert it, or move it away)" in faults[0]
    assert "zero.md is not UTF-8, found byte 0x00 at 2" in faults[2]


def test_a_long_list_of_faulty_files_is_cut_short(tmp_path):
    for n in range(25):
        (tmp_path / f"{n}.txt").write_bytes(b"\xff")
    faults = faults_of(lambda: list(open_text_corpus(tmp_path)))
    assert len(faults) == 11 and faults[-1] == "data.path: and 15 more such files"


@FAST
@given(st.text(alphabet=st.sampled_from("ab \n\r\u2028é")), st.integers(1, 9))
def test_pieces_joined_are_the_text_and_of_bounded_size(text, size):
    pieces = list(cut_paragraphs(text, size))
    assert "".join(pieces) == text
    assert all(size <= len(piece) <= 2 * size for piece in pieces[:-1])
    assert all(0 < len(piece) <= 2 * size for piece in pieces[-1:])


def test_pieces_end_after_a_blank_line_where_one_comes():
    assert list(cut_paragraphs("one\none\n\ntwo\ntwo\n\nthree\n", 6)) == ["one\none\n\n", "two\ntwo\n\n", "three\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.csv", "a.parquet", "a.jsonl.gz", "a.json", "a.txt.gz"])
def test_records_are_no_text_alone_or_in_a_folder(tmp_path, name):
    (tmp_path / "b.txt").write_text("A text.", "utf-8")
    (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n', "utf-8")
    for path in (tmp_path / name, tmp_path):
        (fault,) = faults_of(lambda path=path: list(open_text_corpus(path)))
        assert fault.startswith(f"data.path: {tmp_path / name} ") and fault.endswith("or move it away)")


def test_json_and_archives_among_other_files_are_read_or_passed_over_as_before(tmp_path):
    (tmp_path / "package.json").write_text('{\n  "name": "a"\n}\n', "utf-8")
    (tmp_path / "notes.csv.txt").write_text("About a table.", "utf-8")
    (tmp_path / "binary.zip").write_bytes(b"PK\0\0")
    assert [each.path for each in open_text_corpus(tmp_path)] == ["notes.csv.txt", "package.json"]
    (tmp_path / "records.json").write_text('[\n  {"text": "one"}]', "utf-8")
    (fault,) = faults_of(lambda: list(open_text_corpus(tmp_path)))
    assert "records.json holds records, not text, found JSON (data=jsonl and data=parquet read records;" in fault


def book(tmp_path, lines: int = 4000) -> Path:
    file = tmp_path / "book.txt"
    file.write_text("\n".join(f"{line * 3}{n}\n" for n, line in zip(range(lines), POEM * 10, strict=False)), "utf-8")
    return file


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.3])
def test_of_one_file_validation_has_its_share_of_the_bytes_in_few_blocks_of_equal_distance(tmp_path, fraction):
    file = book(tmp_path)
    corpus = open_text_corpus(file)
    texts = texts_of(corpus, split_corpus(corpus, fraction))
    assert "".join(piece for _, piece in texts) == file.read_text("utf-8")
    assert all(one != other for (one, _), (other, _) in pairwise(texts))  # pieces that follow one another are joined
    blocks = [len(text.encode()) for part, text in texts if part == "validation"]
    total = file.stat().st_size
    pieces = len(list(corpus))
    assert len(blocks) == min(10, int(fraction * pieces / 2))
    assert sum(blocks) / total == pytest.approx(fraction, abs=len(blocks) / pieces / 2)  # a block is whole pieces
    assert max(blocks) <= 2 * min(blocks)
    ends, at = [], 0
    for part, text in texts:
        at += len(text.encode())
        ends += [at / total] * (part == "validation")
    expected = [(n + 1) / len(blocks) for n in range(len(blocks))]
    assert ends == pytest.approx(expected, abs=0.02)


def test_a_short_text_validates_on_its_end(tmp_path):
    text = "\n\n".join(POEM[:150])
    (tmp_path / "short.txt").write_text(text, "utf-8")
    corpus = open_text_corpus(tmp_path / "short.txt")
    (_, train), (part, validation) = texts_of(corpus, split_corpus(corpus, 0.1))
    assert part == "validation" and train + validation == text
    assert 0.05 < len(validation) / len(text) < 0.15


def test_a_long_text_is_cut_where_paragraphs_end(tmp_path, monkeypatch):
    file = book(tmp_path)
    corpus = open_text_corpus(file)
    parts = split_corpus(corpus, 0.05)
    whole = texts_of(corpus, parts)
    monkeypatch.setattr("zoo.data.split.LONGEST", 5000)
    cut = texts_of(corpus, parts)
    assert [part + text for part, text in whole] != [part + text for part, text in cut]
    assert "".join(text for _, text in cut) == file.read_text("utf-8")
    assert max(len(text) for _, text in cut) <= 10_000 < max(len(text) for _, text in whole)
    assert all(text.endswith("\n\n") for _, text in cut[:-1])
    pair = Document("a", 0, ("a\n\n" * 9000, "b"))
    assert list(join_pieces([pair], ["train"])) == [("train", pair.texts)]


def test_a_gap_in_a_file_ends_a_document():
    pieces = [Document("a", 0, ("A",)), Document("a", 1, ("B",)), Document("a", 3, ("D",)), Document("b", 4, ("E",))]
    assert texts_of(pieces, ["train"] * 4) == [("train", "AB"), ("train", "D"), ("train", "E")]
    assert texts_of(pieces[:2], ["train", None]) == [("train", "A")]
    pair = Document("a", 0, ("A", "one"))
    assert list(join_pieces([pair, pair._replace(texts=("B", "one"))], ["train"] * 2)) == [
        ("train", ("A", "one")),
        ("train", ("B", "one")),
    ]


@FAST
@given(st.lists(st.text(min_size=1), min_size=2, max_size=40), st.randoms(), st.floats(0.01, 0.99))
def test_no_text_stands_in_both_parts_and_order_and_names_change_nothing(texts, rng, fraction):
    texts = [*texts, *rng.sample(texts, 2), "one", "other"]
    parts = split_corpus(documents(*texts), fraction)
    where = {hash_text(text): part for text, part in zip(texts, parts, strict=True) if part}
    assert len(where) == len([part for part in parts if part]) == len({" ".join(text.split()) for text in texts})
    assert set(where.values()) == {"train", "validation"}
    shuffled = rng.sample(texts, len(texts))
    again = split_corpus(documents(*shuffled), fraction)
    assert where == {hash_text(text): part for text, part in zip(shuffled, again, strict=True) if part}


def test_validation_has_its_share_of_the_bytes_however_sizes_differ():
    sizes = [int(20 * 1.02**n) for n in range(300)]  # from 20 to 7,000 bytes
    texts = [f"{n:09} ".ljust(size, "x") for n, size in enumerate(sizes)]
    for fraction in (0.02, 0.05, 0.2, 0.5):
        parts = split_corpus(documents(*texts), fraction)
        found = sum(len(text) for text, part in zip(texts, parts, strict=True) if part == "validation")
        assert found / sum(map(len, texts)) == pytest.approx(fraction, abs=0.005)


def moved_bytes(before: dict[str, str], after: dict[str, str]) -> int:
    """Of the lines that both have, those that changed their part."""
    return sum(len(line) for line in before.keys() & after.keys() if before[line] != after[line])


def parts_of_lines(root: Path) -> dict[str, str]:
    corpus = open_text_corpus(root)
    texts = texts_of(corpus, split_corpus(corpus, 0.05))
    return {line: part for part, text in texts for line in text.splitlines(keepends=True)}


@pytest.mark.parametrize("name", ["000.txt", "zzz.txt"])
def test_a_file_that_is_added_moves_little_of_the_rest(tmp_path, name):
    root = tmp_path / "corpus"
    root.mkdir()
    for n in range(200):
        (root / f"{n}.txt").write_text("".join(f"{n} {line} {POEM[line]}" for line in range(n % 7 + 3)), "utf-8")
    book(root)
    before = parts_of_lines(root)
    added = "".join(f"new {line}" for line in POEM[:60])
    (root / name).write_text(added, "utf-8")
    assert moved_bytes(before, parts_of_lines(root)) <= 2 * len(added)


def test_a_growing_corpus_keeps_nearly_every_document_in_its_part():
    texts = [f"text {n}" for n in range(3000)]
    parts = split_corpus(documents(*texts), 0.05)
    fewer = split_corpus(documents(*texts[:1000]), 0.05)
    assert (
        sum(one != other for one, other in zip(fewer, parts, strict=False)) < 30
    )  # 3 % of them; 1,000 new would be all
    assert 0.04 < parts.count("validation") / len(parts) < 0.06


def test_copies_that_differ_in_white_space_count_once():
    parts = split_corpus(documents("a b\n", "c", "a  b\r\n", "c"), 0.5)
    assert parts[2:] == [None, None] and None not in parts[:2]


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_neither_part_is_ever_empty(fraction):
    assert set(split_corpus(documents("a", "b", "c"), fraction)) == {"train", "validation"}


def test_a_corpus_that_cannot_be_split_is_one_line():
    assert "found 1 (a longer text)" in faults_of(lambda: split_corpus(documents("a"), 0.5))[0]


@pytest.mark.parametrize("text", ["a" * 100_000, "the same line\n" * 10_000, "a paragraph\n\n" * 10_000])
def test_a_text_that_only_repeats_itself_is_refused_with_that_reason(tmp_path, text):
    (tmp_path / "book.txt").write_text(text)
    (fault,) = faults_of(lambda: split_corpus(open_text_corpus(tmp_path), 0.05))
    assert "pieces of text that are all the same, of which one is kept (a text that repeats itself less)" in fault
    (tmp_path / "more.txt").write_text("and something else")
    assert {*split_corpus(open_text_corpus(tmp_path), 0.05)} == {"train", "validation", None}
    assert "data.max_bytes than 3" in faults_of(lambda: split_corpus(documents("aaaa", "bbbb"), 0.5, 3))[0]


def test_max_bytes_takes_an_even_sample_whatever_the_order():
    texts = [f"{n:09}\n" for n in range(500)]
    parts = split_corpus(documents(*texts), 0.2, 2005)
    taken = {text: part for text, part in zip(texts, parts, strict=True) if part}
    assert len(taken) == 200  # of ten bytes each
    assert sum(part == "validation" for part in taken.values()) == 40
    assert 60 < len([text for text in taken if int(text) < 250]) < 140
    backwards = split_corpus(documents(*reversed(texts)), 0.2, 2005)
    assert taken == {text: part for text, part in zip(reversed(texts), backwards, strict=True) if part}
    assert all(
        part == taken.get(text, part) for text, part in zip(texts, split_corpus(documents(*texts), 0.2), strict=True)
    )


def test_under_a_small_limit_one_document_validates_though_it_is_more_than_its_share():
    texts = [f"{n:099}\n" for n in range(100)]
    parts = split_corpus(documents(*texts), 0.05, 1000)
    assert (parts.count("validation"), parts.count("train")) == (1, 9)
