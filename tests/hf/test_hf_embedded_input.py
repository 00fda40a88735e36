"""Vectors of tokens in place of ids: beside the ids whose vectors they are, and beside transformers' own models."""

import json
import re

import pytest
import torch
import transformers
from peft import PromptTuningConfig, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, T5Config

import zoo.hf
from support.packaged_specs import one_in
from support.shrunk_models import shrunk
from support.tiny_models import every_choice, model_of, name
from zoo.errors import ConfigError

EXACT = {"atol": 2e-5, "rtol": 2e-5}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61}


def convert(theirs, folder):
    """Open transformers' model, its weights drawn anew, as one of ours."""
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.3)
    theirs.eval().save_pretrained(folder)
    return zoo.hf.load(folder)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """transformers' Llama and ours, of the same random weights."""
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=0))
    return theirs, convert(theirs, tmp_path_factory.mktemp("llama"))


def rows(left):
    """Token ids [2, 9] and a mask, with padding on one side."""
    ids, mask = torch.randint(2, 61, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    mask = mask if left else mask.flip(1)
    return ids.masked_fill(mask == 0, 1), mask


MODELS = (
    *("gemma-2b", "gpt2", "bert-base"),  # a factor, positions, types and a norm
    *("roberta-base", "qwen3-next-80b-a3b"),  # positions that skip padding; experts beside a delta rule
    *("t5-small", "bart-base"),  # a shared table
)


@pytest.mark.parametrize("packaged", MODELS)
def test_logits_equal_those_of_the_ids_whose_vectors_are_given(packaged):
    model = zoo.hf.wrap(zoo.build(shrunk(packaged))).eval()
    ids, mask = rows(left=False)
    given = {"decoder_input_ids": ids[:, :4]} if model.config.is_encoder_decoder else {}
    vectors = model.get_input_embeddings()(ids)
    wanted = model(ids, mask, **given).logits
    found = model(inputs_embeds=vectors, attention_mask=mask, **given).logits
    real = ... if given else mask.bool()
    torch.testing.assert_close(found[real], wanted[real])
    torch.testing.assert_close(model(ids, mask, **given).logits, wanted)  # ids are looked up in the table again


@pytest.mark.parametrize("overrides", one_in(8, every_choice()), ids=name)
def test_every_choice_gives_the_logits_of_the_ids_or_is_refused(overrides):
    model = zoo.hf.wrap(model_of(overrides)).eval()
    ids = torch.randint(0, 67, (2, 9))
    vectors = model.get_input_embeddings()(ids)
    if any(part in str(overrides) for part in ("router=hash", "ngrams", "mask_id")):
        with pytest.raises(ConfigError, match="reads token ids"):
            model(inputs_embeds=vectors)
        return
    torch.testing.assert_close(model(inputs_embeds=vectors)[0], model(ids)[0])


def test_every_gradient_of_the_vectors_equals_that_of_llama(llamas):
    _, mask = rows(left=True)
    vectors, labels = torch.randn(2, 9, 32), torch.randint(1, 61, (2, 9)).masked_fill(mask == 0, -100)
    made = []
    for model in llamas:
        own = vectors.clone().requires_grad_()
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out = model(inputs_embeds=own, attention_mask=mask, position_ids=positions, labels=labels)
        (gradient,) = torch.autograd.grad(out.loss, own)
        made.append((out.loss, gradient))
    torch.testing.assert_close(*made, **EXACT)
    assert bool((made[0][1][:, :-1][mask[:, :-1].bool()] != 0).any(-1).all())  # the last token predicts nothing


def test_vectors_of_an_encoder_and_of_a_decoder_equal_those_of_t5(tmp_path):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
    theirs = transformers.T5ForConditionalGeneration(T5Config(**sizes, pad_token_id=0, decoder_start_token_id=0))
    pair = theirs, convert(theirs, tmp_path)
    _, mask = rows(left=False)
    source, target = torch.randn(2, 9, 32), torch.randn(2, 4, 32)
    how = {"inputs_embeds": source, "attention_mask": mask}
    torch.testing.assert_close(*(each(**how, decoder_inputs_embeds=target).logits for each in pair), **EXACT)
    made = [each.generate(**how, max_new_tokens=6, do_sample=False, eos_token_id=3) for each in pair]
    assert torch.equal(*made)


def test_vectors_of_a_row_equal_those_of_roberta(tmp_path):
    theirs = transformers.RobertaForMaskedLM(RobertaConfig(**SIZES, max_position_embeddings=32, pad_token_id=1))
    ours, vectors = convert(theirs, tmp_path), torch.randn(2, 9, 32)
    torch.testing.assert_close(*(each(inputs_embeds=vectors).logits for each in (theirs, ours)), **EXACT)


@pytest.mark.parametrize("how", ({}, {"num_beams": 3}))
def test_tokens_generated_after_vectors_equal_those_of_llama(llamas, how):
    _, mask = rows(left=True)
    vectors = torch.randn(2, 9, 32)
    options = {"inputs_embeds": vectors, "attention_mask": mask, "do_sample": False, "max_new_tokens": 12, **how}
    made = [model.generate(**options, pad_token_id=0, eos_token_id=3) for model in llamas]
    assert torch.equal(*made)


@pytest.mark.filterwarnings("ignore:Position ids are not supported", "ignore:`is_gradient_checkpointing`")
def test_peft_tunes_a_prompt(llamas):
    theirs, ours = llamas
    tuned = get_peft_model(ours, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    ids, mask = torch.randint(1, 61, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    before = {name: each.clone() for name, each in theirs.state_dict().items()}
    optimizer = torch.optim.SGD([each for each in tuned.parameters() if each.requires_grad], lr=1.0)
    losses = []
    for _ in range(8):
        loss = tuned(input_ids=ids, attention_mask=mask, labels=ids).loss
        prompt = tuned.get_prompt(2)
        rows = torch.cat((prompt, theirs.model.embed_tokens(ids)), 1)
        logits = theirs(inputs_embeds=rows).logits[:, 3:-1]  # from the last virtual token on
        wanted = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        torch.testing.assert_close(loss, wanted, **EXACT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(each, before[name]) for name, each in theirs.state_dict().items())
    made = tuned.eval().generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=60)
    rows = torch.cat((tuned.get_prompt(2), theirs.model.embed_tokens(ids)), 1)
    wanted = theirs.generate(inputs_embeds=rows, max_new_tokens=6, do_sample=False, eos_token_id=60, pad_token_id=0)
    assert torch.equal(made[:, 5:], wanted)


REFUSED = {"gemma-3n-e2b": "embedding.per_layer.vocab_size", "esm2-8m": "embedding.mask_id"}


@pytest.mark.parametrize("packaged", REFUSED)
def test_a_model_that_reads_ids_elsewhere_is_refused_by_the_name_of_the_field(packaged):
    model = zoo.hf.wrap(zoo.build(shrunk(packaged)))
    with pytest.raises(ConfigError, match=f"inputs_embeds: {re.escape(REFUSED[packaged])} reads token ids"):
        model(inputs_embeds=torch.zeros(1, 3, 36))


def test_ids_or_vectors_are_given_and_as_wide_as_the_table(llamas):
    ours, ids = llamas[1], torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"inputs_embeds: has the shape \[1, 3, 5\] \(\[B, T, 32\]"):
        ours(inputs_embeds=torch.zeros(1, 3, 5))
    for given in ({}, {"input_ids": ids, "inputs_embeds": torch.zeros(1, 3, 32)}):
        with pytest.raises(ValueError, match="inputs_embeds: give these or input_ids"):
            ours(**given)


def test_what_peft_reads_of_a_config_is_in_no_file(llamas, tmp_path):
    config = llamas[1].config
    said = {name: config.to_dict()[name] for name in ("hidden_size", "num_attention_heads")}
    assert said == {"hidden_size": 32, "num_attention_heads": 4}
    config.save_pretrained(tmp_path)
    assert not said.keys() & json.loads((tmp_path / "config.json").read_text()).keys()
    assert type(config).from_dict(config.to_dict()).to_dict() == config.to_dict()
