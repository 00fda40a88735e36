"""An attention that caches the mean of every few tokens is one class and one YAML: prices, caches, pages, recorded
steps, recomputation, what training keeps and what the ways to spread a model refuse follow from what it states."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import PositiveInt

import zoo
from support.packaged_specs import make_loud
from support.saved_activations import passes, saved_by, told
from zoo.compose import load
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.rank_model import context_faults, layer_faults, tensor_faults
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.model.attention.base import Attention, Passes, Sight, SoftmaxAttention
from zoo.model.attention.entries import attend_entries, pool_entries, slide_window
from zoo.model.lending import Loan
from zoo.run.builder import build
from zoo.run.recompute import set_recompute
from zoo.spec import Linear

YAML = """
defaults: [/position: none, /norm: rmsnorm, /block: pre, /ffn: gated, /activation: silu, _self_]
vocab_size: 61
d_model: 24
n_layers: 3
n_heads: 2
head_dim: 8
d_ff: 40
max_seq_len: 64
attention: {kind: means, n_heads: "${up:n_heads}", head_dim: 8, rate: 3, window: 4, position: {kind: none}}
head: {kind: lm, tied: true}
"""
LENT = ["layers={own: {}, lent: {attention: {means_of: own}}}", "pattern=[own, lent, own]"]
H, C, RATE, NEAR = 2, 8, 3, 4
IDS = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def means() -> Iterator[None]:
    class Means(SoftmaxAttention, kind="means"):
        """Attention to a window of tokens and to the mean of every `rate` tokens, of one key and value for all
        heads."""

        causal: ClassVar[bool | None] = True

        head_dim: PositiveInt
        """Channels of a head."""
        rate: PositiveInt
        """Tokens of a mean."""
        window: PositiveInt
        """Tokens that a query sees as they are."""
        means_of: str | None = None
        """The kind of layer whose means it reads."""

        @property
        def passes(self) -> Passes:
            return Passes(varlen=0)

        @property
        def loan(self) -> Loan | None:
            return None if self.means_of is None else Loan(self.means_of, "means_of")

        @property
        def sight(self) -> Sight:
            return Sight(rate=self.rate, near=self.window)

        @property
        def head_widths(self) -> tuple[int, int]:
            return self.head_dim, self.head_dim

        def parts(self, d_model: int) -> dict[str, Any]:
            width = self.n_heads * self.head_dim
            return {
                "q": Linear(d_model, width),
                "kv": Linear(d_model, self.head_dim),
                "o": Linear(width, d_model, residual=True),
            }

        def attended(self) -> dict[str, tuple[int, ...]]:
            return {"mean": (self.head_dim,)}

        def cache(self) -> dict[str, tuple[int, ...]]:
            return {} if self.means_of else self.attended()

        def state(self) -> dict[str, tuple[int, ...]]:
            return {
                "near": (self.window - 1, self.head_dim),
                **({} if self.means_of else {"sum": (1, 3, self.head_dim)}),
            }

        def core_flops(self, pairs: int) -> int:
            return 4 * self.n_heads * self.head_dim * pairs

        def ask(self, dtype: str, **features: Any) -> Any:
            return replace(super().ask(dtype, **features), n_kv_heads=1)

        def forward(self, m: Any, x: Any, step: Any) -> Any:
            q, c = m.q(x).unflatten(-1, (self.n_heads, self.head_dim)), m.kv(x)
            near = step.apply(slide_window, "near", c, self.window)
            if self.means_of is None:
                gates = torch.zeros_like(c)
                made = step.apply(pool_entries, "sum", c, gates, gates[0, :1].expand(self.rate, -1), False)
                (mean,) = step.give("keys", step.remember(mean=made))
            else:
                (mean,) = step.read("keys")
            return m.o(step.apply(attend_entries, q, near, mean, self.head_dim**-0.5, None).flatten(-2))

    yield
    del Attention.kinds["means"]


def spec_of(*overrides: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "means.yaml")
        file.write_text(YAML)
        return load(file, overrides)


def build_loud(*overrides: str) -> Any:
    return make_loud(build(spec_of(*overrides), device="cpu", dtype="fp32"), (61,))


def test_a_query_sees_its_window_and_the_means_before_it() -> None:
    model, seen = build_loud().eval(), []
    attention = model.blocks[0].attention
    attention.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    with torch.no_grad():
        model(IDS)
        x, found = (each.double() for each in seen[0])
        q, c = ((x @ getattr(attention, name).weight.double().T) for name in ("q", "kv"))
        for row in range(2):
            for token in range(17):
                near = c[row, max(0, token - NEAR + 1) : token + 1]
                means = [c[row, at : at + RATE].mean(0) for at in range(0, token + 2 - RATE, RATE)]
                keys = torch.stack([*near, *means])
                heads = q[row, token].view(H, C) @ keys.T / C**0.5
                wanted = (heads.softmax(-1) @ keys).flatten() @ attention.o.weight.double().T
                torch.testing.assert_close(found[row, token], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("overrides", [[], LENT], ids=["own", "lent"])
@pytest.mark.parametrize("paged", [False, True], ids=["runs", "pages"])
def test_with_a_cache_rows_of_any_length_write_what_they_write_without(overrides: list[str], paged: bool) -> None:
    model = build_loud(*overrides).eval()
    engine = zoo.Engine(model, rows=2, paged=paged)
    prompts = [IDS[0, :4].tolist(), IDS[1, :11].tolist()]
    requests = [zoo.Request(ids=tuple(each), max_new_tokens=12) for each in prompts]
    for each in requests:
        engine.add(each)
    written: dict[Any, list[int]] = {}
    for event in engine.run():
        if event.token is not None:
            written.setdefault(event.request, []).append(event.token)
    assert engine.passes.recordings.replayed
    for prompt, tokens in zip(prompts, written.values(), strict=True):
        with torch.no_grad():
            for _ in range(12):
                prompt.append(int(model(torch.tensor([prompt])).logits[0, -1].argmax()))
        assert tokens == prompt[-12:]


def test_gradients_are_the_same_where_layers_are_computed_again() -> None:
    found = []
    for what in ("none", "selective", "full"):
        model = build_loud(*LENT).train()
        set_recompute(model, what)
        model(IDS, targets=IDS).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for each in found[1:]:
        assert all(map(torch.equal, each, found[0]))


def test_what_training_keeps_of_it_is_priced() -> None:
    spec = spec_of(*LENT)
    model = build(spec, device="cpu", dtype="fp32").train()
    sections = list_sections(spec, PassShape(batch=2, context=9, dtype="fp32", fused=False))
    assert told(spec, sections) == saved_by(model, passes(model, spec, 2, 9))


def test_its_cache_grows_by_a_mean_of_every_few_tokens() -> None:
    for tokens in (2, 3, 16):
        kept = zoo.stats(spec_of(*LENT), context=tokens, dtype="bf16", engine="ideal")["kv_cache"]
        near, sums = 3 * (NEAR - 1) * C * 4, 2 * 3 * C * 4
        assert kept["state_bytes"] == near + sums
        assert kept["bytes"] == near + sums + 2 * (tokens // RATE) * C * 2


def test_what_spreads_a_model_refuses_it_by_what_it_states() -> None:
    spec = spec_of(*LENT)
    (refused, *_) = tensor_faults(spec, 2)
    assert refused.startswith("tp: ") and "means" in refused
    assert context_faults(spec, 2) == [
        "cp: 2 ranks would each have some tokens, and 'means' layers need a row's (cp=1)"
    ]
    assert layer_faults(spec, PipelineSchedule("1f1b", 2, 2)) == [
        "pp: is 2, and layers read keys or values of earlier ones, which another stage may have (pp=1)"
    ]
    assert not layer_faults(spec_of(), PipelineSchedule("1f1b", 2, 1))
