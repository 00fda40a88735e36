"""Convert matrix products to float8 with torchao, for training and inference. The Spec, not a module's name, decides
which products are converted: `explain_left_out` gives the reason why a product is left out."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import ConfigError, name_options
from zoo.kernels import machine_of
from zoo.lazy import F, nn, torch
from zoo.run.environment import find_version
from zoo.spec import Linear, Part, Spec, walk
from zoo.spec.parts import is_product

if TYPE_CHECKING:
    from torch.nn import Module

    from zoo.kernels.base import Machine

RECIPES = {"tensorwise": (8, 9), "rowwise": (9, 0)}
"""Recipes for scaling operands into float8's range (one factor per tensor, or per row and column). Each recipe has the
lowest CUDA compute capability on which torchao tests its products."""

WEIGHT_ONLY = "weight_only"
"""Recipe for inference on any device: weights in float8, scaled by row, products in the model's dtype."""

AXES = ("attention", "ffn")
"""The axes whose products are computed in float8. Heads, routers, embeddings and poolers are left out."""

MULTIPLE = 16
"""The sizes in torch's scaled product must be multiples of this: both widths of a weight, and in training the number of
rows, over which a weight's gradient is summed."""

OLDEST = (0, 18)


# ---------------------------------------------------------------- which products


class Float8Product(NamedTuple):
    """One matrix product of a model: its module's path, and the reason why it is left out of float8, or None."""

    path: str
    left_out: str | None


def list_products(model: Module, *, running: bool = False) -> list[Float8Product]:
    """List every matrix product of a built model in module order, and whether it is computed in float8. `running` means
    that weights are quantised once for inference, rather than at each training step."""
    from zoo.run.layer import Layer

    layers = ((path, layer) for path, layer in model.named_modules() if isinstance(layer, Layer))
    return [
        Float8Product(f"{path}.{name}" if path else name, explain_left_out(layer.spec, part, running=running))
        for path, layer in layers
        for name, part, _ in layer.spec.children(layer.d_model)
        if isinstance(part, Part) and is_product(part)
    ]


def explain_left_out(owner: Spec, part: Part, *, running: bool = False) -> str | None:
    """Return the reason why a product of the component `owner` is left out of float8, or None."""
    if owner.axis not in AXES:
        return owner.axis
    if not isinstance(part, Linear):
        return "stacked experts"  # a tied product belongs to a head, returned above
    if part.precise:
        return "precise by design"
    if part.d_in % MULTIPLE or part.d_out % MULTIPLE:
        return f"no multiple of {MULTIPLE} wide"
    return "read as a plain weight" if running and part.bare else None


def explain_no_effect(spec: Any) -> str | None:
    """Return the reason why float8 would have no effect on a model, or None if some product can be float8. Needs no
    torch."""
    reasons: list[str | None] = []
    for row, part in walk(spec, spec.d_model):
        if is_product(part):
            reasons += [explain_left_out(row.component, part)] * row.stored
    return None if None in reasons else f"would take none of the model's products: {_counted(reasons)}"


def summarize_products(products: Iterable[Float8Product]) -> str:
    """Describe in one line how many products are in float8, and why the others are not."""
    reasons = [product.left_out for product in products]
    others = _counted(reasons)
    return f"{reasons.count(None)} of {len(reasons)} products in float8" + (f", not {others}" if others else "")


def _counted(reasons: Iterable[str | None]) -> str:
    return ", ".join(f"{count} ({reason})" for reason, count in Counter(filter(None, reasons)).items())


def _chosen(model: Module, products: list[Float8Product], what: str) -> set[str]:
    """Return the paths of the products to convert. Raises ConfigError if there are none."""
    if reason := explain_no_effect(model.spec):
        raise ConfigError(f"{what} {reason} (bf16 would do)")
    return {product.path for product in products if product.left_out is None}


# ---------------------------------------------------------------- where


def refuses(recipe: str, machine: Machine) -> str | None:
    """Return the reason why a machine cannot run a recipe, or None. The machine need not be present."""
    if recipe == WEIGHT_ONLY:
        return None
    needed, found = RECIPES[recipe], machine.capability
    if machine.device == "cuda" and found is not None and found >= needed:
        return None
    has = machine.device if found is None else f"{machine.device} of {_dotted(found)}"
    return f"needs a CUDA device of compute capability {_dotted(needed)} or more, found {has}"


def require_fp8(recipe: str, device: torch.device, what: str, would: str) -> None:
    """Raise ConfigError if a recipe is unknown, if it cannot run on a device, or if torchao is missing or too old.
    `what` names the request, `would` an alternative."""
    if recipe not in (known := (*RECIPES, WEIGHT_ONLY)):
        raise ConfigError(f"fp8: there is no {recipe!r}{name_options(recipe, known)}")
    reason = refuses(recipe, machine_of(device))
    if reason is None and recipe in RECIPES and not can_multiply(recipe, device):
        reason = f"needs a product in float8, which torch cannot compute on this {device.type}"
    if reason is not None:
        raise ConfigError(f"{what} {reason} ({would} would do)")
    _require_torchao(what)


@cache
def can_multiply(recipe: str, device: torch.device) -> bool:
    """Try on tiny products whether torch computes a recipe's float8 products on a device, once a process for each pair.

    `refuses` checks the device, not torch's libraries: oneDNN has no float8 product on CPUs with AVX2 and no AVX-512.
    """
    size = MULTIPLE
    plain = torch.ones(size, size, device=device, dtype=torch.bfloat16)
    eight, one, ones = plain.to(torch.float8_e4m3fn), torch.ones((), device=device), torch.ones(size, 1, device=device)
    # the backward pass of rowwise has a weight scaled by tensor
    scales = {"tensorwise": [(one, one)], "rowwise": [(ones, ones.t()), (one, one)]}
    torch.mm(plain, plain)  # before oneDNN's first product torch uses its own float8 code, afterwards oneDNN's
    try:
        for pair in scales[recipe]:
            torch._scaled_mm(eight, eight.t(), *pair, out_dtype=torch.bfloat16)  # type: ignore[reportPrivateImportUsage]
    except RuntimeError:
        return False
    return True


def _require_torchao(what: str) -> None:
    version = find_version("torchao") or "none"
    if tuple(int(number) for number in version.split(".")[:2] if number.isdigit()) < OLDEST:
        found = f"needs torchao {_dotted(OLDEST)} or later, found {version}"
        raise ConfigError(f"{what} {found} (pip install 'transformer-zoo[fp8]')")


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


# ---------------------------------------------------------------- training


def convert_to_fp8(model: Module, recipe: str, *, emulate: bool = False) -> list[Float8Product]:
    """Make a model train in float8, in place; return its products. Raises ConfigError if that is impossible.

    Weights keep name, dtype and identity. At each step a product scales and rounds weight and input to e4m3, and in the
    backward pass the gradient to e5m2 (tensorwise) or e4m3 (rowwise, by powers of two), after Micikevicius et al., 2022
    ("FP8 formats for deep learning"). Only a compiled model gets faster: the rounding is then fused with the preceding
    operation. `emulate` computes the rounded product in float32 on any device, for experiments. In inference mode
    products are not rounded, so that a run's samples equal those of its checkpoint.
    """
    what = f"fp8: {recipe}"
    if recipe not in RECIPES:
        raise ConfigError(f"{what} trains nothing{name_options(recipe, RECIPES)}")
    products = list_products(model)
    chosen = _chosen(model, products, what)
    if emulate:
        _require_torchao(what)
    else:
        require_fp8(recipe, next(model.parameters()).device, what, "bf16")
    with quieten_torchao():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate)
    convert_to_float8_training(model, module_filter_fn=lambda _, path: path in chosen, config=config)
    for path in chosen:
        model.get_submodule(path).__class__ = _linear()
    model.train(model.training)  # new modules begin in training mode
    return products


@cache
def _linear() -> type[nn.Linear]:
    """Make a subclass of torchao's float8 Linear that computes the plain product in inference mode: torchao's rowwise
    product raises there (0.18). Compiled code does not check the mode: Dynamo would break the graph there."""
    with quieten_torchao():
        from torchao.float8.float8_linear import Float8Linear

    class Float8TrainingLinear(Float8Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
                return F.linear(input, self.weight, self.bias)
            return super().forward(input)

    return Float8TrainingLinear


# ---------------------------------------------------------------- running


def quantize(model: Module, recipe: str) -> list[Float8Product]:
    """Convert a model's weights to float8 (e4m3), in place; return its products. Raises ConfigError if that is
    impossible. The model can then generate, but neither train nor be saved.

    With `tensorwise` and `rowwise` inputs are rounded too, and products are computed in float8. With `weight_only` the
    weights take half of bfloat16's memory, and each product first converts them to the model's dtype, which costs time.
    """
    what = f"fp8: {recipe}"
    weight = next(model.parameters())
    require_fp8(recipe, weight.device, what, WEIGHT_ONLY)
    if recipe == "rowwise" and str(weight.dtype) != "torch.bfloat16":
        found = str(weight.dtype).removeprefix("torch.")
        raise ConfigError(f"{what} needs weights in bfloat16, found {found} (dtype=bf16, or tensorwise, would do)")
    with quieten_torchao():
        from torchao import quantization
    products = list_products(model, running=True)
    chosen = _chosen(model, products, what)
    own: dict[str, Any] = {"set_inductor_config": False}  # leaves torch's TF32 setting alone
    if recipe == WEIGHT_ONLY:
        config = quantization.Float8WeightOnlyConfig(**own)
    else:
        granularity = quantization.PerRow() if recipe == "rowwise" else quantization.PerTensor()
        config = quantization.Float8DynamicActivationFloat8WeightConfig(granularity=granularity, **own)
    quantization.quantize_(model, config, filter_fn=lambda _, path: path in chosen)
    return products


@contextmanager
def quieten_torchao() -> Iterator[None]:
    """Silence warnings while torchao is imported: its own, about compiled kernels for other machines that Zoo does not
    use, and torch's, about the classes that torchao registers."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
