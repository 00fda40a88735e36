"""Encoders' files as they are on the hub: old names, weights twice, heads of other classes; and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import zoo
from support.cases import encoders
from support.reference_models import CLOSE, both, pair, tensors
from zoo.errors import ZooError

CASES = {case.name: case for case in encoders.CASES}
SEQ = "cls.seq_relationship.weight"


def rewritten(name, tmp_path, change, **fields):
    """The folder of a case with its tensors changed and fields of its config.json set, and the case's two models."""
    two = pair(CASES[name])
    held = {key: tensor.clone() for key, tensor in change(tensors(two.folder)).items()}
    save_file(held, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((two.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **fields}))
    return two, tmp_path


def same(two, ours):
    """Whether a model gives what the case's reference does."""
    ids = two.ids()
    _, theirs = both(two, ids)
    with torch.no_grad():
        mine = ours(ids, **two.case.inputs(ids))
    key = "logits" if mine.logits is not None else "last_hidden_state"
    torch.testing.assert_close(mine.hidden if mine.logits is None else mine.logits, theirs[key], **CLOSE)
    return True


def test_norms_with_tensorflows_names_are_read(tmp_path):
    def old(held):
        return {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
            for k, v in held.items()
        }

    two, folder = rewritten("bert", tmp_path, old)
    assert same(two, zoo.load(folder))


@pytest.mark.parametrize(
    ("name", "own", "table"),
    [
        ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("roberta", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("distilbert", "vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
        ("electra", "generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),
        ("albert", "predictions.decoder.weight", "albert.embeddings.word_embeddings.weight"),
    ],
)
def test_a_tied_weight_that_a_file_has_twice_stays_tied(name, own, table, tmp_path):
    two, folder = rewritten(name, tmp_path, lambda held: {**held, own: held[table]})
    ours = zoo.load(folder)
    assert ours.spec == two.ours.spec and same(two, ours)


@pytest.mark.parametrize(
    ("name", "head"), [("bert", "cls.predictions"), ("roberta", "lm_head"), ("albert", "predictions")]
)
def test_a_tied_bias_is_read_under_either_of_its_names(name, head, tmp_path):
    own, other = f"{head}.bias", f"{head}.decoder.bias"
    two, folder = rewritten(name, tmp_path, lambda held: {other if k == own else k: v for k, v in held.items()})
    assert same(two, zoo.load(folder))


@pytest.mark.parametrize(
    ("name", "prefix"), [("bert-base", "bert."), ("roberta-base", "roberta."), ("distilbert-base", "distilbert.")]
)
def test_a_base_class_reads_the_file_of_one_with_a_head(name, prefix, tmp_path):
    extra = {SEQ: torch.zeros(2, 32)} if name == "bert-base" else {}
    two, folder = rewritten(name, tmp_path, lambda held: {prefix + k: v for k, v in held.items()} | extra)
    assert same(two, zoo.load(folder))


def test_a_masked_language_model_leaves_a_pooler_and_a_sentence_head_out(tmp_path):
    extra = {
        "bert.pooler.dense.weight": torch.zeros(32, 32),
        "bert.pooler.dense.bias": torch.zeros(32),
        SEQ: torch.zeros(2, 32),
    }
    extra["bert.embeddings.position_ids"] = torch.arange(64)[None]
    two, folder = rewritten("bert", tmp_path, lambda held: held | extra)
    assert same(two, zoo.load(folder))


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("ernie", {"use_task_id": True}, "task_type_embeddings"),
        ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets"),
        ("deberta", {"talking_head": True}, "talking_head"),
        ("deberta", {"embedding_size": 16}, "embedding_size"),
        ("deberta", {"pos_att_type": "c2p|p2p"}, "pos_att_type"),
        ("bert", {"architectures": ["BertForNextSentencePrediction"]}, "BertForNextSentencePrediction"),
    ],
)
def test_what_is_not_read_is_refused_by_name(name, fields, said, tmp_path):
    _, folder = rewritten(name, tmp_path, dict, **fields)
    with pytest.raises(ZooError, match=said):
        zoo.load(folder)


def test_modernbert_reads_the_fields_that_its_published_config_has(tmp_path):
    """answerdotai/ModernBERT-base says no layer_types and no rope_parameters."""
    two = pair(CASES["modernbert-every"])
    config = json.loads((two.folder / "config.json").read_text())
    old = {k: v for k, v in config.items() if k not in ("layer_types", "rope_parameters")}
    old |= {
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 900.0,
        "local_rope_theta": 40.0,
        "layer_norm_eps": 1e-5,
    }
    old |= {"position_embedding_type": "absolute", "classifier_pooling": "mean", "reference_compile": None}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(old))
    from zoo.checkpoint import hf
    from zoo.families.described import read_body

    assert hf.compose_spec(read_body(file)[1]) == two.ours.spec


def test_which_layers_share_weights_is_part_of_what_is_exported():
    from zoo.checkpoint.likeness import write_out_layers

    groups, one = (pair(CASES[name]).ours.spec for name in ("albert-inner", "albert"))
    assert write_out_layers(groups)["weights"] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert write_out_layers(one)["weights"] == [0, 0, 0]
