"""The worked examples of docs/extend.md, followed to the letter on a copy of the tree."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from zoo.compose import load
from zoo.costs import price

ROOT = Path(__file__).parents[1]

DECODE = """
import torch, zoo
model = zoo.build("llama-tiny", ["attention=smear", "position=none"], device="cpu").eval()
ids = torch.randint(model.spec.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
written = zoo.generate(model, ids[:, :5], max_new_tokens=7, temperature=0)
whole = model(written).logits[:, 4:-1].argmax(-1)
print(sum(p.numel() for p in model.parameters()), float((whole != written[:, 5:]).float().mean()))
"""
BUILD = """
import torch, zoo
model = zoo.build("llama-tiny", ["norm=scalenorm"], device="cpu")
print(sum(p.numel() for p in model.parameters()), bool(model(torch.arange(8)[None]).logits.isfinite().all()))
"""


def code_block(name: str) -> str:
    """Get the block that follows the name of a file on its line."""
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)```", page, re.DOTALL)
    return block


def copy_tree(folder: Path) -> Path:
    shutil.copy(ROOT / "cli.py", folder)
    for name in ("zoo", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def python(tree, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_class_and_one_yaml_are_a_new_norm(tmp_path):
    tree = copy_tree(tmp_path)
    with (tree / "zoo" / "model" / "norm.py").open("a", encoding="utf-8") as norms:
        norms.write("\n\n" + code_block("zoo/model/norm.py"))
    (tree / "conf" / "norm" / "scalenorm.yaml").write_text(code_block("conf/norm/scalenorm.yaml"), encoding="utf-8")

    norms, d_model = 2 * 4 + 1, 192  # two in each of the four layers, one before the head
    priced = json.loads(python(tree, "cli.py", "stats", "llama-tiny", "norm=scalenorm", "--json"))
    counted, plain = priced["params"]["total"], price(load("llama-tiny"))["params"]["total"]
    assert plain - counted == norms * (d_model - 1)  # one weight, where RMSNorm has one a channel
    assert python(tree, "-c", BUILD).split() == [str(counted), "True"]


def test_one_file_and_one_yaml_are_a_new_mixer_that_decodes_as_it_reads(tmp_path):
    tree = copy_tree(tmp_path)
    for name in ("zoo/model/attention/smear.py", "conf/attention/smear.yaml"):
        (tree / name).write_text(code_block(name), encoding="utf-8")
    priced = json.loads(python(tree, "cli.py", "stats", "llama-tiny", "attention=smear", "position=none", "--json"))
    counted, apart = python(tree, "-c", DECODE).split()
    assert int(counted) == priced["params"]["total"] and float(apart) < 1e-5
