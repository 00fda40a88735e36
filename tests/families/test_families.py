"""Every family equals its reference: logits, layers, padding, cached generation, and the way back to its own files."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import transformers

import zoo
from pages.zoo_page import config_of
from support.family_cases import CASES, ONE_EACH
from support.packaged_specs import one_in
from support.reference_models import CLOSE, Case, both, near, pair, tensors
from zoo.checkpoint import hf
from zoo.checkpoint.inverse import try_family
from zoo.checkpoint.mapping import map_tensors, matches
from zoo.families.described import read_body
from zoo.families.family import find_name, read_family

PLAIN = [case for case in CASES if case.name.startswith(("llama-", "bloom-", "mpt-"))]  # every RoPE, and slopes


FEW = ONE_EACH[::5]  # where the code is one for all families, and one of them would show a fault


def every(cases: list[Case], *, quick: list[Case] | None = None) -> pytest.MarkDecorator:
    """A test for each case; those of one case run in one process, which makes its two models once. With `quick` all
    others are slow."""

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        left = [pytest.mark.slow] if quick is not None and case not in quick else []
        return [pytest.mark.xdist_group(case.name), *left]

    return pytest.mark.parametrize("case", [pytest.param(case, marks=marks(case), id=case.name) for case in cases])


EVERY = every(CASES, quick=[*ONE_EACH, *PLAIN])
WRITERS = every([case for case in CASES if case.writes], quick=ONE_EACH[::6])
EXPRESSED = every(CASES, quick=ONE_EACH[::6])
FIRST = every(ONE_EACH, quick=FEW)


@functools.cache
def _rotates(config: str) -> bool:
    return "rope_parameters" in getattr(transformers, config)().to_dict()


TURNED = every([case for case in CASES if _rotates(case.config)], quick=FEW)


def test_the_config_of_every_case_is_read():
    """Most of a family's cases are built in the slow tests alone: a value refused by mistake would be found late."""
    for case in CASES:
        config = config_of(case)
        read_family(find_name(config["model_type"])).body(config, case.name)


@EVERY
def test_logits_and_hidden_states_equal_the_reference(case):
    two = pair(case)
    ids = two.ids()
    ours, theirs = both(two, ids)
    if ours.logits is not None:
        given = theirs["prediction_logits" if "prediction_logits" in theirs else "logits"]
        torch.testing.assert_close(ours.logits, given, **near(given))
    for relation in ("seq_relationship_logits", "sop_logits"):  # of a class with two heads
        if relation in theirs:
            torch.testing.assert_close(ours.pooled, theirs[relation], **CLOSE)
    if getattr(theirs, "pooler_output", None) is not None:
        torch.testing.assert_close(ours.pooled, theirs.pooler_output, **CLOSE)
    if case.streams:
        assert ours.logits is not None or torch.allclose(ours.hidden, theirs.last_hidden_state, **CLOSE)
        return
    last = theirs.decoder_hidden_states if "decoder_hidden_states" in theirs else theirs.hidden_states
    torch.testing.assert_close(ours.hidden, last[-1], **near(last[-1]))


@EVERY
def test_each_layers_output_equals_the_references(case):
    two = pair(case)
    ids, seen = two.ids(), []
    towers = [two.ours.get_submodule(name) if name else two.ours for name, _ in two.ours.towers()]
    hooks = [_watch(block, seen) for tower in towers for block in tower.blocks]
    _, theirs = both(two, ids)
    for hook in hooks:
        hook.remove()
    names = [name for name in ("encoder_hidden_states", "decoder_hidden_states", "hidden_states") if theirs.get(name)]
    expected = [
        states for name in names for states in theirs[name][1 if case.embedded else 0 : -1 if case.embedded else -2]
    ]
    inner = [
        each for tower, count in zip(towers, _layer_counts(towers), strict=True) for each in _take(seen, count)[:-1]
    ]
    assert len(inner) == len(expected)
    for mine, other in zip(inner, expected, strict=True):
        mine = mine.flatten(2) if mine.ndim > other.ndim else mine  # of several streams
        torch.testing.assert_close(mine, other, **CLOSE)


@pytest.mark.parametrize("length", [16, 17])
def test_dynamic_scaling_begins_past_the_trained_length_as_the_references_does(length):
    case = next(case for case in CASES if case.name == "llama-dynamic-beyond")
    two = pair.__wrapped__(case)  # the reference keeps the angles of a longer row
    ours, theirs = both(two, two.ids(length=length))
    torch.testing.assert_close(ours.logits, theirs.logits, **CLOSE)


def _watch(block, seen):
    """Note what a layer gives: of one that normalises the stream last, what it has before that."""
    last = getattr(block, "ffn_stream_norm", None)
    if last is not None:
        return last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return block.register_forward_hook(lambda module, args, output: seen.append(output))


def _layer_counts(towers):
    return [tower.spec.n_layers for tower in towers]


def _take(items, count):
    taken = items[:count]
    del items[:count]
    return taken


@EVERY
def test_padded_rows_equal_the_rows_alone_on_either_side(case):
    two = pair(case)
    ids, length = two.ids(3), two.case.tokens
    pad = getattr(two.reference.config, "pad_token_id", None) or 0  # CodeGen has no such field
    mask = torch.ones_like(ids)
    mask[0, length - 7 :], mask[1, :5] = 0, 0
    ids = torch.where(mask.bool(), ids, torch.full_like(ids, pad))
    extra = case.inputs(ids)
    with torch.no_grad():
        whole = two.ours(ids, mask, **extra)
        for row in range(3):
            real = mask[row].bool()
            part = {
                name: value[row : row + 1][:, real] if _by_column(name) else value[row : row + 1]
                for name, value in extra.items()
            }
            alone = two.ours(ids[row : row + 1, real], **part)
            if two.ours.spec.kind == "encoder_decoder":
                torch.testing.assert_close(whole.hidden[row], alone.hidden[0], **CLOSE)
                own = {name: value[row : row + 1] for name, value in extra.items()}
                reference = two.reference(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], **own)
                given = whole.hidden if whole.logits is None else whole.logits
                if row != 1 and (
                    case.pads or real.all()
                ):  # the reference counts positions from the padding on the left
                    torch.testing.assert_close(given[row], reference[0][0], **CLOSE)
            else:
                torch.testing.assert_close(whole.hidden[row][real], alone.hidden[0], **CLOSE)


def _by_column(name):
    return not name.startswith("decoder")


@WRITERS
def test_greedy_continuation_with_a_cache_equals_the_references(case):
    two = pair(case)
    ids = two.ids(case.rows, 10)
    options = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if getattr(two.ours.spec, "prefix_lm", False):  # whose prompt sees itself both ways
        options["token_type_ids"] = torch.ones_like(ids)
    with torch.no_grad():
        theirs = two.reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    ours = zoo.generate(two.ours, ids, 14)
    assert ours.tolist() == theirs.tolist()


@every(CASES, quick=ONE_EACH[1::8])
def test_export_gives_back_every_tensor_bit_for_bit_and_loads(case, tmp_path):
    two = pair(case)
    zoo.export(two.ours, tmp_path / "out", verify=False)
    before, after = tensors(two.folder), tensors(tmp_path / "out")
    assert sorted(before) == sorted(after)
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    again = case.load(tmp_path / "out")
    ids = two.ids(seed=3)
    with torch.no_grad():
        extra = case.inputs(ids)
        mine, other = again(input_ids=ids, **extra), two.reference(input_ids=ids, **extra)
    torch.testing.assert_close(mine[0], other[0], atol=1e-5, rtol=0)


@EXPRESSED
def test_the_spec_alone_says_the_config(case):
    two = pair(case)
    source = two.ours.source
    _, body, faults = try_family(source.family, source.body.architecture, two.ours.spec)
    assert faults == [] and body is not None


@TURNED
def test_the_hub_style_of_a_config_says_the_same(case):
    two = pair(case)
    config = json.loads((two.folder / "config.json").read_text())
    file = two.folder / "hub-config.json"
    file.write_text(json.dumps(hub_style(config)))
    assert hf.compose_spec(read_body(file)[1]) == hf.compose_spec(read_body(two.folder)[1])


def hub_style(config):
    """The config as files on the hub have it: rotary parameters at the top level."""
    old, stated = dict(config), config.get("rope_parameters")
    if not isinstance(stated, dict) or any(isinstance(value, dict) for value in stated.values()):
        return config
    if config["model_type"] == "gpt_oss" and stated["rope_type"] == "default":
        return config  # where nothing is stated its rotation is scaled, in transformers too
    scaling = {name: value for name, value in stated.items() if name not in ("rope_theta", "partial_rotary_factor")}
    del old["rope_parameters"]
    own = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in stated:
            old[own[name] if config["model_type"].startswith("gpt_neox") else name] = stated[name]
    if scaling.get("rope_type", "default") != "default":
        old["rope_scaling"] = scaling
    return old


@FIRST
def test_an_unknown_tensor_and_a_missing_one_are_named(case, tmp_path):
    two = pair(case)
    source, found = hf.open_folder(two.folder)
    spec = hf.compose_spec(source.body)
    laid = map_tensors(spec, source.body)
    optional = [name.replace("~", source.body.prefix) for name in source.family.optional]
    ours = {name for entry in laid for name in entry.theirs}  # others are of no part of the model
    lost = next(name for name in sorted(found) if name in ours and not matches(name, optional))
    faults = hf.find_differences(
        laid, {**{k: v for k, v in found.items() if k != lost}, "stranger.weight": found[lost]}, source
    )
    assert any(lost in fault and "missing" in fault for fault in faults)
    assert any("stranger.weight" in fault and "no row" in fault for fault in faults)


@pytest.mark.parametrize("name", one_in(6, sorted({case.name.split("-")[0] for case in CASES})))
def test_defaults_are_the_references(name):
    """What a family's YAML says of fields that are left out is what transformers' config class says."""
    first = next(case for case in CASES if case.name.split("-")[0] == name)
    mine = pair(first).ours.source.family
    stated = getattr(transformers, first.config)()
    stated.allow_global_per_layer_attribute_access = True  # of a config with sizes of each layer, its own
    theirs = {**stated.to_dict(), **{k: getattr(stated, k) for k in mine.defaults if hasattr(stated, k)}}
    wrong = {
        key: (value, theirs[key])
        for key, value in mine.defaults.items()
        if key in theirs and value is not None and theirs[key] not in (value, None)
    }
    assert wrong == {}
    assert len(theirs) > 10  # the class has stated something to hold them against
