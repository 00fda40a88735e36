"""The worked examples of docs/extend.md, followed to the letter on a copy of the tree."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from support.doc_blocks import read_blocks
from zoo.compose import load
from zoo.costs import price

ROOT = Path(__file__).parents[1]

CHECK = """
import sys
import torch, zoo
from support.saved_activations import passes, saved_by, told
from support.tiny_models import check_texts_alone, model_of
from zoo.costs import price
from zoo.costs.activations import PassShape, list_sections

model = model_of(sys.argv[1:])
spec = model.spec
assert price(spec)["params"]["total"] == sum(each.numel() for each in model.parameters())
check_texts_alone(model)  # packed and padded

ids = torch.randint(67, (2, 24), generator=torch.Generator().manual_seed(0))
real = torch.ones_like(ids)
real[:, 5:9] = 0  # padding inside a row
whole = model(torch.cat((ids[:, :5], ids[:, 9:]), 1)).logits
torch.testing.assert_close(model(ids, real).logits[:, 9:], whole[:, 5:], atol=2e-5, rtol=1e-5)
prompts = [ids[0, :4].tolist(), ids[1, :11].tolist()]
engine = zoo.Engine(model, rows=2)
for each in prompts:
    engine.add(zoo.Request(ids=tuple(each), max_new_tokens=8))
written = {}
for event in engine.run():
    if event.token is not None:
        written.setdefault(event.request, []).append(event.token)
with torch.no_grad():
    for prompt, tokens in zip(prompts, written.values(), strict=True):
        for _ in range(8):
            prompt.append(int(model(torch.tensor([prompt])).logits[0, -1].argmax()))
        assert tokens == prompt[-8:], (tokens, prompt)

sections = list_sections(spec, PassShape(batch=2, context=9, dtype="fp32", fused=False))
assert told(spec, sections) == saved_by(model.train(), passes(model, spec, 2, 9))
print("equal")
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


def python(tree, *arguments, ends=0):
    """Run Python on the copy; return its output, or its errors if it `ends` so."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == ends, done.stderr
    return done.stderr if ends else done.stdout


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


def add(tree, *names):
    for name in names:
        (tree / name).write_text(code_block(name), encoding="utf-8")


def commands(tree, word):
    """The commands of the page's blocks that name a word, run but for those that train or write."""
    blocks = [each for each in read_blocks("docs/extend.md") if each.language == "sh" and word in each.body]
    lines = [shlex.split(line) for each in blocks for line in each.commands if line.startswith("zoo stats")]
    return [python(tree, "cli.py", *words[1:]) for words in lines]


def test_one_file_and_one_yaml_are_a_new_mixer_with_a_state(tmp_path):
    """Its cached, padded and packed rows give what each gives in a full forward, alone."""
    tree = copy_tree(tmp_path)
    add(tree, "zoo/model/attention/token_average.py", "conf/attention/token_average.yaml")
    assert len(commands(tree, "attention=token_average")) == 2
    assert python(tree, "-c", CHECK, "attention=token_average", "position=none") == "equal\n"


def test_one_file_and_one_yaml_are_a_new_channel(tmp_path):
    tree = copy_tree(tmp_path)
    add(tree, "zoo/model/echo.py", "conf/ffn/echo.yaml")
    assert len(commands(tree, "ffn=echo")) == 1
    layers = ["ffn=echo", "layers={first: {ffn: {first: true}}}", "pattern=[first, layer*2]"]
    assert python(tree, "-c", CHECK, *layers) == "equal\n"
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    (line,) = re.findall(r'"(pp: is 2, and layers read the hidden .*?)"', page)
    assert line in python(
        tree, "cli.py", "stats", "llama-tiny", *layers[:2], "pattern=[first, layer*3]", "--pp", "2", ends=2
    )
