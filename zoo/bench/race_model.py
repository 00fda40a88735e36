"""Define the benchmark models: a Llama-like shape, small enough for two CPU cores, and BERT base."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import ClassVar

from zoo.compose import load
from zoo.costs.params import count_parameters
from zoo.costs.rows import CostTable, tabulate
from zoo.errors import did_you_mean, refuse
from zoo.spec import LOGITS, Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaceShape:
    """Llama-like model: pre-norm, RoPE, RMSNorm, SwiGLU, grouped-query attention, untied head; 124,668,672
    parameters."""

    model: ClassVar[str] = "llama3-8b"
    """Name of the packaged model with this architecture."""

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    n_kv_heads: int = 4
    head_dim: int = 64
    d_ff: int = 2048
    vocab_size: int = 32000
    max_seq_len: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @functools.cached_property
    def table(self) -> CostTable:
        return tabulate(load(self.model, self.overrides()))

    @property
    def head_params(self) -> int:
        """Parameters of the output head: of a tied one its bias alone."""
        return sum(row.part.params for row in self.table.parts if row.part.role == LOGITS)

    @property
    def matrix_params(self) -> int:
        """N, the number of weights and biases of matrix products for every token, without the input embedding."""
        return sum(row.part.params * row.stored for row in self.table.parts if isinstance(row.part, Linear))

    def count_params(self) -> int:
        return count_parameters(self.table)["total"]

    def overrides(self) -> list[str]:
        return [f"{name}={value}" for name, value in dataclasses.asdict(self).items()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertShape(RaceShape):
    """BERT base: post-norm, learned positions, LayerNorm, GELU, biases, a dense layer before the tied head; 109,514,298
    parameters."""

    model: ClassVar[str] = "bert-base"

    n_kv_heads: int = 12
    d_ff: int = 3072
    vocab_size: int = 30522
    max_seq_len: int = 512
    norm_eps: float = 1e-12

    def overrides(self) -> list[str]:
        return [each for each in super().overrides() if each.partition("=")[0] not in ("n_kv_heads", "rope_theta")]


def parse_shape(pairs: Iterable[str], over: type[RaceShape] = RaceShape) -> RaceShape:
    """Parse `["n_layers=2", "d_model=64"]` as changes of a default shape. Raises ConfigError with all faults."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(over)}
    values, faults = {}, []
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in kinds:
            faults.append(f"--shape {pair}: no dimension '{name}'{did_you_mean(name, kinds)}")
            continue
        try:
            values[name] = kinds[name](text)
        except ValueError:
            faults.append(f"--shape {pair}: '{text}' is not a number (a positive {kinds[name].__name__} would do)")
            continue
        if values[name] <= 0:
            faults.append(f"--shape {pair}: {text} is not positive")
    shape = over(**values)
    if shape.n_heads % shape.n_kv_heads:
        faults.append(f"--shape: n_heads={shape.n_heads} is no multiple of n_kv_heads={shape.n_kv_heads}")
    if shape.head_dim % 2:
        faults.append(f"--shape: head_dim={shape.head_dim} is odd (RoPE turns pairs of channels)")
    refuse(faults)
    return shape
