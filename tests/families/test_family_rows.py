"""Rows of a family's YAML that stand for several, and how they are laid over those of another family."""

import dataclasses

import pytest
import transformers

from zoo.families.body import combine_kinds, lay_rows, write_out_keys
from zoo.families.family import family_names, parse_family, read_family
from zoo.paths import read_conf


def rows(keys, base=None):
    return write_out_keys({"keys": keys}, base)["keys"]


def test_names_on_both_sides_are_a_row_each_and_on_one_side_a_fused_one():
    assert rows({"a.{q,k}_norm": "~b.{wq,wk}.n | turn"}) == {"a.q_norm": "~b.wq.n | turn", "a.k_norm": "~b.wk.n | turn"}
    assert rows({"a.{q,k}": "~b.qk | rows"}) == {"a.{q,k}": "~b.qk | rows"}
    assert rows({"a.#.q": "~b.{layer - 1}.q"}) == {"a.#.q": "~b.{layer - 1}.q"}


def test_two_pairs_of_names_are_every_row_of_both():
    written = rows({"{encoder,decoder}.{q,k}": "~{enc,dec}.{wq,wk}"})
    assert written == {"encoder.q": "~enc.wq", "encoder.k": "~enc.wk", "decoder.q": "~dec.wq", "decoder.k": "~dec.wk"}


def test_as_many_names_must_stand_on_either_side():
    with pytest.raises(ValueError, match="zip"):
        rows({"a.{q,k,v}": "~b.{wq,wk}"})


def test_null_leaves_out_a_fused_row_where_the_base_has_one_and_the_row_of_each_name_where_not():
    assert rows({"a.{q,k}": None}, {"a.{q,k}": "~qk"}) == {"a.{q,k}": None}
    assert rows({"a.{q,k}": None}, {"a.q": "~q", "a.k": "~k"}) == {"a.q": None, "a.k": None}


def test_a_row_takes_the_place_of_those_of_its_tensors():
    base = {"q": "~q", "k": "~k", "{gate,up}": "~gu", "o": "~o", "b ?o": "~b"}
    assert lay_rows(base, {"{q,k}": "~qk", "up": "~up"}) == {"o": "~o", "b ?o": "~b", "{q,k}": "~qk", "up": "~up"}
    assert lay_rows(base, {"o ?q": "~of"})["o"] == "~o"
    assert list(lay_rows({"o": "~o", "b ?o": "~b"}, {"o.weight": "~w"})) == ["b ?o", "o.weight", "o"]


def draft(**more):
    return parse_family(
        "new_text", {"architectures": {"NewForCausalLM": {"prefix": "model."}}, "like": "llama", **more}
    )


def test_a_kind_of_layer_is_its_parts_laid_over_one_another_and_its_own_patch_last():
    moe, near, none = {"ffn": {"kind": "moe"}}, {"attention": {"window": 8}}, {"position": {"kind": "none"}}
    assert combine_kinds({"dense": {}, "sparse": moe, "_near": near, "{dense,sparse}_near": {}}) == {
        "dense": {},
        "sparse": moe,
        "dense_near": near,
        "sparse_near": moe | near,
    }
    assert combine_kinds({"full_": none, "_dense": {}, "_sparse": moe, "full_{dense,sparse}": {}}) == {
        "full_dense": none,
        "full_sparse": none | moe,
    }
    own = {"attention": {"window": 4, "sinks": True}}
    kinds = combine_kinds({"linear_": none, "a": moe, "_near": near, "{linear_,}a{,_near}": {}, "a_near": own})
    assert kinds == {
        "a": moe,
        "a_near": moe | own,
        "linear_a": none | moe,
        "linear_a_near": none | moe | near,
    }
    assert combine_kinds({"full_attention": {}, "full": none}) == {"full_attention": {}, "full": none}


def test_a_family_like_another_takes_its_parts_and_combines_them_with_its_own():
    base, own = read_family("qwen3_moe"), read_family("mellum")
    assert own.model["layers"]["sparse"] == base.model["layers"]["sparse"]
    assert own.model["layers"]["sparse_sliding"] == {
        **base.model["layers"]["sparse"],
        **own.model["layers"]["dense_sliding"],
    }


def test_a_family_that_is_like_none_begins_with_what_most_have_alike():
    node = {
        "about": {},
        "architectures": {"AForCausalLM": {}},
        "keys": {},
        "model": {"d_model": "=width", "d_ff": None},
    }
    family = parse_family("a", node)
    assert family.model["d_model"] == "=width"
    assert family.model["n_layers"] == "=num_hidden_layers"
    assert "d_ff" not in family.model
    assert family.defaults == {"tie_word_embeddings": True}


def test_unset_fields_are_null_where_a_config_leaves_them_out():
    node = {"like": "llama", "architectures": {"AForCausalLM": {}}, "unset": ["rms_norm_eps"]}
    assert parse_family("a", node).defaults["rms_norm_eps"] is None


def test_a_family_has_a_class_without_a_head_unless_it_says_that_it_has_none():
    assert list(draft().architectures) == ["NewForCausalLM", "NewTextModel"]
    assert draft().architectures["NewTextModel"] == {"prefix": "", "model": {"head": {"kind": "none"}}}
    assert list(draft(bare=None).architectures) == ["NewForCausalLM"]


def test_a_default_of_another_family_is_written_where_the_field_is_read():
    plain = draft(model={"attention": {"bias": False}})
    assert "attention_bias" in read_family("llama").written and "attention_bias" not in plain.written
    assert "mlp_bias" in plain.written and plain.model_types == ("new_text",)
    assert "attention_bias" in dataclasses.replace(plain, inherited=frozenset()).written


def test_a_class_that_a_family_does_not_state_is_the_one_that_transformers_has_for_it():
    named = {name: next(iter(read_family(name).architectures)) for name in family_names()}
    found = {name: each for name, each in named.items() if "architectures" not in read_conf(f"family/{name}")}
    assert len(found) > 90 and found["qwen3_5_text"] == "Qwen3_5ForCausalLM"
    types = {name: getattr(transformers, each).config_class.model_type for name, each in found.items()}
    assert {
        name: kind for name, kind in types.items() if name not in (kind, f"{kind}_text", kind.replace("-", "_"))
    } == {}


def test_the_encoder_of_an_encoder_decoder_alone_has_its_towers_settings_and_rows():
    family = read_family("longt5")
    alone, both = family.template("LongT5EncoderModel"), family.model
    assert (alone["kind"], alone["head"], alone["pattern"]) == ("encoder", {"kind": "none"}, both["encoder"]["pattern"])
    assert not alone.keys() & {"start_id", "cross", "encoder", "decoder"}
    keys = family.body({"architectures": ["LongT5EncoderModel"]}, "config.json").keys
    assert keys["embedding.tokens"] == "~shared" and not any(ours.startswith("decoder") for ours in keys)
