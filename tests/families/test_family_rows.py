"""Rows of a family's YAML that stand for several, and how they are laid over those of another family."""

import dataclasses

import pytest

from zoo.families.body import lay_rows, write_out_keys
from zoo.families.family import parse_family, read_family


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


def draft(**more):
    return parse_family(
        "new_text", {"architectures": {"NewForCausalLM": {"prefix": "model."}}, "like": "llama", **more}
    )


def test_a_family_has_a_class_without_a_head_unless_it_says_that_it_has_none():
    assert list(draft().architectures) == ["NewForCausalLM", "NewTextModel"]
    assert draft().architectures["NewTextModel"] == {"prefix": "", "model": {"head": {"kind": "none"}}}
    assert list(draft(bare=None).architectures) == ["NewForCausalLM"]


def test_a_default_of_another_family_is_written_where_the_field_is_read():
    plain = draft(model={"attention": {"bias": False}})
    assert "attention_bias" in read_family("llama").written and "attention_bias" not in plain.written
    assert "mlp_bias" in plain.written and plain.model_types == ("new_text",)
    assert "attention_bias" in dataclasses.replace(plain, inherited=frozenset()).written
