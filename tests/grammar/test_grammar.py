"""Reading a model's node: what is refused, and many threads that read at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from zoo.checkpoint.inverse import find_config
from zoo.compose import load
from zoo.compose.targets import compose_model
from zoo.errors import ConfigError
from zoo.families.family import family_names, read_family
from zoo.grammar import resolve, to_spec
from zoo.grammar.dialect import list_fields, list_files, list_slots, read_file
from zoo.grammar.interpolation import Scope, read_literal, split_interpolation
from zoo.grammar.keys import BASES
from zoo.grammar.vocabulary import list_axes, list_nodes, read_choices

BODY = {
    **{"attention": "gqa", "position": "rope", "norm": "rmsnorm", "block": "pre", "ffn": "gated", "activation": "silu"},
    **{"vocab_size": 100, "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 128},
    "max_seq_len": 128,
}

READINGS = [
    ("llama-tiny", ["n_layers=3", "attention=mqa"]),
    ("gpt-tiny", ["d_ff=64", "bias=false"]),
    ("mixtral-tiny", ["n_experts=4", "top_k=1"]),
    ("t5-small", ["decoder.n_layers=2"]),
    ("llama-tiny", ["layers={near:{attention:{window:4}}}", "pattern=[near,layer]"]),
    ("llama-tiny", ["attention=mla", "kv_lora_rank=16", "q_lora_rank=8"]),
    ("gpt-tiny", ["position=alibi"]),
    ("mixtral-tiny", ["ffn=gated", "norm=layernorm"]),
]
"""Models that state and read different dimensions: one thread's reads would be faults in another's model."""


def faults(target, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(target, overrides)
    return caught.value.faults


@pytest.fixture
def hasty_threads():
    """Threads that take turns a hundred times as often as usual, so that they meet in the middle of a reading."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.slow
def test_threads_that_read_nodes_at_once_get_the_specs_that_one_alone_gets(hasty_threads) -> None:
    composed = [compose_model(*each) for each in READINGS]
    nodes = [(each.cfg, each.touched) for each in composed]
    alone = [to_spec(*each) for each in nodes]

    def read(thread: int) -> list[bool]:
        order = [(thread + step) % len(nodes) for step in range(20)]
        return [to_spec(*nodes[index]) == alone[index] for index in order]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(same) for same in pool.map(read, range(8)))


def test_threads_that_compose_models_at_once_get_the_specs_that_one_alone_gets(hasty_threads) -> None:
    alone = [load(*each) for each in READINGS]

    def read(thread: int) -> list[bool]:
        order = [(thread + step) % len(READINGS) for step in range(3)]
        return [load(*READINGS[index]) == alone[index] for index in order]

    with ThreadPoolExecutor(8) as pool:
        assert all(all(same) for same in pool.map(read, range(8)))


def test_a_node_records_what_is_looked_up_and_gives_it_once() -> None:
    root = Scope({"a": {"b": "${up:c}", "d": "${or:e,1e-3}", "f": "${c}"}, "c": "${or:g,2}"})
    assert root.to_plain() == {"a": {"b": 2, "d": 0.001, "f": 2}, "c": 2}
    assert root.take_reads() == {"c", "e", "g"} and root.take_reads() == set()


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ({"b": "${up:b,c}", "c": 1}, 8),  # what the component states itself does not count
        ({"b": "${.c}", "c": [1, 2]}, [1, 2]),
        ({"b": "${..c} of ${n}"}, "8 of 4"),
        ({"b": "${or:x,${n}}"}, 4),
        ({"b": "${list[1]}"}, 7),
        ({"b": "\\${n}"}, "${n}"),
        ({"b": "${or:whole,null}"}, None),
    ],
    ids=str,
)
def test_an_interpolation_gives_the_value_at_its_place(node: dict, value: object) -> None:
    assert resolve({"a": node, "n": 4, "c": 8, "list": [6, 7], "whole": "???"})["a"]["b"] == value


@pytest.mark.parametrize("key", ["n_layers", "vocab_size", "d_model", "d_ff", "attention.softcap", "norm.eps"])
def test_true_is_no_number(key: str) -> None:
    (fault,) = faults("llama-tiny", f"{key}=true")
    assert fault.startswith(f"{key}: must be a ")
    assert fault.endswith("number above 0, found True" if key == "n_layers" else "number, found True")


def test_true_is_refused_as_no_number_before_a_component_reckons_with_it() -> None:
    body = BODY | {"n_heads": True, "norm": {"kind": "rmsnorm", "eps": False}}  # 1 % 2 and 0.0 would be faults as well
    assert sorted(faults(body)) == ["n_heads: must be a number, found True", "norm.eps: must be a number, found False"]


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"router": {"kind": "nope"}}, "router: kind 'nope' is not a choice of router (one of: "),
        ({"router": {"kind": "softmax_tpk"}}, "(did you mean 'softmax_topk'? "),
        ({"router": {"n_experts": 4}}, "router: has no 'kind' (one of: "),
        ({"router": 4}, "router: is 4, neither the name of a choice nor a mapping (one of: "),
        ({"cross": {"kind": "zzz"}}, "cross: kind 'zzz' is not a choice of attention (one of: "),
    ],
)
def test_an_axis_that_nothing_reads_must_still_name_a_kind_that_exists(extra: dict, fault: str) -> None:
    (found,) = faults(BODY | extra)
    assert fault in found


def test_a_list_is_no_kind_and_costs_one_line() -> None:
    (fault,) = faults("llama-tiny", "norm.kind=[1]")
    assert fault.startswith("norm: kind [1] is not a choice of norm (one of: ")


def test_an_axis_that_no_layer_of_a_tower_reads_must_name_a_kind_that_exists() -> None:
    (found,) = faults("t5-small", "+encoder.router={kind: nope}")
    assert found.startswith("encoder.router: kind 'nope' is not a choice of router")


def test_an_axis_that_nothing_reads_may_be_stated_to_be_swapped_in() -> None:
    idle = {"router": {"kind": "softmax_topk", "n_experts": 4}, "cross": None}
    assert load(BODY | idle) == load(BODY)


def test_true_in_a_kind_of_layer_is_told_where_it_stands() -> None:
    layers = ["layers.near={attention: {window: true}}", "pattern=[near,layer]"]
    assert faults("llama-tiny", *layers) == ["layers.near.attention.window: must be a number, found True"]


@pytest.mark.parametrize(
    ("extra", "fault"),
    [
        ({"pattern": ["${nope}"]}, "pattern[0]: Interpolation key 'nope' not found"),
        ({"about": {"seen": [{"in": ["${up:nope}"]}]}}, "nope: is missing (about.seen[0].in reads it"),
        ({"kind": "${nope}"}, "kind: Interpolation key 'nope' not found"),
        ({"layers": {"near": "${nope}"}, "pattern": ["near"]}, "layers.near: Interpolation key 'nope' not found"),
        ({"about": {"title": "${about.title}"}}, "about.title: Recursive interpolation detected"),
        ({"about": {"title": "${or:title}"}}, "about.title: ${or:title} cannot be read"),
    ],
)
def test_an_interpolation_in_a_list_that_leads_nowhere_is_a_fault_in_one_line(extra: dict, fault: str) -> None:
    (found,) = faults(BODY | extra)
    assert found.startswith(fault)


@pytest.mark.parametrize(
    "pair", ["${about.t%d}${about.t%d}", {"a": "${up:t%d}", "b": "${up:t%d}"}], ids=["text", "node"]
)
def test_interpolations_that_double_at_each_step_are_a_fault_in_one_line(pair: object) -> None:
    def name(node: object, step: int) -> object:
        return {k: each % step for k, each in node.items()} if isinstance(node, dict) else node % (step, step)  # type: ignore[operator]

    about = {f"t{step}": name(pair, step + 1) for step in range(40)} | {"t40": "x"}
    (fault,) = faults(BODY | {"about": about, "d_ff": "${about.t0}"})
    assert fault.endswith("leads through more than 100,000 interpolations (fewer)")


def test_the_depth_that_a_pattern_gives_is_read_as_it_is_written() -> None:
    spec = load(
        BODY
        | {"n_layers": 5, "layers": {"near": {"window": 4, "attention": "sliding"}}, "pattern": ["near*2", "layer"]}
    )
    assert spec.pattern == ("near", "near", "layer", "near", "near")


FIRST_USE = """
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from zoo.compose.targets import compose_model
from zoo.grammar import resolve, to_spec
nodes = [compose_model(name).cfg for name in ("llama-tiny", "gpt-tiny", "mixtral-tiny", "t5-small")]
sys.setswitchinterval(5e-5)
with ThreadPoolExecutor(8) as pool:
    print(len(list(pool.map(lambda index: to_spec(nodes[index % 4]), range(16)))))
"""


def test_threads_that_are_the_first_to_use_a_component_find_it_whole() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "16\n"), done.stderr


@pytest.mark.parametrize(
    ("text", "names", "literal"),
    [
        ("${up:a,b}", ["a", "b"], None),
        ("${or:a,7}", ["a"], "7"),
        ("${or:a,b,7}", ["a"], "b,7"),
        ("${or:a,{kind: x, y: 1}}", ["a"], "{kind: x, y: 1}"),
        ("${ or : a , [1, 2] }", ["a"], "[1, 2]"),
        ("${oc.env:a,7}", [], None),
        ("${a.b}", [], None),
        ("x ${up:a}", [], None),
    ],
)
def test_an_interpolation_is_split_as_it_is_followed(text: str, names: list[str], literal: str | None) -> None:
    assert split_interpolation(text) == (names, literal)
    if literal is not None:
        assert resolve({"in": {"key": text}})["in"]["key"] == read_literal(literal)
        assert resolve({"in": {"key": text}, "a": 5, "b": 6})["in"]["key"] == 5


def test_a_literal_of_one_model_is_not_changed_by_another() -> None:
    body = {**BODY, "head": "${or:no_such_head,{kind: lm, tied: false}}"}
    assert [to_spec({**body, "vocab_size": size}).head.vocab_size for size in (100, 200)] == [100, 200]


def test_what_is_kept_of_packaged_files_stays_as_it_was_read() -> None:
    calls = [(read_file, (axis, word)) for axis in BASES for word in sorted(list_files(axis))]
    calls += [(read_family, (name,)) for name in family_names()] + [(read_choices, (axis,)) for axis in list_axes()]
    calls += [(list_fields, (kind,)) for base in BASES.values() for kind in base.kinds.values()]
    calls += [(each, ()) for each in (list_slots, list_nodes, list_axes)]
    before = [repr(cached(*given)) for cached, given in calls]
    for name in ("llama-tiny", "mixtral-tiny", "deepseek-tiny", "t5-tiny", "qwen3-next-tiny"):
        load(name, ["vocab_size=77"])
    find_config(load("mixtral-tiny"))
    after = [repr(cached(*given)) for cached, given in calls]
    assert [call for call, *both in zip(calls, before, after, strict=True) if both[0] != both[1]] == []
