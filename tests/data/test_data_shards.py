"""Token shards: a reader written from the published byte layout opens them, and no damage to them passes unseen."""

import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from support.corpora import POEM, faults_of, write_documents
from zoo.data import DataSettings, prepare
from zoo.data.checked import BLOCK
from zoo.data.encode import open_tokens, write_tokens
from zoo.data.shards import Joined, choose_dtype
from zoo.data.tokenizer import make_byte_tokenizer, train_bpe
from zoo.errors import ZooError

CODES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f4", 8: "u2"}
"""Megatron-LM's codes of dtypes."""


def read_megatron(path: Path) -> tuple[list[list[int]], list[int]]:
    """The sequences of PATH.bin by PATH.idx, and the boundaries of documents, read byte by byte."""
    index, data = path.with_suffix(".idx").read_bytes(), path.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<Q", index, 9) == (1,)
    (code,) = struct.unpack_from("<B", index, 17)
    sequences, boundaries = struct.unpack_from("<QQ", index, 18)
    sizes = struct.unpack_from(f"<{sequences}i", index, 34)
    pointers = struct.unpack_from(f"<{sequences}q", index, 34 + 4 * sequences)
    documents = struct.unpack_from(f"<{boundaries}q", index, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * boundaries
    item = np.dtype(CODES[code]).newbyteorder("<")
    found = [
        np.frombuffer(data[at : at + size * item.itemsize], item).tolist()
        for at, size in zip(pointers, sizes, strict=True)
    ]
    return found, list(documents)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(POEM, 400)


def sort_of(n: int) -> str:
    return "validation" if n % 7 == 3 else "train"


def write_poem(folder: Path, tokenizer, lines=POEM, report=lambda done: None) -> Path:
    folder.mkdir(exist_ok=True)
    write_tokens(folder, ((sort_of(n), (line,)) for n, line in enumerate(lines)), tokenizer, report)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_megatrons_layout_gives_back_every_document_with_its_end(tmp_path, monkeypatch, bpe):
    monkeypatch.setattr("zoo.data.shards.SHARD", 1000)
    folder = write_poem(tmp_path, bpe)
    shards = sorted(file.with_suffix("") for file in folder.glob("train-*.bin"))
    assert len(shards) > 5
    sequences = []
    for shard in shards:
        found, documents = read_megatron(shard)
        assert documents == list(range(len(found) + 1))
        sequences += found
    expected = [[*bpe.encode(line), bpe.eos_id] for n, line in enumerate(POEM) if sort_of(n) == "train"]
    assert sequences == expected
    tokens = open_tokens(folder)["train"]
    assert tokens.ids[:].tolist() == [bpe.eos_id, *(token for sequence in expected for token in sequence)]
    assert (tokens.n_documents, len(tokens)) == (len(expected), 1 + sum(map(len, expected)))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "uint16"), (65_536, "uint16"), (65_537, "int32")])
def test_ids_are_as_wide_as_the_vocabulary_needs(vocab_size, dtype):
    assert choose_dtype(vocab_size) == dtype


def test_a_pair_is_a_document_of_two_sequences(tmp_path, bpe):
    pairs = [("train", ("one", "two words")), ("validation", ("x", "y")), ("train", (POEM[0], "naïve"))]
    write_tokens(tmp_path, pairs, bpe, lambda done: None, sequences=2)
    found, documents = read_megatron(tmp_path / "train-00000")
    assert documents == [0, 2, 4]
    assert found == [[*bpe.encode(text), bpe.eos_id] for text in ("one", "two words", POEM[0], "naïve")]
    train = open_tokens(tmp_path)["train"]
    assert train.count_rows(5) == 2
    for number, (source, target) in enumerate((("one", "two words"), (POEM[0], "naïve"))):
        rows = train.read_row(number, 5)
        assert [row.tolist() for row in rows] == [bpe.encode(source), bpe.encode(target)]


@pytest.mark.parametrize("cuts", [[], [3], [1, 1, 5], [0, 4]])
def test_joined_arrays_are_sliced_as_one(cuts):
    whole = np.arange(10)
    parts = np.split(whole, np.cumsum(cuts))
    joined = Joined([(len(part), lambda part=part: part) for part in parts])
    assert len(joined) == 10 and joined.max() == 9 and np.asarray(joined).tolist() == whole.tolist()
    for start in range(12):
        for stop in range(start, 12):
            assert joined[start:stop].tolist() == whole[start:stop].tolist()
    assert joined[-3:].tolist() == [7, 8, 9]


# What is damaged


def test_of_a_hundred_flipped_bits_none_passes_and_each_is_named_with_its_file_and_place(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr("zoo.data.shards.SHARD", 2000)
    folder = write_poem(tmp_path / "tokens", bpe)
    rng, files = random.Random(7), sorted(folder.iterdir())
    assert {file.suffix for file in files} == {".bin", ".idx", ".len", ".json"}
    for _ in range(100):
        file = rng.choice(files)
        before = file.read_bytes()
        place = rng.randrange(len(before))
        spoilt = bytearray(before)
        spoilt[place] ^= 1 << rng.randrange(8)
        file.write_bytes(spoilt)
        with pytest.raises(
            ZooError, match=r"is damaged, found another checksum in bytes .* \(delete .*: it is made"
        ) as caught:
            read_everything(folder)
        assert str(caught.value).startswith(f"{file}: ")
        first, last = (
            int(word.replace(",", "")) for word in str(caught.value).split("bytes ")[1].split(" (")[0].split(" to ")
        )
        assert first <= place <= last < first + BLOCK
        file.write_bytes(before)
    read_everything(folder)


def read_everything(folder: Path) -> None:
    for tokens in open_tokens(folder).values():
        tokens.ids.max()


def test_the_block_that_is_damaged_is_found_in_a_large_shard(tmp_path):
    folder = write_poem(tmp_path / "tokens", make_byte_tokenizer(), ["x" * 2_000_000, *POEM[1:5]])
    file = folder / "train-00000.bin"
    data = bytearray(file.read_bytes())
    data[BLOCK + 5] ^= 4
    file.write_bytes(data)
    with pytest.raises(ZooError, match=f"in bytes {BLOCK:,} to {2 * BLOCK - 1:,} "):
        read_everything(folder)


@pytest.mark.parametrize("name", ["train-00000.bin", "validation-00000.idx", "index.json"])
@pytest.mark.parametrize("spoil", ["shorten", "remove", "empty"])
def test_a_file_that_is_cut_or_gone_is_refused_when_the_folder_is_opened(tmp_path, bpe, name, spoil):
    folder = write_poem(tmp_path / "tokens", bpe)
    file = folder / name
    if spoil == "remove":
        file.unlink()
    else:
        os.truncate(file, 0 if spoil == "empty" else file.stat().st_size - 1)
    with pytest.raises(ZooError, match=r"\(delete .*: it is made again\)") as caught:
        open_tokens(folder)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.seal.json"])
def test_a_damaged_tokenizer_of_the_cache_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    node = {"kind": "text", "path": str(write_documents(tmp_path / "corpus")), "tokenizer": {"kind": "byte"}}
    file = tmp_path / "cache" / "data" / f"text-{prepare(DataSettings.read(node)).key}" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ZooError, match="is damaged, found another checksum"):
        prepare(DataSettings.read(node))


def test_a_file_is_checked_again_by_every_process_and_once_by_each(tmp_path, bpe, monkeypatch):
    folder = write_poem(tmp_path / "tokens", bpe)
    checked = []
    monkeypatch.setattr("zoo.data.shards.verify_file", lambda file, record: checked.append(file.name))
    tokens = open_tokens(folder)["train"]
    assert checked == []
    for _ in range(3):
        tokens.read_row(0, 8)
    assert sorted(checked) == ["train-00000.bin", "train-00000.idx"]
    open_tokens(folder)["train"].read_row(0, 8)
    assert len(checked) == 4


# Kills and workers


class Killed(BaseException):
    """What ends an encoding at once, as a kill does."""


@pytest.mark.parametrize("after", [1, 4000, 9000])
def test_a_broken_off_encoding_goes_on_at_the_last_whole_shard_to_the_same_bytes(tmp_path, bpe, monkeypatch, after):
    monkeypatch.setattr("zoo.data.shards.SHARD", 700)
    monkeypatch.setattr("zoo.data.encode.GROUP", 300)
    expected = contents(write_poem(tmp_path / "whole", bpe))

    def kill(done):
        if done >= after:
            raise Killed

    with pytest.raises(Killed):
        write_poem(tmp_path / "killed", bpe, report=kill)
    whole = len(list((tmp_path / "killed").glob("train-*.json")))
    assert (whole > 0) == (after > 1)
    encode, encoded = bpe.encode_many, []
    monkeypatch.setattr(bpe, "encode_many", lambda texts, **how: (encoded.extend(texts), encode(texts, **how))[1])
    done = []
    assert contents(write_poem(tmp_path / "killed", bpe, report=done.append)) == expected
    assert done[-1] == len("".join(POEM).encode())
    if whole:
        assert len(encoded) < len(POEM)


def test_a_shard_that_a_power_cut_spoilt_is_made_again(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr("zoo.data.shards.SHARD", 700)
    monkeypatch.setattr("zoo.data.encode.GROUP", 300)
    expected = contents(write_poem(tmp_path / "whole", bpe))

    def kill(done):
        if done >= 9000:
            raise Killed

    with pytest.raises(Killed):
        write_poem(tmp_path / "killed", bpe, report=kill)
    assert len(list((tmp_path / "killed").glob("train-*.json"))) > 2
    (tmp_path / "killed" / "train-00001.bin").write_bytes(b"\0" * 10)
    assert contents(write_poem(tmp_path / "killed", bpe)) == expected


PROGRAM = """
import sys
from zoo.data import DataSettings, prepare
import zoo.data.shards, zoo.data.encode
from zoo.paths import find_cache_folder
zoo.data.shards.SHARD, zoo.data.encode.GROUP = 30_000, 25_000
node = {"kind": "stdlib", "max_bytes": 700_000, "tokenizer": {"vocab_size": 500}}
print(find_cache_folder() / "data" / f"stdlib-{prepare(DataSettings.read(node)).key}")
"""


def run_program(cache: Path, **variables: str) -> subprocess.Popen:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    where = {"ZOO_CACHE": str(cache), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM], env={**os.environ, **where, **variables}, stdout=subprocess.PIPE, text=True
    )


def tokens_of(process: subprocess.Popen) -> dict[str, bytes]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return contents(Path(out.strip()))


@pytest.mark.slow
def test_tokens_do_not_depend_on_the_number_of_workers_nor_on_kills(tmp_path):
    expected = tokens_of(run_program(tmp_path / "two", RAYON_NUM_THREADS="2"))
    assert len([name for name in expected if name.startswith("train")]) >= 6
    assert tokens_of(run_program(tmp_path / "one", RAYON_NUM_THREADS="1")) == expected
    data, kills = tmp_path / "killed" / "data", 0
    for shards in (1, 3, 5):
        process = run_program(tmp_path / "killed", RAYON_NUM_THREADS="1")
        while process.poll() is None and len(list(data.glob(".*/train-*.bin"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    assert tokens_of(run_program(tmp_path / "killed")) == expected
    assert [file.name for file in data.iterdir()] == [data.name for data in (tmp_path / "one" / "data").iterdir()]


def test_two_builders_of_one_folder_agree(tmp_path):
    processes = [run_program(tmp_path / "cache", RAYON_NUM_THREADS="1") for _ in range(2)]
    first, second = (tokens_of(process) for process in processes)
    assert first == second
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1


def test_a_mix_of_pairs_and_text_is_refused(tmp_path):
    pair = {"kind": "jsonl", "path": "a.jsonl", "source": "q", "target": "a", "weight": 1}
    node = {"kind": "mix", "of": {"a": pair, "b": {"weight": 1}}}
    (fault,) = faults_of(lambda: DataSettings.read(node))
    assert fault == "data.of: sources give one thing, found pairs in a, text in b (one thing for all)"
