# B rows, T tokens, R ranks, D model width, V vocabulary
"""Tensor parallelism: each rank computes with its own heads, hidden units and part of the vocabulary.

A rank's part is a smaller model of the same kind (`Spec.shard`); the collectives are called by `TensorSeam`. In a pass
with gradients the residual stream between sub-layers is sharded along the sequence (sequence parallelism). So a weight
that several ranks hold sees different tokens on each, and its gradient is the sum over these ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zoo.distributed.group import RankGroup
from zoo.distributed.seam import Seam
from zoo.kernels.score_bias import OwnHeads
from zoo.lazy import F, Tensor, torch
from zoo.spec import Experts, Linear, placed_tensors

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from zoo.model.tower import Topology
    from zoo.run.layer import Model


class TensorSeam(Seam):
    """Call the collectives of tensor parallelism among the ranks of a process group. `Seam` documents the methods."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = RankGroup(group)
        self.rank, self.size = self.group.rank, self.group.size

    def gather(self, x: Tensor, tokens: int) -> Tensor:
        if not torch.is_grad_enabled():
            return x
        whole = self.group.gather_tokens(x)
        return whole if whole.shape[1] == tokens else whole[:, :tokens].clone()  # FSDP's hooks take no view

    def reduce(self, y: Tensor) -> Tensor:
        return self.group.scatter_tokens(self._pad(y)) if torch.is_grad_enabled() else self.group.sum_up(y)

    def own(self, each: Any) -> Any:
        if each is None or not torch.is_grad_enabled():
            return each
        part = -(-each.shape[1] // self.size)
        return self._pad(each)[:, self.rank * part : (self.rank + 1) * part]

    def _pad(self, each: Tensor) -> Tensor:
        """Pad tokens [B, T, …] with zeros at the end to a multiple of the number of ranks."""
        missing = -each.shape[1] % self.size
        return F.pad(each, (*(0, 0) * (each.ndim - 2), 0, missing)) if missing else each

    def look_up(self, table: Any, ids: Tensor) -> Tensor:
        places, strange = self._own_tokens(ids, table.weight.shape[0])
        found = F.embedding(places, table.weight)
        return self.reduce(found.masked_fill(strange[..., None], 0))

    def all_reduce(self, y: Tensor) -> Tensor:
        return self.group.sum_whole(y)

    def normalise(self, norm: Any, x: Tensor) -> Tensor:
        wide = x.float()
        mean = self.all_reduce(wide.square().mean(-1, keepdim=True)) / self.size
        y = wide * (mean + norm.spec.eps).rsqrt()
        if norm.spec.weight:
            y = y * (norm.weight.float() + (1 if norm.spec.unit_offset else 0))
        return (y + norm.bias.float() if norm.spec.bias else y).to(x.dtype)

    def bias(self, scheme: Any, weights: Any, heads: int, *places: Any, **how: Any) -> Any:
        if scheme.bias_heads == heads:  # a divided scheme has this rank's heads only
            return scheme.bias(weights, heads, *places, **how)
        whole = scheme.bias(weights, heads * self.size, *places, **how)
        return whole and OwnHeads(whole, self.rank * heads, heads)

    def own_share(self, loss: Tensor) -> Tensor:
        return loss if not loss.requires_grad else loss.detach() + (loss - loss.detach()) / self.size

    def measure(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        places, strange = self._own_tokens(targets, logits.shape[1])
        logit = logits.gather(1, places[:, None]).masked_fill(strange[:, None], 0)
        all_ranks = self.group.stack(torch.stack((logits.logsumexp(1, keepdim=True), logit)))  # R 2 N 1
        return all_ranks[:, 0].logsumexp(0), all_ranks[:, 1].sum(0)

    def _own_tokens(self, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return ids as indices into the rank's `count` tokens of the vocabulary, and a mask of other ranks' ids."""
        places = ids - self.rank * count
        strange = (places < 0) | (places >= count)
        return places.masked_fill(strange, 0), strange

    def join_logits(self, logits: Tensor, width: int) -> Tensor:
        return torch.cat(self.group.stack(logits).unbind(), -1)[..., :width]

    def refuse_capture(self) -> str | None:
        return self.group.refuse_capture()

    def take_least(self, number: int) -> int:
        return self.group.take_least(number)


# ---------------------------------------------------------------- a rank's part of a model


def divide_layers(model: Model, seam: TensorSeam) -> None:
    """Give every layer of a rank's part the `seam` with the collectives, and mark divided sub-layers. Where outputs are
    summed over ranks, only rank 0 adds the bias."""
    for module in model.modules():
        if (spec := getattr(module, "spec", None)) is None:
            continue
        module.seam = seam  # type: ignore[assignment]
        if spec.axis == "block":
            for name in spec.divided:
                if (part := getattr(module, name, None)) is not None:
                    part.divided = True
    if seam.rank:
        for name in list_summed_biases(model.spec):
            model.get_submodule(name).adds_bias = False  # type: ignore[assignment]


def list_summed_biases(spec: Topology) -> Iterator[str]:
    """List the modules whose output is summed over ranks and has a bias, so that only one rank may add it."""
    for where, tower in spec.towers().items():
        for name, row, leaf in placed_tensors(tower, tower.d_model, where):
            linear = row.part.of if isinstance(row.part, Experts) else row.part
            if leaf == "bias" and isinstance(linear, Linear) and linear.residual:
                yield name.rpartition(".")[0]
