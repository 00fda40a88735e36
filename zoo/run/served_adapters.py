# B rows, T tokens, U units (rows, or tokens that lie end to end), R rank
"""Several low-rank adapters over one base model: each row of a forward pass names the adapter that it goes through.

The base computes its products as usual, in any form of its weights. Then, for each adapter of the pass, low-rank
products of the rows that name it are added (as in S-LoRA; Sheng et al., 2023). Outside `choose` the model is its
unchanged base, without hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, ZooError, name_options
from zoo.lazy import F, Tensor, nn, torch

if TYPE_CHECKING:
    from zoo.run.adapters import Adapters


class ServedProduct:
    """One adapter of one product: it computes the change of the output y for an input x, scale · B·A·x. DoRA also
    scales the rows of the sum, without the bias, by m ÷ the norms of the adapted weight's rows."""

    def __init__(self, module: Any, plan: Adapters, a: Tensor, b: Tensor, m: Tensor | None) -> None:
        from zoo.run.adapters import merge_adapter

        own = module.weight
        self.a, self.b, self.bias = a.to(own), (plan.scale * b).to(own), module.bias
        self.factor: Tensor | None = None
        if m is not None:
            whole = merge_adapter(own.detach().float(), plan, a.to(own.device), b.to(own.device))
            self.factor = m.to(own.device) / whole.norm(dim=1)

    def adapt(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the adapted output from the input x [..., d_in] and the base's output y [..., d_out]."""
        if self.a.dtype is not x.dtype or self.a.device != x.device:
            self.a, self.b = self.a.to(x), self.b.to(x)
        change = F.linear(F.linear(x, self.a), self.b)
        if self.factor is None:
            return (y + change).to(y.dtype)
        bias = 0.0 if self.bias is None else self.bias
        return ((y - bias + change) * self.factor.to(y) + bias).to(y.dtype)


class ServedAdapters:
    """The adapters of a model, by name and by the path of each product. `model.served` holds them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.named: dict[str, dict[str, ServedProduct]] = {}

    def add(self, name: str, plan: Adapters, tensors: Mapping[str, Tensor]) -> None:
        """Add an adapter by its plan and its tensors, named as in a checkpoint."""
        from zoo.run.adapters import INSIDE

        self.named[name] = {}
        for path in plan.paths:
            a, b, m = (tensors.get(f"{path}{INSIDE}{leaf}") for leaf in "abm")
            assert a is not None and b is not None
            self.named[name][path] = ServedProduct(self.model.get_submodule(path), plan, a, b, m)

    @contextmanager
    def choose(self, names: Sequence[str | None], counts: Sequence[int] | None, apart: bool) -> Iterator[None]:
        """Adapt the forward passes within the block. `names` are the adapters of the B rows, None for the base alone.
        `counts` are the numbers of tokens of rows that lie end to end [1, N]; None for rows [B, T]. With `apart` each
        row is multiplied separately, so that its bits do not depend on other rows."""
        rows, handles = _RowChoice(names, counts, apart), []
        paths = {path: None for name in dict.fromkeys(names) if name for path in self.named[name]}
        for path in paths:
            own = {name: each[path] for name, each in self.named.items() if name in names and path in each}
            handles.append(self.model.get_submodule(path).register_forward_hook(partial(rows.adapt, own)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _RowChoice:
    """The adapters of a pass' units: which unit (row or token) goes through which adapter."""

    def __init__(self, names: Sequence[str | None], counts: Sequence[int] | None, apart: bool) -> None:
        self.names, self.counts, self.apart = names, counts, apart
        self.alone = names[0] if len({*names}) == 1 and (not apart or len(names) == 1) else None
        self._places: dict[bool, list[tuple[str, Tensor]]] = {}

    def adapt(
        self, own: Mapping[str, ServedProduct], module: nn.Module, given: tuple[Tensor, ...], y: Tensor
    ) -> Tensor:
        """Adapt a product's output: a forward hook. `own` are the adapters of this product. Raises ZooError if the
        input's rows are not those of the pass."""
        x = given[0]
        if self.alone is not None:
            return own[self.alone].adapt(x, y)
        flat = self._lies_flat(x)
        units = sum(self.counts or ()) if flat else len(self.names)
        if x[..., 0].numel() % units:
            found = f"a product of {list(x.shape)} has no rows of the pass's {len(self.names)}"
            raise ZooError(f"adapters: {found} (requests of one adapter at a time)")
        x, whole = x.reshape(units, -1, x.shape[-1]), y.reshape(units, -1, y.shape[-1])
        for name, places in self._find_places(flat, y.device):
            if name in own:
                whole = whole.index_copy(0, places, own[name].adapt(x[places], whole[places]))
        return whole.reshape(y.shape)

    def _lies_flat(self, x: Tensor) -> bool:
        """Whether the rows of x [..., d_in] are the pass's tokens end to end. Otherwise they belong to its B rows."""
        if self.counts is None:
            return False
        tokens, lead = sum(self.counts), tuple(x.shape[:-1])
        return lead in ((1, tokens), (tokens,))

    def _find_places(self, flat: bool, device: torch.device) -> list[tuple[str, Tensor]]:
        """List (adapter, indices of its units); with `apart` an entry for each row."""
        if flat not in self._places:
            counts = self.counts if flat and self.counts is not None else [1] * len(self.names)
            found: dict[Any, list[int]] = {}
            start = 0
            for row, (name, count) in enumerate(zip(self.names, counts, strict=True)):
                if name is not None:
                    found.setdefault((name, row if self.apart else None), []).extend(range(start, start + count))
                start += count
            self._places[flat] = [(name, torch.tensor(units, device=device)) for (name, _), units in found.items()]
        return self._places[flat]


def check_adapter(model: nn.Module, name: str | None) -> None:
    """Raise ConfigError if a model has no adapter of this name; The name None means the base."""
    served: ServedAdapters | None = getattr(model, "served", None)
    if name is None:
        return
    if served is None:
        raise ConfigError(f"adapter: is {name!r}, and the model has none (zoo.load(BASE, adapters={{{name!r}: DIR}}))")
    if name not in served.named:
        hint = name_options(name, served.named)
        raise ConfigError(f"adapter: there is no {name!r}{hint}")
