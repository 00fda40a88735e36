"""What a swap of a component leaves over is left out and said; what was set by hand is refused."""

from __future__ import annotations

import warnings

import pytest
import yaml

from zoo.cli import run
from zoo.compose import load
from zoo.compose.targets import compose_model, note_sizes
from zoo.errors import ConfigError

pytestmark = pytest.mark.quick


def test_positions_that_no_part_of_a_block_reads_are_left_out_of_a_swap() -> None:
    with pytest.warns(UserWarning, match=r"^block=feed_forward: reads no positions, so position"):
        assert load("llama-tiny", ["block=feed_forward"]).position.kind == "none"


def test_a_swap_leaves_out_what_nothing_reads_any_more_and_says_so() -> None:
    line = (
        "attention=gated_delta: leaves out attention.qk_norm, attention.scale, layers.local.attention.window, "
        "position (rope), layers.local.rope_theta, which the model set"
    )
    with pytest.warns(UserWarning) as found:
        made = load("gemma3-1b", ["attention=gated_delta"])
    assert [str(each.message) for each in found] == [line]
    assert made.position.kind == "none"
    assert {block.attention.kind for block in made.blocks.values()} == {"gated_delta"}


@pytest.mark.parametrize("verb", [["stats", "-m", "llama-tiny"], ["train", "-m", "model=llama-tiny", "--plan"]])
def test_what_all_points_of_a_sweep_are_given_may_stay_unused_in_one_and_is_said(verb, capsys) -> None:
    model = "model." if verb[0] == "train" else ""
    words = ["attention=gqa,gated_delta", "position=rope", f"{model}n_kv_heads=2", f"{model}attention.qk_norm=true"]
    assert run([*verb, *words, *(["--no-measure"] if model else [])]) == 0
    out, err = capsys.readouterr()
    assert "gqa" in out and "gated_delta" in out and "refused" not in out
    dropped, idle = err.splitlines()
    assert "leaves out attention.qk_norm, position (rope), which is set for all points" in dropped
    assert idle == "zoo: note: attention=gated_delta: n_kv_heads: nothing in this model reads it"


def test_what_a_sweep_varies_is_read_by_each_of_its_points(capsys) -> None:
    assert run(["stats", "-m", "llama-tiny", "attention=gqa,gated_delta", "n_kv_heads=2,3"]) == 0
    assert capsys.readouterr().out.count("refused (") == 2


@pytest.mark.parametrize(
    ("overrides", "notes"),
    [
        (["attention=sliding"], ["attention=sliding: takes window 4,096"]),
        (["attention=sliding", "window=64"], []),
        (["attention=sliding", "attention.window=64"], []),
        (["attention=mla"], ["attention=mla: takes kv_lora_rank 512"]),
        (["attention=mqa"], ["attention=mqa: takes n_kv_heads 1"]),
        (["norm=layernorm"], []),
    ],
)
def test_a_swap_says_which_sizes_the_new_choice_takes_of_its_own(overrides: list[str], notes: list[str]) -> None:
    assert note_sizes(overrides, compose_model("llama-tiny", overrides).cfg) == notes


@pytest.mark.parametrize(("axis", "place"), [("decoder.attention", "decoder.position"), ("attention", "position")])
def test_a_swap_in_towers_leaves_out_the_positions_that_no_attention_there_reads(axis: str, place: str) -> None:

    with pytest.warns(UserWarning, match=rf"{place} \(t5\)(, which the model set| is left out)"):
        made = load("t5-tiny", [f"{axis}=mamba2", *(["encoder.attention=fourier"] if axis == "attention" else [])])
    assert made.decoder.position.kind == "none"
    assert made.encoder.position.kind == ("none" if axis == "attention" else "t5")


def test_a_swap_that_leaves_nothing_over_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("llama-tiny", ["attention=mqa", "norm=layernorm"])


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["attention=gated_delta", "position=rope"], "model: position 'rope' acts inside attention"),
        (
            ["attention=gated_delta", "attention.softcap=50"],
            "attention.softcap: attention 'gated_delta' has no such field",
        ),
    ],
)
def test_what_was_set_by_hand_is_refused_after_a_swap(overrides: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        load("llama-tiny", overrides)
    assert error.value.faults[0].startswith(fault)


def test_a_swap_in_a_training_leaves_its_other_keys_as_they_are(capsys, refused) -> None:
    swap = ["train", "llama-tiny", "attention=gated_delta"]
    assert refused(*swap, "ema=${nope}")[-1].endswith("Interpolation key 'nope' not found")
    assert run([*swap, "steps=${batch_size}", "--cfg", "job"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["steps"] == "${batch_size}"
    assert err.count("reads no positions, so position (rope) is left out") == 1


def test_a_text_is_no_choice_that_could_have_fields(refused) -> None:
    assert refused("stats", "llama-tiny", "about.title.y=1")[0].startswith("about.title.y: unknown key")


def test_train_takes_the_model_first_and_says_what_a_swap_leaves_over(capsys) -> None:
    assert run(["train", "gpt-tiny", "attention.softcap=50", "n_layers=2", "steps=3", "--cfg", "job"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["about"]["title"].startswith("GPT")
    assert (config["model"]["n_layers"], config["model"]["attention"]["softcap"], config["steps"]) == (2, 50, 3)
