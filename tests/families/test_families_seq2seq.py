"""Files of encoder-decoders as the hub has them: heads of their own, tensors left out, copies and leftovers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from support import nllb_experts
from support.cases import readers, seq2seq, towers
from support.cases.seq2seq import BART, MARIAN, T5, decoding
from support.packaged_specs import one_in
from support.reference_models import CLOSE, Case, pair, tensors
from zoo.checkpoint.inverse import try_family
from zoo.errors import CheckpointError


def saved(folder, prefix, model, sizes):
    """A random reference model and the folder that it was written to."""
    reference = Case("", f"{prefix}Config", model, sizes).reference()
    reference.save_pretrained(folder)
    return reference


def rewrite(folder, config=None, change=None):
    """A folder's config.json with these fields (None: without), its tensors as `change` leaves them."""
    stated = json.loads((folder / "config.json").read_text()) | (config or {})
    kept = {key: value for key, value in stated.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    held = load_file(folder / "model.safetensors")
    if change is not None:
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})


def same(folder, model, ids, expected):
    """Whether what stands in a folder, read by transformers, gives these logits."""
    again = getattr(transformers, model).from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids, **decoding(ids)).logits, expected, **CLOSE)


@pytest.mark.parametrize("scaled", one_in(2, [False, True]))
@pytest.mark.parametrize(("prefix", "kind"), [("T5", "t5"), pytest.param("UMT5", "umt5", marks=pytest.mark.slow)])
def test_a_t5_with_a_head_of_its_own_is_read_as_transformers_reads_it(prefix, kind, scaled, tmp_path):
    """T5 1.1: `tie_word_embeddings: false` says nothing of the head, which is in the file, but to scale nothing."""
    model, folder = f"{prefix}ForConditionalGeneration", tmp_path / "in"
    saved(folder, prefix, model, {**T5, "feed_forward_proj": "gated-gelu"})
    head = torch.randn(97, 32, generator=torch.Generator().manual_seed(3)) * 0.15
    old = {"tie_word_embeddings": scaled, "scale_decoder_outputs": None, "dense_act_fn": None, "is_gated_act": None}
    rewrite(folder, old, lambda held: held.update({"lm_head.weight": head}))
    reference = getattr(transformers, model).from_pretrained(folder, attn_implementation="eager").eval()
    assert not torch.equal(reference.lm_head.weight, reference.shared.weight)
    ours, ids = zoo.load(folder), torch.randint(5, 97, (2, 12))
    assert ours.spec.kind == "encoder_decoder" and not ours.spec.decoder.head.tied
    with torch.no_grad():
        logits = ours(ids, **decoding(ids)).logits
        torch.testing.assert_close(logits, reference(input_ids=ids, **decoding(ids)).logits, **CLOSE)
    zoo.export(ours, tmp_path / "out", verify=False)
    before, after = tensors(folder), tensors(tmp_path / "out")
    assert sorted(before) == sorted(after) and all(torch.equal(before[name], after[name]) for name in before)
    same(tmp_path / "out", model, ids, logits)
    ours.source = None  # as one that was trained here
    zoo.export(ours, tmp_path / "fresh", verify=False)
    config = json.loads((tmp_path / "fresh" / "config.json").read_text())
    same(tmp_path / "fresh", config["architectures"][0], ids, logits)


def test_copies_of_the_shared_table_are_read_and_must_be_copies(tmp_path):
    saved(tmp_path, "T5", "T5ForConditionalGeneration", T5)
    copy = {f"{tower}.embed_tokens.weight": "shared.weight" for tower in ("encoder", "decoder")}
    rewrite(tmp_path, None, lambda held: held.update({name: held[other].clone() for name, other in copy.items()}))
    zoo.load(tmp_path)
    rewrite(tmp_path, None, lambda held: held["decoder.embed_tokens.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"decoder\.embed_tokens\.weight differs from shared"):
        zoo.load(tmp_path)


@pytest.mark.parametrize("prefix", ["Bart", "Pegasus"])
def test_what_hub_files_leave_out_is_what_a_fresh_model_has(prefix, tmp_path):
    model, folder = f"{prefix}ForConditionalGeneration", tmp_path / "in"
    config = getattr(transformers, f"{prefix}Config")(**BART)
    reference = getattr(transformers, model)(config).eval()  # its tables as they are made
    reference.save_pretrained(folder)
    gone = ["final_logits_bias"]
    if prefix == "Pegasus":
        gone += [f"model.{tower}.embed_positions.weight" for tower in ("encoder", "decoder")]
    rewrite(folder, None, lambda held: [held.pop(name) for name in gone])
    ours, ids = zoo.load(folder), torch.randint(5, 97, (2, 20))
    with torch.no_grad():
        expected = reference(input_ids=ids, **decoding(ids)).logits
        torch.testing.assert_close(ours(ids, **decoding(ids)).logits, expected, **CLOSE)
    zoo.export(ours, tmp_path / "out", verify=False)
    same(tmp_path / "out", model, ids, expected)


def test_a_table_that_nothing_reads_goes_back_as_it_came(tmp_path):
    """Encoder and decoder with tables of their own: BART's `shared` is left over."""
    saved(tmp_path / "in", "Bart", "BartForConditionalGeneration", {**BART, "tie_word_embeddings": False})
    ours = zoo.load(tmp_path / "in")
    zoo.export(ours, tmp_path / "out", verify=False)
    name = "model.shared.weight"
    assert torch.equal(tensors(tmp_path / "in")[name], tensors(tmp_path / "out")[name])
    ours.source = None
    zoo.export(ours, tmp_path / "fresh", verify=False)
    fresh = tensors(tmp_path / "fresh")
    assert torch.equal(fresh[name], fresh["model.encoder.embed_tokens.weight"])


def test_marians_table_of_sines_may_be_in_the_file(tmp_path):
    """Files of earlier versions have it."""
    reference = saved(tmp_path, "Marian", "MarianMTModel", MARIAN)
    table = reference.model.encoder.embed_positions.weight
    rewrite(tmp_path, None, lambda held: held.update({"model.encoder.embed_positions.weight": table.detach().clone()}))
    assert zoo.load(tmp_path).spec.encoder.position.rows is None


HUB = {
    "t5": {"n_positions": 512, "output_past": True, "task_specific_params": {"summarization": {"num_beams": 4}}},
    "umt5": {"scalable_attention": True, "tokenizer_class": "T5Tokenizer", "output_past": True},
    "bart": {
        "_num_labels": 3,
        "classif_dropout": 0.1,
        "normalize_embedding": True,
        "num_hidden_layers": 3,
        "prefix": " ",
    },
    "mbart": {"add_final_layer_norm": True, "normalize_before": True, "replacing_rate": 0, "output_past": True},
    "pegasus": {"extra_pos_embeddings": 1, "static_position_embeddings": True, "length_penalty": 0.8, "num_beams": 8},
    "marian": {"bad_words_ids": [[96]], "static_position_embeddings": True, "max_length": 512},
    "blenderbot": {"layernorm_variant": "prelayernorm", "do_blenderbot_90_layernorm": True, "save_step": 7},
}


@pytest.mark.parametrize("name", HUB)
def test_fields_of_hub_configs_that_nothing_reads_are_let_through(name):
    from zoo.checkpoint import hf
    from zoo.families import family

    found = family.read_family(name)
    base = {**(T5 if "t5" in name else BART), "model_type": name}
    one, other = (hf.compose_spec(found.body(config, "config.json")) for config in (base, {**base, **HUB[name]}))
    assert one == other


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"is_decoder": True}, "is_decoder: is true"),
        ({"feed_forward_proj": "gated-swoosh"}, "swoosh"),
        ({"d_mdel": 3}, "d_mdel"),
    ],
)
def test_what_no_t5_is_is_refused_by_name(change, says):
    from zoo.families import family

    with pytest.raises(CheckpointError, match=says):
        family.read_family("t5").body({**T5, "model_type": "t5", **change}, "config.json")


def test_each_family_says_its_own_spec_and_not_anothers():
    """A post-norm model with learned positions is BART's, however often it is asked of the others."""
    from zoo.checkpoint import hf
    from zoo.families import family

    body = family.read_family("bart").body({**BART, "model_type": "bart"}, "config.json")
    spec = hf.compose_spec(body)
    for name, is_it in (("bart", True), ("mbart", False), ("pegasus", False), ("t5", False)):
        found = family.read_family(name)
        _, _, faults = try_family(found, next(iter(found.architectures)), spec)
        assert (faults == []) is is_it, name


@pytest.mark.parametrize("name", ["fsmt", "fsmt-tied", "fsmt-plain"])
def test_fsmts_greedy_continuation_equals_the_references_with_a_cache(name):
    two = pair(next(case for case in readers.CASES if case.name == name))
    ids = two.ids(2, 10)
    options = {"max_new_tokens": 14, "do_sample": False, "eos_token_id": None, "use_cache": True}
    with torch.no_grad():
        theirs = two.reference.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert zoo.generate(two.ours, ids, 14).tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("tower", "change", "says"),
    [
        ("encoder", {"model_type": "gpt2"}, "encoder: model_type: 'gpt2' has no class whose tokens all see"),
        ("decoder", {"model_type": "llama"}, "decoder: model_type: 'llama' has no class with cross-attention"),
        ("decoder", {"add_cross_attention": False}, "decoder: add_cross_attention: is false"),
        ("decoder", {"is_decoder": False}, "decoder: is_decoder: is false"),
        ("encoder", None, "encoder: is null, no config of a model"),
    ],
)
def test_a_pair_of_towers_that_cannot_be_is_refused_by_the_tower(tower, change, says):
    from zoo.families import family

    sizes = dict(next(case for case in towers.CASES if case.name == "encoder_decoder").sizes)
    sizes[tower] = None if change is None else {**sizes[tower], **change}
    with pytest.raises(CheckpointError, match=says):
        family.read_family("encoder_decoder").body({**sizes, "model_type": "encoder-decoder"}, "config.json")


def test_a_pair_that_came_from_no_folder_is_written_as_two_families_that_transformers_reads(tmp_path):
    two = pair(next(case for case in towers.CASES if case.name == "encoder_decoder-gpt2"))
    ours, ids = zoo.load(two.folder), two.ids()
    ours.source = None
    zoo.export(ours, tmp_path, verify=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["encoder"]["model_type"], config["decoder"]["model_type"]) == ("bert", "gpt2")
    assert config["decoder_start_token_id"] == 3
    assert sorted(tensors(tmp_path)) == sorted(tensors(two.folder))
    with torch.no_grad():
        same(tmp_path, "EncoderDecoderModel", ids, ours(ids, **decoding(ids)).logits)


def test_the_references_own_experts_of_nllb_are_still_the_first_two_alone():
    """Until that is mended, the cases of NLLB-MoE are compared with `experts_of_nllb`."""
    made = next(case for case in seq2seq.CASES if case.name == "nllb_moe").reference()
    layer = next(each.ffn for each in made.model.encoder.layers if each.is_sparse)
    ran = []
    for name, expert in layer.experts.items():
        expert.register_forward_hook(lambda *_, name=name: ran.append(name))
    x = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        chosen, weights, _ = layer.router(x)
        nllb_experts.AS_RELEASED(layer.experts, x, chosen, weights)
    assert ran == ["expert_0", "expert_1"] and bool((weights > 0).any(0).all())
