"""Objectives: their batches, their losses beside transformers', and what each refuses."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import zoo
from support.packaged_specs import load
from support.reference_models import Case, pair
from support.tiny_models import model_of, spec_of
from zoo.data import Batch
from zoo.data.collate import pad_pairs
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.data.tokens import EVALUATION
from zoo.errors import ConfigError
from zoo.model.loss import IGNORED, TeacherLoss
from zoo.training.gradient import accumulate_gradient
from zoo.training.objective import Context, Distil, Objective

WORDS = b"The quick brown fox. It jumps over\nthe lazy dog! "
NODES = {
    "next_token": ({}, ["vocab_size=300"]),
    "prefix_lm": ({}, ["vocab_size=300", "prefix_lm=true"]),
    "mlm": ({}, "bert-tiny"),
    "span_corruption": ({}, "t5-tiny"),
    "denoising": ({}, "bart-tiny"),
    "ul2": ({"denoisers": [{"mode": "R", "rate": 0.15}, {"mode": "S", "kind": "suffix", "rate": 0.25}]}, "t5-tiny"),
}


def spec_for(name):
    model = NODES[name][1]
    return load(model, []) if isinstance(model, str) else spec_of(model)


def objective_of(kind, **fields) -> Objective:
    return Objective.parse({"kind": kind, **NODES.get(kind, ({},))[0], **fields})


def context_for(name, *, documents=False, seed=0, seq_len=64) -> Context:
    tokenizer = make_byte_tokenizer()
    objective_of(name).extend(tokenizer, seq_len)
    return Context(spec_for(name), tokenizer, seq_len, seed, documents)


def rows_of(count=6, length=65, seed=0):
    """Rows of text in which a document ends now and then."""
    drawn = np.random.default_rng(seed)
    rows = np.frombuffer(WORDS * 40, np.uint8).astype(np.int64)
    starts = drawn.integers(0, len(rows) - length, count)
    made = np.stack([rows[start : start + length] for start in starts])
    made[drawn.random(made.shape) < 0.04] = 256
    return made


KEYS = [(0, number) for number in range(6)]
EVERY = pytest.mark.parametrize("name", NODES)


def same(a: Batch, b: Batch) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


@EVERY
@pytest.mark.parametrize("documents", [False, True])
def test_a_batch_follows_from_seed_row_and_epoch_and_all_have_one_shape(name, documents):
    collate = objective_of(name).collator(context_for(name, documents=documents))
    whole = collate(rows_of(), KEYS)
    apart = [collate(rows_of()[number : number + 1], KEYS[number : number + 1]) for number in range(6)]
    together = [None if each[0] is None else torch.cat(each) for each in zip(*apart, strict=True)]
    assert same(whole, Batch(*together))
    shapes = [None if each is None else each.shape for each in whole]
    for rows in (rows_of(seed=1), np.full((6, 65), 256), np.full((6, 65), 65)):
        other = collate(rows, KEYS)
        assert [None if each is None else each.shape for each in other] == shapes
        widths = objective_of(name).widths(spec_for(name), 64, documents)
        assert [other.input_ids.shape[1], other.targets.shape[1]] == [[*widths.values()][place] for place in (0, -1)]
    again = [collate(rows_of(), [(epoch, number) for _, number in KEYS]) for epoch in (0, 1, EVALUATION)]
    assert same(again[0], whole)
    if name != "next_token":
        other = objective_of(name).collator(context_for(name, documents=documents, seed=1))(rows_of(), KEYS)
        assert not any(same(whole, each) for each in (*again[1:], other))


@EVERY
@pytest.mark.parametrize("documents", [False, True])
def test_the_widths_of_rows_fit_those_asked_for(name, documents):
    for seq_len in (16, 64, 100, 512):
        assert max(objective_of(name).widths(spec_for(name), seq_len, documents).values()) <= seq_len


@pytest.mark.parametrize("name", ["span_corruption", "denoising", "ul2"])
def test_what_a_decoder_reads_is_what_it_wrote_one_token_before(name):
    batch = objective_of(name).collator(context_for(name))(rows_of(), KEYS)
    start = torch.full((6, 1), spec_for(name).start_id)
    real = batch.targets != IGNORED
    expected = torch.cat([start, batch.targets[:, :-1]], 1)
    assert torch.equal(batch.decoder_input_ids[real], expected[real])
    assert (batch.attention_mask is not None) == (name == "ul2")


@pytest.mark.parametrize("name", ["span_corruption", "denoising", "ul2"])
@torch.no_grad()
def test_a_target_reads_its_own_documents_source_alone(name):
    model = zoo.build(NODES[name][1], ["d_model=32", "n_heads=4", "head_dim=8", "d_ff=48"], device="cpu").eval()
    context = context_for(name, documents=True)
    batch = objective_of(name).collator(context)(rows_of(), KEYS)
    row = next(row for row in range(6) if batch.decoder_documents[row].max() >= 2)
    one = Batch(*(None if each is None else each[row : row + 1] for each in batch))
    inputs = {name: each for name, each in one._asdict().items() if each is not None and name != "targets"}
    packed = model(**inputs).logits
    changed = one.input_ids.masked_fill(one.documents != 1, 3)
    other = model(**{**inputs, "input_ids": changed}).logits
    own = one.decoder_documents[0] == 1
    torch.testing.assert_close(other[0, own], packed[0, own], atol=1e-5, rtol=1e-5)
    assert (other[0, ~own] - packed[0, ~own]).abs().max() > 1e-3
    alone = model(one.input_ids[one.documents == 1][None], decoder_input_ids=one.decoder_input_ids[:, own]).logits
    torch.testing.assert_close(alone[0], packed[0, own], atol=1e-5, rtol=1e-5)


def test_documents_are_corrupted_apart_and_their_sentinels_begin_anew():
    context = context_for("span_corruption", documents=True)
    batch = objective_of("span_corruption").collator(context)(rows_of(), KEYS)
    (first,) = context.tokenizer.ids_of(["<extra_id_0>"])
    for ids, numbers in zip(batch.decoder_input_ids, batch.decoder_documents, strict=True):
        for number in numbers.unique():
            assert ids[numbers == number][:2].tolist() == [0, first]


def test_the_prefix_is_any_part_of_a_row_and_the_loss_is_on_what_comes_after():
    collate = objective_of("prefix_lm").collator(context_for("prefix_lm", seq_len=16))
    rows = rows_of(500, 17)
    batch = collate(rows, [(0, number) for number in range(500)])
    assert set(batch.prefix.tolist()) == set(range(1, 16))
    for row, prefix, targets in zip(rows, batch.prefix.tolist(), batch.targets.tolist(), strict=True):
        assert targets == [IGNORED] * (prefix - 1) + row[prefix:].tolist()


def test_a_source_is_not_asked_for_and_an_answer_ends_its_text():
    sources, answers = [[1, 2, 3], [4], [5, 6, 7, 8, 9]], [[10, 11], [12, 13, 14, 15], []]
    pairs = pad_pairs(sources, answers, eos_id=0, start_id=99, widths=(4, 3))
    assert pairs.input_ids.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0], [6, 7, 8, 9]]
    assert pairs.attention_mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert pairs.targets.tolist() == [[10, 11, 0], [12, 13, 14], [0, -100, -100]]
    assert pairs.decoder_input_ids.tolist() == [[99, 10, 11], [99, 12, 13], [99, 0, 0]]
    alone = pad_pairs(sources, answers, eos_id=0, start_id=None, widths=(4, 3))
    assert alone.input_ids.tolist() == [[1, 2, 3, 10, 11, 0], [4, 12, 13, 0, 0, 0], [6, 7, 8, 9, 0, 0]]
    first, second, third = alone.targets.tolist()
    assert first == [-100, -100, 10, 11, 0, -100]
    assert second == [12, 13, 14, -100, -100, -100] and third == [-100] * 3 + [0, -100, -100]


@pytest.mark.parametrize("model", ["t5-tiny", "llama-tiny"])
def test_pairs_are_learned_by_both_kinds_of_writers_and_padding_changes_nothing(model):
    context = Context(load(model, []), make_byte_tokenizer(), 16, 0, False)
    objective = objective_of("seq2seq", answer_len=6)
    assert objective.refuses(context.spec) is None
    pairs = [([1, 2, 3], [4, 5]), ([6] * 40, [7] * 40), ([8], [])]
    built = zoo.build(model, [], device="cpu").train()
    whole = objective.loss(built, objective.collator(context)(pairs, KEYS[:3]))
    assert whole.targets == 3 + 6 + 1
    alone = 0.0
    for source, answer in pairs:
        source, answer = source[-(16 if model == "t5-tiny" else 11) :], [*answer, 256][:6]
        if model == "t5-tiny":
            logits = built(torch.tensor([source]), decoder_input_ids=torch.tensor([[0, *answer[:-1]]])).logits[0]
        else:
            logits = built(torch.tensor([[*source, *answer[:-1]]])).logits[0, len(source) - 1 :]
        alone += float(F.cross_entropy(logits, torch.tensor(answer), reduction="sum").detach())
    assert float(whole.terms["loss"]) == pytest.approx(alone, rel=1e-5)


# ---------------------------------------------------------------- losses

HUGGING = {
    "mlm": Case(
        "bert", "BertConfig", "BertForMaskedLM",
        {
            **{"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 2},
            **{"num_attention_heads": 4, "intermediate_size": 48},
        },
    ),
    "span_corruption": Case(
        "t5", "T5Config", "T5ForConditionalGeneration",
        {
            **{"vocab_size": 67, "d_model": 32, "num_layers": 2, "num_heads": 4},
            **{"d_kv": 8, "d_ff": 48, "decoder_start_token_id": 0},
        },
    ),
    "denoising": Case(
        "bart", "BartConfig", "BartForConditionalGeneration",
        {
            **{"vocab_size": 67, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
            **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
            **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HUGGING)
def test_the_loss_and_its_gradient_are_transformers_own(name):
    two = pair(HUGGING[name])
    torch.manual_seed(1)
    ids, labels = torch.randint(5, 67, (3, 20)), torch.randint(5, 67, (3, 12 if name != "mlm" else 20))
    labels[torch.rand(labels.shape) < 0.4] = IGNORED
    mask = torch.ones_like(ids)
    mask[0, 15:] = 0
    labels[0, 15:] = IGNORED
    theirs = two.reference(input_ids=ids, attention_mask=mask, labels=labels)
    theirs.loss.backward()
    batch = Batch(ids, labels, attention_mask=mask)
    if name != "mlm":
        written = torch.cat([torch.full((3, 1), two.ours.spec.start_id), labels[:, :-1]], 1)
        pad = two.reference.config.pad_token_id
        batch = batch._replace(decoder_input_ids=written.masked_fill(written == IGNORED, pad))
    found = accumulate_gradient(two.ours.train(), objective_of(name), batch, 3, nullcontext).terms["loss"]
    two.ours.eval()
    assert float(found) == pytest.approx(float(theirs.loss.detach()), rel=1e-4)
    table = next(name for name, _ in two.ours.named_parameters() if name.endswith("embedding.tokens.weight"))
    ours, expected = two.ours.get_parameter(table).grad, two.reference.get_input_embeddings().weight.grad
    kept = torch.arange(67) != two.reference.config.pad_token_id  # whose look-up has no gradient there
    torch.testing.assert_close(ours[kept], expected[kept], atol=1e-5 * float(expected.abs().max()), rtol=1e-3)
    two.ours.zero_grad(), two.reference.zero_grad()


@pytest.mark.parametrize(("temperature", "mix", "z_loss"), [(1.0, 0.5, 0.0), (3.0, 0.25, 0.1), (2.0, 1.0, 0.1)])
def test_distillation_is_the_divergence_of_both_models_logits_at_a_temperature(temperature, mix, z_loss):
    student, teacher = model_of().double(), model_of(seed=1).double()
    ids, targets = torch.randint(0, 67, (2, 3, 9))
    targets[0, :4] = IGNORED
    kept = targets.flatten() != IGNORED
    taught = teacher(ids).logits.detach().flatten(0, 1)
    mine = student(ids).logits.flatten(0, 1)[kept]
    hard, z = F.cross_entropy(mine, targets.flatten()[kept], reduction="sum"), mine.logsumexp(-1).square().sum()
    soft = F.kl_div(
        F.log_softmax(mine / temperature, -1), F.log_softmax(taught[kept] / temperature, -1),
        reduction="sum", log_target=True,
    )  # fmt: skip
    expected = (1 - mix) * hard + z_loss * z + mix * temperature**2 * soft
    expected.backward()
    wanted = {name: each.grad.clone() for name, each in student.named_parameters()}
    student.zero_grad()
    how = TeacherLoss(0.5, z_loss, 9 * 67 * 8, teacher=lambda rows: taught[rows], temperature=temperature, mix=mix)
    out = student(ids, targets=targets, loss=how)
    (2 * out.loss).backward()
    assert float(out.terms["distil"]) == pytest.approx(0.5 * temperature**2 * float(soft.detach()), rel=1e-5)
    for name, each in student.named_parameters():
        torch.testing.assert_close(each.grad, wanted[name], rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert float(student(ids, targets=targets, loss=how).loss) == pytest.approx(float(out.loss.detach()), rel=1e-6)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("model", "overrides", "fault"),
    [
        ("llama-tiny", ["objective=mlm"], r"mlm is learned by an encoder, the model is a decoder \(.*next_token"),
        ("llama-tiny", ["objective=prefix_lm"], r"objective: prefix_lm needs .*model.prefix_lm=true"),
        ("qwen3-next-tiny", ["objective=prefix_lm", "model.prefix_lm=true"], "'gated_delta' layers read earlier"),
        (
            "llama-tiny",
            ["objective=prefix_lm", "model.prefix_lm=true", "ffn@model.ffn=channel_mix"],
            r"'channel_mix' layers read earlier tokens only \(ffn=mlp",
        ),
        ("llama-tiny", ["objective=seq2seq"], r"objective: seq2seq reads pairs, found text in data=stdlib"),
        ("bert-tiny", ["objective=seq2seq"], "objective: seq2seq writes answers, the model is an encoder"),
        ("bert-tiny", ["objective=span_corruption"], r"learned by an encoder-decoder, .*objective=mlm"),
        ("t5-tiny", ["objective=next_token"], r"learned by a decoder, .*objective=span_corruption"),
        ("bert-tiny", ["objective=mlm", "objective.mask_id=9999"], "mask_id is 9999, .* is 0 to 4223"),
        ("bert-tiny", ["objective=mlm", "objective.masked=0.95"], "masked=0.95 and random=0.1 are more than all"),
        ("bert-tiny", ["model.vocab_size=4096"], r"the tokenizer's 4097 with 1 special .*model.vocab_size=4097"),
        ("t5-tiny", ["model.vocab_size=4100"], r"4109 with 13 special .*data.tokenizer.vocab_size=4087"),
        ("bert-tiny", ["seq_len=600"], r"seq_len: is 600, more than model.max_seq_len=512 \(seq_len=512"),
        ("t5-tiny", ["seq_len=600"], r"seq_len: .*model.encoder.max_seq_len=512"),
        ("llama-tiny", ["objective=distil"], "objective.teacher"),
        ("llama-tiny", ["objective=distil", "objective.teacher=/nowhere"], "objective: teacher: /nowhere"),
        ("llama-tiny", ["router_bias_rate=0.1"], "router_bias_rate: is 0.1, and no router of the model has"),
        ("llama-tiny", ["objective=ul2", "objective.denoisers=[]"], "denoisers: there are none"),
        ("llama-tiny", ["objective=mlmm"], "mlm"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_learn_is_refused_before_anything_is_written(
    model, overrides, fault, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=fault):
        zoo.train(model, ["steps=1", *overrides])
    assert not list(tmp_path.glob("runs/*/*/*.yaml"))


@pytest.mark.parametrize("kind", ["dpo", "ipo", "orpo", "kto", "reward", "contrastive", "classify"])
def test_an_objective_whose_loss_is_no_sum_over_tokens_is_not_distilled(kind):
    """Its own loss would be dropped: a teacher's replaces that of each token."""
    reason = Distil(teacher="anywhere", base=Objective.kinds[kind]()).refuses(spec_of())
    assert reason is not None and reason.startswith(f"distil: base is {kind}, whose ")
