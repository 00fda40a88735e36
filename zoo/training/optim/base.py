"""Define what all optimizers share: hyperparameters, and the division of parameters into groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat

from zoo.distributed.sharded_tensors import find_mesh
from zoo.errors import name_options
from zoo.lazy import torch
from zoo.spec import Buffer, Spec, SpecRow, is_hidden_matrix, placed_tensors

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from zoo.model.tower import Topology
    from zoo.run.layer import Model

Beta = Annotated[float, Field(ge=0, lt=1)]

FUSED = ("cpu", "cuda", "xpu", "mps")
"""Devices with a fused AdamW in torch. On a CPU a fused step takes a quarter of the time of an unfused one."""


class RateFactors(NamedTuple):
    """Factors of a tensor's learning rate, weight decay and epsilon."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


Scale = Callable[[SpecRow | None, str], RateFactors]
"""A function that returns a parametrisation's factors for a tensor, given the row of its part in the Spec and its name
in the part."""


def unscaled(row: SpecRow | None, leaf: str) -> RateFactors:
    """Return the factors of the standard parametrisation: 1."""
    return RateFactors()


class GroupOptions(Spec, axis="optim_group", kind="group", default="group"):
    """Options of a group of tensors, in place of the optimizer's `lr` and `weight_decay`. Null keeps the optimizer's
    value."""

    lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None

    def __post_init__(self) -> None:
        if self.lr is None and self.weight_decay is None:
            raise ValueError("changes nothing (give lr, weight_decay or both)")


class Optim(Spec, axis="optim"):
    """An optimizer's hyperparameters. `lr` is the peak of the schedule.

    `groups` gives some tensors another `lr` or `weight_decay`. A group's name is a role or an axis (embedding, tokens,
    head, logits, norm, attention, ffn, router, experts …), `bias`, or `layers` for all tensors inside layers. Words
    joined by dots must all hold (`attention.norm`). A tensor belongs to the first group that it fits. Weight decay
    applies to matrices and tables, not to scales and biases, unless a group states it.

    `decay`: uniform shrinks every weight by the same share; cautious only weights that the update moves towards 0 (Chen
    et al., 2025, cautious weight decay). hyperball (Wen et al., 2026) keeps each matrix inside layers at its initial
    Frobenius norm R, by steps of length lr·R, in place of a decay; all other tensors decay uniformly. These matrices
    need a learning rate of their own: `groups={layers: {lr: 0.02}}`.
    """

    averages: ClassVar[bool] = False  # whether it evaluates an average of the weights, not the trained ones
    by_element: ClassVar[bool] = True  # whether an element's update depends on this element alone
    by_part: ClassVar[bool] = True  # whether it can step a part of a tensor by itself
    gathers: ClassVar[bool] = False  # without `by_part`: whether it gathers the parts of dp, shard and cp
    by_matrix: ClassVar[bool] = False  # whether it steps the matrices inside layers by a rule of their own
    whole_step: ClassVar[str | None] = None  # why it cannot step one tensor after another (`piecewise`), or None

    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.1
    decay: Literal["uniform", "cautious", "hyperball"] = "uniform"
    groups: dict[str, GroupOptions] | None = None

    def build(self, model: Model, scale: Scale = unscaled) -> Optimizer:
        """Make torch's optimizer over the model's trained parameters. `scale` gives each tensor's factors."""
        rule = self.make_rule(self.make_groups(model, scale), next(model.parameters()).device)
        if self.decay == "uniform":
            return rule
        from zoo.training.optim.decay import DECAYS

        return DECAYS[self.decay](rule)

    def make_rule(self, groups: list[dict[str, Any]], device: torch.device) -> Optimizer:
        """Make the update rule over groups of parameters on a device."""
        raise NotImplementedError

    def refuses(self, spec: Topology) -> list[str]:
        """List the faults of these options for a model, without torch: groups that no tensor fits, and a `decay` that
        an optimizer with averaged weights does not support."""
        return [*self._decay_faults(), *self._group_faults(spec)]

    def _decay_faults(self) -> list[str]:
        if self.decay == "uniform" or not self.averages:
            return []
        return [f"decay: is {self.decay}, and {self.kind} steps other weights than those that it averages (uniform)"]

    def _group_faults(self, spec: Topology) -> list[str]:
        if not self.groups:
            return []
        known: set[str] = set()
        met: set[str] = set()
        for where, tower in spec.towers().items():
            for _, row, leaf in placed_tensors(tower, tower.d_model, where):
                if not isinstance(row.part, Buffer):
                    known |= label(row, leaf)
                    met.add(self.group_of(row, leaf) or "")
        return [
            f"groups.{name}: no tensor of the model is in it{name_options(name, sorted(known))}"
            for name in self.groups
            if name not in met
        ]

    @property
    def needs(self) -> Literal["parts", "matrices", "tensors"]:
        """What a process must hold of a tensor to update it: any part ("parts"), parts of matrices that processes of
        dp, shard and cp share ("matrices"), or all of it ("tensors")."""
        if self.by_part:
            return "matrices" if self.decay == "hyperball" else "parts"
        return "matrices" if self.gathers else "tensors"

    def check_device(self, device: torch.device) -> None:
        """Raise ConfigError if this optimizer cannot run on the device."""

    def describe(self, device: torch.device) -> str | None:
        """Describe in one line the optimizer's choices for this device, if it has any."""
        return None

    def mark(self, row: SpecRow | None, leaf: str) -> dict[str, Any]:
        """Return the options of a tensor's group other than rate, decay and epsilon, such as `hidden` if matrices
        inside layers have another update rule. Tensors with different options are in different groups."""
        if not self.by_matrix and self.decay != "hyperball":
            return {}
        return {"hidden": row is not None and row.part is not None and is_hidden_matrix(row.kind, row.part, leaf)}

    def group_of(self, row: SpecRow | None, leaf: str) -> str | None:
        """Return the name of the first of `groups` that a tensor fits, or None."""
        words = label(row, leaf)
        return next((name for name in self.groups or () if words.issuperset(name.split("."))), None)

    def make_groups(self, model: Model, scale: Scale = unscaled) -> list[dict[str, Any]]:
        """Group the trained parameters by their options.

        `peak_lr` is a group's own peak rate, which the schedule's factor multiplies (`set_rates`).
        """
        eps = getattr(self, "eps", None)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row, leaf, parameter in list_trained(model):
            own = (self.groups or {}).get(self.group_of(row, leaf) or "")
            decays = row.part.decays(leaf) if row is not None and row.part is not None else parameter.ndim > 1
            lr = self.lr if own is None or own.lr is None else own.lr
            decay = self.weight_decay if decays else 0.0
            decay = decay if own is None or own.weight_decay is None else own.weight_decay
            factors = scale(row, leaf)
            options = {"lr": lr * factors.lr, "weight_decay": decay * factors.weight_decay, **self.mark(row, leaf)}
            if isinstance(eps, float):
                options["eps"] = eps * factors.eps
            key = (*options.items(), find_mesh(parameter))  # torch steps only tensors of one mesh together
            group = groups.setdefault(key, {"params": [], "peak_lr": options["lr"], **options})
            group["params"].append(parameter)
        return sorted(groups.values(), key=lambda group: not group["weight_decay"])


def list_trained(model: Model) -> Iterator[tuple[SpecRow | None, str, Any]]:
    """Yield each trained parameter with the row of its part and its name in the part. The row is None for parameters
    that the Spec does not list, such as an adapter's matrices."""
    placed = {
        name: (row, leaf)
        for where, tower in model.spec.towers().items()
        for name, row, leaf in placed_tensors(tower, tower.d_model, where)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            row, leaf = placed.get(name, (None, ""))
            yield row, leaf, parameter


def label(row: SpecRow | None, leaf: str) -> set[str]:
    """List the words that match a tensor in `groups`."""
    if row is None:
        return set()
    words = {role for role in row.roles if role} | {row.component.axis}
    words |= {"bias"} if leaf == "bias" or (row.path.endswith(".bias") and not leaf) else set()
    return (words | ({"layers"} if row.kind is not None else set())) - {"topology"}


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its own peak times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def can_fuse(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether torch has fused kernels for the devices of all parameters."""
    return all(parameter.device.type in FUSED for group in groups for parameter in group["params"])
