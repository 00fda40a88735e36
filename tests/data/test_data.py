"""Prepared data: the cache, what its key depends on, and the settings."""

import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import zoo.data
from support.corpora import POEM, documents, faults_of, split_corpus, texts_of, write_documents
from zoo.data import DataSettings, fill_cache, prepare
from zoo.data.corpus import Corpus, open_text_corpus
from zoo.data.split import join_pieces, split_units
from zoo.data.survey import survey
from zoo.data.tokenizer import make_byte_tokenizer, train_bpe
from zoo.errors import ZooError
from zoo.paths import conf_dir, find_cache_folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """Forty small documents in a folder, and one of them twice."""
    return write_documents(tmp_path / "corpus")


def test_the_cache_is_where_the_platform_wants_it(tmp_path, monkeypatch):
    monkeypatch.delenv("ZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if os.name == "posix":
        assert find_cache_folder() == tmp_path / "zoo"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert find_cache_folder() == Path.home() / ".cache" / "zoo"
    monkeypatch.setenv("ZOO_CACHE", "~/elsewhere")
    assert find_cache_folder() == Path.home() / "elsewhere"


def test_a_broken_off_build_leaves_nothing_that_is_used(cache):
    def breaks_off(folder):
        (folder / "half").write_text("half", "utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_cache("it", breaks_off)
    assert not (cache / "data" / "it").exists()
    found = fill_cache("other", lambda folder: (folder / "whole").write_text("whole", "utf-8"))
    assert [file.name for file in found.iterdir()] == ["whole"]
    assert fill_cache("other", breaks_off) == found


def test_a_build_goes_on_with_what_a_killed_one_left_and_starts_anew_after_an_error_of_ours(cache):
    def breaks_off(folder, error):
        (folder / "half").write_text("half", "utf-8")
        raise error

    for error, left in ((KeyboardInterrupt(), ["half"]), (OSError("full"), ["half"]), (ZooError("useless"), [])):
        with pytest.raises(type(error)):
            fill_cache("it", lambda folder, error=error: breaks_off(folder, error))
        seen = []
        assert not (cache / "data" / "it").exists()
        with pytest.raises(KeyboardInterrupt):
            fill_cache(
                "it", lambda folder, seen=seen: (seen.extend(folder.iterdir()), breaks_off(folder, KeyboardInterrupt()))
            )
        assert [file.name for file in seen] == left
    assert [file.name for file in fill_cache("it", lambda folder: None).iterdir()] == ["half"]
    assert [file.name for file in (cache / "data").iterdir()] == ["it"]


def test_a_draft_that_nobody_goes_on_with_is_deleted_after_a_week(cache):
    for name, days in (("old", 8), ("young", 6)):
        draft = cache / "data" / f".{name}.zoo-partial"
        draft.mkdir(parents=True)
        os.utime(draft, (time.time() - days * 86400,) * 2)
    fill_cache("it", lambda folder: None)
    assert sorted(file.name for file in (cache / "data").iterdir()) == [".young.zoo-partial", "it"]


def test_builders_at_once_agree_on_one_folder(cache):
    together = threading.Barrier(4)

    def build(folder):
        (folder / "file").write_text(folder.name, "utf-8")
        together.wait(20)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fill_cache("it", build), range(4)))
    assert set(found) == {cache / "data" / "it"}
    assert [path.name for path in (cache / "data").iterdir()] == ["it"]
    assert [path.name for path in found[0].iterdir()] == ["file"]


def test_the_draft_of_a_killed_run_goes_when_another_folder_is_built(cache):
    left = cache / "data" / f".other.{'0' * 32}"
    left.mkdir(parents=True)
    fill_cache("it", lambda folder: (folder / "file").write_text("", "utf-8"))
    assert [each.name for each in (cache / "data").iterdir()] == ["it"]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    (fault,) = faults_of(lambda: fill_cache("it", lambda folder: None))
    assert fault.startswith("ZOO_CACHE: cannot write to") and fault.endswith("(set ZOO_CACHE to a folder of yours)")


# Everything together


def test_preparing_gives_both_parts_and_the_second_time_only_reads(cache, folder, monkeypatch):
    node = {"kind": "text", "path": str(folder), "tokenizer": {"vocab_size": 300}, "validation_fraction": 0.2}
    told = []
    first = prepare(DataSettings.read(node), lambda *what: told.append(what))
    assert {what for what, _, _ in told} == {"reading", "learning the vocabulary", "encoding"}
    assert all(0 <= done <= total for _, done, total in told)
    assert first.tokenizer.vocab_size == 300
    texts = [first.tokenizer.decode(part.ids[:]) for part in (first.train, first.validation)]
    assert sorted(POEM) == sorted(line for text in texts for line in text.splitlines(keepends=True))
    assert first.train.n_documents + first.validation.n_documents == 40
    monkeypatch.setattr(zoo.data, "write_prepared", None)
    again = prepare(DataSettings.read(node))
    assert (again.key, again.train, again.validation) == (first.key, first.train, first.validation)
    assert again.tokenizer.encode("naïvely 12") == first.tokenizer.encode("naïvely 12")


def test_the_vocabulary_is_learnt_from_the_training_part_alone(cache, folder):
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"{'qxzj' * 9} {n}" if n % 2 else f"{'vwky' * 9} {n}", "utf-8")
    settings = DataSettings.read({"kind": "text", "path": str(folder), "tokenizer": {"vocab_size": 300}})
    learnt = prepare(settings)
    corpus = open_text_corpus(folder)
    parts = split_corpus(corpus, settings.validation_fraction)
    train = [text for part, text in texts_of(corpus, parts) if part == "train"]
    assert learnt.tokenizer.backend.to_str() == train_bpe(train, 300).backend.to_str()


def test_a_sample_is_bounded_and_is_of_the_documents_that_max_bytes_takes():
    texts = [f"{n:09}\n" * (n % 5 + 1) for n in range(3000)]
    whole = survey(documents(*texts), 10**9, lambda done: None)
    assert whole.sample.size == sum(map(len, texts))
    small = survey(documents(*texts), 5000, lambda done: None)
    assert 5000 <= small.sample.size < 5050
    parts = split_units(small.units, 0.2, 20_000)
    kept = set(small.sample.texts(parts))
    assert len(kept) > 100
    assert kept <= {text for text, part in zip(texts, parts, strict=True) if part == "train"}
    shuffled = random.sample(texts, len(texts))
    again = survey(documents(*shuffled), 5000, lambda done: None)
    assert set(again.sample.texts(split_units(again.units, 0.2, 20_000))) == kept


def test_a_sample_without_training_text_is_one_line(cache, tmp_path, monkeypatch):
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(f"text {n}", "utf-8")
    monkeypatch.setattr("zoo.data.BPE_SAMPLE", 1)
    node = {"kind": "text", "path": str(tmp_path), "validation_fraction": 0.9}
    (fault,) = faults_of(lambda: prepare(DataSettings.read(node)))
    assert fault.startswith("data.tokenizer: a BPE learns from a sample of")


def test_the_key_follows_what_the_tokens_depend_on_and_nothing_else(cache, folder, tmp_path):
    own = tmp_path / "own"
    make_byte_tokenizer().save(own)
    base = {"kind": "text", "path": str(folder), "tokenizer": {"kind": "byte"}}

    def key(**changes) -> str:
        return prepare(DataSettings.read({**base, **changes})).key

    first = key()
    assert key(documents=True) == first
    file = {"kind": "file", "path": str(own)}
    others = [
        key(validation_fraction=0.3),
        key(max_bytes=5000),
        key(tokenizer={"kind": "bpe", "vocab_size": 300}),
        key(tokenizer=file),
    ]
    (own / "tokenizer_config.json").write_text('{"eos_token": "a"}', "utf-8")
    others.append(key(tokenizer=file))
    moved = folder.rename(tmp_path / "moved")
    assert key(path=str(moved)) == first
    (moved / "new.txt").write_text("new", "utf-8")
    others.append(key(path=str(moved)))
    assert len({first, *others}) == len(others) + 1


def test_a_corpus_that_changes_meanwhile_is_not_cached(cache, folder, monkeypatch):
    unchanged = Corpus.__iter__
    passes = []

    def changes(corpus):
        passes.append(corpus)
        if len(passes) == 2:
            (folder / "00.md").write_text("other", "utf-8")
        return unchanged(corpus)

    monkeypatch.setattr(Corpus, "__iter__", changes)
    with pytest.raises(ZooError, match="changed while it was read"):
        prepare(DataSettings.read({"kind": "text", "path": str(folder)}))
    assert list((cache / "data").iterdir()) == []
    with pytest.raises(ZooError, match="changed while it was read"):
        list(join_pieces(documents("a"), ["train", "train"]))


def test_each_file_is_read_twice_and_once_where_its_tokens_are_cached(cache, folder, monkeypatch):
    read, reads = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda file: (reads.append(file.name), read(file))[1])
    node = {"kind": "text", "path": str(folder), "tokenizer": {"vocab_size": 300}}
    prepare(DataSettings.read(node))
    counts = [reads.count(file.name) for file in folder.rglob("*") if file.is_file()]
    assert counts == [2] * 41
    prepare(DataSettings.read(node))
    assert [reads.count(file.name) for file in folder.rglob("*") if file.is_file()] == [3] * 41


def test_the_standard_library_is_prepared_within_its_limit(cache):
    ready = prepare(DataSettings.read({"max_bytes": 200_000, "tokenizer": {"kind": "byte"}}))
    assert 100_000 < ready.train.n_bytes + ready.validation.n_bytes <= 200_000
    assert len(ready.train) == ready.train.n_bytes + ready.train.n_documents + 1
    assert "import" in ready.tokenizer.decode(ready.train.ids[:])


# Settings


def test_every_fault_of_the_settings_is_a_line_with_its_path():
    faults = faults_of(
        lambda: DataSettings.read(
            {
                "kind": "stdlb",
                "tokenizer": {"kind": "byte", "vocab_size": 500, "path": "x", "eso": 1},
                "validation_fraction": 1.5,
                "max_byte": 3,
                "documents": "perhaps",
            }
        )
    )
    assert faults == [
        "data: kind 'stdlb' is not a choice of data (did you mean 'stdlib'? "
        "one of: hf, jsonl, mix, parquet, stdlib, text)"
    ]
    faults = faults_of(
        lambda: DataSettings.read(
            {
                "tokenizer": {"kind": "byte", "vocab_size": 500, "path": "x", "eso": 1},
                "validation_fraction": 1.5,
                "max_byte": 3,
                "documents": "perhaps",
            }
        )
    )
    assert sorted(faults) == [
        "data.documents: must be true or false, found 'perhaps' (false would do)",
        "data.max_byte: data 'stdlib' has no such field (did you mean 'max_bytes'?)",
        "data.tokenizer.eso: tokenizer 'byte' has no such field (did you mean 'eos'?)",
        "data.tokenizer.path: a byte tokenizer is read from no file, found 'x' (null, or kind: file)",
        "data.tokenizer.vocab_size: a byte tokenizer has the size it has, found 500 (null, or kind: bpe)",
        "data.validation_fraction: must be less than 1, found 1.5 (0.05 would do)",
    ]


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        ({"kind": "text"}, "path: data=text needs a text, found none (data.path=FILE_OR_FOLDER)"),
        ({"path": "a"}, "path: data=stdlib reads Python's own source, found 'a' (data=text data.path=a)"),
        (
            {"tokenizer": {"kind": "file"}},
            "tokenizer.path: kind: file needs a tokenizer.json, found none (a file, or a folder that has one)",
        ),
        (
            {"tokenizer": {"vocab_size": 256}},
            "tokenizer.vocab_size: must be greater than or equal to 257, found 256 (null would do)",
        ),
        (
            {"tokenizer": {"eos": "</s>"}},
            "tokenizer.eos: only kind: file has an end of text of its own, found '</s>' (null)",
        ),
        ({"max_bytes": 0}, "max_bytes: must be greater than 0, found 0 (null would do)"),
    ],
)
def test_a_field_that_its_kind_lacks_or_needs_is_named(node, fault):
    assert faults_of(lambda: DataSettings.read(node, "train.data")) == [f"train.data.{fault}"]


@pytest.mark.parametrize("name", [file.stem for file in sorted((conf_dir() / "data").glob("*.yaml"))])
def test_packaged_data_configs_state_every_setting_at_its_default(name):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        node = OmegaConf.to_container(compose(f"data/{name}").data)
    assert isinstance(node, dict)
    needed = {"mix": {"of": {"a": {"weight": 1}}}, "stdlib": {}}.get(name, {"path": "a.txt"})
    assert all(node[key] is None for key in needed)
    read = DataSettings.read({**node, **needed})
    assert read == DataSettings.read({"kind": read.kind, **needed})
    assert {field.name for field in read.fields()} - set(node) <= {"path"}


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'tokenizers', 'hydra', 'omegaconf'}"
    code = f"import sys, zoo.data; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
