"""config.json files as they are published, hub quirks and all: each is priced to the parameter."""

import json
from pathlib import Path

import pytest
import transformers

import zoo
import zoo.verify
from support.packaged_specs import load, one_in
from zoo.checkpoint.hf.opening import compose_spec
from zoo.errors import CheckpointError
from zoo.families.described import read_body

pytestmark = pytest.mark.filterwarnings("ignore:.*(quantised|text model alone)")
PUBLISHED = json.loads((Path(__file__).parents[1] / "support/published_configs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", one_in(2, PUBLISHED))
def test_a_published_config_is_priced_to_the_parameter(name, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PUBLISHED[name]["config"]))
    priced = zoo.stats(file)
    assert priced["params"]["total"] == PUBLISHED[name]["parameters"]
    assert priced["flops"]["forward"] > 0 and "activations_unknown" not in priced["memory"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_what_was_counted(name, tmp_path, monkeypatch):
    """At full size, in torch's fake mode; the peak is left to test_verify.py."""
    monkeypatch.setattr(zoo.verify, "_peak", lambda *args: iter(()))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PUBLISHED[name]["config"]))
    rows = zoo.verify.verify(load(file))
    assert len(rows) >= 4 and [row["name"] for row in rows if not row["equal"]] == []


def test_one_unknown_field_that_asks_for_something_is_refused_by_name(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**PUBLISHED["llama-2-7b"]["config"], "n_future_heads": 4}))
    with pytest.raises(CheckpointError, match="n_future_heads: is 4, a field that llama does not have"):
        zoo.stats(file)


def test_a_decoder_that_is_to_look_both_ways_is_refused_where_its_family_has_no_such_models(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**PUBLISHED["llama-2-7b"]["config"], "is_causal": False}))
    with pytest.raises(CheckpointError, match="is_causal: is false, which no model here implements"):
        zoo.stats(file)


def read(folder: Path, config: dict) -> object:
    """The Spec that a config.json is priced as."""
    (folder / "config.json").write_text(json.dumps(config))
    return load(folder / "config.json")


UNREAD = {
    "granitemoehybrid": ({"logits_to_keep": 1, "init_method": "mup"}, {"n_towers": 2}),
    "nemotron_h": ({"norm_eps": 1e-5, "mtp_hybrid_override_pattern": "*E"}, {"mlp_bias": True}),
    "glm_moe_dsa": ({"num_experts": 256, "index_share_for_mtp_iteration": True}, {"moe_router_dtype": "bfloat16"}),
    "qwen3_moe": ({"use_qk_norm": True, "max_new_tokens": 9, "seq_aux": True}, {"use_qk_norm": False}),
    "qwen3_5_text": ({"output_gate_type": "swish"}, {"output_gate_type": "sigmoid"}),
    "minimax_m3_vl_text": ({"hidden_act": "swigluoai", "num_mtp_modules": 1}, {"qk_norm_type": "per_layer"}),
}
"""What files on the hub say beside the fields that transformers reads, and what would be another model."""


@pytest.mark.parametrize("kind", UNREAD)
def test_fields_of_the_hub_that_change_nothing_are_let_through_and_others_refused(kind, tmp_path):
    fields, others = UNREAD[kind]
    plain = json.loads(transformers.AutoConfig.for_model(kind).to_json_string(use_diff=False))
    assert read(tmp_path, {**plain, **fields}) == read(tmp_path, plain)
    with pytest.raises(CheckpointError, match=r": is .*which no model here implements|a field that .* does not have"):
        read(tmp_path, {**plain, **others})


def test_a_text_model_of_an_older_type_is_today_s(tmp_path):
    text = {"vocab_size": 99, "num_nextn_predict_layers": 1, "mtp_share_layers": True, "sliding_window": None}
    text |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
    alone = read(tmp_path, {"model_type": "exaone4", **text})
    assert read(tmp_path, {"model_type": "exaone4_5", "text_config": {"model_type": "exaone4_5_text", **text}}) == alone


def test_a_tempering_by_nothing_is_none(tmp_path):
    """Devstral 2 states it so; its smaller ones have a factor."""
    rotary = {"rope_type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "rope_theta": 1e6}
    for beta, kind in ((0.0, "NoneType"), (0.1, "LogTempering")):
        spec = read(tmp_path, {"model_type": "ministral3", "rope_parameters": {**rotary, "llama_4_scaling_beta": beta}})
        assert {type(block.attention.tempering).__name__ for block in spec.blocks.values()} == {kind}


def test_a_text_model_without_a_type_is_the_wrapper_s_own(tmp_path):
    text = {"num_hidden_layers": 5, "moe_layer_freq": [0, 1, 1, 1, 1]}
    alone = read(tmp_path, {"model_type": "minimax_m3_vl_text", **text})
    assert read(tmp_path, {"model_type": "minimax_m3_vl", "text_config": text, "vision_config": {}}) == alone


def test_deepseek_v4_as_published_is_priced_as_the_model_that_is_loaded(tmp_path):
    """Its layers compress by 4 with an indexer, by 128 without, or not at all."""
    ratios = [0, 0, *[4, 128] * 2, 4]
    priced = read(tmp_path, {"model_type": "deepseek_v4", "num_hidden_layers": 7, "compress_ratios": ratios})
    assert priced == compose_spec(read_body(tmp_path)[1], tmp_path)
    kinds = [priced.blocks[kind].attention for kind in priced.pattern]
    assert [each.compressor.rate if each.compressor else 0 for each in kinds] == ratios
    assert [each.indexer is not None for each in kinds] == [ratio == 4 for ratio in ratios]
