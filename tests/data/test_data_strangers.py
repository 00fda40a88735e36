"""Data and prompts that strangers made: what cannot be read costs one line, soon and in little memory."""

from __future__ import annotations

import gzip
import json
import os
import resource
import time
import tracemalloc
from pathlib import Path

import pytest

import zoo
from zoo.analysis.scaling.points import read_points
from zoo.cli.files import read_text
from zoo.data import DataSettings, prepare
from zoo.data import records as reading
from zoo.data.labelled_records import ClassTask, NumberTask, prepare_labelled
from zoo.data.parquet import Parquet
from zoo.data.records import Faults, match_pattern, read_json_lines
from zoo.data.shards import find_whole_shards
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.text.jobs import JobMaker
from zoo.text.prompts import Options, Prompt, read_jsonl, read_lines
from zoo.text.results import Results
from zoo.text.similarity import read_pairs
from zoo.untrusted import lines as bounded


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def faults_of(file: Path) -> list[str]:
    faults = Faults()
    list(read_json_lines(file, faults))
    return faults.lines


def test_a_packed_line_without_end_is_refused_without_being_held(monkeypatch):
    monkeypatch.setattr(bounded, "LINE", 1 << 20)
    monkeypatch.setattr(bounded.read_lines, "__defaults__", (1 << 20,))
    file = Path("a.jsonl.gz")
    with gzip.open(file, "wb") as packed:
        for _ in range(200):
            packed.write(b"a" * (1 << 20))  # 200 MiB, of which gzip makes 200 KB
    began = time.perf_counter()
    tracemalloc.start()
    assert faults_of(file) == ["data.path: a.jsonl.gz, line 1: is longer than 1 MiB (shorter lines)"]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 << 20 and time.perf_counter() - began < 5


def test_many_lines_that_unpack_to_far_more_than_their_file_are_refused(monkeypatch):
    monkeypatch.setattr(reading, "SMALL", 1 << 20)
    file = Path("a.jsonl.gz")
    file.write_bytes(gzip.compress(b'{"text": "aaaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n' * 200_000))
    (fault,) = faults_of(file)
    assert "a.jsonl.gz unpacks to more than 100 times its size after line " in fault and "(a file of text)" in fault


def test_numbers_and_brackets_without_end_are_faults_of_their_line():
    Path("a.jsonl").write_bytes(b'{"n": ' + b"9" * 6000 + b"}\n" + b"[" * 200_000 + b'\n{"text": "fine"}\n')
    first, second = faults_of(Path("a.jsonl"))
    assert first.startswith("data.path: a.jsonl, line 1 is not read as JSON, found Exceeds the limit")
    assert second.startswith("data.path: a.jsonl, line 2 is not read as JSON, found too many brackets")


def test_control_characters_of_a_record_are_escaped_in_its_fault():
    Path("a.jsonl").write_text(json.dumps({"\x1b]0;title\x07": 1, "k" * 5000: 2}) + "\n")
    with pytest.raises(ConfigError) as caught:
        prepare(DataSettings.read({"kind": "jsonl", "path": "a.jsonl"}))
    assert "found \\x1b]0;title\\x07, kkkk" in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("task", "label", "fault"),
    [
        (NumberTask, 10**400, "a.jsonl, line 1 has a number in 'label' that is not finite"),
        (NumberTask, 1e300, "a.jsonl, line 1 has a number in 'label' that is not finite"),
        (ClassTask, "\ud800", "a.jsonl, line 1 has half a character in 'label', found \\ud800 alone"),
        (ClassTask, {"a": 1}, "a.jsonl, line 1 has no class in 'label', found "),
    ],
)
def test_labels_that_nothing_can_hold_are_faults(task, label, fault):
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"text {n}", "label": label}) + "\n" for n in range(4)))
    settings = DataSettings.read({"kind": "jsonl", "path": "a.jsonl", "tokenizer": {"kind": "byte"}})
    silent = {"say": lambda line: None, "progress": lambda *done: None}
    with pytest.raises(ConfigError, match="data") as caught:
        prepare_labelled(settings, task(("text",), "label"), None, limit=8, opens=True, **silent)
    assert fault in str(caught.value)


def test_classes_named_by_thousands_of_digits_are_classes():
    rows = [{"text": f"text {n}", "label": ("1" * 5000, "2")[n % 2]} for n in range(40)]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DataSettings.read({"kind": "jsonl", "path": "a.jsonl", "tokenizer": {"kind": "byte"}})
    silent = {"say": lambda line: None, "progress": lambda *done: None}
    found = prepare_labelled(settings, ClassTask(("text",), "label"), None, limit=8, opens=True, **silent)
    assert sorted(map(len, found.labels)) == [1, 5000]


def test_links_that_lead_round_end_a_pattern_with_two_stars():
    Path("data/deep").mkdir(parents=True)
    Path("data/deep/a.jsonl").write_text("{}\n")
    for name in ("one", "two"):
        os.symlink("..", f"data/deep/{name}")
    began = time.perf_counter()
    for pattern, wanted in (("**/*.jsonl", ["data/deep/a.jsonl"]), ("*/a.jsonl", ["data/deep/a.jsonl"]), ("**/x", [])):
        assert [str(each) for each in match_pattern(Path("data", pattern))] == wanted
    assert time.perf_counter() - began < 1


def test_a_column_that_is_there_twice_is_a_fault():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    parquet.write_table(table, "a.parquet")
    with pytest.raises(ConfigError, match="has the field 'text' 2 times"):
        prepare(DataSettings.read({"kind": "parquet", "path": "a.parquet"}))


@pytest.mark.parametrize("nested", [False, True])
def test_a_small_parquet_file_of_a_hundred_gigabytes_of_text_is_refused_in_little_memory(nested: bool):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000, "int32"), pyarrow.array(["x" * (64 << 20)]))
    column = pyarrow.ListArray.from_arrays(pyarrow.array(range(2001), "int32"), text) if nested else text
    parquet.write_table(
        pyarrow.table({"text": column}), "a.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30
    )
    del text, column
    assert os.path.getsize("a.parquet") < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faults, rows = Faults(), 0
    for _ in Parquet((Path("a.parquet"),), ("text",), "").read(faults):
        rows += 1
    assert faults.lines == ["data.path: a.parquet unpacks to more than 100 times its size after row 4 (a file of text)"]
    assert rows == 4  # of 64 MiB each: what a small file may unpack to
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_a_row_of_a_parquet_file_has_a_budget():
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", "b" * (129 << 20), "c"]}), "a.parquet")
    faults = Faults()
    assert len(list(Parquet((Path("a.parquet"),), ("text",), "").read(faults))) == 1
    assert faults.lines == ["data.path: a.parquet, row 2: is longer than 128 MiB (shorter texts)"]


@pytest.mark.parametrize("record", [[], {"name": "../../x", "files": {}}, {"name": "train-00000", "n_tokens": -1}])
def test_records_of_shards_that_are_none_are_made_anew(record):
    whole = {"n_tokens": 1, "n_documents": 1, "n_bytes": 1, "files": {}}
    Path("train-00000.json").write_text(json.dumps({**whole, **record} if record else record))
    assert list(find_whole_shards(Path("."), "train")) == []
    Path("train-00000.json").write_text(json.dumps({**whole, "name": "train-00000"}))
    assert len(list(find_whole_shards(Path("."), "train"))) == 1


# ---------------------------------------------------------------- prompts and answers


def test_absurd_options_of_a_prompt_are_refused_where_they_stand():
    rows = [
        {"max_new_tokens": 3 * 10**9},
        {"stop_ids": [10**30]},
        {"length_penalty": 10**400},
        {"temperature": 10**400},
        {"stop": "\ud800"},
        {"json_schema": json.loads('{"a":' * 100 + "1" + "}" * 100)},
    ]
    with pytest.raises(ConfigError) as caught:
        read_jsonl("\n".join(json.dumps({"prompt": "a", **row}) for row in rows), "p.jsonl", {})
    expected = [
        "p.jsonl:1: max_new_tokens: is 3000000000, not a whole number from 1 to 16,777,216",
        "p.jsonl:2: stop_ids: is [1000000000000000000000000000000], not a token id, or a list of such",
        "p.jsonl:3: length_penalty: is a number of 1,329 bits, not a finite number",
        "p.jsonl:4: temperature: ",
        "p.jsonl:5: has half of a surrogate pair in it",
        "p.jsonl:6: is nested more than 64 deep",
    ]
    for fault, start in zip(caught.value.faults, expected, strict=True):
        assert fault.startswith(start) and len(fault) < 400


def test_a_file_of_faults_is_read_until_there_are_enough():
    with pytest.raises(ConfigError) as caught:
        read_jsonl("[]\n" * 10_000, "p.jsonl", {})
    assert len(caught.value.faults) == 21 and caught.value.faults[-1].startswith("p.jsonl: reading stopped here")


def test_half_a_character_is_refused_by_what_encodes_a_text():
    tokenizer = make_byte_tokenizer()
    for encode in (tokenizer.encode, tokenizer.encode_rendered):
        with pytest.raises(ConfigError, match=r"text: has half a character, found \\udcff alone at character 1"):
            encode("a\udcff")


def test_a_request_that_is_alone_is_named_by_its_option():
    sizes = ["vocab_size=260", "d_model=32", "n_layers=1", "n_heads=2", "n_kv_heads=2", "head_dim=16", "d_ff=32"]
    encoder = JobMaker(zoo.build("llama-tiny", sizes, device="cpu"), make_byte_tokenizer())
    cases = {
        "regex: cannot be compiled, found ": {"regex": "("},
        "stop_ids: names token 999, the model's vocabulary is 0 to 259": {"stop_ids": [999]},
    }
    for fault, options in cases.items():
        with pytest.raises(ConfigError) as caught:
            encoder.make_jobs([Prompt(0, "", {"prompt": "a"}, Options.checked(options))])
        assert caught.value.faults[0].startswith(fault)
    with pytest.raises(ConfigError, match=r"^prompt: has half a character"):
        encoder.make_jobs([Prompt(0, "", {"prompt": "\udcff"}, Options())])


@pytest.mark.parametrize("line", ["[" * 100_000, "[1]", '{"index": true}', '{"index": "0"}', "9" * 6000])
def test_lines_that_are_no_results_are_refused(line):
    Path("o.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"o\.jsonl:1 is no line of results"):
        Results(Path("o.jsonl"), read_lines("a", "p", {}), resume=True, model="m")


def test_texts_with_nul_bytes_and_other_bytes_are_refused_by_their_place(monkeypatch):
    for data, fault in (
        (b"a\0b", "file: t.txt is no text, found byte 0x00 at 1 (a UTF-8 file)"),
        (b"ab\xff", "file: t.txt is not UTF-8, found byte 0xff at 2 (convert it)"),
    ):
        Path("t.txt").write_bytes(data)
        with pytest.raises(ConfigError) as caught:
            read_text(Path("t.txt"), "file")
        assert caught.value.faults == [fault]
    os.symlink("loop", "loop")
    with pytest.raises(ConfigError, match="file: cannot read loop, found Too many levels of symbolic links"):
        read_text(Path("loop"), "file")


def test_pairs_and_points_of_absurd_numbers_are_refused():
    judged = [{"sentence1": "a", "sentence2": "b", "score": 10**400}, {"sentence1": "\ud800", "sentence2": "b"}]
    Path("a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in judged))
    with pytest.raises(ConfigError) as caught:
        read_pairs("a.jsonl")
    assert "line 1: has no number 'score'" in caught.value.faults[0]
    assert "line 2: has half a character in 'sentence1'" in caught.value.faults[1]
    Path("p.jsonl").write_text('{"params": 1e300, "tokens": ' + "9" * 400 + ', "loss": true}\n')
    with pytest.raises(ConfigError) as caught:
        read_points(Path("p.jsonl"), {})
    assert [fault.split(" is ")[0] for fault in caught.value.faults] == [
        f"p.jsonl, line 1: {name}" for name in ("params", "tokens", "loss")
    ]
    Path("q.jsonl").write_text("9" * 6000 + "\n")
    with pytest.raises(ConfigError, match=r"q\.jsonl, line 1: is no record of JSON"):
        read_points(Path("q.jsonl"), {})


def test_options_have_bounds_from_the_command_line_too():
    for given, fault in (({"max_new_tokens": 10**18}, "max_new_tokens: is"), ({"stop_ids": [2**31]}, "stop_ids: is")):
        with pytest.raises(ConfigError, match=fault):
            Options.checked(given)
