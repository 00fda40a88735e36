"""The built distribution carries all it needs: installed where nothing of this tree is in reach, it lists and prices.

The environment starts empty and gets the wheel and those of its declared dependencies that pricing may use, copied from
the running environment: no network, and an import of anything undeclared or heavy fails.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from zoo.training.loggers import Logger

ROOT = Path(__file__).parents[1]
LEFT_OUT = {
    "torch",
    "tokenizers",
    "safetensors",
    "numpy",
    "matplotlib",
    "jinja2",
}  # pricing must do without
SOURCE = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"]
SOURCE += ["Makefile", "cli.py", "zoo", "conf", "configs", "recipes", "docs", "tests"]


@pytest.mark.quick
def test_every_extra_that_a_message_or_a_page_names_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    files = [each for place in ("zoo", "conf", "docs") for each in (ROOT / place).rglob("*")]
    files = [each for each in (*files, ROOT / "README.md") if each.suffix in (".py", ".yaml", ".md")]
    texts = {each: each.read_text(encoding="utf-8") for each in files}
    named = [found for text in texts.values() for found in re.findall(r"'([\w.-]+)\[([\w,.{}]+)\]'", text)]
    named = [each for each in named if each[0] in (".", project["name"]) or "zoo" in each[0]]
    assert len(named) > 15 and {name for name, _ in named} == {".", project["name"]}
    trackers = [each.kind for each in Logger.kinds.values() if each.package]
    stated = [trackers if extra == "{self.kind}" else extra.split(",") for _, extra in named]
    assert {extra for each in stated for extra in each} <= {*extras}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive, and the wheel built from it, of a copy of the tree (building leaves files behind)."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)], cwd=out)
    shutil.rmtree(tree)
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def environment(archives, tmp_path_factory):
    """The script folder of an environment that holds the wheel and its light dependencies."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    paths = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    scripts, packages = Path(paths["scripts"]), Path(paths["purelib"])
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python")]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(archives[1])], cwd=home)
    (installed,) = importlib.metadata.distributions(path=[str(packages)])
    for name in light_dependencies(installed, set()):
        copy_distribution(name, packages)
    return scripts


def light_dependencies(distribution, found):
    """Names of all a distribution needs, and what those need, without LEFT_OUT and what only that would bring."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in found and name not in LEFT_OUT:
            found.add(name)
            light_dependencies(importlib.metadata.distribution(name), found)
    return found


def copy_distribution(name, packages):
    for file in importlib.metadata.distribution(name).files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts:
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)


def run(command, cwd):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} gave {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tree_files(folder, *endings):
    return [path for path in (ROOT / folder).rglob("*") if path.suffix in endings]


def test_wheel_holds_every_module_configuration_and_recipe(archives):
    with zipfile.ZipFile(archives[1]) as wheel:
        held = set(wheel.namelist())
    package = tree_files("zoo", ".py", ".html", ".css", ".js", ".mjs", ".json", ".yaml")
    shipped = [*package, *tree_files("conf", ".py", ".yaml"), *tree_files("recipes", ".yaml")]
    names = [path.relative_to(ROOT).as_posix() for path in shipped]
    expected = {name if name.startswith("zoo/") else f"zoo/{name}" for name in names}
    assert expected
    assert expected - held == set()


def test_source_archive_can_build_test_and_run_the_demo(archives):
    with tarfile.open(archives[0]) as source:
        held = {name.partition("/")[2] for name in source.getnames()}
    expected = {path.relative_to(ROOT).as_posix() for path in tree_files("tests", ".py")} | set(SOURCE)
    assert expected - held == set()


def test_installed_wheel_lists_and_prices_without_torch_or_this_tree(environment, tmp_path):
    absent = run([environment / "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))"], tmp_path)
    assert absent.strip() == "None"
    assert "llama3-8b" in run([environment / "zoo", "list"], tmp_path)
    assert "8,030,261,248" in run([environment / "zoo", "stats", "llama3-8b"], tmp_path)
    assert list(tmp_path.iterdir()) == []
    run([environment / "zoo", "draw", "llama3-8b", "--out", "figure.svg"], tmp_path)
    assert "data:font/woff;base64" in (tmp_path / "figure.svg").read_text(encoding="utf-8")
