"""Preferences as data: forms, faults by file and line, and rows of two answers that stay together."""

from __future__ import annotations

import json

import pytest
import torch

from support.corpora import faults_of
from support.preference_cases import FIGURES, RECORDS, UNPAIRED, save_tokenizer
from zoo.data import DataSettings, prepare
from zoo.data.chat.preference_rows import PreferenceFile, collate_answers, collate_judged
from zoo.data.settings import parse_node
from zoo.model.loss import IGNORED

ASKED = "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def open_file(tmp_path, monkeypatch):
    """Prepare records, and open all of them as validation rows."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    words = save_tokenizer(tmp_path / "words")

    def open_file(records, form: str = "preference") -> PreferenceFile:
        file = tmp_path / "records.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in records))
        node = {"kind": "jsonl", "path": str(file), "form": form, "tokenizer": {"kind": "file", "path": str(words)}}
        return prepare(DataSettings.read(node), whole=True).validation  # type: ignore[return-value]

    return open_file


def collate(file: PreferenceFile, seq_len: int = 64, one_shape: bool = False):
    rows = [file.read_row(number, seq_len) for number in range(file.count_rows(seq_len))]
    return collate_answers(rows, [], pad_id=256, seq_len=seq_len, one_shape=one_shape)


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_every_kind_of_records_gives_the_same_conversations(read, kind):
    assert read("preference", *RECORDS, kind=kind) == read("preference", *RECORDS)
    assert read("unpaired", *UNPAIRED, kind=kind) == read("unpaired", *UNPAIRED)
    whole = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert read("preference", whole, kind=kind, template=None) == [("The sky is", " blue.", "The sky is", " green.")]


def test_a_prompt_and_two_answers_are_two_conversations(read):
    assert read("preference", RECORDS[0]) == [(ASKED, "5<|im_end|>\n", "", "", ASKED, "6, or 7<|im_end|>\n", "", "")]
    assert read("preference", {"prompt": "2+3=", "chosen": "5", "rejected": "6"}, template=None) == [
        ("2+3=", "5", "2+3=", "6")
    ]


def test_the_common_start_is_the_prompt_where_none_is_named(read):
    said, record = RECORDS[0]["prompt"], RECORDS[0]
    whole = {name: said + record[name] for name in ("chosen", "rejected")}
    assert read("preference", whole) == read("preference", record)
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    assert read("preference", texts, template=None) == [("The sky is bl", "ue.", "The sky is bl", "ack.")]
    spaced = {"chosen": "The sky is blue.", "rejected": "The sky is green."}  # as TRL: a word begins with its space
    assert read("preference", spaced, template=None) == [("The sky is", " blue.", "The sky is", " green.")]


def test_answers_of_several_turns_have_equal_halves(read):
    again = [*RECORDS[0]["chosen"], {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    (texts,) = read("preference", {**RECORDS[0], "chosen": again})
    asked = "<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    assert texts[:6] == (ASKED, "5<|im_end|>\n", asked, "yes<|im_end|>\n", "", "")
    assert texts[6:] == (ASKED, "6, or 7<|im_end|>\n", "", "", "", "")


def test_a_judged_answer_is_one_half(read):
    good, bad = read("unpaired", *UNPAIRED[:2])
    assert good == (ASKED, "5<|im_end|>\n", "", "", "", "", "", "")
    assert bad[:4] == ("",) * 4 and bad[5] == "no<|im_end|>\n"
    assert read("unpaired", {"prompt": "2+3=", "completion": "6", "label": False}, template=None) == [
        ("", "", "2+3=", "6")
    ]


@pytest.mark.parametrize(
    ("form", "record", "fault"),
    [
        ("preference", {"prompt": "a", "chosen": "b"}, "line 1 has no field 'rejected', found prompt, chosen (another"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same, found 'b'"),
        ("preference", {"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen: says nothing after the prompt, found"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": []}, "rejected: says nothing after the prompt"),
        ("preference", {"chosen": "same", "rejected": "same but"}, "chosen: says nothing after the prompt, found ''"),
        (
            "preference",
            {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"},
            "prompt and chosen are not of one kind, found a list of 1 and 'b' (two texts, or",
        ),
        ("preference", {"chosen": 1, "rejected": 2}, "prompt and chosen are not of one kind, found null and 1"),
        (
            "preference",
            {**RECORDS[0], "rejected": [{"role": "assistant", "content": ""}]},
            "rejected: says nothing after the prompt",
        ),
        ("preference", {**RECORDS[0], "chosen": [{"content": "5"}]}, "messages[1]: has no role"),
        ("unpaired", {"prompt": "a", "completion": "b", "label": 1}, "label: is 1 (true or false)"),
        ("unpaired", {"prompt": "a", "completion": "b", "label": "good"}, "label: is 'good' (true or false)"),
        ("unpaired", {"prompt": "a", "completion": "", "label": True}, "completion: says nothing after the prompt"),
    ],
)
def test_a_bad_record_is_named_by_its_line(read, form, record, fault):
    (line,) = faults_of(lambda: read(form, record))
    assert line.startswith("data.path: ") and "line 1" in line and fault in line


def test_packing_is_not_for_answers_to_compare():
    node = {"kind": "jsonl", "path": "a.jsonl", "form": "preference", "packing": True}
    assert faults_of(lambda: parse_node(DataSettings, node)) == [
        "packing: answers to compare have rows of their own, found packing: true beside preference (null)"
    ]


# ---------------------------------------------------------------- rows


def test_rows_are_those_of_trl(open_file):
    figures, batch = json.loads(FIGURES.read_text()), collate(open_file(RECORDS))
    ids = torch.tensor(figures["ids"]).unflatten(0, (2, 4)).transpose(0, 1).flatten(0, 1)  # TRL puts the chosen first
    mask = torch.tensor(figures["mask"]).unflatten(0, (2, 4)).transpose(0, 1).flatten(0, 1).bool()
    width = ids.shape[1] - 1
    assert batch.input_ids.shape == (8, 40)  # a multiple of 8
    assert torch.equal(batch.targets[:, :width], ids[:, 1:].masked_fill(~mask[:, 1:], IGNORED))
    assert (batch.targets[:, width:] == IGNORED).all()
    real = torch.arange(width) < (mask * torch.arange(width + 1)).amax(1, keepdim=True)
    assert torch.equal(batch.input_ids[:, :width][real], ids[:, :-1][real])


def test_rows_have_one_shape_where_they_must(open_file):
    file = open_file(RECORDS)
    assert collate(file, one_shape=True).input_ids.shape == (8, 64)
    assert collate(file, seq_len=37).input_ids.shape == (8, 37)  # the longest has 36 tokens


def test_a_record_of_which_an_answer_does_not_fit_is_left_out_and_counted(open_file):
    file = open_file(RECORDS)
    sizes = file.measured.max(1)
    assert sorted(sizes) == [24, 30, 32, 36]
    assert file.count_rows(35) == 3 and file.count_rows(36) == 4
    assert list(file.describe_cuts("", 35)) == [
        "1 of 4 records are left out, as an answer does not fit (25.0%), at 35 tokens (seq_len=36 holds all)"
    ]
    assert list(file.describe_cuts("", 36)) == []
    assert faults_of(lambda: file.count_rows(8)) == [
        "seq_len: is 8, and no record of the validation split has its answers within it (a larger one: with 36 all "
        "would be whole)"
    ]


def test_a_record_keeps_its_number_whatever_the_length_of_rows(open_file):
    file = open_file(RECORDS)
    file.reference.values = torch.arange(8.0).view(4, 2).numpy()
    whole = {tuple(row.reference): row for row in (file.read_row(n, 64) for n in range(4))}  # type: ignore[arg-type]
    assert len(whole) == 4
    for number in range(file.count_rows(35)):
        row = file.read_row(number, 35)
        same = whole[tuple(row.reference)]  # type: ignore[arg-type]
        assert all((a.ids == b.ids).all() for a, b in zip(row.answers, same.answers, strict=True))


def test_shards_of_any_size_give_the_same_rows(open_file, monkeypatch):
    records = [
        {**each, "prompt": f"{n} is", "chosen": f"{n}" * 9, "rejected": "no"} for n in range(40) for each in [{}]
    ]
    whole = collate(open_file(records))
    monkeypatch.setattr("zoo.data.shards.SHARD", 100)
    monkeypatch.setattr("zoo.data.LAYOUT", -1)
    file = open_file(records)
    assert len(list(file.path.parent.glob("*.bin"))) > 4  # type: ignore[union-attr]
    again = collate(file)
    assert torch.equal(whole.input_ids, again.input_ids) and torch.equal(whole.targets, again.targets)


def test_mismatched_answers_are_a_prompt_with_the_completion_of_the_record_before(open_file):
    def decode(batch, row: int) -> tuple[str, str]:
        learned = batch.targets[row] != IGNORED
        if not learned.any():
            return "", ""
        prompt = bytes(t if t < 256 else 0 for t in batch.input_ids[row, : int(learned.nonzero()[0]) + 1]).decode()
        return prompt.split("\n")[1].rstrip("\0"), bytes(t for t in batch.targets[row, learned] if t < 256).decode()

    file = open_file(UNPAIRED, "unpaired")
    rows = [file.read_row(number, 64) for number in range(4)]
    batch = collate_judged(rows, [], pad_id=256, seq_len=64, one_shape=False)
    assert [decode(batch, row) for row in range(16)] == [
        *(("2+3?", "5\n"), ("", ""), ("2+3?", "a\n"), ("", "")),
        *(("", ""), ("and?", "no\n"), ("", ""), ("and?", "5\n")),
        *(("", ""), ("hi", "go away\n"), ("", ""), ("hi", "no\n")),
        *(("q", "a\n"), ("", ""), ("q", "go away\n"), ("", "")),
    ]
    both = collate_judged([open_file(RECORDS).read_row(1, 64)], [], pad_id=256, seq_len=64, one_shape=True)
    assert [decode(both, row)[1] for row in range(4)] == ["yes, indeed\n", "no\n", "5\n", "6, or 7\n"]
