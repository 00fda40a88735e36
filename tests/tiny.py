"""Tiny models of every shape, for the tests: every choice of every axis of conf/, laid over one small Llama."""

from collections.abc import Iterator

import torch

from zoo.builder import build
from zoo.config import conf_dir, load
from zoo.grammar import AXES

SIZE = [
    *("n_layers=3", "d_model=32", "n_heads=4", "n_kv_heads=2", "head_dim=8", "d_ff=48", "vocab_size=67"),
    *("max_seq_len=64", "window=5", "n_experts=4", "original_max_seq_len=32"),
]
"""Overrides that make llama-tiny small enough for hundreds of tests; a window shorter than any test's sequence."""

MIXED = ["pattern=[near*2,layer]", "layers={near:{attention:{window:4},position:{kind:none}}}", "n_layers=5"]
"""A pattern of two kinds of layer: two near-sighted ones without positions, then one that sees all."""


def choices(axis: str) -> list[str]:
    """The packaged choices of an axis."""
    return sorted(path.stem for path in (conf_dir() / axis).glob("*.yaml"))


def every_choice() -> Iterator[list[str]]:
    """Overrides that swap one axis at a time to each of its packaged choices, and a mixed pattern of layers."""
    for axis in AXES:
        for choice in choices(axis):
            yield [f"{axis}={choice}", *(["ffn=moe"] if axis == "router" else [])]
    yield MIXED


def spec_of(overrides: list[str] | tuple[str, ...] = ()):
    """The Spec of the small Llama with these overrides; those of SIZE that nothing reads are left out."""
    return load("llama-tiny", [*_readable(list(overrides)), *overrides])


def _readable(overrides: list[str]) -> list[str]:
    asked = {override.split("=")[0] for override in overrides}
    size = [override for override in SIZE if override.split("=")[0] not in asked]
    text = " ".join(overrides)
    wanted = {
        "window": "attention=sliding" in text,
        "n_kv_heads": not ("attention=mha" in text or "attention=mqa" in text),
        "n_experts": "ffn=moe" in text,
        "original_max_seq_len": any(kind in text for kind in ("rope_dynamic", "rope_yarn", "rope_llama3")),
    }
    return [override for override in size if wanted.get(override.split("=")[0], True)]


def model_of(overrides: list[str] | tuple[str, ...] = (), *, seed: int = 0, dtype: str = "fp32"):
    """The small Llama in eval mode with EVERY parameter random, so that no bias or norm weight can be forgotten
    unseen."""
    model = build(spec_of(overrides), device="cpu", dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def name(overrides: list[str]) -> str:
    """A test's label."""
    return ",".join(overrides) if len(",".join(overrides)) < 40 else "mixed-pattern"
