"""What looks up, composes or prices loads neither torch nor other slow packages: in one process, step after step."""

import json
import subprocess
import sys

from support.command_lines import ROOT

VERBS = (
    "list",
    "stats mixtral-8x7b attention=mqa --json",
    "list --axis router --json",
    "explain attention.gqa.qk_norm",
    "list --axis attention gqa",
    "schema",
    "stats gemma2-9b --kernels --gpu h100",
    "solve mesh llama3-8b --gpu h100 --count 16",
    "draw qwen3-next-80b-a3b",
    "draw llama3-8b attention=mla --diff",
    "skills",
)
STEPS = [
    ("import zoo, zoo.compose", ["hydra", "omegaconf"]),
    ("from zoo.costs.hardware import hardware; hardware('h100')", ["hydra", "omegaconf"]),
    ("from zoo.kernels.mask import Mask; Mask(4, 4).plain_causal", []),
    ("from zoo.families.serving import describe_serving; describe_serving('GPT2LMHeadModel')", []),
    ("import zoo.analysis.explain, zoo.costs.rules_of_thumb", ["rich"]),
    ("import zoo.gallery.playground.live_price", ["rich"]),
    ("import zoo.jobs.train", []),
    (
        "from zoo.gallery.site import *; m = [collect_model(n, {}) for n in ('gpt2', 'xl')]; show_model(m[0], m)",
        ["matplotlib"],
    ),
    ("list_findings()[0].pictures, list_card_rows(), collect_axis('norm', ())", ["matplotlib", "numpy"]),
    ("zoo.stats('mixtral-tiny', ['attention=mqa'])", []),
    ("import zoo.costs; zoo.costs.price(zoo.compose.load('llama3-8b'))", []),
    ("from zoo.drawing.vector import write_svg; import zoo.drawing.model_figure", ["matplotlib", "fontTools", "numpy"]),
    *((f"from zoo.cli import run; assert run({words.split()}) == 0", []) for words in VERBS),
]
"""Each with what it must not have loaded besides; what a step has loaded stays."""
PROGRAM = """
import json, sys
for line, others in json.loads(sys.argv[1]):
    exec(line)
    if found := {"torch", "transformers", *others} & set(sys.modules):
        sys.exit(f"{line} loads {found}")
"""


def test_no_step_loads_what_is_slow() -> None:
    command = [sys.executable, "-c", PROGRAM, json.dumps(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_price_of_a_packaged_model_loads_no_family() -> None:
    steps = [
        ("from zoo.cli import run; assert run(['stats', 'llama3-8b']) == 0", ["zoo.families.family", "zoo.checkpoint"])
    ]
    assert subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(steps)], cwd=ROOT, check=False).returncode == 0
