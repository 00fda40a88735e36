"""Faults of a user's file name its line, say what was found and what would do, and one cause is one line."""

import json
from pathlib import Path

import pytest
import yaml

from zoo import cli, compose
from zoo.compose.sources import StatedFile, locate_faults
from zoo.errors import ConfigError
from zoo.grammar.keys import BASES
from zoo.paths import conf_dir
from zoo.spec.faults import list_choices
from zoo.untrusted.yaml_file import list_lines

START = "defaults: [/model/llama-tiny@_here_]\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def faults(text: str, *overrides: str, name: str = "mine.yaml") -> list[str]:
    Path(name).write_text(text)
    with pytest.raises(ConfigError) as refused:
        compose.load(name, overrides)
    return refused.value.faults


def refused(capsys, *args: str) -> list[str]:
    assert cli.run(list(args)) == 2
    return [line.removeprefix("zoo: error: ") for line in capsys.readouterr().err.splitlines() if "error" in line]


# ---------------------------------------------------------------- lines


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("n_layers: six\n", "mine.yaml:2: n_layers: "),
        ("\n# a comment\nattention:\n  kind: mha\n  qk_nrom: true\n", "mine.yaml:6: attention.qk_nrom: "),
        ("attention: {qk_nrom: true}\n", "mine.yaml:2: attention.qk_nrom: "),
        ("norm:\n  kind: rmsnrom\n", "mine.yaml:2: norm: kind 'rmsnrom'"),
        ("layers:\n  far: {position: rop}\n", "mine.yaml:3: layers.far.position: no option 'rop'"),
        ("layers:\n  far:\n    windw: 3\npattern: [far]\n", "mine.yaml:4: layers.far.windw: "),
        ("pattern:\n- far\n", "mine.yaml:2: pattern: no layer is named 'far'"),
        ("kind: decodr\n", "mine.yaml:2: kind: 'decodr' is not a choice of topology"),
        ("about: {title: '${oc.env:HOME}'}\n", "mine.yaml:2: about.title: asks "),
        ("base: &base {qk_nrom: true}\nattention:\n  <<: *base\n", "mine.yaml:2: attention.qk_nrom: "),
    ],
)
def test_a_fault_names_the_line_of_its_key(text, place):
    assert any(fault.startswith(place) for fault in faults(START + text)), faults(START + text)


def test_a_fault_of_a_tower_names_the_line_of_its_key():
    text = "defaults: [/model/t5-small@_here_]\nencoder:\n  norm:\n    epss: 1\n"
    assert faults(text) == ["mine.yaml:4: encoder.norm.epss: norm 'rmsnorm' has no such field (did you mean 'eps'?)"]


def test_what_is_typed_is_named_as_it_was_typed():
    text = START + "attention: {qk_nrom: true}\nn_layers: six\n"
    typed = faults(text, "n_layers=seven")
    assert typed == [
        "n_layers: must be a whole number above 0, found 'seven'",
        "mine.yaml:2: attention.qk_nrom: attention 'gqa' has no such field (did you mean 'qk_norm'?)",
    ]
    assert faults(START + "n_heads: 7\n") == [
        "mine.yaml:2: attention: n_heads=7 is not a multiple of n_kv_heads=2 (n_kv_heads: 1, 7 would do)"
    ]
    (fault,) = faults(START + "attention: {softcap: 5}\n", "n_kv_heads=5")
    assert (
        fault.startswith("attention: n_heads=") and " is not a multiple of n_kv_heads=5 (n_kv_heads: 1, 2, 3, " in fault
    )


def test_the_lines_of_a_training_config_and_of_its_model_are_named(capsys):
    Path("run.yaml").write_text("steps: 3\nmodel:\n  attention: {qk_nrom: true}\noptim:\n  lrr: 1\n")
    Path("mine.yaml").write_text(START + "n_layers: 0\n")
    assert [line.split(": ")[:2] for line in refused(capsys, "train", "-c", "run.yaml")] == [
        ["run.yaml:5", "optim.lrr"],
        ["run.yaml:3", "model.attention.qk_nrom"],
    ]
    assert refused(capsys, "train", "mine.yaml", "n_heads=4") == [
        "mine.yaml:2: n_layers: must be a whole number above 0, found 0"
    ]


def test_the_lines_of_files_that_a_file_includes_are_named():
    Path("attention").mkdir()
    Path("attention/own.yaml").write_text("kind: gqa\nn_heads: 4\nqk_nrom: true\n")
    Path("base.yaml").write_text(START + "n_layers: 2\nrope_thta: 1\n")
    for text in ("defaults: [base, {override attention: own}]\nd_f: 3\n", "defaults: [base]\nd_f: 3\nattention: own\n"):
        places = [fault.split(": ")[0] for fault in faults(text)]
        assert places == ["base.yaml:3", "mine.yaml:2", "attention/own.yaml:3"]
    Path("round.yaml").write_text("defaults: [round]\nn_layers: 0\n")
    assert locate_faults(["n_layers: is 0"], [StatedFile(Path("round.yaml"), "round.yaml")]) == [
        "round.yaml:2: n_layers: is 0"
    ]


def test_a_fault_of_a_config_json_names_the_file_and_its_fields():
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 3}
    more = {"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", **sizes, **more}
    assert faults(json.dumps(config), name="config.json") == [
        "config.json: attention: n_heads=4 is not a multiple of n_kv_heads=3 "
        "(n_kv_heads: 1, 2, 4 would do) (num_attention_heads and num_key_value_heads of the file)"
    ]


def test_a_file_is_looked_at_again_only_for_a_fault(monkeypatch):
    Path("mine.yaml").write_text(START)
    monkeypatch.setattr("zoo.compose.sources.list_lines", lambda text: pytest.fail("read for nothing"))
    compose.load("mine.yaml")


def test_lines_are_those_that_an_editor_shows():
    text = "# é🦁\na:\n- b: 1\n-\n  c: {d: 2,\n      e: 3}\n'f g': 4\n"
    lines = {"a": 2, "a.0": 3, "a.0.b": 3, "a.1": 5, "a.1.c": 5, "a.1.c.d": 5, "a.1.c.e": 6, "f g": 7}
    assert list_lines(text) == lines
    for key, line in lines.items():
        assert key.rpartition(".")[2].strip("0123456789") in text.splitlines()[line - 1]


THEIRS = """\
defaults: [/model/gpt2@_here_]
hidden_size: 4096
n_layers: 2

tie_word_embeddings: true
position: rope
qk_norm: true
layers: {far: {position: {kind: rope, thta: 3}}}
pattern: [far]
"""


def test_the_page_shows_what_a_file_of_mistakes_is_told(capsys):
    Path("theirs.yaml").write_text(THEIRS)
    page = (Path(__file__).parents[2] / "docs/yaml.md").read_text(encoding="utf-8")
    shown = page.split("$ zoo stats theirs.yaml\n")[1].split("```")[0]
    assert cli.run(["stats", "theirs.yaml"]) == 2
    assert capsys.readouterr().err == shown


def test_a_file_that_is_gone_costs_no_fault_of_its_own():
    assert locate_faults(["a: b"], [StatedFile(Path("gone.yaml"), "gone.yaml")]) == ["a: b"]


# ---------------------------------------------------------------- one mistake, one line


def test_a_misspelt_key_is_not_called_missing_too():
    text = yaml.safe_dump(WHOLE).replace("n_heads:", "n_haeds:").replace("d_ff:", "d_f:").replace("d_model:", "d_modl:")
    assert sorted(fault.split(": ", 1)[1] for fault in faults(text)) == [
        "d_f: no such key (did you mean 'd_ff'?)",
        "d_modl: no such key (did you mean 'd_model'?)",
        "n_haeds: no such key (did you mean 'n_heads'?)",
    ]


def test_a_kind_of_layer_that_a_pattern_misspells_is_not_called_unused_too():
    text = START + "layers: {full: {position: none}}\npattern: {every: 2, is: ful}\n"
    assert faults(text) == ["mine.yaml:3: pattern: no layer is named 'ful' (did you mean 'full'?)"]


def test_what_an_attention_without_a_kind_would_read_is_not_judged():
    layers = {"layers": {"full": {"position": "none"}}, "pattern": ["full"]}
    (fault,) = faults(yaml.safe_dump(WHOLE | layers | {"attention": {"qk_norm": True}}))
    assert fault.startswith("mine.yaml:2: attention: has no 'kind' (one of: ")
    text = START + "layers: {full: {attention: {kind: gqqa}, position: none, windw: 3}}\npattern: [full]\n"
    stranger, fault = faults(text)
    assert stranger == "mine.yaml:2: layers.full.windw: no such key (did you mean 'window'?)"
    assert fault.startswith("mine.yaml:2: layers.full.attention: kind 'gqqa' is not a choice of attention")


def test_a_tower_in_a_model_of_one_is_told_the_kind_of_two():
    told = "no such key of a model with one tower (kind: encoder_decoder)"
    assert faults(START + "decoder: {n_layers: 2}\n") == [f"mine.yaml:2: decoder: {told}"]
    assert faults(START + "kind: encoderdecoder\ndecoder: {n_layers: 2}\n") == [
        "mine.yaml:2: kind: 'encoderdecoder' is not a choice of topology (did you mean 'encoder_decoder'? "
        "one of: decoder, encoder, encoder_decoder)"
    ]


def test_a_wrong_field_of_an_axis_that_no_layer_reads_is_refused():
    assert faults(START + "router: {groups: {cuont: 4}}\n") == [
        "mine.yaml:2: router.groups.cuont: no such field (did you mean 'count'?)"
    ]
    compose.load({"defaults": ["/model/llama-tiny@_here_"], "router": {"groups": {"count": 4}}})


def test_a_number_that_divides_no_other_is_named_in_its_own_line():
    text = START + "n_kv_heads: 4\nattention: {softcap: 5}\n"
    assert faults(text) == [
        "mine.yaml:2: attention: n_heads=6 is not a multiple of n_kv_heads=4 (n_kv_heads: 1, 2, 3, 6 would do)"
    ]
    text = START + "n_kv_heads: 4\nattention:\n  softcap: 5\n  n_kv_heads: 5\n"
    assert faults(text) == [
        "mine.yaml:5: attention: n_heads=6 is not a multiple of n_kv_heads=5 (n_kv_heads: 1, 2, 3, 6 would do)"
    ]


def test_a_list_of_factors_of_a_wrong_length_is_named_where_it_stands():
    scaling = "{kind: longrope, short_factor: [1, 1], long_factor: [1, 1], original_max_seq_len: 9, max_seq_len: 90}"
    assert faults(START + f"position:\n  kind: rope\n  scaling: {scaling}\n") == [
        f"mine.yaml:4: position.scaling.{name}: has 2 numbers, and 32 rotated channels have 16 pairs (one for each)"
        for name in ("short_factor", "long_factor")
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\n  b: 2\n", "2: not YAML, line 2 is indented further than line 1"),
        ("a:\n  b: 2\n    # no key\n    c: 3\n", "4: not YAML, line 4 is indented further than line 2"),
        ("- a: 1\n# a note\n  b: 2\n    c: 3\n", "4: not YAML, line 4 is indented further than line 3"),
        ("a:\n    b: 1\n  c: 2\n", "3: not YAML, line 3 is indented less than line 2"),
        ("a: 1\nb:2\nc: 3\n", "2: not YAML, 'b:2' is no key and value (a space after the colon)"),
        ("a: b: c\n", "1: not YAML, a second ': ' in one line (quotes around a text that has one)"),
        ("a:\n\tb: 1\n", "2: not YAML, line 2 is indented with a tab (spaces would do)"),
        ("a: b\nc: [1, 2\nd: e\n", "3:2: not YAML, expected ',' or ']', but got ':'"),
    ],
)
def test_a_wrong_layout_is_told_by_the_lines_of_an_editor(text, fault):
    (told,) = faults(text)
    assert told.startswith(f"mine.yaml:{fault}")


# ---------------------------------------------------------------- other libraries' names


def test_other_libraries_names_are_told_with_ours_and_the_value():
    text = START.replace("llama-tiny", "gpt2") + "hidden_size: 64\ntie_word_embeddings: true\nrms_norm_eps: 1.0e-6\n"
    assert faults(text) == [
        "mine.yaml:2: hidden_size: no such key (d_model is Zoo's name for it: d_model: 64)",
        "mine.yaml:3: tie_word_embeddings: no such key (Zoo writes head: {kind: lm, tied: true})",
        "mine.yaml:4: rms_norm_eps: no such key (norm_eps is Zoo's name for it: norm_eps: 1.0e-06)",
    ]
    assert faults(START + "attention: {num_heads: 8}\n") == [
        "mine.yaml:2: attention.num_heads: attention 'gqa' has no such field (n_heads is Zoo's name for it: n_heads: 8)"
    ]
    (fault,) = faults(START.replace("llama", "mixtral") + "ffn: {num_experts: 8}\n")
    assert fault.endswith("no such field (n_experts is Zoo's name for it, at the model's top level: n_experts: 8)")
    (fault,) = faults(START + "head: {tie_word_embeddings: true}\n")
    assert fault.endswith("(tied is Zoo's name for it: tied: true)")
    assert faults(START, "hidden_size=3") == ["hidden_size: unknown key (d_model is Zoo's name for it: d_model=3)"]


def test_a_dimension_under_another_name_is_not_called_missing_too():
    Path("whole.yaml").write_text(yaml.safe_dump(WHOLE))
    text = (
        Path("whole.yaml").read_text().replace("d_model:", "hidden_size:").replace("n_heads:", "num_attention_heads:")
    )
    assert sorted(fault.split(": ")[1] for fault in faults(text)) == ["hidden_size", "num_attention_heads"]


WHOLE = {
    **{"attention": "gqa", "position": "rope", "norm": "rmsnorm", "block": "pre", "ffn": "gated", "activation": "silu"},
    **{"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 4, "head_dim": 8, "d_ff": 64, "max_seq_len": 32},
}


# ---------------------------------------------------------------- few words


def test_a_field_at_the_top_level_is_told_with_its_place_and_value():
    assert faults(START + "qk_norm: true\n") == [
        "mine.yaml:2: qk_norm: no such key of a model; attention 'gqa' has it "
        "(attention: {kind: gqa, qk_norm: true}, or attention.qk_norm=true)"
    ]


def test_a_wrong_field_tells_some_and_how_to_see_the_others(monkeypatch):
    monkeypatch.setattr("zoo.spec.faults.SHOWN", 8)
    (fault,) = faults(START + "attention: {zzz: 1}\n")
    assert fault.startswith(
        "mine.yaml:2: attention.zzz: attention 'gqa' has no such field (it has: n_heads, position, "
    )
    assert fault.endswith(" more: zoo list --axis attention gqa)") and fault.count(",") < 17
    (fault,) = faults(START + "norm: {zzz: 1}\n")
    assert fault.endswith(
        "norm 'rmsnorm' has no such field (it has: eps, weight, bias, unit_offset, heads, weight_first)"
    )


@pytest.mark.parametrize(
    ("axis", "word", "names"),
    [
        ("norm", "rmsnrom", ["rmsnorm", "rmsnorm_offset", "layernorm_plain"]),
        ("activation", "gelu_tan", ["gelu_tanh", "gelu", "gelu_clipped"]),
        ("position", "rope_yarm", ["rope_yarn", "rope", "rope_llama3"]),
        ("attention", "slidin", ["sliding"]),
    ],
)
def test_what_would_do_names_every_choice_that_a_word_may_be(axis, word, names):
    (fault,) = faults(START + f"{axis}: {{kind: {word}}}\n")
    assert f"(did you mean '{names[0]}'? one of: " in fault and fault.count(",") < 16
    assert all(name in fault.split(" one of: ")[1] for name in names)
    assert {file.stem for file in (conf_dir() / axis).glob("*.yaml")} == set(list_choices(BASES[axis]))


def test_a_missing_width_of_heads_is_told_with_the_usual_one():
    text = yaml.safe_dump({key: value for key, value in WHOLE.items() if key != "head_dim"})
    assert faults(text) == [
        "mine.yaml: head_dim: is missing (attention reads it; state it at the model's top level: head_dim: 8, "
        "which is d_model / n_heads, or head_dim=8)"
    ]
    compose.load("mine.yaml", ["head_dim=8"])


def test_one_missing_dimension_is_one_line_whatever_number_of_parts_read_it():
    layers = {"a": {"attention": "gated_delta"}, "b": {"attention": "mha"}}
    there = {key: value for key, value in WHOLE.items() if key not in ("n_heads", "head_dim")}
    text = yaml.safe_dump({**there, "layers": layers, "pattern": ["a", "b", "layer"]})
    told = [f"mine.yaml: {name}: is missing" for name in ("n_heads", "head_dim")]
    assert [fault.split(" (")[0] for fault in faults(text)] == told
    layers = {name: {"attention": {"n_heads": "${up:nope}"}} for name in "ab"}
    assert faults(yaml.safe_dump({**WHOLE, "layers": layers, "pattern": ["a", "b"]})) == [
        "mine.yaml:9: layers.a: nope: is missing (attention reads it; state it at the model's top level); "
        "so in layers.b"
    ]
    read = {name: {"read": "${up:nope}"} for name in "abcde"}
    assert faults(yaml.safe_dump(WHOLE | {"about": read})) == [
        "mine.yaml: nope: is missing (about.a, about.b and 3 more read it; state it at the model's top level)"
    ]


# ---------------------------------------------------------------- hybrids and towers

PLAIN = """d_model: 64
n_layers: 4
n_heads: 4
head_dim: 16
d_ff: 256
attention: mha
"""
SHARED = """vocab_size: 100
max_seq_len: 128
position: rope
block: pre
norm: rmsnorm
ffn: gated
activation: silu
"""
HYBRID = f"""{SHARED}{PLAIN}
layers:
  full: {{attention: mha}}
  linear: {{attention: retention}}
pattern: {{every: 4, is: full, else: linear}}
"""


def test_a_field_of_a_choice_that_every_kind_of_layer_replaces_is_refused_with_the_kinds_that_have_it():
    overruled = "no layer reads it, as each kind of layer states its own attention"
    assert faults(HYBRID, "attention.window=16") == [f"attention.window: {overruled} (layers.full.attention.window)"]
    recurrent = HYBRID.replace("full: {attention: mha}", "full: {attention: retention}")
    assert faults(recurrent, "attention.window=16") == [f"attention.window: {overruled} (leave it out)"]
    Path("mine.yaml").write_text(HYBRID)
    windowed = compose.load("mine.yaml", ["layers.full.attention.window=16"])
    assert {name: getattr(block.attention, "window", None) for name, block in windowed.blocks.items()} == {
        "full": 16,
        "linear": None,
    }
    assert (
        compose.load("mine.yaml", ["pattern=[layer,full,linear]", "attention.window=16"])
        .blocks["layer"]
        .attention.window
        == 16
    )


def test_a_field_is_offered_where_a_layer_reads_it():
    (fault,) = faults(HYBRID, "qk_norm=rmsnorm")
    assert fault == (
        "qk_norm: no such key of a model; layers.full.attention 'mha' has it (layers.full.attention.qk_norm=rmsnorm)"
    )


def test_a_position_that_no_layer_reads_is_noted(capsys):
    Path("mine.yaml").write_text(HYBRID)
    nope = ["layers.full.position=none", "layers.linear.position=none"]
    assert cli.run(["stats", "mine.yaml", *nope]) == 0
    note = "position: no layer reads rope, as each that has positions states none (position: none would do)"
    assert note in capsys.readouterr().err
    assert cli.run(["stats", "mine.yaml", nope[0]]) == 0
    assert "no layer reads" not in capsys.readouterr().err


def test_towers_may_state_all_that_the_models_own_keys_lack():
    tower = yaml.safe_load(PLAIN)
    whole = {"kind": "encoder_decoder", "cross": "mha", **yaml.safe_load(SHARED)}
    apart = compose.load({**whole, "encoder": tower, "decoder": tower})
    assert apart == compose.load({**whole, **tower})
    assert any("n_heads: is missing" in fault for fault in faults(yaml.safe_dump({**whole, "encoder": tower})))


def test_an_encoder_decoder_without_towers_is_told_where_their_keys_stand():
    found = faults("kind: encoder_decoder\nvocab_size: 100\n")
    assert found[-1] == (
        "encoder and decoder: nothing is stated there beside the model's own keys "
        "(what both towers have at the top level, what differs under encoder and decoder)"
    )
