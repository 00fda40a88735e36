"""The plain dialect: a choice is a word, a mapping, or only the fields that differ, wherever a component may stand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import yaml

from zoo.cli import run
from zoo.compose import load
from zoo.compose.targets import Composer, compose_model, list_packaged, spec_of_composed, to_plain_yaml
from zoo.errors import ConfigError
from zoo.grammar.contract import contract
from zoo.grammar.dialect import expand, list_fields, list_slots
from zoo.grammar.keys import BASES
from zoo.paths import conf_dir

pytestmark = pytest.mark.quick


def spec(*overrides: str, target: object = "llama-tiny") -> object:
    return load(target, list(overrides))  # type: ignore[arg-type]


def test_a_word_a_mapping_and_the_fields_that_differ_mean_the_same() -> None:
    word = spec("attention.qk_norm=rmsnorm")
    assert word.blocks["layer"].attention.qk_norm.norm.eps == 1e-5  # the model's norm_eps
    for form in ("{kind: rmsnorm}", "{eps: 1e-5}", "true", "{kind: rmsnorm, eps: 1e-5}"):
        assert spec(f"attention.qk_norm={form}") == word
        assert spec(f"attention={{qk_norm: {form}}}") == word
    other = spec("attention.qk_norm={kind: layernorm, bias: false}")
    assert other.blocks["layer"].attention.qk_norm.norm.kind == "layernorm"
    assert spec("attention.qk_norm=false") == spec()


def test_a_file_means_the_same_however_often_a_process_reads_files(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [/model/qwen3-next-tiny@_here_]\nattention: {qk_norm: {norm: affine}}\nnorm: layernorm\n"
    )
    found = [spec(target=tmp_path / "mine.yaml") for _ in range(3)]
    assert found[0] == found[1] == found[2]
    assert found[0].blocks["full"].attention.qk_norm.norm.kind == "affine"


def test_a_swap_leaves_out_a_value_that_the_new_choices_field_does_not_take() -> None:
    for model, field in (("qwen2.5-0.5b", "bias"), ("glm-4.5-air", "qk_norm")):
        with pytest.warns(UserWarning, match=rf"attention=cca: leaves out .*{field}"):
            assert spec("attention=cca", target=model) is not None


def test_a_word_and_a_mapping_of_cross_mean_the_same() -> None:
    assert spec("cross={kind: mha}", target="t5-tiny") == spec("cross=mha", target="t5-tiny") == spec(target="t5-tiny")


def test_a_number_in_quotes_is_one_for_the_whole_model() -> None:
    assert spec("vocab_size='320'") == spec("vocab_size=320")


@pytest.mark.parametrize(
    ("word", "ours"),
    [("activation=swish", "silu"), ("ffn=swiglu", "gated"), ("position=rotary", "rope"), ("norm=rms_norm", "rmsnorm")],
)
def test_another_librarys_choice_is_told_by_ours(word: str, ours: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{ours}'"):
        spec(word)


@pytest.mark.parametrize(
    ("axis", "least", "names"),
    [
        pytest.param("attention", 15, {"mha", "sliding"}, marks=pytest.mark.slow),
        ("position", 8, {"rope_yarn"}),
        ("norm", 4, {"rmsnorm"}),
        ("ffn", 3, {"moe"}),
        ("activation", 15, {"gelu_tanh"}),
    ],
)
def test_a_kind_takes_the_name_of_every_listed_choice(axis: str, least: int, names: set[str]) -> None:
    compared = set()
    for file in (conf_dir() / axis).glob("*.yaml"):
        sizes = ["n_experts=4", "top_k=2"] if "moe" in file.stem else []
        try:
            word = spec(f"{axis}={file.stem}", *sizes)
        except (ConfigError, UserWarning):
            continue  # one that needs another model, or that leaves something out
        assert spec(f"{axis}={{kind: {file.stem}}}", *sizes) == word
        compared.add(file.stem)
    assert len(compared) >= least and names <= compared


FILES = {
    "a file whose choices have fields": (
        "defaults: [/model/llama-tiny@_here_]\nattention: {kind: mha, softcap: 50}\n"
        "norm: {kind: layernorm, bias: false}\n",
        ["attention=mha", "attention.softcap=50", "norm=layernorm", "norm.bias=false"],
    ),
    "fields alone": ("defaults: [/model/llama-tiny@_here_]\nattention: {softcap: 50}\n", ["attention.softcap=50"]),
    "words inside of a choice": (
        "defaults: [/model/llama-tiny@_here_]\nffn: {kind: moe, shared: gated, expert: mlp}\nn_experts: 4\ntop_k: 2\n",
        ["ffn=moe", "n_experts=4", "top_k=2", "ffn.shared=gated", "ffn.expert=mlp"],
    ),
    "a layer's word": (
        "defaults: [/model/llama-tiny@_here_]\nlayers: {full: {position: none}}\npattern: [layer*3, full]\n",
        ["+layers={full: {position: {kind: none}}}", "+pattern=[layer*3,full]"],
    ),
    "a layer's choice with a field": (
        "defaults: [/model/llama-tiny@_here_]\nlayers: {near: {attention: {kind: sliding, window: 8}}}\n"
        "pattern: [near, layer]\n",
        ["+layers={near: {attention: {window: 8}}}", "+pattern=[near,layer]"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_and_the_command_line_speak_one_dialect(name: str, tmp_path: Path) -> None:
    text, overrides = FILES[name]
    (tmp_path / "mine.yaml").write_text(text)
    assert load(tmp_path / "mine.yaml") == spec(*overrides)
    body = yaml.safe_load(text)
    assert load(body) == spec(*overrides)


def test_a_training_config_speaks_it_too(tmp_path: Path, capsys) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: {attention: {kind: mha, softcap: 50}, norm: layernorm}\n")
    assert run(["train", "-c", str(file), "--cfg", "job"]) == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["attention"]["n_kv_heads"] == "${up:n_heads}" and model["attention"]["softcap"] == 50
    assert model["norm"]["kind"] == "layernorm"


def test_a_components_component_takes_its_dimensions_from_around() -> None:
    made = spec("ffn={kind: moe, shared: {kind: gated, d_ff: 96}, expert: gated}", "n_experts=4", "top_k=2")
    ffn = made.blocks["layer"].ffn
    assert (ffn.shared.expert.d_ff, ffn.shared.expert.activation.kind, ffn.expert.d_ff) == (96, "silu", 512)


LAYERS = "defaults: [/model/llama-tiny@_here_]\nlayers: {near: {attention: {window: 8}}, far: {position: none}}\n"


@pytest.mark.parametrize("word", ["linear", "dynamic", "yarn", "llama3"])
def test_a_scaling_of_positions_takes_its_numbers_from_around(word: str) -> None:
    around = ["rope_factor=3.0", *(["original_max_seq_len=64"] if word != "linear" else [])]
    assert spec(f"position.scaling={word}", *around) == spec(f"position=rope_{word}", *around)
    with pytest.raises(ConfigError, match="rope_factor: is missing"):
        spec(f"position.scaling={word}", *around[1:])


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("{every: 3, is: far, else: near}", ["near*2", "far"]),
        ("[near*2, far]", ["near*2", "far"]),
    ],
)
def test_a_pattern_is_a_list_or_a_rule(rule: str, names: list[str]) -> None:
    made = load(yaml.safe_load(f"{LAYERS}pattern: {rule}\nn_layers: 6\n"))
    assert made == load(yaml.safe_load(LAYERS) | {"pattern": names, "n_layers": 6})
    assert made.pattern == ("near", "near", "far") * 2


def test_a_kind_of_layer_may_be_like_another() -> None:
    text = "layers: {near: {attention: {window: 8}, position: none}, wide: {like: near, attention: {softcap: 9}}}\n"
    made = load(yaml.safe_load(f"defaults: [/model/llama-tiny@_here_]\n{text}pattern: [near, wide]\n"))
    near, wide = made.blocks["near"].attention, made.blocks["wide"].attention
    assert (near.window, near.softcap, near.position.kind) == (8, None, "none")
    assert (wide.window, wide.softcap, wide.position.kind) == (8, 9, "none")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("pattern: {every: 1, is: far, else: near}", "pattern.every: must be a whole number from 2 up, found 1"),
        ("pattern: {every: 3}", "pattern.is: must name a kind of layer, found None"),
        ("pattern: {evry: 3, is: far, else: near}", "pattern.evry: no such key (did you mean 'every'?)"),
        ("pattern: {every: 2, is: fra, else: near}", "pattern: no layer is named 'fra' (did you mean 'far'?)"),
        ("layers: {near: {like: nar}}", "layers.near.like: no kind of layer is named 'nar' (did you mean 'near'?)"),
        (
            "layers: {near: {like: [far]}, far: {}}",
            "layers.near.like: no kind of layer is named ['far'] (did you mean 'far'?)",
        ),
        ("layers: {near: {like: far}, far: {like: near}}", "layers.far.like: leads back to where it starts"),
    ],
)
def test_a_faulty_rule_or_likeness_is_told_with_what_would_do(text: str, fault: str) -> None:
    body = yaml.safe_load(LAYERS)
    body.update(yaml.safe_load(text))
    with pytest.raises(ConfigError) as error:
        load(body)
    assert fault in "\n".join(error.value.faults)


def test_expanding_twice_changes_nothing() -> None:
    from omegaconf import OmegaConf

    for name in random.Random(0).sample(list_packaged(), 12):
        body = OmegaConf.to_container(compose_model(name).cfg, resolve=False)
        once = expand(body)
        assert expand(once) == once


def test_every_slot_of_a_model_is_found() -> None:
    assert BASES.items() <= list_slots().items()
    assert {"embedding", "head", "pooler"} <= list_slots().keys()
    gqa = BASES["attention"].kinds["gqa"]
    assert {
        "position",
        "qk_norm",
        "values",
        "out_norm",
        "indexer",
        "tempering",
        "clip",
        "gate",
        "short_conv",
    } == list_fields(gqa).keys()


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ["qk_norm=true"],
            "qk_norm: no such key of a model; attention 'gqa' has it (attention.qk_norm=true)",
        ),
        (["attention.qk_norm=rmsnrm"], "attention.qk_norm: is 'rmsnrm', no choice of norm (did you mean 'rmsnorm'? "),
        (["attention.qk_norm=3"], "attention.qk_norm: is 3, neither the name of a choice nor a mapping (one of: "),
    ],
)
def test_what_is_no_choice_is_refused_with_the_form_that_works(overrides: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec(*overrides)
    assert error.value.faults[0].startswith(fault)


def test_every_packaged_model_can_be_written_in_the_plain_dialect() -> None:
    for name in random.Random(2).sample(list_packaged(), 15):
        plain = yaml.safe_load(to_plain_yaml(compose_model(name).cfg))
        assert "${" not in str(plain)
        assert load(plain) == load(name), name


def test_the_plain_form_of_a_familys_config_leaves_out_what_is_usual(tmp_path: Path, capsys) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    more = {"vocab_size": 100, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    config = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 16, **sizes, **more}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert run(["stats", str(tmp_path / "config.json"), "--cfg", "plain"]) == 0
    plain = yaml.safe_load(capsys.readouterr().out)
    assert plain["attention"] == {"kind": "gqa", "window": 16}
    assert (plain["position"], plain["block"], plain["ffn"]) == ("rope", "pre", "gated")
    assert load(plain) == load(tmp_path / "config.json")
    with_bias = {**plain, "bias": True, "attention": {"kind": "gqa", "bias": False}}
    assert contract(with_bias)["attention"] == {"kind": "gqa", "bias": False}  # which the model's own would change


def test_a_head_for_masks_is_berts_unless_it_says_otherwise() -> None:
    body = yaml.safe_load(to_plain_yaml(compose_model("bert-tiny").cfg))
    assert load(body | {"head": "mlm"}).head == load("bert-tiny").head
    assert load(body | {"head": {"kind": "mlm", "activation": "relu"}}).head.activation.kind == "relu"


def test_the_plain_form_of_a_swapped_model_is_what_one_would_write(capsys) -> None:
    overrides = ["attention={kind: mha, qk_norm: rmsnorm}", "layers={full: {position: none}}", "pattern=[layer,full]"]
    assert run(["stats", "llama-tiny", *overrides, "--cfg", "plain"]) == 0
    plain = yaml.safe_load(capsys.readouterr().out)
    assert plain["attention"]["kind"] == "mha" and plain["norm"] == "rmsnorm"
    assert plain["layers"] == {"full": {"position": "none"}}
    assert load(plain) == spec(*overrides)


@pytest.mark.parametrize(
    ("body", "overrides", "kept"),
    [
        ("", [], {"title", "params", "source", "note"}),
        ("n_layers: 6", [], None),
        ("n_layers: 6\nabout: {title: Mine}", [], {"title"}),
        ("about: {title: Mine, params: 5}", ["n_layers=6"], {"title"}),
    ],
)
def test_the_plain_form_of_a_changed_model_says_nothing_of_the_one_it_started_from(
    body, overrides, kept, tmp_path, capsys
) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults: [/model/llama-tiny@_here_]\n{body}\n", encoding="utf-8")
    assert run(["stats", str(tmp_path / "mine.yaml"), *overrides, "--cfg", "plain"]) == 0
    about = yaml.safe_load(capsys.readouterr().out).get("about")
    assert (about and set(about)) == kept


HYBRID = """\
vocab_size: 1000
d_model: 64
n_layers: 4
n_heads: 4
n_kv_heads: 2
head_dim: 16
d_ff: 64
n_experts: 4
top_k: 2
max_seq_len: 64
attention: gated_delta
position: none
norm: rmsnorm
block: sandwich
ffn: {kind: moe, shared: gated}
router: softmax_topk
activation: silu
head: lm
layers: {full: {attention: {kind: gqa, qk_norm: true}}}
pattern: [layer*3, full]
"""


def test_overrides_over_words_mappings_and_lists_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(HYBRID)

    def made(*overrides: str) -> object:
        return load(tmp_path / "mine.yaml", list(overrides))

    plain = made()
    assert made("layers.full.attention=gqa") == plain  # its own choice: nothing is lost
    assert made("router=sigmoid_topk").blocks["full"].ffn.router.kind == "sigmoid_topk"
    assert made("head.tied=true").head.tied and not plain.head.tied
    assert made("pattern={every: 2, is: full}").pattern == ("layer", "full") * 2
    assert made("ffn.shared={d_ff: 32}").blocks["layer"].ffn.shared.expert.d_ff == 32
    narrow = made("layers.full.attention={kind: gqa, window: 8}")
    assert narrow.blocks["full"].attention.window == 8 and narrow.blocks["full"].attention.qk_norm is not None
    for form in ("layers.full.attention=mla", "layers.full.attention={kind: mla}"):
        with pytest.warns(UserWarning, match="leaves out layers.full.attention.qk_norm, which the model set"):
            latent = made(form, "layers.full.attention.kv_lora_rank=32")
        assert latent.blocks["full"].attention.kv_lora_rank == 32


def test_points_of_a_sweep_keep_of_a_file_what_their_own_choice_leaves(tmp_path: Path) -> None:
    """`mqa` is made of one head of keys, so the file's own number goes; `gqa` keeps it, whichever comes first."""
    (tmp_path / "mine.yaml").write_text("defaults: [/model/llama-tiny@_here_]\nattention: {kind: gqa, n_kv_heads: 3}\n")
    heads = {"gqa": 3, "mqa": 1}
    for order in (["gqa", "mqa"], ["mqa", "gqa"]):
        composer = Composer(tmp_path / "mine.yaml")
        for word in order:
            made = spec_of_composed(composer.compose([f"attention={word}"]))
            assert made.blocks["layer"].attention.n_kv_heads == heads[word]


def test_a_files_component_is_not_merged_into_the_models(tmp_path: Path) -> None:
    text = "defaults: [/model/llama-tiny@_here_]\nattention: {kind: mha, position: {kind: none}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert load(tmp_path / "mine.yaml").blocks["layer"].attention.position.kind == "none"


DENSE = {
    **{"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 2, "head_dim": 16, "d_ff": 64, "max_seq_len": 32},
    **{"attention": "mha", "position": "rope", "norm": "rmsnorm", "block": "pre", "ffn": "gated"},
    "activation": "silu",
}


def test_a_mixture_whose_model_states_no_router_takes_the_usual_one(tmp_path: Path, capsys) -> None:
    made = spec("ffn=moe", "n_experts=8", "top_k=2", target=DENSE)
    assert made == spec("ffn=moe", "n_experts=8", "top_k=2", target={**DENSE, "router": "softmax_topk"})
    layers = {"layers": {"sparse": {"ffn": "moe"}}, "pattern": ["layer", "sparse"]}
    assert spec(target={**DENSE, **layers}) == spec(target={**DENSE, **layers, "router": "softmax_topk"})
    own = {"layers": {"sparse": {"ffn": "moe", "router": "sigmoid_topk"}}, "pattern": ["layer", "sparse"]}
    assert spec(target={**DENSE, **own}).blocks["sparse"].ffn.router.kind == "sigmoid_topk"
    file = tmp_path / "dense.yaml"
    file.write_text(yaml.safe_dump(DENSE))
    assert run(["stats", str(file), "ffn=moe"]) == 0
    said = capsys.readouterr().err
    assert "router: is not stated, so softmax_topk chooses" in said
    assert "router: n_experts is 8 and top_k is 2, as neither the model nor its router states it" in said
    whole = ["ffn=moe", "n_experts=4", "router={kind: sigmoid_topk, top_k: 1}"]
    for quiet in (["stats", str(file)], ["stats", str(file), *whole]):
        assert run(quiet) == 0
        assert "router" not in capsys.readouterr().err
