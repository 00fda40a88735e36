"""What a row of training begins with, and what special tokens spelled in a text become: as transformers reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from support.corpora import faults_of
from zoo.data import prepare
from zoo.data.collate import pad_pairs
from zoo.data.settings import DataSettings
from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer
from zoo.jobs.plan import plan_launch, task_config
from zoo.training.objective.causal import Seq2Seq
from zoo.training.planning import plan_training

TEXTS = ["one two three", "é <s> two </s> four", "", "three"]
WORDS = ["[UNK]", "<s>", "</s>", "one", "two", "three", "four", "é"]
TEMPLATES = {"llama": "<s> $A", "bert": "<s> $A </s>", "t5": "$A </s>", "gpt": None}


@pytest.fixture(params=["words", "bytes"])
def folder(request, tmp_path):
    """A folder as transformers saves one, for each template."""

    def make(template: str | None):
        if request.param == "words":
            backend = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
            backend.pre_tokenizer = pre_tokenizers.Whitespace()
        else:
            backend = make_byte_tokenizer().backend
        backend.add_special_tokens(["<s>", "</s>"])
        if template is not None:
            special = [(each, backend.token_to_id(each)) for each in ("<s>", "</s>")]
            backend.post_processor = TemplateProcessing(single=template, special_tokens=special)
        saved = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
        saved.save_pretrained(tmp_path / "tokenizer")
        return tmp_path / "tokenizer"

    return make


def prepared(tmp_path, folder, texts=TEXTS, **how):
    """Prepare each text as a record of its own, half of them for validation."""
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"text": text} if isinstance(text, str) else text) + "\n" for text in texts))
    tokenizer = {"kind": "file", "path": str(folder), **how}
    node = {"kind": "jsonl", "path": str(file), "tokenizer": tokenizer, "validation_fraction": 0.5}
    if not isinstance(texts[0], str):
        node |= {"source": "a", "target": "b"}
    return prepare(DataSettings.read(node))


def split_rows(file, eos: int) -> list[list[int]]:
    """Split a part into its documents, without what a document's end adds."""
    ids = file.ids[:].tolist()
    assert ids[0] == eos
    return ids[1:]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_training_reads_the_ids_that_transformers_gives_and_generation_reads(tmp_path, folder, template):
    place = folder(template)
    theirs, found = transformers.AutoTokenizer.from_pretrained(place), prepared(tmp_path, place)
    eos = found.tokenizer.eos_id
    wanted = set()
    for text in filter(None, TEXTS):
        ids = theirs(text)["input_ids"]
        assert found.tokenizer.encode(text) == Tokenizer.load(place).encode(text) == ids
        wanted.add(tuple(ids if ids[-1] == eos and template and template.endswith("</s>") else [*ids, eos]))
    whole = [*split_rows(found.train, eos), *split_rows(found.validation, eos)]
    assert sum(map(len, wanted)) == len(whole)
    for ids in wanted:
        assert any(tuple(whole[i : i + len(ids)]) == ids for i in range(len(whole)))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("how", [{}, {"split_special_tokens": True}, {"add_special_tokens": False}], ids=str)
def test_the_bytes_of_tokens_add_up_whatever_stands_around_a_text(tmp_path, folder, template, how):
    found = prepared(tmp_path, folder(template), [f"one two {'three ' * i}</s> four" for i in range(1, 9)], **how)
    part = found.validation
    lengths = part.lengths[:]
    assert lengths.sum() == part.n_bytes and len(lengths) == len(part.ids)
    added = part.ids[:] == found.tokenizer.backend.token_to_id("<s>")
    assert not lengths[added].any()


def test_the_two_settings_are_transformers_arguments(tmp_path, folder):
    place = folder(TEMPLATES["bert"])
    theirs = transformers.AutoTokenizer.from_pretrained(place)
    text = TEXTS[1]
    plain = prepared(tmp_path, place, add_special_tokens=False)
    assert plain.tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    split = prepared(tmp_path, place, split_special_tokens=True)
    assert split.tokenizer.encode(text) == theirs(text, split_special_tokens=True)["input_ids"]
    assert len({prepared(tmp_path, place).key, plain.key, split.key}) == 3


def test_a_pair_opens_as_a_prompt_does_and_its_answer_follows_bare(tmp_path, folder):
    pairs = [{"a": text, "b": f"{text} four"} for text in ("one", "two", "three", "one two")]
    place = folder(TEMPLATES["llama"])
    theirs, found = transformers.AutoTokenizer.from_pretrained(place), prepared(tmp_path, place, pairs)
    for part in (found.train, found.validation):
        for number in range(part.n_documents):
            source, answer = (ids.tolist() for ids in part.read_row(number, 64))
            text = theirs.decode(source, skip_special_tokens=True)
            assert source == theirs(text)["input_ids"]
            assert answer == theirs(f"{text} four", add_special_tokens=False)["input_ids"]


def test_a_source_that_is_cut_keeps_the_token_that_it_opens_with():
    batch = pad_pairs([[7, 1, 2, 3, 4]], [[5]], eos_id=0, start_id=None, widths=(3, 2), opening=1)
    assert batch.input_ids.tolist() == [[7, 3, 4, 5]]


def test_a_decoder_of_its_own_writes_an_answer_as_transformers_labels_are(tmp_path, folder):
    class Pairs:
        kind, start_id = "encoder_decoder", 9

    place = folder(TEMPLATES["bert"])
    theirs = transformers.AutoTokenizer.from_pretrained(place)

    class Context:
        spec, tokenizer, seq_len = Pairs, Tokenizer.load(place), 8

    collate = Seq2Seq().collator(Context)
    row = (np.array(theirs("one two")["input_ids"]), np.array(theirs("three", add_special_tokens=False)["input_ids"]))
    batch = collate([row], [(0, 0)])
    labels = theirs(text_target="three")["input_ids"]
    assert [each for each in batch.targets[0].tolist() if each != -100] == labels
    assert batch.decoder_input_ids[0, : len(labels)].tolist() == [9, *labels[:-1]]


def test_a_tokenizer_is_named_by_its_kind_alone():
    whole = DataSettings.read({"kind": "stdlib", "tokenizer": {"kind": "byte"}})
    assert DataSettings.read({"kind": "stdlib", "tokenizer": "byte"}) == whole
    with plan_launch(["data.tokenizer=byte"], check=False) as plan:
        assert plan_training(task_config(plan.jobs[0])).data == whole
    for name, hint in (("bytes", "did you mean 'byte'? "), ("wordpiece", "")):
        fault = f"data.tokenizer: kind '{name}' is not a choice of tokenizer ({hint}one of: bpe, byte, file)"
        assert faults_of(lambda: DataSettings.read({"kind": "stdlib", "tokenizer": name})) == [fault]  # noqa: B023
    (fault,) = faults_of(lambda: DataSettings.read({"kind": "stdlib", "tokenizer": "file"}))
    assert fault.startswith("data.tokenizer.path: kind: file needs a tokenizer.json, found none")


def test_a_mask_that_training_adds_is_read_in_a_text_by_transformers(tmp_path):
    tokenizer = make_byte_tokenizer()
    tokenizer.add_special(["<|endoftext|>"])  # it is there already
    assert tokenizer.split
    tokenizer.add_special(["<mask>"])
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.mask_token_id == 257
    assert theirs("a <mask>").input_ids == tokenizer.encode("a <mask>") == [*b"a ", 257]
