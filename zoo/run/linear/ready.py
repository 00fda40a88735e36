"""Prepare a model to serve on a CPU: choose the way of each product, join products of one input, pack the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from zoo.errors import ConfigError, name_options
from zoo.lazy import nn, torch
from zoo.run.linear.base import EXACT, LOWER, Processor, describe_processor
from zoo.run.linear.groups import ProductGroup, find_groups
from zoo.run.linear.probe import BUCKETS, choose_way, time_shapes
from zoo.run.linear.product import ReadyForward, ReadyProduct
from zoo.run.linear.ways import WAYS, is_count_stable, list_able, list_ways, refuse
from zoo.run.machine_memory import read_free_memory

SMALL = 65536
"""Weights of up to this many values are not timed: they stay in the CPU's caches, and calls outweigh arithmetic."""


class PreparedModel:
    """A prepared model. As a context manager it calls `undo` at the end of the block."""

    def __init__(
        self, model: nn.Module, products: list[ReadyProduct], plain: int, left: Counter[str], stable: bool
    ) -> None:
        self.model, self.products, self.left = model, products, left
        self.stable = stable
        """Whether `stable` was requested, and every product gives a row the same bits for any number of rows."""
        self.plain = plain
        """Number of Linears that are left unchanged, because they are small, because no other way is faster, or because
        packed copies would not fit in memory."""

    def __enter__(self) -> PreparedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def undo(self) -> None:
        """Restore the model bit for bit. Raises ZooError if plain weights were not kept."""
        for product in self.products:
            product.undo()
        self.products = []
        self.model.__dict__.pop("ready", None)

    @property
    def bytes(self) -> int:
        """Bytes of packed weights."""
        return sum(product.bytes for product in self.products)

    def __str__(self) -> str:
        """Summarise the choice in a line: "84 products in 48 calls: 48× onednn; 1 plain; 302.0 MB of packed weights, 48
        of 48 beside the plain ones"."""
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
    model: nn.Module,
    weights: str | None = None,
    *,
    keep: bool = True,
    rows: Sequence[int] = BUCKETS[:-1],
    stable: bool = False,
    way: str | None = None,
) -> PreparedModel:
    """Prepare a model to serve on a CPU, in place; `undo()` restores it bit for bit.

    Linears that read the same input become one product. It is computed in the fastest way on this CPU for a prompt and
    for `rows`, the numbers of rows in decoding. Ways are timed once per processor, in about two seconds, and the
    timings are stored on disk. Unless `weights` names fewer bits (fp16, bf16, int8, int4), ways keep the model's dtype
    and differ only by rounding. With `stable` a row's bits depend neither on other rows nor on the row's place; if
    `PreparedModel.stable` is true, they do not depend on the number of rows either. `way` names a way (see `zoo
    doctor`) for all products that it can compute, in place of the timed choice. The result is also kept as
    `model.ready`.

    Memory: at most one packed copy in addition to the plain weights. Without `keep` plain weights are dropped once they
    are packed, except weights that other code reads (a tied embedding, MLA's absorbed products). The model can then
    generate, but not be undone, trained or saved. With `keep` the state_dict does not change. Calls with gradients,
    torch.compile or other dtypes, and weights changed afterwards, use the plain weights. Raises ConfigError if the
    model is not on a CPU or is already prepared, and if `weights` or `way` is unknown or cannot run here.
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
            plain += len(group.modules)  # unchanged: joined without packing they are no faster
            continue
        products.append(_install(group, keep=keep))
    model.__dict__["ready"] = prepared = PreparedModel(model, products, plain, left, found and not left)
    return prepared


def join_products(model: nn.Module) -> PreparedModel:
    """Join Linears that read the same input (queries, keys and values; gate and up) to one product of `F.linear`, on
    any device, in place; `undo()` restores the model.

    A product of a few thousand outputs for one row leaves most of a GPU idle, so three products take longer than one
    joint product. Weights are laid end to end, group by group, and each Linear's weight becomes a view, so none is in
    memory twice. Calls with gradients, and weights changed afterwards, use the plain products.
    """
    groups, left = find_groups(model, EXACT)
    products = [_install(group, keep=True) for group in groups if len(group.modules) > 1]
    torch.cuda.empty_cache()  # the allocator keeps the memory of the weights as they were, too small for joined ones
    single = sum(len(group.modules) == 1 for group in groups)
    model.__dict__["ready"] = prepared = PreparedModel(model, products, single, left, False)
    return prepared


def _install(group: ProductGroup, *, keep: bool) -> ReadyProduct:
    """Make the product of a group, and let its modules compute by it."""
    product = ReadyProduct(group.modules, group.way, keep=keep or group.pinned)
    for place, module in enumerate(group.modules):
        module.forward = ReadyForward(product, place)
    return product


WORTH = 32e6
"""Bytes of weights from which a model is prepared by default: in a smaller one most time goes to other work."""


def make_ready(
    model: nn.Module,
    weights: str | None,
    tell: Callable[[str], object],
    rows: Sequence[int] = BUCKETS[:-1],
    *,
    stable: bool = False,
) -> None:
    """Prepare a model that will only generate, in place. On CUDA its products with the same input are joined. On a CPU
    it is prepared (`prepare`) if it is large (WORTH), if `weights` are given, or if rows must be `stable`.

    Plain weights are not kept, so that packing takes no additional memory. `tell` gets a line if `weights` are given.
    """
    device = find_device(model)
    if device == "cuda" and weights is None:
        join_products(model)
        return
    wanted = weights is not None or (device == "cpu" and (stable or count_product_bytes(model) >= WORTH))
    if not wanted:
        return
    ready = prepare(model, weights, keep=False, rows=rows, stable=stable)
    if weights is not None:
        tell(f"weights {weights}: {ready}")


def find_device(model: nn.Module) -> str:
    """Return the type of the device that holds a model."""
    return next(model.parameters()).device.type


def count_product_bytes(model: nn.Module) -> int:
    """Count the bytes of the weights that `prepare` would pack."""
    groups, _ = find_groups(model, EXACT)
    return sum(module.weight.numel() * module.weight.element_size() for group in groups for module in group.modules)


def check_weights(weights: str | None, device: torch.device) -> None:
    """Check a precision of weights. Raises ConfigError if it is unknown, or cannot be used on this device."""
    if weights is None:
        return
    if weights not in LOWER:
        raise ConfigError(f"weights: there is no {weights!r}{name_options(weights, LOWER)}")
    if device.type != "cpu":
        raise ConfigError(f"weights: {weights} is for a CPU, found {device.type} (dtype=bf16, or fp8, would do)")
    processor = describe_processor()
    reasons = {way.name: refuse(way, (512, 512), "float32", processor) for way in list_ways(weights)}
    if None not in reasons.values():
        told = "; ".join(f"{name} {reason}" for name, reason in reasons.items())
        others = [name for name in LOWER if list_able(name, (512, 512), "float32", processor)]
        raise ConfigError(f"weights: {weights} cannot run here: {told} ({' or '.join((*others, 'none'))} would do)")


def _check(model: nn.Module, weights: str | None) -> None:
    weight = next(model.parameters())
    check_weights(weights, weight.device)
    if weight.device.type != "cpu":
        raise ConfigError(f"prepare: is for a model on a CPU, found {weight.device.type} (leave it out)")
    if any(isinstance(getattr(module, "forward", None), ReadyForward) for module in model.modules()):
        raise ConfigError("prepare: the model is ready already (undo it first)")


def _check_named(way: str, weights: str | None, processor: Processor) -> str | None:
    """Return the precision of a named way to multiply, None if it is exact. Raises ConfigError if the way is unknown,
    cannot run or contradicts `weights`."""
    if way not in WAYS:
        raise ConfigError(f"way: there is no {way!r}{name_options(way, WAYS)}")
    if reason := refuse(WAYS[way], (512, 512), "float32", processor):
        raise ConfigError(f"way: {way} was asked for, but {reason} (plain would do)")
    own = None if WAYS[way].precision == EXACT else WAYS[way].precision
    if weights not in (None, own):
        raise ConfigError(f"weights: {weights}, and way {way} is of {own or EXACT} (one of the two)")
    return own


# ---------------------------------------------------------------- which ways


def _choose_ways(groups: Sequence[ProductGroup], processor: Processor, rows: Sequence[int], stable: bool) -> bool:
    """Choose the way of each group. For weights in fewer bits it is the first that can compute the group, for exact
    weights the fastest. With `stable` it is the first that gives a row the same bits for any number of rows, if there
    is one. Returns whether `stable` is set and every group has such a way."""
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
    """Find the first way that, on trial, gives a row the same bits for any number of rows, or None."""
    able, shape = _list_able(group, processor, on_request=True), group.shape
    return next((name for name in able if is_count_stable(name, (shape.n, shape.k), shape.dtype)), None)


def _explain_unable(group: ProductGroup, processor: Processor) -> str | None:
    """Return why no way can compute a group in the group's precision; None if one can."""
    if group.precision == EXACT:
        return None
    ways, shape = list_ways(group.precision), group.shape
    if not _list_able(group, processor):
        return str(refuse(ways[0], (shape.n, shape.k), shape.dtype, processor))
    return next((why for module in group.modules if (why := ways[0].suits(module.weight))), None)


def _list_able(group: ProductGroup, processor: Processor, *, on_request: bool = False) -> list[str]:
    shape = group.shape
    return list_able(group.precision, (shape.n, shape.k), shape.dtype, processor, on_request=on_request)


def _leave_what_does_not_fit(groups: Sequence[ProductGroup], keep: bool) -> None:
    """Leave exact weights unpacked if the packed copies that are kept beside plain weights would together take 80% of
    free memory or more."""
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
