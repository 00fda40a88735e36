# N texts, T tokens, D width of a vector
"""Read from a sentence-transformers folder how hidden states become vectors (Reimers and Gurevych, 2019): a sequence of
modules, which are a pooling, dense layers, norms, and scaling to length 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from zoo.checkpoint.sentence_files import (
    LIMITS,
    POOLINGS,
    PROMPTS,
    DenseFile,
    LimitsFile,
    Module,
    PoolingFile,
    PromptsFile,
    list_modules,
    read_settings,
)
from zoo.checkpoint.tensor_files import BIN, SINGLE, TensorReader, read_bin, read_header
from zoo.errors import CheckpointError, ConfigError, did_you_mean, name_options
from zoo.lazy import F, Tensor, torch
from zoo.model.task_head import pool
from zoo.untrusted.printable import quote, shorten

CONFIG = "config.json"
LEGACY = "lasttoken", "weightedmean", "mean_sqrt_len_tokens"
NAMES = {**{name: name for name in POOLINGS}, **dict(zip(LEGACY, ("last", "weighted", "mean_sqrt_len"), strict=True))}
"""Zoo's name of a pooling, by Zoo's name and by sentence-transformers'."""
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
"""The activation functions of a Dense, as torch.nn names them."""


@dataclass(frozen=True)
class PooledVectors:
    """Pools token vectors, and concatenates the results of several poolings. `with_prompt` includes the vectors of a
    prompt's tokens."""

    names: tuple[str, ...]
    with_prompt: bool = True

    def __call__(self, hidden: Tensor, real: Tensor, n_prompt: int) -> Tensor:
        """Pool hidden states [N, T, D] to vectors [N, D·poolings]; `real` [N, T] is False for padding, on the right."""
        read = real
        if n_prompt and not self.with_prompt:
            read = real & (torch.arange(real.shape[1], device=real.device) >= n_prompt)
        return torch.cat([pool_tokens(hidden, read, name) for name in self.names], -1)


@dataclass(frozen=True)
class SentenceLayer:
    """A module with weights: a linear map and its activation, plus a skip connection if `residual`; or a LayerNorm."""

    weights: Mapping[str, Tensor]
    activation: str = ""
    residual: bool = False
    folder: Path = Path()

    def to(self, device: torch.device | str) -> SentenceLayer:
        return replace(self, weights={name: each.to(device) for name, each in self.weights.items()})

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the module to vectors [N, D]. Raises CheckpointError if D is not the width that the module reads."""
        own = self.weights
        width = own[next(iter(own))].shape[-1]
        if x.shape[-1] != width:
            raise CheckpointError(f"{self.folder}: reads vectors of {width} numbers, found {x.shape[-1]} (as many)")
        if not self.activation:
            return F.layer_norm(x, x.shape[-1:], own["norm.weight"], own["norm.bias"])
        y = getattr(torch.nn, self.activation)()(F.linear(x, own["linear.weight"], own.get("linear.bias")))
        if self.residual:
            y = y + (F.linear(x, own["residual.weight"]) if "residual.weight" in own else x)
        return y


@dataclass(frozen=True)
class SentencePipeline:
    """How a folder makes vectors from hidden states, and its settings for texts: prompts by name, maximum length,
    case."""

    model: Path | None = None
    pooled: PooledVectors = PooledVectors(("mean",))
    layers: tuple[SentenceLayer | None, ...] = ()  # None scales to length 1
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    limit: int | None = None
    lower: bool = False

    def choose(self, pooling: str | None, normalize: bool | None) -> SentencePipeline:
        """Return a copy with another pooling or scaling to length 1. Raises ConfigError for an unknown pooling."""
        if pooling is not None and pooling not in POOLINGS:
            would = name_options(pooling, POOLINGS)
            raise ConfigError(f"pooling: {pooling!r} is none{would}")
        pooled = self.pooled if pooling is None else replace(self.pooled, names=(pooling,))
        return replace(self, pooled=pooled, normalize=self.normalize if normalize is None else normalize)

    def find_width(self, hidden: int) -> int:
        """Find the width of the sentence vectors made from hidden states of width `hidden`."""
        made = [layer.weights["linear.weight"].shape[0] for layer in self.layers if layer and layer.activation]
        return made[-1] if made else hidden * len(self.pooled.names)

    def list_matrices(self) -> list[Tensor] | None:
        """List the matrices of the layers; None if a layer is not a plain matrix (a bias, an activation, a skip
        connection, a norm)."""
        plain = [each for each in self.layers if each and each.activation == "Identity" and not each.residual]
        found = [each.weights["linear.weight"] for each in plain if len(each.weights) == 1]
        return found if len(found) == len(self.layers) else None

    def to(self, device: torch.device | str) -> SentencePipeline:
        """Return a copy with the layers' weights on a device."""
        return replace(self, layers=tuple(layer and layer.to(device) for layer in self.layers))

    def find_prompt(self, name: str | None) -> str:
        """Find the text to put before every text: the prompt of this name, or the folder's default. Raises ConfigError
        for an unknown name."""
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = f" (it has: {shorten(', '.join(self.prompts)) or 'none'})"
            raise ConfigError(f"prompt: {name!r} is none of the folder's{did_you_mean(name, self.prompts) or known}")
        return self.prompts[name]

    def apply(self, hidden: Tensor, real: Tensor, n_prompt: int, dim: int | None) -> Tensor:
        """Compute vectors from hidden states [N, T, D], in float32; with `dim`, only the first `dim` numbers of each
        (Matryoshka; Kusupati et al., 2022). Raises ConfigError if the vectors have fewer numbers than `dim`."""
        x = self.pooled(hidden, real, n_prompt)
        for layer in self.layers:
            x = F.normalize(x, dim=-1) if layer is None else layer(x)
        if dim is not None and not 0 < dim <= x.shape[-1]:
            raise ConfigError(f"dim: is {dim}, the vectors have {x.shape[-1]} (1 to {x.shape[-1]})")
        x = x[..., :dim]
        return F.normalize(x, dim=-1) if self.normalize else x


def read_pipeline(folder: Path | None) -> SentencePipeline:
    """Read a folder's SentencePipeline from its modules.json. Without modules.json, vectors are pooled as the folder's
    1_Pooling states, or else by the mean, and scaled to length 1. Raises CheckpointError for a module or pooling that
    zoo lacks, and for faulty weights."""
    modules = [] if folder is None else list_modules(folder)
    if folder is None or not modules:
        file = None if folder is None else folder / "1_Pooling" / CONFIG
        own = read_pooled(file) if file is not None and file.is_file() else PooledVectors(("mean",))
        return SentencePipeline(folder, own)
    last = modules[-1].kind == "Normalize"
    layers = tuple(_read_layer(each) for each in modules[2 : -1 if last else None] if each.kind != "Dropout")
    said = read_settings(folder / PROMPTS, PromptsFile)
    limits = read_settings(modules[0].folder / LIMITS, LimitsFile)
    return SentencePipeline(
        model=modules[0].folder,
        pooled=read_pooled(modules[1].folder / CONFIG),
        layers=layers,
        normalize=last,
        prompts=said.get("prompts") or {},
        default_prompt=said.get("default_prompt_name"),
        limit=limits.get("max_seq_length"),
        lower=bool(limits.get("do_lower_case")),
    )


def read_pooled(file: Path) -> PooledVectors:
    """Read a Pooling's config.json, of the old or the new form. Raises CheckpointError for a pooling that zoo lacks."""
    node = read_settings(file, PoolingFile)
    stated = node.get("pooling_mode")
    if stated is None:
        names: Sequence[Any] = [name for name, flag in POOLINGS.items() if node.get(flag)]
        unknown = [
            key for key, on in node.items() if key.startswith("pooling_mode_") and on and key not in POOLINGS.values()
        ]
    else:
        names = [stated] if isinstance(stated, str) else stated
        unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        found = shorten(", ".join(map(str, unknown))) or "none"
        raise CheckpointError(
            f"{file}: asks for a pooling that is none of ours, found {found} (--pooling {', '.join(POOLINGS)})"
        )
    return PooledVectors(tuple(NAMES[name] for name in names), bool(node.get("include_prompt", True)))


def _read_layer(module: Module) -> SentenceLayer | None:
    """Read a Dense or a LayerNorm; None for a Normalize between others."""
    if module.kind == "Normalize":
        return None
    config, file = read_settings(module.folder / CONFIG, DenseFile), module.folder / SINGLE
    if file.is_file():
        found = read_header(file)
        weights = {name: TensorReader(module.folder, found)[name] for name in found}
    elif (old := module.folder / BIN).is_file():
        weights = read_bin(old)
    else:
        raise CheckpointError(f"{module.folder}: has no weights (model.safetensors)")
    weights = {name: each.float() for name, each in weights.items()}
    if module.kind == "LayerNorm":
        return SentenceLayer(
            _pick_weights(weights, module.folder, ("norm.weight",), ("norm.bias",)), folder=module.folder
        )
    odd = {
        name
        for name in ("module_input_name", "module_output_name")
        if config.get(name) not in (None, "sentence_embedding")
    }
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if odd or name not in ACTIVATIONS:
        found = f"{min(odd)} {quote(config[min(odd)])}" if odd else f"activation_function {shorten(name)}"
        raise CheckpointError(
            f"{module.folder}: has {found}, which is not read (a sentence's vector; {', '.join(ACTIVATIONS)})"
        )
    residual = bool(config.get("use_residual"))
    needed = ("linear.weight", *(("residual.weight",) if residual and "residual.weight" in weights else ()))
    made = _pick_weights(weights, module.folder, needed, ("linear.bias",) if "linear.bias" in weights else ())
    if residual and len(needed) == 1 and made["linear.weight"].shape[0] != made["linear.weight"].shape[1]:
        raise CheckpointError(f"{module.folder}: use_residual: has no residual.weight, and widths that differ")
    return SentenceLayer(made, name, residual, module.folder)


def _pick_weights(
    weights: Mapping[str, Tensor], folder: Path, needed: Sequence[str], vectors: Sequence[str]
) -> dict[str, Tensor]:
    """Return a module's weights: those named in `needed`, then those in `vectors`. All in `needed` must be matrices of
    one shape (in a LayerNorm, vectors); each of `vectors` must have as many numbers as these have rows. Raises
    CheckpointError for a missing weight or another shape."""
    for name in (*needed, *vectors):
        shape = list(weights[name].shape) if name in weights else None
        first = list(weights[needed[0]].shape) if needed[0] in weights else []
        wanted = first if name in needed else first[:1]
        if shape != wanted or len(first) != (1 if needed[0] == "norm.weight" else 2):
            found = "is missing" if shape is None else f"has shape {shape}"
            raise CheckpointError(f"{folder}: {name}: {found} ({wanted or 'a whole file'})")
    return {name: weights[name] for name in (*needed, *vectors)}


def pool_tokens(hidden: Tensor, read: Tensor, name: str) -> Tensor:
    """Pool the hidden states [N, T, D] of each text's `read` tokens [N, T] to a vector [N, D].

    Example: of a, b and c, `max` is the maximum of each channel, `mean_sqrt_len` (a + b + c) / √3, and `weighted` (a +
    2b + 3c) / 6, where a token's weight is its place in the row, prompt included.
    """
    if name in ("cls", "mean", "last"):
        return pool(hidden, read, name)  # type: ignore[arg-type]
    if name == "max":
        return hidden.masked_fill(~read[..., None], -torch.inf).amax(1)
    weights = read[..., None].to(hidden.dtype)
    if name == "mean_sqrt_len":
        return (hidden * weights).sum(1) / weights.sum(1).sqrt()
    weights = weights * torch.arange(1, hidden.shape[1] + 1, device=hidden.device)[:, None]
    return (hidden * weights).sum(1) / weights.sum(1)
