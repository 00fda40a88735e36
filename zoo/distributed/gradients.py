"""Gradients of a model divided among processes: sum gradients of weights that several ranks hold, and compute the
norm."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from zoo.distributed.sharded_tensors import make_whole, own_part
from zoo.lazy import Tensor, torch


def hold_gradients(model: Any, keeps_weights: bool) -> None:
    """Make FSDP accumulate gradients without reducing them, until `reduce_held_gradients`. With `keeps_weights` weights
    stay gathered until then, because nothing gathers them for the second half of a split backward pass."""
    model.set_requires_gradient_sync(False)
    model.set_is_last_backward(False)
    if keeps_weights:
        model.set_reshard_after_forward(False)
        model.set_reshard_after_backward(False)


def reduce_held_gradients(model: Any) -> None:
    """Reduce the gradients that `hold_gradients` held back, as torch's own pipelines do."""
    from torch.distributed.pipelining import PipelineStage

    PipelineStage.perform_reduce_grad(SimpleNamespace(submod=model), 1)  # type: ignore[arg-type]


def sum_common_gradients(model: Any) -> None:
    """All-reduce the gradients of weights that several tensor-parallel ranks or pipeline stages hold. Each rank or
    stage has computed only a part of such a gradient."""
    from torch import distributed

    sum_over_stages(model)

    common: dict[int, list[tuple[Tensor, Tensor | None]]] = {}
    for copies, each, marks in list_shared(model):
        if copies > 1:  # a bias that one rank adds has no gradient on the others
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad
            common.setdefault(copies, []).append((own_part(each.grad), None if marks is None else own_part(marks)))
    for copies, parts in common.items():
        sent = [each if marks is None else each * marks for each, marks in parts]
        together = torch.cat([each.flatten() for each in sent])
        distributed.all_reduce(together, group=model.shares.groups[copies])
        for (each, marks), total in zip(parts, together.split([each.numel() for each in sent]), strict=True):
            total = total.view(each.shape)
            each.copy_(total if marks is None else torch.where(marks.bool(), total, each))


def sum_over_stages(model: Any) -> None:
    """All-reduce the gradients of weights that several pipeline stages hold."""
    if model.shares.stages is None:
        return
    for name, each in model.named_parameters():
        if each.requires_grad and (group := model.shares.stages.common.get(name)) is not None:
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad
            part = own_part(each.grad)
            part.copy_(group.sum_up(part))


def list_shared(model: Any) -> Iterator[tuple[int, Any, Tensor | None]]:
    """Yield (copies, weight, mask) for each weight that gets a gradient. `copies` is the largest number of
    tensor-parallel ranks that hold the same values of the weight. The mask is 1 for these values and 0 for the others;
    None if all values have equally many copies."""
    for name, each in model.named_parameters():
        if each.requires_grad and model.shares.learns(name):
            yield model.shares.count_copies(name), each, model.shares.mark_common(name, each)


def measure_gradient(model: Any) -> Tensor:
    """Compute the L2 norm of the gradient of all weights over all ranks, each weight counted once."""
    shares = model.shares
    if not shares.divisions and shares.stages is None:
        return measure_norm([each.grad for each in model.parameters() if each.grad is not None])
    common: dict[int, list[Tensor]] = {}
    experts: dict[int, list[Tensor]] = {}
    names = {each: name for name, each in model.named_parameters()}
    for copies, each, marks in list_shared(model):
        if each.grad is None:
            continue
        held = experts if shares.experts and shares.experts.find(names[each]) else common
        stages = shares.stages.common[names[each]].size if shares.stages and names[each] in shares.stages.common else 1
        held.setdefault(copies * stages, []).append(each.grad if marks is None else each.grad * marks)
        if marks is not None:
            held.setdefault(stages, []).append(each.grad * (1 - marks))
    total = sum_squares(common)
    if experts:
        total = total + shares.experts.group.sum_up(sum_squares(experts))
    for group in (shares.tensor and shares.tensor.group, shares.stages and shares.stages.group):
        total = group.sum_up(total) if group else total
    return total.sqrt()


def sum_squares(by_copies: dict[int, list[Tensor]]) -> Tensor:
    """Sum the squares of gradients. `by_copies` groups them by n, the number of ranks that hold the same gradient. Each
    rank counts 1/n of its squares, so that a sum over ranks counts each gradient once."""
    return torch.stack([measure_norm(each).square() / copies for copies, each in by_copies.items()]).sum()


def measure_norm(gradients: list[Tensor]) -> Tensor:
    """Compute the L2 norm of several gradients, taken as one vector."""
    return make_whole(torch.nn.utils.get_total_norm(gradients))
