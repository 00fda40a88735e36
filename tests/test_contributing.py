"""The worked example of CONTRIBUTING.md, followed to the letter on a copy of the tree."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from zoo.compose import load
from zoo.costs import price

ROOT = Path(__file__).parents[1]

BUILD = """
import torch, zoo
model = zoo.build("llama-tiny", ["norm=scalenorm"], device="cpu")
print(sum(p.numel() for p in model.parameters()), bool(model(torch.arange(8)[None]).logits.isfinite().all()))
"""


def code_block(language):
    (block,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    return block


def python(tree, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_class_and_one_yaml_are_a_new_norm(tmp_path):
    shutil.copy(ROOT / "cli.py", tmp_path)
    for folder in ("zoo", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "zoo" / "model" / "norm.py").open("a", encoding="utf-8") as norms:
        norms.write("\n\n" + code_block("python"))
    (tmp_path / "conf" / "norm" / "scalenorm.yaml").write_text(code_block("yaml"), encoding="utf-8")

    norms, d_model = 2 * 4 + 1, 192  # two in each of the four layers, one before the head
    priced = json.loads(python(tmp_path, "cli.py", "stats", "llama-tiny", "norm=scalenorm", "--json"))
    counted, plain = priced["params"]["total"], price(load("llama-tiny"))["params"]["total"]
    assert plain - counted == norms * (d_model - 1)  # one weight, where RMSNorm has one a channel
    assert python(tmp_path, "-c", BUILD).split() == [str(counted), "True"]
