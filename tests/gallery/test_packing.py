"""The zip for the browser has all that a price imports: it prices where nothing else can be imported."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import zoo
from zoo.gallery.playground.packing import pack

POINTS = [
    ("llama3-8b", {"attention": "mla", "n_layers": "24"}, {"batch": 4}),
    ("gpt-tiny", {"position": "alibi"}, {"engine": "hf"}),
    ("deepseek-tiny", {"n_heads": "8"}, {"context": 4096}),
    ("gemma2-9b", {"attention.softcap": "30"}, {"dtype": "fp8"}),
    ("t5-tiny", {"norm": "layernorm"}, {}),
    ("bert-tiny", {"d_ff": "1024"}, {}),
    ("mamba2-130m", {"n_layers": "12"}, {"engine": "zoo"}),
    ("mixtral-tiny", {"top_k": "1"}, {"optimizer": "muon"}),
    ("qwen3-next-tiny", {"n_experts": "16"}, {"precision": "bf16_pure"}),
    ("llama-tiny", {"block": "sandwich"}, {"recompute": "full"}),
    ("mistral-tiny", {"window": "64"}, {"engine": "paged"}),
    ("mixtral-tiny", {"router": "sigmoid_topk"}, {"cache_dtype": "fp8"}),
]
PROGRAM = """
import json, os, sys
folder, points = json.loads(sys.argv[1])
sys.path.append(folder)
os.chdir(folder)
from zoo.gallery.playground.live_price import answer_request
found = []
for model, changes, setup in points:
    edits = [{"path": path.split("."), "value": value} for path, value in changes.items()]
    text = f"defaults: [/model/{model}@_here_]\\n"
    found.append(answer_request({"text": text, "setup": setup, "edits": edits}))
homes = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
strange = [name for name, home in homes.items() if "site-packages" in home]
print(json.dumps([found, strange]))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The zip, unpacked as the browser does, beside this machine's build of pydantic_core, the only compiled part."""
    home = tmp_path_factory.mktemp("packed")
    pack(home / "zoo.zip")
    with zipfile.ZipFile(home / "zoo.zip") as archive:
        archive.extractall(home / "modules")
    core = importlib.util.find_spec("pydantic_core")
    (home / "modules" / "pydantic_core").symlink_to(Path(core.origin).parent.resolve())
    return home


def test_the_packed_modules_price_as_zoo_stats_does(packed):
    request = json.dumps([str(packed / "modules"), POINTS])
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", PROGRAM, request], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers, strange = json.loads(done.stdout)
    assert [name for name in strange if not name.startswith("pydantic_core")] == []
    for (model, changes, setup), answer in zip(POINTS, answers, strict=True):
        expected = zoo.stats(model, [f"{path}={value}" for path, value in changes.items()], **setup)
        assert answer.get("figures") == json.loads(json.dumps(expected)), (model, answer.get("faults"))


def test_the_zip_has_no_torch_no_training_and_no_tests(packed):
    with zipfile.ZipFile(packed / "zoo.zip") as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(("zoo/training", "zoo/run/", "zoo/cli", "torch", "tests"))]
    assert sum(info.compress_size for info in zipfile.ZipFile(packed / "zoo.zip").infolist()) < 3_000_000
