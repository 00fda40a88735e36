"""Classes with a head for a task of decoders and encoder-decoders equal transformers': sequence and token classifiers,
rerankers and reward models, question answering."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
import transformers

import zoo
from support.family_cases import CASES as ALL
from support.packaged_specs import one_in
from support.reference_models import CLOSE, Case, pair, tensors
from zoo.checkpoint.inverse import try_family
from zoo.families.family import Family, by_model_type, family_names, read_family

SUFFIXES = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
LABELS = {"id2label": {0: "cold", 1: "warm", 2: "hot"}, "label2id": {"cold": 0, "warm": 1, "hot": 2}}
PAD = 4
"""The padding's id, which `Pair.ids` never draws."""
MORE = {"ModernBertDecoder": {"norm_bias": True, "classifier_bias": True}}


def first_cases() -> dict[str, Case]:
    """The first case of each family that has a config class of its own in transformers, with a head."""
    found: dict[str, Case] = {}
    for case in ALL:
        kind = getattr(transformers, case.config).model_type
        if (kind in by_model_type() and not case.model.endswith("Model")) or case.model.endswith("LMHeadModel"):
            found.setdefault(by_model_type()[kind], case)
    return found


def task_cases() -> list[Case]:
    """A case for each class with a head for a task of a family that is no encoder."""
    made, first = [], first_cases()
    for name in family_names():
        family = read_family(name)
        for each in family.architectures if family.model.get("kind") != "encoder" else ():
            if each.endswith(SUFFIXES):
                labels = {} if each.endswith("ForQuestionAnswering") else LABELS
                own = {} if family.model.get("kind") == "encoder_decoder" else {"pad_token_id": PAD}
                sizes = {**first[name].sizes, **own, **labels, **MORE.get(re.sub(r"For[A-Z]\w*$", "", each), {})}
                made.append(dataclasses.replace(first[name], name=each, model=each, sizes=sizes, inputs=lambda ids: {}))
    return made


CASES = task_cases()
BY_NAME = {case.name: case for case in CASES}
NUMBERS = [  # reward models and rerankers: a number or two for a row
    dataclasses.replace(
        BY_NAME[name], name=f"{name}-{count}", sizes={**BY_NAME[name].sizes, "num_labels": count, **more}
    )
    for name, count, more in (
        ("Qwen3ForSequenceClassification", 1, {"id2label": None, "label2id": None}),
        ("LlamaForSequenceClassification", 2, {"id2label": None, "label2id": None, "problem_type": "regression"}),
    )
]
FIRST = ("Flaubert", "XLM")  # which read a row at its first token
LAST = [case for case in CASES if not case.name.startswith(FIRST)]
POOLED = [case for case in LAST if case.sizes.get("pad_token_id") == PAD and case.name.endswith(SUFFIXES[0])]
EVERY = pytest.mark.parametrize("case", one_in(24, [*CASES, *NUMBERS]), ids=lambda case: case.name)


def draw_text(two, seed: int = 0) -> torch.Tensor:
    """Token ids of three rows; an encoder-decoder's end in the text's end, as the reference demands."""
    ids = two.ids(3, seed=seed)
    if two.case.model.startswith(("Bart", "BigBirdPegasus", "MBart", "Mvp", "PLBart", "T5", "MT5", "UMT5")):
        end = two.reference.config.eos_token_id
        ids = torch.where(ids == end, end + 1, ids)
        ids[:, -1] = end
    return ids


def run_reference(two, ids, mask=None):
    """The reference's logits as ours have them: start and end side by side."""
    with torch.no_grad():
        out = two.reference(input_ids=ids, attention_mask=mask)
    return torch.stack((out.start_logits, out.end_logits), -1) if "start_logits" in out else out.logits


@EVERY
def test_logits_equal_the_references_padded_on_either_side_too(case):
    two = pair(case)
    texts = draw_text(two)
    wanted = [run_reference(two, texts[row : row + 1, start:]) for row, start in enumerate((7, 5, 0))]
    ids, mask = torch.full_like(texts, two.reference.config.pad_token_id), torch.zeros_like(texts)
    places = (slice(0, -7), slice(5, None), slice(None))  # padded on the right, on the left, and not at all
    for row, (start, place) in enumerate(zip((7, 5, 0), places, strict=True)):
        ids[row, place], mask[row, place] = texts[row, start:], 1
    with torch.no_grad():
        ours, alone = two.ours(ids, mask).logits, two.ours(texts).logits
    torch.testing.assert_close(alone, run_reference(two, texts), **CLOSE)
    for row, place in enumerate(places):
        found = ours[row] if ours.ndim == 2 else ours[row, place]
        torch.testing.assert_close(found, wanted[row][0], **CLOSE)


@EVERY
def test_a_class_is_written_as_it_was_read_and_reads_back(case, tmp_path):
    two = pair(case)
    zoo.export(two.ours, tmp_path, verify=False)
    before, after = tensors(two.folder), tensors(tmp_path)
    assert sorted(before) == sorted(after)
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []
    again, ids = zoo.load(tmp_path), draw_text(two)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, two.ours(ids).logits)
    config, body, faults = try_family(two.ours.source.family, case.model, two.ours.spec)  # from the Spec alone
    assert faults == [] and body is not None
    names = json.loads((two.folder / "config.json").read_text()).get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if len(names) > 1:
        assert config.get("id2label", names) == names


@pytest.mark.parametrize("case", one_in(6, POOLED), ids=lambda case: case.name)
def test_a_text_that_ends_in_the_paddings_token_is_read_at_the_one_before(case):
    """A reward model whose padding is its end of text: transformers looks for the last id that is no padding's."""
    two = pair(case)
    ids = draw_text(two, seed=1)
    ids[0, -1] = ids[1, -3:] = ids[2, 4] = PAD
    with torch.no_grad():
        found = two.ours(ids).logits
        last = dataclasses.replace(two.ours.spec.head, skip_id=None).gather(two.ours(ids).hidden, None)[:, 0]
    torch.testing.assert_close(found, run_reference(two, ids), **CLOSE)
    assert not torch.allclose(two.ours.head(last)[:2], found[:2], atol=1e-3)


def named_classes(family: Family) -> set[str]:
    """The classes that transformers has of a family's names for a task's head."""
    own = (name for name, each in family.architectures.items() if "as" not in each)
    stems = {re.sub(r"(For[A-Z]\w*|LMHeadModel|Model)$", "", name) for name in own}
    return {stem + suffix for stem in stems for suffix in SUFFIXES if hasattr(transformers, stem + suffix)}


WITHIN = {"Gemma3ForSequenceClassification", "Qwen3_5ForSequenceClassification", "Qwen3_5ForTokenClassification"}
"""Classes of a whole multimodal model."""


BEAMS = {"XLMForQuestionAnswering", "FlaubertForQuestionAnswering"}
"""Classes that look for an answer's end from each of several starts, a network of its own on top."""


def test_every_class_that_transformers_has_for_a_family_is_read():
    """A family that is new here may have such classes too: conf/tasks.yaml lists them."""
    lacking = {}
    for name in family_names():
        family = read_family(name)
        if family.model.get("kind") != "encoder":
            lacking[name] = named_classes(family) - set(family.architectures) - WITHIN - BEAMS
    assert {name: each for name, each in lacking.items() if each} == {}
    assert [case.name for case in CASES if not hasattr(transformers, case.model)] == [] and len(CASES) > 100
