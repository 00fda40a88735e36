"""A component that passes something to the next layer is one class: caches, recorded steps, recomputation, prices and a
pipeline's refusal follow from the channel that it names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch

import zoo
from support.packaged_specs import make_loud
from support.saved_activations import passes, saved_by, told
from zoo.compose import load
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.rank_model import layer_faults
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.errors import ConfigError
from zoo.model.channels import Channel
from zoo.model.ffn import MLP
from zoo.model.row_groups import RowGroups
from zoo.model.step import Step
from zoo.run.builder import build
from zoo.run.recompute import set_recompute

FFN = "{kind: echo, activation: {kind: silu}}"
MODEL = ["n_layers=3", "d_model=24", "n_heads=2", "n_kv_heads=1", "head_dim=8", "d_ff=40", "vocab_size=61"]
IDS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def echo() -> Iterator[None]:
    """A feed-forward that adds what the layer before it hid, and the channel in which that travels."""

    class Hidden(Channel, name="hidden"):
        staying: ClassVar[str] = "layers read what the one before hid"
        ordered: ClassVar[bool] = True

        @classmethod
        def trace(cls, at: Any) -> Any:
            ffn = at.tower.blocks[at.kind].ffn
            return at.make((*at.x.shape[:2], ffn.d_ff), at.x.dtype, "hidden", at.x.wants_grad)

    class Echo(MLP, kind="echo"):
        first: bool = False
        """Whether no layer stands before it."""
        words: ClassVar[tuple[str, str]] = ("hidden", "hidden")
        gives: ClassVar[tuple[str, ...]] = ("hidden",)

        @property
        def takes(self) -> tuple[str, ...]:  # type: ignore[override]
            return () if self.first else ("hidden",)

        def forward(self, m: Any, x: Any, step: Any) -> Any:
            own = self.activation.apply(m.up(x))
            before = None if self.first else step.read(self.words[0])
            own = step.give(self.words[1], own if before is None else torch.tanh(own + before))
            return m.down(own)

    yield
    del Channel.named["hidden"], MLP.kinds["echo"]


def load_echo() -> Any:
    ffn = [f"ffn={FFN}", "layers={first: {ffn: {first: true}}}", "pattern=[first, layer*2]"]
    return load("llama-tiny", [*MODEL, *ffn])


def build_echo() -> Any:
    return make_loud(build(load_echo(), device="cpu", dtype="fp32"), (61,))


def test_what_a_layer_gives_is_what_the_next_one_reads() -> None:
    model, seen = build_echo().eval(), []
    for block in model.blocks:
        block.ffn.down.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        block.ffn.up.register_forward_hook(lambda _, given, out: seen.append(out))
    with torch.no_grad():
        model(IDS)
    own, hidden = seen[::2], seen[1::2]
    silu = torch.nn.functional.silu
    torch.testing.assert_close(hidden[0], silu(own[0]))
    for before, made, found in zip(hidden, own[1:], hidden[1:], strict=False):
        torch.testing.assert_close(found, torch.tanh(silu(made) + before))


def test_with_a_cache_and_in_recorded_steps_it_is_the_same() -> None:
    model = build_echo().eval()
    engine = zoo.Engine(model, rows=2)
    prompt = IDS[0, :4].tolist()
    engine.add(zoo.Request(ids=tuple(prompt), max_new_tokens=12))
    written = [event.token for event in engine.run() if event.token is not None]
    assert engine.passes.recordings.replayed == 3
    for _ in range(12):
        with torch.no_grad():
            prompt.append(int(model(torch.tensor([prompt])).logits[0, -1].argmax()))
    assert written == prompt[4:]


def test_gradients_are_the_same_where_layers_are_computed_again() -> None:
    found = []
    for what in ("none", "full", "every_2"):
        model = build_echo().train()
        set_recompute(model, what)
        model(IDS, targets=IDS).loss.backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for each in found[1:]:
        assert all(map(torch.equal, each, found[0]))


def test_what_training_keeps_of_it_is_priced() -> None:
    spec = load_echo()
    model = build(spec, device="cpu", dtype="fp32").train()
    sections = list_sections(spec, PassShape(batch=2, context=9, dtype="fp32", fused=False))
    assert told(spec, sections) == saved_by(model, passes(model, spec, 2, 9))
    assert sections["layer:first"].lent == 2 * 9 * 40 * 4


def test_a_pipeline_is_not_cut_between_them() -> None:
    assert layer_faults(load_echo(), PipelineSchedule("1f1b", 2, 2)) == [
        "pp: is 2, and layers read what the one before hid (pp=1)"
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"takes": ()}, "hidden: a layer reads this channel, and no part of a layer names it in `takes`"),
        (
            {"takes": ("hiden",)},
            "hiden: ffn 'echo' takes or gives this channel, and there is none .did you mean 'hidden'",
        ),
        ({"gives": ()}, "blocks: read the channel 'hidden', and no layer gives a value in it"),
        ({"give": "hiden"}, "hidden: a part of layer 0 names this channel in `gives`, and gives nothing in it"),
        ({"read": "hiden"}, "hiden: a layer reads this channel"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_a_channel_that_is_misspelt_or_not_declared_is_an_error(
    change: dict[str, Any], fault: str, monkeypatch
) -> None:
    echo = MLP.kinds["echo"]
    for name in change.keys() & {"takes", "gives"}:
        monkeypatch.setattr(echo, name, change[name])
    monkeypatch.setattr(echo, "words", (change.get("read", "hidden"), change.get("give", "hidden")))
    with pytest.raises(ConfigError, match=fault):
        build_echo()(IDS)


def test_a_state_outside_along_rows_is_an_error_where_rows_lie_end_to_end() -> None:
    step = Step(keys=None, rows=RowGroups([2, 3], [0, 1], torch.device("cpu")))  # type: ignore[arg-type]
    for use in (lambda: step.state("mean"), lambda: step.hold(mean=torch.zeros(2, 4))):
        with pytest.raises(ConfigError, match="state: is read or held outside `along_rows`"):
            use()
    with pytest.raises(ConfigError, match=r"along_rows: takes tensors .*, found \(4,\) beside \(1, 5, 4\)"):
        step.along_rows(lambda *_: torch.zeros(1), torch.zeros(1, 5, 4), torch.zeros(4))


def test_two_classes_of_one_kind_name_are_refused() -> None:
    with pytest.raises(TypeError, match=r"kind='echo' is .*Echo's, and .*Other states it too"):

        class Other(MLP, kind="echo"):
            pass
