"""The validation losses of a sweep in one picture: `python recipes/plot_sweep.py SWEEP OUT.png`."""

import json
import sys
from pathlib import Path


def curves(sweep: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Millions of tokens and validation loss of each job, by its model's name."""
    found = {}
    for result in sorted(sweep.glob("*/result.json")):
        lines = [
            json.loads(line) for line in (result.parent / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        points = [(line["tokens"] / 1e6, line["val_loss"]) for line in lines if "val_loss" in line]
        found[json.loads(result.read_text(encoding="utf-8"))["model"]] = (
            [x for x, _ in points],
            [y for _, y in points],
        )
    return found


def main(sweep: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, (tokens, losses) in sorted(curves(sweep).items(), key=lambda item: item[1][1][-1]):
        axes.plot(tokens, losses, marker="o", markersize=3, label=f"{name}: {losses[-1]:.3f}")
    axes.set(xlabel="million tokens", ylabel="validation loss (nats a token)", title="Same text, same tokens")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
