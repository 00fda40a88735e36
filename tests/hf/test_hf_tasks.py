"""Models of other tasks than a decoder's, beside transformers' own models with the same weights."""

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    T5Config,
)

import zoo
import zoo.hf
from zoo.errors import ConfigError
from zoo.hf import ZooConfig

EXACT = {"atol": 2e-5, "rtol": 2e-5}
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT |= {"vocab_size": 61, "max_position_embeddings": 32, "pad_token_id": 0}


def convert(theirs, folder):
    """Open transformers' model, its weights drawn anew, as one of ours."""
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.2)
    theirs.eval().save_pretrained(folder)
    return zoo.hf.load(folder)


def rows():
    """Token ids [2, 9], a mask and token types."""
    ids, mask = torch.randint(1, 61, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    types = (torch.arange(9) > 4).long().expand(2, -1)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types * mask}


TASKS = {
    "BertForMaskedLM": ({}, lambda ids, mask: ids.masked_fill(mask == 0, -100)),
    "BertForSequenceClassification": ({"num_labels": 3}, lambda ids, mask: torch.tensor([2, 0])),
    "BertForTokenClassification": ({"num_labels": 3}, lambda ids, mask: (ids % 3).masked_fill(mask == 0, -100)),
}


@pytest.mark.parametrize("name", TASKS)
def test_logits_and_loss_equal_those_of_bert(name, tmp_path):
    fields, make_labels = TASKS[name]
    theirs = getattr(transformers, name)(BertConfig(**BERT, **fields))
    ours = convert(theirs, tmp_path / "bert")
    assert type(ours).__name__ == name.replace("Bert", "Zoo")
    given = rows()
    labels = make_labels(given["input_ids"], given["attention_mask"])
    wanted, found = (model(**given, labels=labels) for model in (theirs, ours))
    real = ... if wanted.logits.ndim == 2 else given["attention_mask"].bool()
    torch.testing.assert_close(found.logits[real], wanted.logits[real], **EXACT)
    torch.testing.assert_close(found.loss, wanted.loss, **EXACT)
    ours.save_pretrained(tmp_path / "ours")
    auto = getattr(transformers, name.replace("Bert", "AutoModel"))
    again = auto.from_pretrained(tmp_path / "ours")
    assert type(again) is type(ours) and again.config.num_labels == ours.config.num_labels
    torch.testing.assert_close(again(**given).logits, found.logits, **EXACT)


def test_hidden_states_and_the_pooled_vector_equal_those_of_bert(tmp_path):
    theirs = transformers.BertModel(BertConfig(**BERT))
    ours = convert(theirs, tmp_path / "bert")
    ours.save_pretrained(tmp_path / "ours")
    for model in (ours, AutoModel.from_pretrained(tmp_path / "ours")):
        wanted, found = (each(**rows_of_seed(3), output_hidden_states=True) for each in (theirs, model))
        torch.testing.assert_close(found.pooler_output, wanted.pooler_output, **EXACT)
        for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True):
            torch.testing.assert_close(a[0], b[0], **EXACT)


def rows_of_seed(seed):
    torch.manual_seed(seed)
    return rows()


def test_a_decoder_is_an_embedding_model_without_its_head(tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(ZooConfig.of("llama-tiny")).eval()
    model.save_pretrained(tmp_path)
    bare, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not any(name.startswith("head") for name in bare.state_dict())
    ids = torch.randint(0, 61, (2, 9))
    torch.testing.assert_close(model.head(bare(ids).last_hidden_state), model(ids).logits, **EXACT)


@pytest.mark.parametrize("name", ("llama-tiny", "bert-tiny", "bart-tiny"))
@pytest.mark.parametrize("labels", (1, 3))
def test_a_new_head_for_rows_is_drawn_and_the_rest_is_kept(name, labels, tmp_path):
    auto = {"llama-tiny": transformers.AutoModelForCausalLM, "bert-tiny": AutoModelForMaskedLM}
    model = auto.get(name, AutoModelForSeq2SeqLM).from_config(ZooConfig.of(name))
    model.save_pretrained(tmp_path)
    how = {"num_labels": labels, "output_loading_info": True}
    scorer, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, **how)
    assert info["missing_keys"] and all("head.out." in key for key in info["missing_keys"])
    held = model.state_dict()
    kept = {key: value for key, value in scorer.state_dict().items() if key not in info["missing_keys"]}
    assert len(kept) > 10 and all(torch.equal(value, held[key]) for key, value in kept.items())
    ids, mask = torch.randint(1, 61, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, 6:] = 0
    found = scorer(ids, mask, labels=torch.tensor([0.5, 1.0]) if labels == 1 else torch.tensor([2, 0]))
    assert found.logits.shape == (2, labels)
    torch.testing.assert_close(found.logits[0], scorer(ids[:1, :6]).logits[0], **EXACT)
    wanted = (
        F.mse_loss(found.logits[:, 0], torch.tensor([0.5, 1.0]))
        if labels == 1
        else F.cross_entropy(found.logits, torch.tensor([2, 0]))
    )
    torch.testing.assert_close(found.loss, wanted)
    scorer.save_pretrained(tmp_path / "scorer")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "scorer")
    torch.testing.assert_close(again(ids, mask).logits, found.logits, **EXACT)


def test_classes_keep_the_names_of_their_config(tmp_path):
    names = {0: "ham", 1: "spam", 2: "eggs"}
    config = ZooConfig.of("bert-tiny", id2label=names, label2id={each: key for key, each in names.items()})
    model = AutoModelForTokenClassification.from_config(config)
    assert model.spec.head.labels == ("ham", "spam", "eggs")
    model.save_pretrained(tmp_path)
    assert AutoModelForTokenClassification.from_pretrained(tmp_path).config.id2label == names
    assert zoo.hf.load(tmp_path).config.id2label == names


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    """transformers' T5 and ours, of the same random weights."""
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61}
    theirs = transformers.T5ForConditionalGeneration(T5Config(**sizes, pad_token_id=0, decoder_start_token_id=0))
    return theirs, convert(theirs, tmp_path_factory.mktemp("t5"))


def test_logits_and_loss_equal_those_of_t5(seq2seq):
    given = rows()
    del given["token_type_ids"]
    labels = torch.randint(1, 61, (2, 5))
    labels[1, 3:] = -100
    wanted, found = (model(**given, labels=labels, output_hidden_states=True) for model in seq2seq)
    torch.testing.assert_close(found.loss, wanted.loss, **EXACT)
    torch.testing.assert_close(found.logits, wanted.logits, **EXACT)
    real = given["attention_mask"].bool()
    for name, chosen in (("encoder_hidden_states", real), ("decoder_hidden_states", ...)):
        for a, b in zip(getattr(found, name), getattr(wanted, name), strict=True):
            torch.testing.assert_close(a[chosen], b[chosen], **EXACT)
    found.loss.backward()
    assert all(each.grad is not None for each in seq2seq[1].parameters())


@pytest.mark.parametrize("how", ({}, {"num_beams": 3}, {"use_cache": False}, {"do_sample": True}))
def test_generated_targets_equal_those_of_t5(seq2seq, how):
    given = rows()
    del given["token_type_ids"]
    made = []
    for model in seq2seq:
        torch.manual_seed(1)
        options = {"do_sample": False, **how, "max_new_tokens": 12, "eos_token_id": 3, "decoder_start_token_id": 0}
        made.append(model.generate(**given, **options))
    assert torch.equal(*made)


def test_a_saved_pair_is_read_again(seq2seq, tmp_path):
    ours = seq2seq[1]
    ours.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    given = rows()
    del given["token_type_ids"]
    made = [model.generate(**given, max_new_tokens=6, do_sample=False) for model in (ours, again)]
    assert torch.equal(*made) and not (made[0][:, 0] != 0).any()


def test_a_class_for_another_head_is_refused():
    with pytest.raises(ConfigError, match="kind: is 'decoder', and this class is for a model of kind 'encoder'"):
        AutoModelForMaskedLM.from_config(ZooConfig.of("llama-tiny"))
    with pytest.raises(ConfigError, match="head: the model has no head"):
        AutoModelForMaskedLM.from_config(ZooConfig.of("bert-tiny", ["~head", "+head={kind: none}"]))


@pytest.mark.parametrize("name, auto", (("bert-tiny", AutoModelForMaskedLM), ("t5-tiny", AutoModelForSeq2SeqLM)))
def test_offloaded_encoders_compute_what_they_compute_in_memory(name, auto, tmp_path):
    model = auto.from_config(ZooConfig.of(name)).eval()
    model.save_pretrained(tmp_path)
    opened = auto.from_pretrained(tmp_path, device_map={"": "disk"}, offload_folder=tmp_path / "off")
    given = rows()
    if name == "t5-tiny":
        given = {"input_ids": given["input_ids"], "decoder_input_ids": torch.randint(1, 61, (2, 3))}
    assert all(each.is_meta for each in opened.parameters())
    assert torch.equal(opened(**given).logits, model(**given).logits)
    if name == "t5-tiny":
        ids = given["input_ids"]
        assert torch.equal(*(each.generate(ids, max_new_tokens=4, do_sample=False) for each in (opened, model)))


def test_a_new_head_is_not_offloaded(tmp_path):
    AutoModelForMaskedLM.from_config(ZooConfig.of("bert-tiny")).save_pretrained(tmp_path)
    how = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "off"}
    with pytest.raises(ConfigError, match=r"device_map: offloads head\.\S+, which no file has"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, **how)
