"""Composing: packaged models, users' files, overrides, and every way in which they can be at fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import zoo
from support.tiny_models import choices
from zoo import grammar
from zoo.compose import composing, load
from zoo.compose.composing import TRAINING, Composed, Composition
from zoo.compose.hydra_engine import open_repository
from zoo.compose.targets import Composer, compose_model, spec_of_composed, to_plain_yaml
from zoo.costs import price
from zoo.errors import ConfigError
from zoo.grammar.dialect import list_files
from zoo.paths import conf_dir

BARE = """\
attention: gqa
position: rope
norm: rmsnorm
block: pre
ffn: gated
activation: silu
vocab_size: 1000
d_model: 64
n_layers: 2
n_heads: 4
n_kv_heads: 2
head_dim: 16
d_ff: 128
max_seq_len: 128
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bare.yaml").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attention(target: str | Path, *overrides: str):
    return load(target, overrides).blocks["layer"].attention


def faults(target: str | Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(target, overrides)
    assert all("\n" not in fault for fault in caught.value.faults)
    return caught.value.faults


# ---------------------------------------------------------------- packaged models and overrides


@pytest.mark.parametrize(
    ("name", "ours", "hydras"),
    [
        ("llama3-8b", [], []),
        ("llama", ["n_layers=4"], ["model.n_layers=4"]),
        ("mistral-tiny", ["attention=mqa"], ["attention@model.attention=mqa"]),
        ("gpt2", ["~activation", "++about.note=x"], ["~activation@model.activation", "++model.about.note=x"]),
        ("mixtral-tiny", ["ffn=mlp", "norm.eps=1e-3"], ["ffn@model.ffn=mlp", "model.norm.eps=1e-3"]),
    ],
)
def test_our_light_compose_gives_what_hydra_gives(name: str, ours: list[str], hydras: list[str]) -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        theirs = hydra_compose("config", [f"model={name}", *hydras]).model
    made = compose_model(name, ours)
    assert (made.cfg, made.faults) == (theirs, [])
    assert list(made.cfg) == list(theirs)


def test_an_axis_is_swapped_without_a_prefix() -> None:
    before, after = price(load("llama3-8b")), price(load("llama3-8b", ["attention=mqa", "n_layers=4"]))
    per_layer = (
        before["params"]["by_component"]["attention"] / 32 - 2 * 4096 * 7 * 128
    )  # seven key and value heads less
    assert after["params"]["by_component"]["attention"] == 4 * per_layer


def test_a_dim_that_a_component_reads_may_be_set_though_the_model_does_not_state_it() -> None:
    assert attention("llama3-8b").bias is False
    assert attention("llama3-8b", "bias=true").bias is True


def test_a_field_that_the_yaml_leaves_out_may_be_set() -> None:
    assert attention("llama3-8b", "attention.softcap=50").softcap == 50
    assert attention("llama3-8b", "attention={softcap: 30}").softcap == 30


def test_hydras_signs_and_quotes_are_understood() -> None:
    assert load("gpt2", ["++n_layers=3"]).n_layers == 3
    assert compose_model("gpt2", ["+about.extra='a, b'"]).cfg.about.extra == "a, b"
    assert "note" not in compose_model("gpt2", ["~about.note"]).cfg.about


def test_the_last_of_two_equal_keys_counts_and_is_noted() -> None:
    composed = compose_model("gpt2", ["n_layers=2", "n_layers=3"])
    assert composed.cfg.n_layers == 3
    assert composed.notes == ["n_layers is given 2 times, n_layers=3 counts"]


def test_composing_leaves_nothing_in_hydras_store() -> None:
    load("gpt2", ["n_layers=1"])
    assert [name for name in ConfigStore.instance().repo if name.startswith("_zoo")] == []


def test_the_package_offers_what_it_says_and_nothing_else() -> None:
    assert set(zoo.__all__) <= set(dir(zoo))
    assert all(callable(getattr(zoo, name)) for name in zoo.__all__ if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        zoo.nope  # noqa: B018


# ---------------------------------------------------------------- users' files


def test_a_file_without_a_defaults_list_chooses_its_axes_by_name(folder: Path) -> None:
    assert attention("bare.yaml").n_kv_heads == 2
    assert attention("bare.yaml", "attention=mqa", "attention.n_heads=8").n_kv_heads == 1
    assert attention(folder / "bare.yaml", "attention=mqa", "attention.n_heads=8").n_heads == 8


def test_a_mapping_is_as_good_as_a_file(folder: Path) -> None:
    assert load(OmegaConf.to_container(OmegaConf.load("bare.yaml")), ["n_layers=3"]) == load(
        "bare.yaml", ["n_layers=3"]
    )


def test_a_file_may_start_from_a_packaged_model_and_choose_otherwise(folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "defaults: [/model/llama3-8b@_here_]\nattention: sliding\nwindow: 64\nn_layers: 2\n"
    )
    assert attention("mine.yaml").window == 64
    assert attention("mine.yaml", "attention=mqa").n_kv_heads == 1
    assert load("mine.yaml").n_layers == 2


def test_a_node_spelled_out_keeps_in_a_swap_what_the_new_choice_has(folder: Path) -> None:
    spelled = "attention: {kind: gqa, n_kv_heads: 2, head_dim: 8, bias: qkv, softcap: 30}"
    (folder / "mine.yaml").write_text(BARE.replace("attention: gqa", spelled))
    for word, n_kv_heads in [("mqa", 1), ("mha", 4), ("sliding", 2)]:
        swapped = attention("mine.yaml", f"attention={word}")
        assert (swapped.head_dim, swapped.bias, swapped.softcap) == (8, "qkv", 30)
        assert swapped.n_kv_heads == n_kv_heads
    with pytest.warns(UserWarning, match=r"attention=mla: leaves out .*attention\.softcap.*, which the model set"):
        attention("mine.yaml", "attention=mla")


@pytest.mark.parametrize("model", ["qwen2.5-1.5b", "gemma3-1b", "mpt-7b", "deepseek-v2-lite"])
def test_a_model_and_its_own_file_answer_every_swap_alike(model: str, folder: Path) -> None:
    (folder / "mine.yaml").write_text(to_plain_yaml(compose_model(model).cfg))
    assert load("mine.yaml") == load(model)
    mine, packaged = Composer("mine.yaml"), Composer(model)
    axes = ("attention", "norm", "ffn", "head", *(["position"] if "deepseek" not in model else []))
    for override in [f"{axis}={word}" for axis in axes for word in list_files(axis)]:
        assert try_spec(mine, override) == try_spec(packaged, override), override


def try_spec(composer: Composer, override: str) -> Any:
    """The Spec of a model under an override, or the faults without the file's name and lines."""
    try:
        return spec_of_composed(composer.compose([override]))
    except ConfigError as error:
        return [re.sub(r"^mine\.yaml:(\d+: | )?", "", fault) for fault in error.faults]


def test_a_word_in_a_kind_of_layer_keeps_what_the_model_says_and_not_what_the_old_word_was(folder: Path) -> None:
    def windows(top: str, near: str) -> tuple[Any, ...]:
        kinds = f"layers: {{near: {{attention: {near}}}, rest: {{}}}}\npattern: [near, rest]\n"
        (folder / "mine.yaml").write_text(BARE.replace("attention: gqa", f"attention: {top}") + kinds)
        near_attention = load("mine.yaml").blocks["near"].attention
        return near_attention.window, near_attention.bias, near_attention.n_kv_heads

    n_heads = attention("bare.yaml").n_heads
    assert windows("{kind: gqa, bias: qkv}", "sliding") == (4096, "qkv", attention("bare.yaml").n_kv_heads)
    assert windows("{kind: gqa, bias: qkv}", "{kind: sliding, window: 8}")[:2] == (8, "qkv")
    assert windows("{kind: gqa, bias: qkv, n_kv_heads: 1}", "mha") == (None, "qkv", n_heads)
    assert windows("sliding", "gqa")[0] is None
    assert windows("{kind: sliding, window: 8, bias: qkv}", "gqa")[:2] == (None, "qkv")
    assert windows("{kind: sliding, window: 8}", "{bias: qkv}")[:2] == (8, "qkv")
    for top in ("mha", "mqa", "sliding", "{kind: gqa, bias: qkv}"):
        for near in ("gqa", "mha", "mqa", "sliding"):
            assert windows(top, near) == windows(top, f"{{kind: {near}}}")
            assert windows(top, near)[0::2] == windows("gqa", near)[0::2], "what the old word was goes"
            plain = yaml.safe_load(to_plain_yaml(compose_model("mine.yaml").cfg))
            assert load(plain) == load("mine.yaml")
            assert set(plain["layers"]["near"]) <= {"attention"}
            assert plain["layers"]["near"].get("attention", near) == near, "a word, and not its fields"


def test_a_file_may_include_its_neighbours_and_choose_from_their_groups(folder: Path) -> None:
    (folder / "attention").mkdir()
    (folder / "attention" / "narrow.yaml").write_text(
        "kind: gqa\nn_heads: 1\nn_kv_heads: 1\nhead_dim: 4\nposition: ${up:position}\n"
    )
    (folder / "mine.yaml").write_text("defaults: [bare]\nattention: narrow\n")
    assert attention("mine.yaml").head_dim == 4
    assert attention("bare.yaml", "attention=narrow").head_dim == 4


def test_layer_kinds_choose_by_name_too(folder: Path) -> None:
    (folder / "mine.yaml").write_text(
        "defaults: [bare]\nlayers: {local: {attention: sliding, window: 16}}\npattern: [local, layer]\n"
    )
    assert load("mine.yaml").blocks["local"].attention.window == 16
    line = r"^layers\.local\.attention=mqa: leaves out layers\.local\.window, which the model set$"
    with pytest.warns(UserWarning, match=line):
        assert load("mine.yaml", ["layers.local.attention=mqa"]).blocks["local"].attention.window is None
    swapped = load("mine.yaml", ["layers.local.attention=mqa", "~layers.local.window"])
    assert [swapped.blocks[kind].attention.n_kv_heads for kind in swapped.pattern] == [1, 2]


def test_a_users_file_never_takes_a_packaged_ones_place(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "gpt2.yaml").write_text("n_layers: 1\n")
    (folder / "gpt2.yaml").write_text("defaults: [/model/gpt2@_here_]\n")
    assert load("gpt2.yaml").n_layers == load("gpt2").n_layers == 12


def test_the_path_of_a_packaged_file_is_that_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(conf_dir() / "model")
    monkeypatch.chdir(tmp_path)
    assert load("configs/llama.yaml") == load("llama") == load("llama3-8b")


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["n_layer=3"], "n_layer: unknown key (n_layers is Zoo's name for it: n_layers=3)"),
        (["model.n_layers=3"], "model.n_layers: unknown key (did you mean 'n_layers'?)"),
        (["atention.n_heads=3"], "atention.n_heads: unknown key (did you mean 'attention.n_heads'?)"),
        (
            ["attention.n_kv_head=4"],
            "attention.n_kv_head: attention 'gqa' has no such field (did you mean 'n_kv_heads'?)",
        ),
        (
            ["attention=gqaa"],
            f"attention: no option 'gqaa' (did you mean 'gqa'? there are: {len(choices('attention'))}, "
            "listed by `zoo list --axis attention`)",
        ),
        (["attention=4"], "attention: is chosen by name, found 4 (one of: block_sparse"),
        (["+attention=mqa"], "+attention=mqa: 'attention' is already chosen (leave out the +)"),
        (["model=gpt2"], "model=gpt2: 'model' is no part of a model (the model is the first argument)"),
        (["router=softmax_topk"], "router=softmax_topk: nothing in this model reads 'router' (leave it out)"),
        (["x@y=3"], "x@y=3: there is no group 'x' in the configuration tree"),
        (["n_layers"], "n_layers: not an override, there is no '=' (write key=value, or ~key to delete)"),
        (
            ["n_layers=2,4"],
            "n_layers=2,4: several values are a sweep, for train, stats and probe -m (a list is n_layers=[a,b])",
        ),
        (
            ["attention.position.theta=3"],
            "attention.position.theta: 'attention.position' is what the rest of the model has too"
            " (set position.theta instead)",
        ),
    ],
)
def test_a_faulty_override_is_told_with_what_would_do(overrides: list[str], fault: str) -> None:
    (found,) = faults("llama3-8b", *overrides)
    assert found.startswith(fault) if fault.endswith("block_sparse") else found == fault


def test_bad_syntax_is_told_in_one_line() -> None:
    (fault,) = faults("gpt2", "n_layers=[1")
    assert fault.startswith("n_layers=[1: bad override syntax, ")


def test_all_faults_are_told_at_once() -> None:
    found = faults("llama3-8b", "n_layer=3", "position=ropx", "foo", "n_heads=four", "attention.windo=2")
    assert [fault.split(":")[0] for fault in found] == ["foo", "position", "n_layer", "attention.windo", "n_heads"]


def test_all_unknown_choices_of_a_file_are_told_at_once(folder: Path) -> None:
    (folder / "mine.yaml").write_text(BARE.replace("gqa", "gqx").replace("rope", "ropx"))
    assert [fault.split(" (")[0] for fault in faults("mine.yaml")] == [
        "mine.yaml:1: attention: no option 'gqx'",
        "mine.yaml:2: position: no option 'ropx'",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: [1\nb: 2", "mine.yaml:2:2: not YAML, expected ',' or ']', but got ':'"),
        ("a: 1\na: 2\n", "mine.yaml:2: a: is stated twice (leave one out)"),
        ("- a\n", "mine.yaml: holds a list, not a mapping of keys to values"),
        ("'3'\n", "mine.yaml: holds a text, not a mapping of keys to values"),
        ("llama\n", "mine.yaml: holds a text, not a mapping of keys to values"),
        ("defaults: gpt2\n", "mine.yaml:1: defaults: must be a list, found 'gpt2'"),
        ("defaults: [nope]\n", "mine.yaml:1: defaults: there is no 'nope'"),
        ("defaults: [mine]\n", "mine.yaml:1: defaults: leads back to where it starts (a file cannot include itself)"),
        (b"\xff\xfe\x00", "mine.yaml: cannot be read, it is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_place(folder: Path, text: str | bytes, fault: str) -> None:
    (folder / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert faults("mine.yaml") == [fault]


def test_a_missing_file_and_an_unknown_name_come_with_the_nearest(folder: Path) -> None:
    assert faults("bear.yaml") == ["bear.yaml: no such file (did you mean 'bare.yaml'?)"]
    assert faults("lama") == ["lama: no packaged model of that name (did you mean 'llama'?)"]
    assert faults("bare") == [
        "bare: no packaged model of that name (did you mean 'base'?); the file here is ./bare.yaml"
    ]
    nothing = "no checkpoint in it (a folder with zoo.yaml or config.json, or that of a run)"
    assert faults(str(folder)) == [f"{folder}: {nothing}"]


def test_faulty_yaml_in_a_file_that_is_included_is_no_traceback(folder: Path) -> None:
    (folder / "broken.yaml").write_text("a: [1")
    (folder / "mine.yaml").write_text("defaults: [broken]\n")
    assert len(faults("mine.yaml")) == 1


# ---------------------------------------------------------------- training configs


def compose_training(*overrides: str) -> Composed:
    return Composition(open_repository(), TRAINING, "config", root="model").compose(overrides)


def test_axes_and_keys_of_the_model_find_their_place_in_a_training_config() -> None:
    composed = compose_training("attention=mqa", "model.position=alibi", "model.bias=true")
    assert composed.faults == []
    assert composed.cfg.model.attention.n_kv_heads == 1
    assert composed.overrides == ["attention@model.attention=mqa", "position@model.position=alibi", "++model.bias=true"]


def test_another_models_axes_are_those_that_count() -> None:
    composed = compose_training("router=softmax_topk", "model=mixtral-tiny")
    assert composed.faults == []
    assert composed.choices["model"] == "mixtral-tiny"


def test_a_key_of_the_model_needs_no_prefix_in_a_training_config() -> None:
    typed = ["n_layers=2", "attention.softcap=50", "steps=3", "lr=3"]
    composed = compose_training(*typed)
    assert composed.faults == ["lr: unknown key (did you mean 'optim.lr'?)"]
    assert composed.overrides == ["model.n_layers=2", "++model.attention.softcap=50", "steps=3"]
    model = composed.cfg.model
    assert (model.n_layers, model.attention.softcap, composed.cfg.steps) == (2, 50, 3)


def test_no_key_is_both_the_trainings_and_the_models() -> None:
    training = set(yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8")))
    model = grammar.OWN | grammar.BOTH | grammar.DIMS | {*grammar.AXES, *grammar.STRUCTURE, *grammar.TOWERS}
    assert not training & model


# ---------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("target", "typed", "word", "answers"),
    [
        ("llama3-8b", [], "attention=mq", ["attention=mqa"]),
        ("llama3-8b", [], "n_la", ["n_layers=", "n_layers=32"]),
        ("llama3-8b", ["position=alibi"], "position.", ["position.kind=", "position.kind=alibi"]),
        ("llama3-8b", [], "+bia", ["+bias="]),
        ("nope", [], "att", []),
        (None, [], "optim.l", ["optim.lr=", "optim.lr=0.002"]),
        (None, [], "data.documents=", ["data.documents=false", "data.documents=true"]),
        (None, [], "model.attention=mq", ["model.attention=mqa"]),
        (
            None,
            [],
            "model=llama-tiny,mix",
            ["model=llama-tiny,mixtral-8x22b", "model=llama-tiny,mixtral-8x7b", "model=llama-tiny,mixtral-tiny"],
        ),
    ],
)
def test_overrides_are_completed(target: str | None, typed: list[str], word: str, answers: list[str]) -> None:
    from zoo.compose import completion

    assert completion.complete_overrides(target, typed, word) == answers


def test_packaged_names_are_completed_and_paths_left_to_the_shell() -> None:
    from zoo.compose import completion

    assert completion.complete_target("llama-") == ["llama-tiny"]
    assert completion.complete_target("./") == []


def test_a_base_of_packaged_files_is_made_once_and_one_of_a_users_each_time(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(composing, "_packaged_bases", {})
    make = Composition._make_base
    monkeypatch.setattr(Composition, "_make_base", lambda self, choosing: made.append(self) or make(self, choosing))
    first = compose_model("llama-tiny", ["attention=mqa", "d_model=32"])
    first.cfg.n_layers = 99
    assert compose_model("llama-tiny", ["attention=mqa"]).cfg.n_layers != 99
    assert compose_model("llama-tiny", ["attention=mqa"]).cfg.d_model != 32 and len(made) == 1
    mine = tmp_path / "mine.yaml"
    for layers in (3, 5):
        (tmp_path / "norm").mkdir(exist_ok=True)
        (tmp_path / "norm" / "own.yaml").write_text(f"kind: rmsnorm\neps: 1e-{layers}\n")
        mine.write_text(f"defaults: [/model/llama-tiny@_here_, {{override norm: own}}]\nn_layers: {layers}\n")
        cfg = compose_model(mine).cfg
        assert (cfg.n_layers, cfg.norm.eps) == (layers, 10**-layers)
    assert len(made) == 3


def test_a_defaults_list_of_packaged_files_is_made_once(monkeypatch):
    made = []
    make = composing.create_defaults_list
    monkeypatch.setattr(composing, "_packaged_bases", {})
    monkeypatch.setattr(composing, "_packaged_lists", {})
    monkeypatch.setattr(
        composing, "create_defaults_list", lambda *given, **how: made.append(given) or make(*given, **how)
    )
    first = compose_model("llama-tiny", ["attention=mqa"]).cfg
    n_made = len(made)
    monkeypatch.setattr(composing, "_packaged_bases", {})
    assert compose_model("llama-tiny", ["attention=mqa"]).cfg == first and len(made) == n_made
    assert compose_model("llama-tiny", ["attention=mla"]).cfg != first and len(made) == n_made + 1
