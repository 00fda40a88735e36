"""Sources of records: JSON Lines, Parquet, Hugging Face's datasets, and mixes of them."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from support.corpora import POEM, faults_of, split_corpus, write_documents
from zoo.data import Batch, Batches, DataSettings, prepare
from zoo.data.settings import make_paths_absolute

PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A chat template without special tokens."""
RECORDS = [{"text": line, "n": n, "q": f"What is line {n}?", "a": line} for n, line in enumerate(POEM[:60])]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def write_lines(file: Path, records, opener=open) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    with opener(file, "wb") as lines:
        lines.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
    return file


def texts_in(node: dict) -> list[str]:
    """The texts of a source, in its order."""
    return [document.texts[0] for document in DataSettings.read(node).open()]


def faults_in(node: dict) -> list[str]:
    return faults_of(lambda: list(DataSettings.read(node).open()))


# JSON Lines


def test_a_file_a_folder_and_a_pattern_give_their_records_in_order(tmp_path):
    root = tmp_path / "records"
    write_lines(root / "b.jsonl.gz", RECORDS[20:40], gzip.open)
    write_lines(root / "a.jsonl", RECORDS[:20])
    write_lines(root / "deep" / "c.ndjson", RECORDS[40:])
    (root / "README.md").write_text("no record")
    (root / ".hidden.jsonl").write_text("no record")
    texts = [record["text"] for record in RECORDS]
    assert texts_in({"kind": "jsonl", "path": str(root)}) == texts
    assert texts_in({"kind": "jsonl", "path": str(root / "a.jsonl")}) == texts[:20]
    assert texts_in({"kind": "jsonl", "path": str(root / "*.jsonl*")}) == texts[:40]
    assert texts_in({"kind": "jsonl", "path": str(root / "**" / "*.ndjson")}) == texts[40:]
    assert texts_in({"kind": "jsonl", "path": str(root), "field": "q"})[7] == "What is line 7?"


def test_zstd_is_read_and_a_cut_is_noticed(tmp_path):
    zstd = pytest.importorskip("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    file = write_lines(tmp_path / "a.jsonl.zst", RECORDS, zstd.open)
    assert texts_in({"kind": "jsonl", "path": str(file)}) == [record["text"] for record in RECORDS]
    file.write_bytes(file.read_bytes()[:-9])
    (fault,) = faults_in({"kind": "jsonl", "path": str(file)})
    assert fault.startswith(f"data.path: {file} is damaged after line ") and fault.endswith("(a whole file)")


def test_without_a_package_for_zstd_one_line_says_what_to_install(tmp_path, monkeypatch):
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"x")
    (fault,) = faults_in({"kind": "jsonl", "path": str(tmp_path)})
    assert f"is packed by zstd, found no {name} (pip install" in fault


def test_records_without_text_and_blank_lines_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": ""}\n{"text": " \\n"}\n{"text": "two"}'
    )
    assert texts_in({"kind": "jsonl", "path": str(tmp_path)}) == ["one", "two"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"text": "a', "is not JSON, found Unterminated string starting at 40 (an object in each line)"),
        ('{"é": 1,, }', "is not JSON, found Expecting property name enclosed in double quotes at 40 ("),
        (b'{"text": "\xe9"}', "is not UTF-8, found byte 0xe9 at 41 (convert it)"),
        ('["text"]', "is no record, found a list of 1 (an object in each line)"),
        ("[" * 100_000, "is not read as JSON, found too many brackets within one another (fewer)"),
        ('{"n": 1, "m": 2}', "has no field 'text', found n, m (data.field=NAME, or a record that has it)"),
        (r'{"text": "ab\ud83e"}', r"has half a character in 'text', found \ud83e alone at character 2 (both halves"),
        ('{"text": 3}', "has no text in 'text', found 3 (a string, or another field)"),
        ('{"text": null}', "has no text in 'text', found null (a string, or another field)"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_its_line_and_place(tmp_path, line, fault):
    line = line if isinstance(line, bytes) else line.encode()
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "one"}\n{"text":"two"}\n' + line + b'\n{"text": "four"}\n')  # its first byte is 31
    (found,) = faults_in({"kind": "jsonl", "path": str(file)})
    assert found.startswith(f"data.path: {file}, line 3 {fault}")


def test_reading_stops_after_ten_faults(tmp_path):
    (tmp_path / "a.jsonl").write_text("no\n" * 500)
    faults = faults_in({"kind": "jsonl", "path": str(tmp_path)})
    assert len(faults) == 11 and faults[-1] == "data.path: reading stopped here, there may be more"


@pytest.mark.parametrize(("content", "found"), [(b"", "an empty file"), (b"\n\n", "no record with a text")])
def test_a_file_without_records_is_one_line(tmp_path, content, found):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    assert faults_in({"kind": "jsonl", "path": str(file)}) == [
        f"data.path: {file}: nothing to read, found {found} (records with texts)"
    ]


def test_a_packed_file_that_is_cut_or_spoilt_is_one_line(tmp_path):
    file = write_lines(tmp_path / "a.jsonl.gz", RECORDS, gzip.open)
    whole = file.read_bytes()
    for spoilt in (whole[:-9], whole[: len(whole) // 2], b"not gzip", whole[:60] + bytes([whole[60] ^ 1]) + whole[61:]):
        file.write_bytes(spoilt)
        fault = faults_in({"kind": "jsonl", "path": str(file)})[-1]
        assert "is damaged after line" in fault or "is not JSON" in fault or "is not UTF-8" in fault


def test_a_path_that_has_no_records_is_one_line(tmp_path):
    for path, found in (
        (tmp_path / "a.jsonl", "no such file or folder"),
        (tmp_path, "no records to read, found nothing in"),
        (tmp_path / "*.jsonl", "no records to read, found nothing in"),
    ):
        (fault,) = faults_in({"kind": "jsonl", "path": str(path)})
        assert fault.startswith(f"data.path: {found}")
        assert f" {path} (a file, or a folder of .jsonl, " in fault


# Pairs


def test_a_source_and_a_target_are_a_pair(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", RECORDS)
    node = {"kind": "jsonl", "path": str(file), "source": "q", "target": "a", "tokenizer": {"vocab_size": 300}}
    ready = prepare(DataSettings.read(node))
    pairs = {(record["q"], record["a"]) for record in RECORDS}
    found = []
    for tokens in (ready.train, ready.validation):
        for number in range(tokens.count_rows(8)):
            found.append(tuple(ready.tokenizer.decode(ids) for ids in tokens.read_row(number, 8)))
    assert len(found) == 60 and set(found) == pairs
    rows = Batches(ready.sources, 4, 8, collate=lambda rows, keys: Batch(rows, rows)).read(0, ready.train.n_documents)  # type: ignore[arg-type]
    texts = [ready.tokenizer.decode(source) for source, _ in rows.input_ids]
    assert len(set(texts)) == ready.train.n_documents


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"source": "q"}, "data.target: a pair has a source and a target, found 'q' alone (data.target=FIELD)"),
        ({"target": "a"}, "data.target: a pair has a source and a target, found 'a' alone (data.source=FIELD)"),
        (
            {"source": "q", "target": "a", "field": "text"},
            "data.target: a record is one text or a pair, found field: text beside a pair (field: null)",
        ),
        (
            {"source": "q", "target": "a", "documents": True},
            "data.target: a row of pairs holds one of them, found documents: true beside a pair (documents: false)",
        ),
        ({"path": None}, "data.path: data=jsonl needs records, found none (data.path=FILE_OR_FOLDER)"),
    ],
)
def test_fields_that_make_no_pair_are_refused(fields, fault):
    assert faults_of(lambda: DataSettings.read({"kind": "jsonl", "path": "a", **fields})) == [fault]


# Parquet


def test_parquet_gives_the_rows_of_its_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([*RECORDS, {"text": None}, {"text": "last", "q": "x", "a": "y"}])
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=16)
    node = {"kind": "parquet", "path": str(tmp_path)}
    assert texts_in(node) == [*(record["text"] for record in RECORDS), "last"]
    assert texts_in({**node, "field": "q"})[3] == "What is line 3?"
    (fault,) = faults_in({**node, "field": "txt"})
    assert fault == f"data.path: {tmp_path / 'a.parquet'} has no field 'txt', found text, n, q, a (data.field=NAME)"
    fault = faults_in({**node, "field": "n"})[0]
    assert fault.endswith("a.parquet, row 1 has no text in 'n', found 0 (a string, or another field)")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    (fault,) = faults_in(node)
    assert "a.parquet is damaged after row 0, found Parquet magic bytes not found" in fault


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"x")
    (fault,) = faults_in({"kind": "parquet", "path": str(tmp_path)})
    assert fault.endswith("is Parquet, found no pyarrow.parquet (pip install 'transformer-zoo[parquet]')")


# Hugging Face's datasets


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, without a network and with a cache of the test's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    library.disable_progress_bars()
    return library


def test_a_saved_data_set_gives_its_rows(tmp_path, datasets):
    one = datasets.Dataset.from_list(RECORDS)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": datasets.Dataset.from_list(RECORDS[:5])}).save_to_disk(
        str(tmp_path / "two")
    )
    texts = [record["text"] for record in RECORDS]
    assert texts_in({"kind": "hf", "path": str(tmp_path / "one")}) == texts
    assert texts_in({"kind": "hf", "path": str(tmp_path / "two"), "split": "test"}) == texts[:5]
    assert texts_in({"kind": "hf", "path": str(tmp_path / "two"), "max_rows": 9, "field": "a"}) == texts[:9]
    (fault,) = faults_in({"kind": "hf", "path": str(tmp_path / "two"), "split": "dev"})
    assert fault == f"data.split: {tmp_path / 'two'} has no split 'dev', found train, test (one of these)"
    (fault,) = faults_in({"kind": "hf", "path": str(tmp_path / "one"), "field": "txt"})
    assert fault == f"data.path: {tmp_path / 'one'} has no field 'txt', found text, n, q, a (data.field=NAME)"
    for field, value in (("name", "plain"), ("streaming", True)):
        (fault,) = faults_in({"kind": "hf", "path": str(tmp_path / "one"), field: value})
        assert fault.startswith(f"data.{field}: ")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_records_is_read_by_the_library_streamed_or_not(tmp_path, datasets, streaming):
    write_lines(tmp_path / "set" / "train.jsonl", RECORDS)
    node = {"kind": "hf", "path": str(tmp_path / "set"), "streaming": streaming}
    assert texts_in(node) == [record["text"] for record in RECORDS]
    ready = prepare(DataSettings.read({**node, "tokenizer": {"kind": "byte"}}))
    assert ready.train.n_documents + ready.validation.n_documents == 60


def test_without_a_network_a_name_on_the_hub_is_one_line(datasets):
    (fault,) = faults_in({"kind": "hf", "path": "somebody/something"})
    assert fault.startswith("data.path: cannot open somebody/something, found ")


# Mixes


def mix(tmp_path, **more) -> dict:
    write_lines(tmp_path / "a.jsonl", RECORDS)
    if not (tmp_path / "corpus").exists():
        write_documents(tmp_path / "corpus")
    records = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl"), "field": "q", "weight": 1}
    prose = {"kind": "text", "path": str(tmp_path / "corpus"), "weight": 3}
    node = {"kind": "mix", "of": {"records": records, "prose": prose}, "validation_fraction": 0.2}
    return {**node, "tokenizer": {"vocab_size": 300}, **more}


def test_a_mix_has_one_tokenizer_and_each_source_its_own_splits(tmp_path):
    ready = prepare(DataSettings.read(mix(tmp_path)))
    assert [(source.name, source.weight) for source in ready.sources] == [("records", 1), ("prose", 3)]
    for source, held, expected in zip(
        ready.sources, ready.held_out, (sorted(record["q"] for record in RECORDS), sorted(POEM)), strict=True
    ):
        texts = [ready.tokenizer.decode(part.tokens.ids[:]) for part in (source, held)]
        assert sum(text.count(line) for text in texts for line in expected) >= len(expected)
        assert held.tokens.n_documents and source.tokens.n_documents
    batch = next(Batches(ready.sources, 8, 16))
    questions = ["What is line" in ready.tokenizer.decode(row) for row in batch.input_ids]
    assert sum(questions) == 2


def test_the_tokens_of_a_mix_do_not_depend_on_weights_and_do_on_all_else(tmp_path):
    def key(**changes) -> str:
        node = mix(tmp_path)
        for name, change in changes.items():
            node["of"][name] |= change
        return prepare(DataSettings.read(node)).key

    first = key()
    assert key(prose={"weight": 0.5}) == first
    assert len({first, key(records={"field": "a"}), key(prose={"max_bytes": 9000})}) == 3


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ({"kind": "stdlib"}, "weight: is a number above 0, found None (a share of the rows, as 1 or 0.7)"),
        ({"weight": 0}, "weight: is a number above 0, found 0 (a share of the rows, as 1 or 0.7)"),
        (
            {"weight": 1, "tokenizer": {}},
            "tokenizer: a mix has one for all of its sources, found one here (data.tokenizer)",
        ),
        ({"weight": 1, "kind": "text"}, "path: data=text needs a text, found none (data.path=FILE_OR_FOLDER)"),
        ({"weight": 1, "kind": "mix"}, "kind: a mix holds no other mix, found one (its sources beside the others)"),
        ({"weight": 1, "pth": "a"}, "pth: data 'stdlib' has no such field (did you mean 'path'?)"),
    ],
)
def test_a_faulty_source_of_a_mix_is_named_at_its_place(source, fault):
    faults = faults_of(lambda: DataSettings.read({"kind": "mix", "of": {"a": {"weight": 1}, "b": source}}))
    assert faults == [f"data.of.b.{fault}"]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"of": None}, "of: data=mix needs sources, found none (data.of={a: {kind: stdlib, weight: 1}, …})"),
        (
            {"of": {"a/b": {"weight": 1}}},
            "of: a source's name is the name of a folder, found 'a/b' (letters, digits, _ and -)",
        ),
        ({"max_bytes": 9}, "max_bytes: a mix limits each source by itself, found 9 (data.of.NAME.max_bytes=9)"),
    ],
)
def test_what_a_mix_cannot_be_is_one_line(fields, fault):
    assert faults_of(lambda: DataSettings.read({"kind": "mix", "of": {"a": {"weight": 1}}, **fields})) == [
        f"data.{fault}"
    ]


def test_what_is_wrong_with_the_text_of_a_source_names_the_source(tmp_path):
    node = mix(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    (fault,) = faults_of(lambda: prepare(DataSettings.read(node)))
    assert fault.startswith(f"data.of.records.path: {tmp_path / 'a.jsonl'}: nothing to read, found an empty file")
    (tmp_path / "a.jsonl").write_text('{"q": "one"}\n')
    (fault,) = faults_of(lambda: prepare(DataSettings.read(node)))
    assert fault.startswith("data.of.records: training and validation need a document each at least")


def test_paths_become_absolute_wherever_they_stand_and_names_on_the_hub_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    node = {
        "path": "a.txt",
        "tokenizer": {"path": "t"},
        "of": {"a": {"path": "*.jsonl"}, "b": {"kind": "hf", "path": "who/what"}, "c": {"kind": "hf", "path": "here"}},
    }
    make_paths_absolute(node)
    found = [node["path"], node["tokenizer"]["path"], *(each["path"] for each in node["of"].values())]
    assert found == [
        str(tmp_path / "a.txt"),
        str(tmp_path / "t"),
        str(tmp_path / "*.jsonl"),
        "who/what",
        str(tmp_path / "here"),
    ]


def test_records_are_split_as_documents_and_copies_count_once(tmp_path):
    write_lines(tmp_path / "a.jsonl", [*RECORDS, *RECORDS[:9]])
    parts = split_corpus(DataSettings.read({"kind": "jsonl", "path": str(tmp_path)}).open(), 0.2)
    assert parts[60:] == [None] * 9 and 8 <= parts.count("validation") <= 16


def talk(number: int) -> dict:
    said = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"it is {number}"}]
    return {"messages": said}


@pytest.mark.parametrize("what", ["text", "records", "pairs", "conversations"])
def test_a_validation_of_its_own_validates_and_all_else_trains(tmp_path, what):
    if what == "text":
        for name, lines in (("train", POEM[:30]), ("held", POEM[28:40])):
            (tmp_path / name).mkdir()
            for number, line in enumerate(lines):
                (tmp_path / name / f"{number}.txt").write_text(line)
        node = {"kind": "text", "path": str(tmp_path / "train"), "validation": str(tmp_path / "held")}
    else:
        made = {"records": RECORDS, "pairs": RECORDS, "conversations": [talk(number) for number in range(60)]}[what]
        train, held = write_lines(tmp_path / "a.jsonl", made[:30]), write_lines(tmp_path / "b.jsonl", made[28:40])
        node = {"kind": "jsonl", "path": str(train), "validation": str(held)}
        own = {"records": {}, "pairs": {"source": "q", "target": "a"}, "conversations": {"form": "messages"}}[what]
        node |= own
        if what == "conversations":
            (tmp_path / "plain.jinja").write_text(PLAIN)
            node["template"] = str(tmp_path / "plain.jinja")
    node["tokenizer"] = "byte"
    ready = prepare(DataSettings.read(node))
    assert (ready.train.n_documents, ready.validation.n_documents) == (30, 12)
    assert ready.notes == ("data: 2 of 12 records that validate have a text that trains too",)
    last = ready.tokenizer.decode(ready.validation.ids[:])
    assert ("it is 39" if what == "conversations" else POEM[39]) in last
    assert ("it is 27" if what == "conversations" else POEM[27]) not in last
    alone = prepare(DataSettings.read({**node, "validation": None}))
    assert alone.key != ready.key and alone.notes == () and alone.train.n_documents < 30
    swapped = prepare(DataSettings.read({**node, "path": node["validation"], "validation": node["path"]}))
    assert swapped.key != ready.key and (swapped.train.n_documents, swapped.validation.n_documents) == (12, 30)
    limited = prepare(DataSettings.read({**node, "max_bytes": 300}))
    assert limited.train.n_bytes <= 300 and limited.validation.n_documents == 12


def test_a_fault_of_what_validates_names_that_setting(tmp_path):
    train = str(write_lines(tmp_path / "a.jsonl", RECORDS))
    held = write_lines(tmp_path / "b.jsonl", [{"other": "x"}])
    (fault,) = faults_in({"kind": "jsonl", "path": train, "validation": str(held)})
    assert fault.startswith(f"data.validation: {held}, line 1 has no field 'text'")
    (fault,) = faults_in({"kind": "jsonl", "path": train, "validation": str(tmp_path / "none.jsonl")})
    assert fault.startswith("data.validation: no such file or folder")
    (fault,) = faults_in({"kind": "text", "path": str(tmp_path / "b.jsonl"), "validation": str(tmp_path / "none.txt")})
    assert fault.startswith("data.validation: no such file or folder")
