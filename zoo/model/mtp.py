# B batch, T tokens, D model width
"""Multi-token prediction: modules after a decoder's layers that predict tokens further ahead, only in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.block.base import Block
from zoo.model.block.shared_attention import Embedded
from zoo.model.channels import Fault
from zoo.model.head import Head
from zoo.model.loss import IGNORED, TokenLoss, sum_loss
from zoo.spec import LOGITS, Linear, Node, Reused, Stack, Tied

if TYPE_CHECKING:
    from zoo.model.context import ForwardContext
    from zoo.model.step import Inputs, Output, Step, Weights
    from zoo.model.tower import Tower

KIND = "mtp"
"""The name of the modules' kind of layer, in prices."""


class MTPModule(Block):
    """Multi-token prediction module, h' = layer([norm(h) ; norm(e)]·W), of hidden states h and the embeddings e of
    later tokens (DeepSeek-AI, 2024, DeepSeek-V3, §2.2). The layer is of the kind of the model's last layer. The model's
    head follows, after a norm of the module's own; its product is counted here again."""

    kind: ClassVar[str] = KIND  # in no registry: a model's layers cannot be of it
    takes: ClassVar[tuple[str, ...]] = (Embedded.name,)

    layer: Block
    """The layer after the projection."""
    head: Head
    """The model's head."""

    def __post_init__(self) -> None:
        """Check nothing: the layer is one that the model has already."""

    @property
    def normalises_output(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.layer.normalises_output

    def parts(self, d_model: int) -> dict[str, Any]:
        out: Any = self.head.parts(d_model)["out"]
        read = {"out": Reused("head.out", replace(out.of if isinstance(out, Tied) else out, bias=False), role=LOGITS)}
        norms = {name: self.norm for name in ("hidden_norm", "next_norm", "head_norm")}
        return {**norms, "project": Linear(2 * d_model, d_model, role=KIND), **self.layer.parts(d_model), **read}

    def forward(self, m: Weights, x: Tensor, step: Step) -> Tensor:
        joined = torch.cat((m.hidden_norm(x), m.next_norm(step.read(Embedded.name))), -1)
        return self.layer.forward(m, m.project(joined), step)


class MTP(Node, name="mtp", word="depth"):
    """Multi-token prediction: the loss weight/depth · Σ_k CE_k (DeepSeek-AI, 2024, DeepSeek-V3, §2.2). Module k
    predicts the token k + 1 ahead from module k − 1's hidden states; the first reads the model's states after the final
    norm. CE_k is divided by the number of the model's own targets. Generation, evaluation and export leave the modules
    out."""

    depth: PositiveInt = 1
    """Number of further tokens, and of modules."""
    weight: PositiveFloat = 0.3
    """Weight of the modules' loss (DeepSeek-V3: 0.3, late in training 0.1)."""

    def stack(self, tower: Tower) -> Stack:
        """Stack the modules of a tower."""
        layer = tower.blocks[tower.pattern[-1]]
        how = {"attention": layer.attention, "cross": layer.cross, "norm": tower.norm}
        return Stack({KIND: MTPModule(layer=layer, head=tower.head, **how)}, (KIND,) * self.depth)  # type: ignore[arg-type]

    def add_loss(self, tower: Tower, m: Any, inputs: Inputs, context: ForwardContext, out: Output) -> None:
        """Run the modules on the hidden states of a tower's finished pass (`out`). Adds their loss, a mean over the
        targets, to `out.losses`, with the losses and loads of their routers."""
        assert inputs.targets is not None
        loss, hidden, total = inputs.loss or TokenLoss(), out.hidden, torch.zeros((), device=out.hidden.device)
        count = int((inputs.targets != IGNORED).sum()) if loss.count is None else loss.count
        share = TokenLoss(self.weight / (self.depth * max(count, 1)), chunk=loss.chunk)
        whole = loss.count == inputs.targets.numel() and inputs.documents is None  # then no device has to be asked
        for ahead, module in enumerate(m.mtp, 1):
            later = replace(inputs, input_ids=inputs.input_ids.roll(-ahead, 1))
            step = context.step(tower.pattern[-1], m.kernel, hidden, m).for_layer(None)
            step.taken = {Embedded.name: tower.embed(m, later, context)}
            place = tower.depth + ahead - 1
            hidden = module(hidden, step) if m.recompute is None else m.recompute.run(place, module, hidden, step)
            targets = shift_targets(inputs.targets, inputs.documents, ahead)
            known = max(count - ahead * len(targets), 0) if whole else None
            total = total + sum_loss(m.head, module.head_norm(hidden), targets, replace(share, count=known))[0]
            for name, each in step.losses:
                out.losses[name] = out.losses[name] + each if name in out.losses else each
            out.loads += [torch.diff(ends, prepend=ends.new_zeros(1)) for ends in step.ends]
        out.losses[KIND] = total


def shift_targets(targets: Tensor, documents: Tensor | None, ahead: int) -> Tensor:
    """Shift targets [B, T] to the positions `ahead` tokens before. The target is IGNORED where the later token is
    beyond the row or in another document."""
    later = targets.roll(-ahead, 1)
    later[:, max(targets.shape[1] - ahead, 0) :] = IGNORED
    return later if documents is None else later.masked_fill(documents.roll(-ahead, 1) != documents, IGNORED)


def find_mtp_faults(tower: Tower) -> Iterator[Fault]:
    """Yield why a decoder cannot have multi-token prediction modules, as a field's path and a line."""
    last, found = tower.pattern[-1], None
    if tower.head.kind != "lm" or tower.out_width is not None:
        found = f"reads logits of states d_model wide, and the head is of kind '{tower.head.kind}' (lm, no out_width)"
    elif tower.blocks[last].streams > 1 or any(tower.uses[last]):
        found = f"adds a layer '{last}', and these have several streams or hand values to one another (leave it out)"
    elif getattr(tower, "prefix_lm", False):
        found = "shows a position the next token, and in a prefix others see that position (prefix_lm: false)"
    elif KIND in tower.blocks:
        found = f"is the name of a kind of layer (layers.{KIND} under another name)"
    if found is not None:
        yield (KIND,), found
