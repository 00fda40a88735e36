"""A key that a model does not have is answered with what works: pasted into the file, or onto the command line."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from zoo import compose
from zoo.errors import ConfigError
from zoo.grammar.keys import KNOWN
from zoo.spec.foreign import FOREIGN, FORMS, INNER

OWN = {
    **{"vocab_size": 300, "d_model": 64, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "d_ff": 96},
    **{"max_seq_len": 256, "norm": "layernorm", "activation": "gelu", "ffn": "mlp", "attention": "gqa"},
    **{"position": {"kind": "rope", "theta": 1000000}, "head": {"kind": "lm", "tied": True}, "block": "pre"},
}
"""A file that starts from no packaged model and states its choices as words and as mappings."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(model: dict, name: str = "mine.yaml") -> str:
    Path(name).write_text(yaml.safe_dump(model, sort_keys=False))
    return name


def refused(model: dict, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as found:
        compose.load(write(model), overrides)
    return [re.sub(r"^mine\.yaml(:\d+)?: ", "", fault) for fault in found.value.faults]


def flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


# ---------------------------------------------------------------- every name, pasted back


SCALED = {"factor": 4.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VALUES: dict[str, object] = {
    **{name: {"rope_type": name.partition("=")[2], **SCALED} for name in FORMS if re.match("rope_(sc|par).*=", name)},
    **{"rope_parameters=default": {"rope_type": "default", "rope_theta": 5000.0}},
    **{"rotary_dim=share": 0.25, "topk_method": "noaux_tc", "hidden_act": "gelu_new", "hidden_activation": "swish"},
    **{
        "activation_function": "relu",
        "norm_class_name": "rms_norm",
        "normalization": "rms",
        "mlp_class_name": "swiglu",
    },
    **{"softcap": 50, "values": {"head_dim": 8}, "around_ffn": {"out_norm": True}, "tied": False, "unit_offset": True},
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct", "rotary_percentage", "rotary_emb_fraction"), 0.5),
    **dict.fromkeys(("norm_topk_prob", "mlp_bias", "qk_norm"), True),
    **{name: True for name, form in FORMS.items() if re.search(r"(unit_offset|gate|qk_norm|shared): \$}", form)},
    **{name: True for name, ours in FOREIGN.items() if ours == "bias"},
    **{name: 1 for name, ours in FOREIGN.items() if ours == "n_kv_heads"},
    **{name: False for name, form in FORMS.items() if re.search(r"tied: \$}|not", form)},
}
"""Stated values; 2 for other names."""

UNREAD = ("rope_scaling=default", "n_experts", "top_k", "router_scale", "normalize_top_k", "window")
"""Names whose form leaves this model as it is: what it says already, or a dimension that no choice of it reads."""

VALUE_FORMS = ("bias=qkv", "bias=o", "rotary_dim=share")
"""Values of a key that a model has, so that an override of it reaches the Spec."""

MIXTURE = {**OWN, "ffn": "moe", "router": "sparsemixer", "n_experts": 4}
GROUPS = {"n_group": 2, "topk_group": 1}

THEIRS = {
    **{ours: name for name, ours in FOREIGN.items() if ours in KNOWN and name not in FORMS},
    **{form: name for name, form in FORMS.items()},
}
"""One name for each form, and for each key of ours."""

FIELDS = ["qk_norm", "softcap", "values", "around_ffn", "tied", "unit_offset"]


@pytest.mark.filterwarnings("ignore:.*leaves out")
@pytest.mark.parametrize("name", [*THEIRS.values(), *FIELDS])
def test_what_a_line_tells_to_write_works_in_the_file_and_on_the_command_line(name):
    key, _, tag = name.partition("=")
    value = VALUES.get(name, yaml.safe_load(tag) if tag else 2)
    others = GROUPS if FORMS.get(name) == FORMS["n_group"] else {}
    model = MIXTURE if others or key == "scoring_func" else OWN
    (line,) = (each for each in refused({**model, **others, key: value}) if each.startswith(f"{key}: "))
    told = re.search(r" \((?:Zoo writes |[\w.]+ is Zoo's name for it: )?(.*?)(, or .*)?\)$", line)
    assert told is not None, line
    pasted = {axis: node for form in told[1].split("; ") for axis, node in yaml.safe_load(form).items()}
    spec = compose.load(write({**model, **pasted}))
    unread = FOREIGN.get(name, name) in UNREAD
    assert unread or name == "rotary_pos_emb=true" or spec != compose.load(model)  # which OWN has already
    assert spec.head.tied or value is False, "what the file says of the node stays"
    if unread or others or name in VALUE_FORMS:  # the command line refuses what nothing reads
        return
    (typed,) = refused(model, f"{key}={flow(value)}")
    overrides = re.sub(r"^.*?\((Zoo writes |.*name for it: )?", "", typed).removesuffix(")")
    assert compose.load(write(model), shlex.split(overrides)) == spec


def test_their_names_are_none_of_ours():
    assert set(FOREIGN.values()) <= KNOWN | INNER
    assert not {*FOREIGN, *FORMS} & (KNOWN - {"shared_expert"})  # which within a mixture is `shared`


# ---------------------------------------------------------------- what the file has


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        (
            {"qk_norm": True},
            "attention 'gqa' has it (attention: {kind: gqa, qk_norm: true}, or attention.qk_norm=true)",
        ),
        (
            {"attention": {"kind": "mha", "window": 64}, "softcap": 50},
            "attention 'mha' has it (attention: {kind: mha, window: 64, softcap: 50}, or attention.softcap=50)",
        ),
        ({"final_logit_softcapping": 30}, "(Zoo writes head: {kind: lm, tied: true, softcap: 30})"),
        ({"partial_rotary_factor": 0.25}, "(Zoo writes position: {kind: rope, theta: 1000000, rotary_dim: 4})"),
        ({"n_group": 8, "topk_group": 3}, "(Zoo writes router: {kind: sigmoid_topk, groups: {count: 8, open: 3}})"),
        ({"n_shared_experts": 2}, "(Zoo writes ffn: {kind: moe, shared: {kind: gated, d_ff: 192}})"),
        ({"n_shared_experts": 0}, "no such key (leave it out)"),
        ({"alibi": False}, "no such key (leave it out)"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "(activation is Zoo's name for it: activation: gelu_tanh)"),
        ({"hidden_act": "no_such"}, "(activation is Zoo's name for it)"),
        ({"query_pre_attn_scalar": 256}, "(Zoo writes attention: {kind: gqa, scale: 0.0625})"),
        ({"bias": "qkv"}, "must be true or false, found 'qkv' (Zoo writes attention: {kind: gqa, bias: qkv})"),
        ({"rotary_dim": 0.25}, "must be a whole number, found 0.25 (Zoo writes rotary_dim: 4)"),
        ({"embedding": {"scale": True}}, "must be a finite number or sqrt_d_model, found True (null would do)"),
        (
            {"ffn": {"kind": "moe", "d_ff": 48}},
            "ffn 'moe' has no such field; expert has it (ffn: {kind: moe, expert: {d_ff: 48}})",
        ),
        (
            {"ffn": {"kind": "moe_clamped", "limit": 3.0}},
            "expert has it (ffn: {kind: moe, expert: {kind: gated_clamped, limit: 3.0}})",
        ),
        (
            {"ffn": {"kind": "moe", "n_experts": 8}},
            "ffn 'moe' has no such field (at the model's top level: n_experts: 8)",
        ),
    ],
)
def test_a_line_keeps_what_the_file_has_and_computes_what_it_can(stated, line):
    assert refused({**OWN, **stated})[0].endswith(line)


def test_a_field_and_another_choice_of_one_node_are_told_as_one_node_to_write():
    lines = refused({**OWN, "qk_norm": True, "sliding_window": 128})
    assert all("attention: {kind: gqa, qk_norm: true, window: 128}" in line for line in lines), lines


def test_two_fields_of_one_node_are_told_as_one_node_to_write():
    lines = refused({**OWN, "qk_norm": True, "softcap": 50})
    assert len(lines) == 2
    assert all("(attention: {kind: gqa, qk_norm: true, softcap: 50}, or " in line for line in lines)


def test_a_field_that_only_a_kind_of_layer_has_is_told_with_its_place():
    hybrid = {**OWN, "attention": "gated_delta", "layers": {"full": {"attention": "gqa"}}}
    (line,) = refused({**hybrid, "pattern": {"every": 3, "is": "full"}, "qk_norm": True})
    assert line.endswith(
        "layers.full.attention 'gqa' has it (layers: {full: {attention: {kind: gqa, qk_norm: true}}}, "
        "or layers.full.attention.qk_norm=true)"
    )


def test_a_key_that_a_stated_field_replaces_is_told_with_that_field():
    (line,) = refused({**OWN, "ffn": {"kind": "moe", "shared": "gated"}}, "shared_expert=true")
    assert line == (
        "shared_expert: nothing in this model reads it, as ffn.shared is stated in its place "
        "(set that, or leave shared_expert out)"
    )


def test_a_character_that_a_command_line_may_not_hold_is_told_without_a_python_name():
    (line,) = refused(OWN, "attention.qk_norm=…")
    assert "a character that has no place there" in line and "Exception" not in line


# ---------------------------------------------------------------- where a file starts


STARTS = [
    *({key: "llama-tiny"} for key in ("model", "base", "like")),
    *({"defaults": [entry]} for entry in ("llama-tiny", "/model/llama-tiny", {"/model": "llama-tiny"})),
]


@pytest.mark.parametrize("stated", STARTS, ids=flow)
def test_a_file_that_names_its_model_otherwise_is_told_in_one_line_how_to(stated):
    (line,) = refused({**stated, "n_layers": 1})
    form = re.search(r"\((.*) starts from it\)$", line)
    assert form is not None
    assert compose.load(write({**yaml.safe_load(form[1]), "n_layers": 1})).n_layers == 1


@pytest.mark.parametrize("stated", [{"steps": 3}, {"model": {"n_layers": 1}}, {"model": "llama-tiny", "optim": {}}])
def test_a_training_config_is_told_to_be_one_with_its_command(stated):
    (line,) = refused(stated)
    assert line.startswith("is a training config: it has ") and "(zoo train -c mine.yaml; " in line


def test_a_file_beside_that_has_the_name_of_a_packaged_model_is_what_defaults_means():
    write({**OWN, "n_layers": 3}, "llama-tiny.yaml")
    assert compose.load(write({"defaults": ["llama-tiny"], "n_heads": 2})).n_layers == 3


# ---------------------------------------------------------------- one mistake, one line


@pytest.mark.parametrize(
    ("stated", "line"),
    [
        ({"d_model": None, "d_modle": 64}, "d_modle: no such key (did you mean 'd_model'?)"),
        (
            {"layers": {"local": {"attention": "sliding"}}, "pattern": ["locla"]},
            "pattern: no layer is named 'locla' (did you mean 'local'?)",
        ),
        (
            {"kind": "encoderdecoder", "decoder": {"n_layers": 2}},
            "kind: 'encoderdecoder' is not a choice of topology",
        ),
        ({"head_dim": None}, "head_dim: is missing (attention reads it; "),
    ],
)
def test_a_mistake_costs_one_line_and_what_follows_from_it_none(stated, line):
    model = {key: value for key, value in {**OWN, **stated}.items() if value is not None}
    (told,) = refused(model)
    assert told.startswith(line)
