"""Writes docs/stats.md: what `zoo stats` counts and by which formulas, the tables and examples made by the code that
counts. `python tests/pages stats` runs it; test_stats_page.py holds the page against the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from support.packaged_specs import load
from zoo.analysis.explain import explain, format_explanation
from zoo.analysis.explain.cache import ENGINES
from zoo.analysis.explain.memory import PRECISIONS
from zoo.costs import Setup, price
from zoo.costs.flops import CONVENTIONS
from zoo.costs.rules_of_thumb import rules_of_thumb
from zoo.costs.setup import OPTIMIZERS
from zoo.costs.states import states
from zoo.costs.update_flops import optimizer_flops
from zoo.costs.zero_shards import widths

PAGE = Path(__file__).parents[2] / "docs" / "stats.md"

HEAD = """\
# What `zoo stats` counts

Written by `python tests/pages stats`; a test holds this page against the code, and other tests hold the figures to
built models. Every figure of a model of yours, with its formula and the numbers put in: `zoo stats MODEL --explain`.

Symbols are the keys of the YAML files. `context` is the tokens of a sequence, `batch` the sequences at once. Bytes are
bytes; GB are 10⁹ and GiB 2³⁰ of them.

## Where formulas come from

None of the formulas below is written down a second time. A component states its weights (`parts`), what it caches
(`cache`, `state`) and what no weight explains (`core_flops`) as arithmetic on its fields. `--explain` runs this
arithmetic, and the forward pass of a layer, on numbers that remember how they came about, and prints what they
remember. So a formula cannot differ from what is counted.
"""

PARAMETERS = """
## Parameters

Each weight once: a table that a head is tied to at the table, layers that share weights as one. `active` is what one
token meets, experts at top_k; `active_without_input_table` leaves out a token table that only looks up. `embedding`
is tables and a head's own matrix. Buffers, such as DeepSeek-V3's selection bias, are no parameters.
"""

FLOPS = """
## FLOPs

A multiply-add is two. Products with weights count 2 for each element of the matrix, whether the head is tied or not;
a look-up counts nothing. Attention counts the (query, key) pairs that its mask lets through: of S tokens

| mask | pairs |
| --- | --- |
| causal | S·(S + 1)/2 |
| causal, n new after t held | n·t + n·(n + 1)/2 |
| causal window W, S ≥ W | W·(W + 1)/2 + (S − W)·W |
| chunks of c, the rest r | ⌊S/c⌋·c·(c + 1)/2 + r·(r + 1)/2 |
| both ways | S² |
| both ways, R to either side | S + 2·(R·S − R·(R + 1)/2) |
| cross-attention to M tokens | S·M |

times 2·n_heads·(key width + value width). The number of key heads does not appear. MLA decodes on its latents, with
2·n_heads·(2·kv_lora_rank + qk_rope_head_dim) a pair. Backward is twice forward. Norms, softmax and activations are
bound by memory, and are not counted.

"FLOPs" and so MFU differ between frameworks by definition. `--convention` chooses:

"""

CACHE = """
## KV cache

Layers · values · bytes · tokens kept. A latent (MLA) is stored once, not for keys and values. Cross-attention keeps the
encoder's tokens; a recurrent layer keeps a state, whatever the length. The same model keeps a different amount in each
engine (`--engine`):

"""

MEMORY = """
## Memory

Bytes a parameter of a 16-bit model with AdamW, before ZeRO (`--precision`):

"""

OPTIMIZER = """
Of the optimizer with `--precision mixed`, for {title} (`--optimizer`): bytes a parameter of states and of the master
copy, and FLOPs of the matrix products in a step.

"""

ACTIVATIONS = """
What autograd keeps of a layer is read off the model's own forward pass, run on tensors without values. It is exact for
the kernels of a CUDA device. `--recompute full` keeps each layer's input alone, and one layer's working set while it is
computed again; `every_2` does so for every second layer, and so on; `selective` computes the attention core again.
`--accumulate` keeps all gradients through each pass; `--offload states` has the optimizer's in the host's memory.

Not all of it is held at once: in the backward pass of the loss, say, there are no gradients yet. `zoo stats` marks the
rows that add up to a peak with +.
"""

RULES = """
## Rules of thumb

How far off each is. `zoo stats` gives a rule beside its exact figure, and says why where it does not fit.

"""

EXAMPLE = """
## An example, explained

Of `zoo stats llama3-8b --context 4096 --batch 8 --explain`:

"""

MODELS = (
    *("gpt2", "llama3-8b", "llama3.2-1b", "qwen3-4b", "gemma2-9b", "mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3"),
    *("bert-base", "t5-small", "mamba-130m"),
)
SHOWN = ("parameters", "flops_forward", "flops_forward_active", "kv_cache", "kv_cache_heads")


LAYER = ("layer attention_norm", "layer attention", "layer ffn")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def conventions() -> str:
    split = (text.partition(": ") for text in CONVENTIONS.values())
    return table(["convention", "counts"], [[f"`{name}`", says] for name, _, says in split])


def precisions() -> str:
    rows = []
    for name, says in PRECISIONS.items():
        weight, gradient, state, master = widths(Setup(precision=name))
        each = [str(width) for width in (weight, gradient, 2 * state, master, weight + gradient + 2 * state + master)]
        rows.append([f"`{name}`", *each, says])
    return table(["precision", "weights", "gradients", "states", "master", "in all", ""], rows)


def optimizers(spec: Any) -> str:
    rows = []
    for name in OPTIMIZERS:
        found = states(spec, Setup(optimizer=name))["bytes_per_param"]
        step = f"{optimizer_flops(spec, name) / 1e12:.2f} T" if optimizer_flops(spec, name) else "none"
        rows.append([f"`{name}`", f"{found['optimizer'] - found['master']:.3f}", f"{found['master']:g}", step])
    return table(["optimizer", "states", "master", "a step"], rows)


def rules() -> str:
    rows, heads = [], []
    for model in MODELS:
        spec = load(model)
        setup = Setup(context=min(4096, spec.max_seq_len))
        found = rules_of_thumb(spec, setup, price(spec, setup))
        heads = [f"{name.replace('_', ' ')}: {found[name]['rule']}" for name in SHOWN]
        errors = (found[name]["error"] for name in SHOWN)
        rows.append([model, f"{setup.context:,}", *("does not fit" if e is None else percent(e) for e in errors)])
    return table(["", "context", *heads], rows)


def percent(error: float) -> str:
    text = f"{100 * error:+,.0f} %".replace("-", "−")
    return "0 %" if text in ("+0 %", "−0 %") else text


def holding() -> str:
    spec, setup = load("gpt2"), Setup()
    found = rules_of_thumb(spec, setup, price(spec, setup))
    return table(
        ["rule", "gives", "holds for"], [[r["rule"], n.replace("_", " "), r["holds"]] for n, r in found.items()]
    )


def example() -> str:
    rows = explain(load("llama3-8b"), Setup(context=4096, batch=8))
    names = {"Parameters": ("attention", "ffn"), "FLOPs": ("attention pairs", "attention core"), "Memory": LAYER}
    shown = [row for row in rows if row["name"] in names.get(row["section"], ()) or row["section"] == "KV cache"]
    return f"```\n{format_explanation(shown)}\n```\n"


def page() -> str:
    engines = table(["engine", "keeps"], [[f"`{name}`", says] for name, says in ENGINES.items()])
    title = "Llama 3.2 1B"
    parts = [
        HEAD,
        PARAMETERS,
        FLOPS,
        conventions(),
        CACHE,
        engines,
        MEMORY,
        precisions(),
        OPTIMIZER.format(title=title),
    ]
    parts += [optimizers(load("llama3.2-1b")), ACTIVATIONS, RULES, rules(), "\n", holding(), EXAMPLE, example()]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
