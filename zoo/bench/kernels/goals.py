"""Compare a GPU report with its goals: MFU of training, bandwidth of decoding, and vLLM's rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from zoo.bench.kernels import decoding, mesh_runs, vllm

MFU = {"Llama 1.2 B": 0.45}
"""Goal for the MFU of training on one H100, by model."""


class Goal(NamedTuple):
    """A goal: name, measured figure (None: not measured), least figure that meets it, and whether both are
    fractions."""

    name: str
    figure: float | None
    least: float
    share: bool = True

    @property
    def state(self) -> str:
        """The outcome: met, missed, or not measured."""
        return "not measured" if self.figure is None else "met" if self.figure >= self.least else "missed"


def list_goals(report: Mapping[str, Any]) -> Iterator[Goal]:
    """Yield the goals of a report. A quick report has none: the goals are for the full sizes."""
    if report["quick"]:
        return
    for model, least in MFU.items():
        found = _find(report["training"], model=model).get("mfu", {}).get("sheet", {})
        yield Goal(f"train {model}: MFU of the data sheet's bf16", found.get("exact"), least)
    large = _find(report["meshes"], model="Llama 3 8B")
    yield Goal("train Llama 3 8B over all GPUs: MFU", large.get("mfu"), mesh_runs.GOAL)
    for model in decoding.MODELS:
        found = _find(report["decoding"], model=model.name, rows=1)
        if model.goal is not None:
            yield Goal(f"decode {model.name}, 1 row: share of the bandwidth", found.get("share_of_copy"), model.goal)
    name, many = decoding.MODELS[-1].name, max(decoding.ROWS)
    rows = [row for row in report["decoding"] if (row.get("model"), row.get("rows")) == (name, many)]
    ours, theirs = (
        next((row for row in rows if key in row), {}).get("tokens_per_second") for key in ("kernel", "peer")
    )
    ratio = ours / theirs if ours and theirs else None
    yield Goal(f"decode {name}, {decoding.count_rows(many)}: of vLLM's tokens/s", ratio, vllm.LEAST, share=False)


def _find(found: list[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    return next((row for row in found if all(row.get(name) == value for name, value in wanted.items())), {})
