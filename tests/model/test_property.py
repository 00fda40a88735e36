"""Any legal combination of the axes holds what a transformer must; any other is refused before a tensor exists."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from support.random_architectures import LENGTH, SIZES, VOCAB, architectures, made
from zoo.cache.cache import Cache
from zoo.costs import price

CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def maybe(strategy):
    """None as often as not."""
    return st.one_of(st.none(), strategy)


WIDTH = st.sampled_from([24, 10])


@st.composite
def wirings(draw):
    """Tables, heads and towers joined in every way: widths, ties, vocabularies and cross-attention, legal or not."""
    kind = draw(st.sampled_from(["decoder", "encoder", "encoder_decoder"]))
    embedding = {
        "kind": "tokens",
        "width": draw(maybe(WIDTH)),
        "norm": draw(maybe(st.just({"kind": "layernorm"}))),
        "vocab_size": draw(st.sampled_from([*[None] * 6, VOCAB, 50])),
        **{name: draw(st.integers(0, 7)) == 0 for name in ("norm_first", "project_first", "project_bias")},
    }
    head = {"kind": "lm", "tied": draw(st.booleans()), "vocab_size": draw(st.sampled_from([*[None] * 7, 50]))}
    if draw(st.integers(0, 2)) == 0:
        head |= {
            "kind": "mlm",
            "activation": {"kind": "gelu"},
            "norm": {"kind": "rmsnorm"},
            "width": draw(maybe(WIDTH)),
        }
    body = {
        **SIZES,
        "kind": kind,
        "n_layers": 2,
        "out_width": draw(maybe(WIDTH)),
        "embedding": {key: value for key, value in embedding.items() if value not in (None, False)},
        "head": {key: value for key, value in head.items() if value is not None},
    }
    if kind == "encoder_decoder":
        for tower in ("encoder", "decoder"):
            body[tower] = {} if draw(st.booleans()) else {"vocab_size": draw(st.sampled_from([VOCAB, 50]))}
        if draw(st.integers(0, 3)) == 0:
            body["encoder"]["d_model"], body["cross"] = draw(WIDTH), {"memory_width": draw(WIDTH)}
        if draw(st.booleans()):
            body["decoder"]["embedding"] = {"tied": draw(st.sampled_from([None, "encoder.embedding.tokens", "foo"]))}
    elif draw(st.integers(0, 9)) == 0:
        body["embedding"]["tied"] = draw(st.sampled_from(["encoder.embedding.tokens", "embedding.tokens"]))
    axes = {
        "attention": "mha",
        "norm": "rmsnorm",
        "block": draw(st.sampled_from(["pre", "pre", "post", "post", "parallel"])),
    }
    axes |= {
        "ffn": "mlp",
        "activation": "relu",
        "position": draw(st.sampled_from(["rope", "learned", "sinusoidal", "t5"])),
    }
    if kind == "encoder_decoder" or draw(st.integers(0, 4)) == 0:
        axes["cross"] = "mha"
    return {"defaults": [{f"/{axis}": choice} for axis, choice in axes.items()], **body}


def asked(model, ids, mask=None, **more):
    """Hidden states, of an encoder-decoder for the same tokens on both sides."""
    if "encoder" in model.spec.towers():
        return model(ids, mask, decoder_input_ids=ids, decoder_attention_mask=mask, **more)
    return model(ids, mask, **more)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(wirings())
@torch.no_grad()
def test_tables_heads_and_towers_fit_or_are_refused_in_one_line(body):
    model = made(body)
    event("refused" if model is None else f"built: {model.spec.kind}")
    assume(model is not None)
    assert sum(parameter.numel() for parameter in model.parameters()) == price(model.spec)["params"]["total"]
    towers = list(model.spec.towers().values())
    ids = torch.randint(
        min(tower.vocab_size for tower in towers), (2, LENGTH), generator=torch.Generator().manual_seed(6)
    )
    alone = model.spec.kind == "decoder" and model.spec.reads_memory
    width = towers[-1].memory_width
    more = {"memory": torch.randn(2, 5, width, generator=torch.Generator().manual_seed(7))} if alone else {}
    whole = asked(model, ids, **more).logits
    assert whole.shape == (2, LENGTH, towers[-1].vocab_size) and torch.isfinite(whole).all()
    if model.spec.kind != "encoder":
        _cached_is_full(model, ids, whole, **more)


def steady(spec):
    """Whether a router's choice is the same however rows are laid out: experts that choose tokens look at the row."""
    return "expert_choice" not in repr(spec) and "ExpertChoice" not in repr(spec)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(architectures())
@torch.no_grad()
def test_every_legal_combination_holds(body):
    model = made(body)
    event("refused" if model is None else f"built: {model.spec.kind}")
    assume(model is not None)
    generator = torch.Generator().manual_seed(6)
    # No token twice: an indexer without positions gives two of a kind one score, and may choose either.
    ids = torch.stack([torch.randperm(VOCAB, generator=generator)[:LENGTH] for _ in range(2)])
    whole = asked(model, ids).logits
    assert torch.isfinite(whole).all()
    _looks_where_it_may(model, ids, whole)
    _padded_rows_are_alone(model, ids)
    _kernels_agree(model, ids, whole)
    if model.spec.kind != "encoder_decoder":
        _packed_documents_are_apart(model, ids)
    if model.spec.kind != "encoder":
        _cached_is_full(model, ids, whole)
    _every_parameter_learns(model, ids)


def _looks_where_it_may(model, ids, whole):
    changed = ids.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % VOCAB
    seq2seq = "encoder" in model.spec.towers()
    after = (model(ids, decoder_input_ids=changed) if seq2seq else model(changed)).logits
    if model.spec.kind == "encoder":
        assert not torch.equal(whole[:, 8], after[:, 8])  # by little, where norms saturate
    else:
        torch.testing.assert_close(whole[:, :9], after[:, :9], **CLOSE)


def _padded_rows_are_alone(model, ids):
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, 10:] = 0, 0
    padded = asked(model, ids, mask).logits
    torch.testing.assert_close(padded[:1, 4:], asked(model, ids[:1, 4:]).logits, **CLOSE)
    torch.testing.assert_close(padded[1:, :10], asked(model, ids[1:, :10]).logits, **CLOSE)


def _packed_documents_are_apart(model, ids):
    documents = torch.tensor([0] * 6 + [1] * (LENGTH - 6)).expand(2, -1)
    apart = torch.cat((model(ids[:, :6]).logits, model(ids[:, 6:]).logits), 1)
    torch.testing.assert_close(model(ids, documents=documents).logits, apart, **CLOSE)


def _kernels_agree(model, ids, whole):
    model.kernel = "eager"
    torch.testing.assert_close(asked(model, ids).logits, whole, **CLOSE)
    model.kernel = "auto"


def _cached_is_full(model, ids, whole, **more):
    decoder = model
    if "encoder" in model.spec.towers():
        decoder, more = model.get_submodule("decoder"), {"memory": model.get_submodule("encoder")(ids).hidden}
    cache = Cache.allocate(model, 2, LENGTH, source=LENGTH)
    with torch.inference_mode():
        parts = [decoder(part, cache=cache, **more).logits for part in ids.split([5, 1, 1, 4, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)


def _every_parameter_learns(model, ids):
    model.train()
    with torch.enable_grad():
        more = {"global_attention_mask": ids % 3 == 0} if "longformer" in repr(model.spec).lower() else {}
        out = asked(model, ids.repeat(2, 1), **{name: mask.repeat(2, 1) for name, mask in more.items()})
        (out.logits.float().square().mean() + sum(out.losses.values())).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert [name for name in still if not silent(name)] == []


def silent(name):
    """A key's bias moves all scores of a query alike, which softmax does not see where nothing turns it. An indexer's
    choice has no gradient."""
    return ".index_" in name or name.endswith(
        (".k.bias", ".k_global.bias", ".pos_q.bias", ".k_norm.bias", ".kv_a.bias")
    )
