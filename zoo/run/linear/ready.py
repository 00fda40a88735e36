"""Make a model ready to serve on a CPU: choose the way of each product, join those of one input, pack the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from zoo.errors import ConfigError, did_you_mean
from zoo.lazy import torch
from zoo.run.linear.base import EXACT, LOWER, Processor, describe_processor
from zoo.run.linear.groups import ProductGroup, find_groups
from zoo.run.linear.probe import BUCKETS, choose_way, time_shapes
from zoo.run.linear.product import ReadyForward, ReadyProduct
from zoo.run.linear.ways import WAYS, is_count_stable, list_able, list_ways, refuse
from zoo.run.memory import read_free_memory

SMALL = 65536
"""Values in a weight up to which ways are not timed: it stays in the cache, and the call costs more than the sums."""


class Prepared:
    """A model made ready to serve. As a context manager it undoes itself at the end of the block."""

    def __init__(self, model: Any, products: list[ReadyProduct], plain: int, left: Counter[str], stable: bool) -> None:
        self.model, self.products, self.left = model, products, left
        self.stable = stable
        """Whether `stable` was asked for and every product gives a row the same bits among any number of rows. Where it
        is not, a row's bits may depend on it."""
        self.plain = plain
        """How many products are left as they were, as nothing is faster."""

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Make the model what it was, to the bit. Raises ZooError where plain weights were not kept."""
        for product in self.products:
            product.undo()
        self.products = []
        self.model.__dict__.pop("ready", None)

    @property
    def bytes(self) -> int:
        """Bytes of packed weights."""
        return sum(product.bytes for product in self.products)

    def __str__(self) -> str:
        """Say in one line what was chosen. For example "84 products in 48 calls: 48× onednn; 1 plain; 302.0 MB of
        packed weights, 48 of 48 beside the plain ones"."""
        ways = Counter(product.way.name for product in self.products)
        packed = [product for product in self.products if product.way.packs]
        kept = sum(not product.dropped for product in packed)
        told = [f"{count}× {way}" for way, count in ways.most_common()]
        told += [f"{self.plain} plain"] if self.plain else []
        if packed:
            beside = f", {kept} of {len(packed)} beside the plain ones" if kept else ""
            told.append(f"{self.bytes / 1e6:,.1f} MB of packed weights{beside}")
        if self.left:
            told.append("exact: " + ", ".join(f"{count} ({why})" for why, count in self.left.items()))
        made = sum(len(product.modules) for product in self.products)
        return f"{made} products in {len(self.products)} calls: {'; '.join(told)}"


def prepare(
    model: Any,
    weights: str | None = None,
    *,
    keep: bool = True,
    rows: Sequence[int] = BUCKETS[:-1],
    stable: bool = False,
    way: str | None = None,
) -> Prepared:
    """Make a model ready to serve on a CPU, in place; `undo()` makes it what it was, to the bit.

    Linears that read the same input become one product. Its way is the fastest here for `rows`, the numbers of rows
    that decoding will have, and for a prompt: timed once for each processor, in about two seconds, and kept on disk.
    Unless `weights` names fewer bits (fp16, bf16, int8, int4) all ways keep the model's dtype, and differ by rounding
    alone. With `stable` a row's bits depend neither on its neighbours nor its place nor, where a way is so here
    (`Prepared.stable`), on the number of rows. `way` names one for all products that it can take (`zoo doctor` lists
    them), in place of a choice. The model keeps what was made as `model.ready`.

    Memory: beside the plain weights one packed copy at most. With `keep` false plain weights go once they are packed,
    except those that something else reads (a tied embedding, MLA's absorbed products); such a model can generate, but
    neither be undone, trained nor saved. With `keep`, names, shapes and values in the state_dict stay what they were.
    Gradients, torch.compile, other dtypes and weights changed afterwards take the plain path. Raises ConfigError.
    """
    _check(model, weights)
    processor = describe_processor()
    if way is not None:
        weights = _check_named(way, weights, processor)
    groups, left = find_groups(model, weights or EXACT)
    for group in groups:
        why = _explain_unable(group, processor)
        if why is not None:
            left[why] += len(group.modules)
            group.precision = EXACT
    found = way is None and _choose_ways(groups, processor, rows, stable)
    if way is not None:
        for group in groups:
            able = _list_able(group, processor, on_request=True)
            group.way = way if way in able else able[0]
    _leave_what_does_not_fit(groups, keep)
    products, plain = [], 0
    for group in groups:
        if way is None and not stable and group.way == "plain":
            plain += len(group.modules)  # left as they are: joined without packing they take longer, if anything
            continue
        product = ReadyProduct(group.modules, group.way, keep=keep or group.pinned)
        for place, module in enumerate(group.modules):
            module.forward = ReadyForward(product, place)
        products.append(product)
    model.__dict__["ready"] = prepared = Prepared(model, products, plain, left, found and not left)
    return prepared


WORTH = 32e6
"""Bytes of products from which a model is made ready unasked: below, a step takes longer around them than in them."""


def make_ready(
    model: Any,
    weights: str | None,
    tell: Callable[[str], object],
    rows: Sequence[int] = BUCKETS[:-1],
    *,
    stable: bool = False,
) -> None:
    """Make a model that will only generate ready to serve, where that pays, or where a row's bits must be `stable`: on
    a CPU, in place.

    Plain weights are not kept, so that packing takes no memory. `tell` gets a line where `weights` are in fewer bits.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    wanted = weights is not None or (on_cpu and (stable or count_product_bytes(model) >= WORTH))
    if not wanted:
        return
    ready = prepare(model, weights, keep=False, rows=rows, stable=stable)
    if weights is not None:
        tell(f"weights {weights}: {ready}")


def count_product_bytes(model: Any) -> int:
    """Count the bytes of the weights that `prepare` would make ready."""
    groups, _ = find_groups(model, EXACT)
    return sum(module.weight.numel() * module.weight.element_size() for group in groups for module in group.modules)


def check_weights(weights: str | None, device: Any) -> None:
    """Raise ConfigError for a precision of weights that there is not, or not on this device."""
    if weights is None:
        return
    if weights not in LOWER:
        raise ConfigError(
            f"weights: there is no {weights!r}{did_you_mean(weights, LOWER)} (one of: {', '.join(LOWER)})"
        )
    if device.type != "cpu":
        raise ConfigError(f"weights: {weights} is for a CPU, found {device.type} (dtype=bf16, or fp8, would do)")
    processor = describe_processor()
    reasons = {way.name: refuse(way, (512, 512), "float32", processor) for way in list_ways(weights)}
    if None not in reasons.values():
        told = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        others = [name for name in LOWER if list_able(name, (512, 512), "float32", processor)]
        raise ConfigError(f"weights: {weights} cannot run here: {told} ({' or '.join((*others, 'none'))} would do)")


def _check(model: Any, weights: str | None) -> None:
    weight = next(model.parameters())
    check_weights(weights, weight.device)
    if weight.device.type != "cpu":
        raise ConfigError(f"prepare: is for a model on a CPU, found {weight.device.type} (leave it out)")
    if any(isinstance(getattr(module, "forward", None), ReadyForward) for module in model.modules()):
        raise ConfigError("prepare: the model is ready already (undo it first)")


def _check_named(way: str, weights: str | None, processor: Processor) -> str | None:
    """Give the precision of a way that was named. Raises ConfigError where there is none of this name, where it cannot
    run here, and where `weights` says another."""
    if way not in WAYS:
        raise ConfigError(f"way: there is no {way!r}{did_you_mean(way, WAYS)} (one of: {', '.join(WAYS)})")
    if reason := refuse(WAYS[way], (512, 512), "float32", processor):
        raise ConfigError(f"way: {way} was asked for, but {reason} (plain would do)")
    own = None if WAYS[way].precision == EXACT else WAYS[way].precision
    if weights not in (None, own):
        raise ConfigError(f"weights: {weights}, and way {way} is of {own or EXACT} (one of the two)")
    return own


# ---------------------------------------------------------------- which ways


def _choose_ways(groups: Sequence[ProductGroup], processor: Processor, rows: Sequence[int], stable: bool) -> bool:
    """Choose the way of each group: in fewer bits the first that can, else the fastest. With `stable` it is the first
    in which a row has the same bits among any number of rows. Gives whether there is one for all groups."""
    found = stable
    timed: list[ProductGroup] = []
    for group in groups:
        able, shape = _list_able(group, processor), group.shape
        alike = _find_stable(group, processor) if stable else None
        found = found and alike is not None
        group.way = alike or able[0]
        if alike is None and group.precision == EXACT and len(able) > 1 and shape.n * shape.k > SMALL:
            timed.append(group)
    times = time_shapes([group.shape for group in timed], processor)
    for group in timed:
        group.way = choose_way(times[group.shape], rows)
    return found


def _find_stable(group: ProductGroup, processor: Processor) -> str | None:
    """Find a way in which a row has the same bits among any number of rows: the first that is so on trial, or None."""
    able, shape = _list_able(group, processor, on_request=True), group.shape
    return next((name for name in able if is_count_stable(name, (shape.n, shape.k), shape.dtype)), None)


def _explain_unable(group: ProductGroup, processor: Processor) -> str | None:
    """Say why no way of its precision can take a group, or None."""
    if group.precision == EXACT:
        return None
    ways, shape = list_ways(group.precision), group.shape
    if not _list_able(group, processor):
        return str(refuse(ways[0], (shape.n, shape.k), shape.dtype, processor))
    return next((why for module in group.modules if (why := ways[0].suits(module.weight))), None)


def _list_able(group: ProductGroup, processor: Processor, *, on_request: bool = False) -> list[str]:
    """List the ways that can take a group; those that are used on request alone only where `on_request`."""
    shape = group.shape
    return list_able(group.precision, (shape.n, shape.k), shape.dtype, processor, on_request=on_request)


def _leave_what_does_not_fit(groups: Sequence[ProductGroup], keep: bool) -> None:
    """Leave exact weights unpacked where their copies would not fit in free memory."""
    copied = [group for group in groups if WAYS[group.way].packs and (keep or group.pinned)]
    extra = 0
    for group in copied:
        size = group.modules[0].weight.element_size()
        extra += WAYS[group.way].count_bytes((group.shape.n, group.shape.k), size)
    free = read_free_memory(torch.device("cpu"))
    if free is None or extra < 0.8 * free:
        return
    for group in copied:
        if group.precision == EXACT:
            group.way = "plain"
