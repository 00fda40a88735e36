"""Write the model card of an export, README.md: what the model is, exact counts, how it was trained, how to load it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoo import runs
from zoo.costs.params import count_parameters
from zoo.untrusted.yaml_file import read_yaml_text

if TYPE_CHECKING:
    from zoo.checkpoint.stored import WholeSpec

CARD = "README.md"
MARK = "Written by `zoo convert`."
"""The line that marks a card as written by Zoo. A README.md without this line is kept when its folder is replaced."""

TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "Model": "feature-extraction",
}
"""The hub's name of a class's task, by the end of the class's name."""


def find_task(name: str) -> str | None:
    """Return the hub's name of the task of a class; None for a class of no task in TASKS."""
    return next((task for end, task in TASKS.items() if name.endswith(end)), None)


def keep_card(draft: Path, out: Path) -> bool:
    """Copy a README.md that zoo did not write into the draft: the draft's own, else that of `out`. Returns whether
    there is one."""
    there = (each.read_bytes() for each in (draft / CARD, out / CARD) if each.is_file())
    kept = next((each for each in there if MARK.encode() not in each), None)
    if kept is not None:
        (draft / CARD).write_bytes(kept)
    return kept is not None


def write_card(draft: Path, out: Path, spec: WholeSpec, name: str, folder: Path | None) -> None:
    """Write the card of a model of the class `name` into a folder that will be `out`. `folder` is the checkpoint that
    the model came from; if it is a run's, the card says how it was trained. A card that zoo did not write is kept."""
    if keep_card(draft, out):
        return
    task = find_task(name) or "feature-extraction"
    run = folder and runs.find_run(folder)
    settings = {} if run is None else yaml.safe_load(read_yaml_text(run / runs.CONFIG))
    settings = settings if isinstance(settings, dict) else {}
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": ["transformer-zoo", spec.kind],
    }
    start = settings.get("weights")
    if isinstance(start, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", start) and not Path(start).exists():
        front["base_model"] = start  # a name on the hub
    text = "\n".join(_list_lines(out.name, spec, name, task, run, settings, folder))
    head = yaml.safe_dump(front, sort_keys=False)
    (draft / CARD).write_text(f"---\n{head}---\n\n{text}\n", encoding="utf-8")


def _list_lines(
    title: str, spec: WholeSpec, name: str, task: str, run: Path | None, settings: dict[str, Any], folder: Path | None
) -> Iterator[str]:
    counts = count_parameters(spec)
    yield from (f"# {title}", "", f"{MARK} The model is a {name}.", "", "| | |", "|---|---|")
    for tower, each in spec.towers().items():
        layers = Counter(f"{block.attention.kind} attention" for block in (each.blocks[kind] for kind in each.pattern))
        kinds = ", ".join(f"{count} of {kind}" for kind, count in layers.items())
        yield f"| {tower or 'Layers'} | {each.n_layers}: {kinds}; width {each.d_model:,} |"
    yield f"| Vocabulary, longest text | {spec.vocab_size:,} tokens, {spec.max_seq_len:,} tokens |"
    yield f"| Parameters | {counts['total']:,} |"
    yield f"| Active per token | {counts['active']:,} |"
    yield f"| Without embeddings | {counts['non_embedding']:,} |"
    if run is not None and folder is not None:
        yield from ("", "## Training", "", *_list_training(run, settings, folder))
    own = ["import zoo.hf  # its classes"] if name.startswith("Zoo") else []
    yield from ("", "## Use", "", "```python", "from transformers import pipeline", *own, "")
    yield f"model = pipeline({task!r}, {title!r})"
    yield "```"


def _list_training(run: Path, settings: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield lines on a run's data, steps and losses. Losses are known for the last step only."""
    step = runs.read_step(runs.find_checkpoint(folder))
    found = runs.read_whole_result(run / runs.RESULT)
    data = settings.get("data")
    if isinstance(data, dict):
        path = data.get("path")
        named = path if data.get("kind") == "hf" else Path(str(path)).name  # other folders tell a reader nothing
        yield f"- Data: {data.get('kind')}" + (f", {named}" if path else "")
    yield f"- Steps: {step:,}"
    if found.get("steps") == step and folder.name not in runs.AVERAGES:
        for key, word in (("tokens", "Tokens"), ("val_loss", "Validation loss"), ("bits_per_byte", "Bits per byte")):
            if found.get(key) is not None:
                yield f"- {word}: {found[key]:,}" if key == "tokens" else f"- {word}: {found[key]:.4f}"
