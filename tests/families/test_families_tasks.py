"""Classes with a head for a task equal transformers': their logits, their labels, and the way back to their files."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers

import zoo
from support.cases import encoders, encoders_2026
from support.packaged_specs import one_in
from support.reference_models import CLOSE, Case, near, pair, tensors
from zoo.checkpoint.inverse import try_family
from zoo.families.family import by_model_type, read_family

ENCODERS: dict[str, Case] = {}
for _case in (*encoders.CASES, *encoders_2026.CASES):
    ENCODERS.setdefault(_case.config.removesuffix("Config"), _case)  # the first case of each family

SUFFIXES = ("ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering")
LABELS = {"id2label": {0: "cold", 1: "warm", 2: "hot"}, "label2id": {"cold": 0, "warm": 1, "hot": 2}}
MORE = {"Splinter": {"question_token_id": 7}}
MORE |= {"EuroBert": {"classifier_pooling": "mean"}, "ModernBert": {"classifier_pooling": "mean", "norm_bias": True}}
"""What a family needs for its classes to be read, or for their fields to show."""


def task_cases() -> list[Case]:
    """A case for each class that the families read, with three labels; those of choices and spans count otherwise."""
    made = []
    for stem, first in ENCODERS.items():
        family = read_family(by_model_type()[getattr(transformers, first.config).model_type])
        for suffix in (*SUFFIXES, "ForQuestionAnsweringSimple", "ForPreTraining"):
            name = stem + suffix
            own = family.architectures.get(name, {}).get("model", {}).get("head")
            if own is None:
                continue
            labels = LABELS if suffix in ("ForSequenceClassification", "ForTokenClassification") else {}
            sizes = {**first.sizes, **labels, **MORE.get(stem, {})}
            made.append(dataclasses.replace(first, name=name, model=name, sizes=sizes))
    return made


CASES = task_cases()
NUMBERS = [
    dataclasses.replace(ENCODERS[stem], name=f"{stem}-{count}", model=f"{stem}ForSequenceClassification", sizes=sizes)
    for stem, count in (("Bert", 1), ("Roberta", 2))
    for sizes in [{**ENCODERS[stem].sizes, "num_labels": count, "problem_type": "regression"}]
]
EVERY = pytest.mark.parametrize("case", one_in(5, [*CASES, *NUMBERS]), ids=lambda case: case.name)


def run_reference(case, model, ids, extra):
    """The reference's logits as ours have them: start and end side by side, a number for each choice's row."""
    extra = {**extra, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        if case.name.endswith("ForMultipleChoice"):  # each row the one choice of its question
            found = model(input_ids=ids[:, None], **{name: value[:, None] for name, value in extra.items()}).logits
        elif "ForQuestionAnswering" in case.name:
            both = model(input_ids=ids, **extra)
            found = torch.stack((both.start_logits, both.end_logits), -1)
        else:
            found = model(input_ids=ids, **extra).logits
    return found[..., None] if case.name.endswith("ForPreTraining") else found


@EVERY
def test_logits_of_a_class_with_a_head_for_a_task_equal_the_references(case):
    two = pair(case)
    ids = two.ids()
    extra = case.inputs(ids)
    with torch.no_grad():
        ours = two.ours(ids, None, **extra)
    torch.testing.assert_close(ours.logits, run_reference(case, two.reference, ids, extra), **CLOSE)
    if case.sizes.get("id2label"):
        assert two.ours.spec.head.labels == ("cold", "warm", "hot")


@EVERY
def test_a_class_with_a_head_for_a_task_is_written_as_it_was_read(case, tmp_path):
    two = pair(case)
    zoo.export(two.ours, tmp_path, verify=False)
    before, after = tensors(two.folder), tensors(tmp_path)
    assert sorted(before) == sorted(after)
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []
    source = two.ours.source
    config, body, faults = try_family(source.family, case.model, two.ours.spec)
    assert faults == [] and body is not None
    labels = json.loads((two.folder / "config.json").read_text()).get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    assert config.get("id2label", labels) == labels


def test_every_class_of_the_reference_that_a_family_names_exists():
    stems = [read_family(by_model_type()[getattr(transformers, case.config).model_type]) for case in ENCODERS.values()]
    named = [name for family in stems for name, each in family.architectures.items() if "as" not in each]
    assert [name for name in named if not hasattr(transformers, name)] == []
    assert len(CASES) > 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", CASES[:4] + [each for each in CASES if "Electra" in each.name], ids=lambda case: case.name
)
def test_what_is_written_is_held_against_transformers(case, tmp_path):
    """Spans, choices and a single logit have other shapes there."""
    zoo.export(pair(case).ours, tmp_path)


def test_the_languages_of_xlm_s_tokens_are_types_here():
    two = pair(next(case for case in encoders_2026.CASES if case.name == "xlm-langs"))
    ids = two.ids()
    with torch.no_grad():
        theirs = two.reference(input_ids=ids, langs=ids % 3).logits
        ours = two.ours(ids, token_type_ids=ids % 3).logits
    torch.testing.assert_close(ours, theirs, **near(theirs))


class NoCache(list):
    """What FlauBERT's pre-norm layers take for a cache: they index it, and theirs cannot be indexed."""

    def get_seq_length(self):
        return 0


def test_flaubert_s_pre_norm_layers_are_the_reference_s(tmp_path):
    case = next(case for case in encoders_2026.CASES if case.name == "flaubert-base")
    reference = dataclasses.replace(case, sizes={**case.sizes, "pre_norm": True}).reference()
    reference.save_pretrained(tmp_path)
    ids = torch.arange(5, 53).view(2, 24)
    with torch.no_grad():
        theirs = reference(input_ids=ids, cache=NoCache([None] * 3)).last_hidden_state
        ours = zoo.load(tmp_path)(ids).hidden
    torch.testing.assert_close(ours, theirs, **near(theirs))


def test_a_span_is_asked_for_by_the_first_question_token_of_a_row_padded_on_either_side():
    """Splinter's head: rows with several question tokens, and one without any."""
    two = pair(next(case for case in CASES if case.name == "SplinterForQuestionAnswering"))
    texts, asks = two.ids(3, seed=2), two.ours.spec.head.question_id
    texts = torch.where(texts == asks, asks + 1, texts)
    texts[0, [11, 20]], texts[1, 9] = asks, asks
    ids, mask = torch.zeros_like(texts), torch.zeros_like(texts)
    ids[0, :-4], ids[1, 5:], ids[2] = texts[0, 4:], texts[1, 5:], texts[2]
    mask[0, :-4], mask[1, 5:], mask[2] = 1, 1, 1
    with torch.no_grad():
        found = two.ours(ids, mask).logits
        for row in range(3):
            alone = two.reference(input_ids=ids[row : row + 1, mask[row].bool()])
            wanted = torch.stack((alone.start_logits, alone.end_logits), -1)
            torch.testing.assert_close(found[row][mask[row].bool()], wanted[0], **CLOSE)


def test_what_a_head_that_asks_cannot_be_given_is_refused_in_one_line():
    from zoo.compose import load
    from zoo.errors import ConfigError

    head = "+head={kind: question_span, question_id: 7, activation: {kind: gelu}, norm: {kind: layernorm}}"
    with pytest.raises(ConfigError, match=r"head\.kind: 'question_span' compares tokens with a question after them"):
        load("llama-tiny", ["~head", head])
    model = zoo.build(load("bert-tiny", ["~head", head]), device="cpu").eval()
    ids = torch.zeros(1, 4, dtype=torch.long)
    for given, line in (
        ({"targets": ids}, "targets: a head of kind 'question_span' is trained by no objective"),
        ({"documents": ids}, "documents: the head reads a row as one text"),
        ({"logits_to_keep": 2}, "logits_to_keep: is 2, and the head gives results for all tokens of a row"),
    ):
        with pytest.raises(ConfigError, match=line):
            model(ids, **given)
