"""Set up every test: one seed, one thread a worker, no Hydra state left over, a cache and a screen of its own."""

import gc
import logging
import os
import random
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from support.walks import mark_walks
from zoo.disk import write_text
from zoo.report.runplot import draw_losses
from zoo.text.prompts import Options

# Two workers with two threads each would fight over two cores. Child processes read the variable.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# A stated number of threads is one that no run chooses for itself: sums must not depend on what else has the cores.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))

# Inductor keeps what it compiled in a folder that does not say for which instruction set: code made under AVX-512 and
# met under AVX2 (another processor, or one held to it) ends the process.
_ISA = torch.backends.cpu.get_cpu_capability().replace(" ", "_")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(tempfile.gettempdir(), f"zoo_inductor_{os.getuid()}_{_ISA}")

# Collecting makes a million objects that live to the end. Looking through them for circles, at Python's own rate, took
# a quarter of that time and a twentieth of the tests'.
gc.set_threshold(20_000, 50, 100)


QUICK = frozenset(
    f"test_{name}"
    for name in (
        *(
            "blocks",
            "config",
            "core",
            "corpus",
            "costs_cache",
            "costs_params",
            "data",
            "disentangled",
            "expression",
            "families_hub",
            "finite_numbers",
        ),
        *("grouped", "hardware", "longformer", "mask", "mla", "moe_kinds", "routing", "rules", "shadow", "tokens"),
        "training_parts",
    )
)
"""Files whose tests are of the quick tier: the grammar, the counts and the components."""


@pytest.fixture(scope="session", autouse=True)
def surroundings(tmp_path_factory):
    """Keep tests out of the home folder, and make tables equally wide on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("COLUMNS", "160")
        patch.setenv("NO_COLOR", "1")
        patch.setenv("MPLBACKEND", "agg")
        patch.delenv("FORCE_COLOR", raising=False)
        # No power fails here. What is written is the same, and the tests that count or fail the calls put in their own.
        patch.setattr("os.fsync", lambda file: None)
        # A run measures at its start and at each evaluation; there are hundreds here, and none is judged by its MFU.
        patch.setattr("zoo.training.speed.MEASURED_FOR", 0.01)
        # Nor does anybody look at their pictures, of which each takes as long as the steps between two.
        patch.setattr("zoo.jobs.train.draw_losses", lambda lines, title, file: write_text(file, title))
        # Nor reads their samples to the end: of the usual 64 tokens each takes as long as the steps, too.
        patch.setattr(
            "zoo.training.validation.Options",
            lambda max_new_tokens, **options: Options(max_new_tokens=min(max_new_tokens, 8), **options),
        )
        yield


@pytest.fixture
def pictures(monkeypatch):
    """Draw the pictures of runs, as outside the tests."""
    monkeypatch.setattr("zoo.jobs.train.draw_losses", draw_losses)


@pytest.fixture(autouse=True)
def fresh_state():
    """Seed a test's random numbers, and clear the Hydra session of the one before."""
    random.seed(0)
    torch.manual_seed(0)
    yield
    hydra = sys.modules.get("hydra.core.global_hydra")
    if hydra is not None:
        hydra.GlobalHydra.instance().clear()
    for handler in list(logging.root.handlers):  # a run's train.log, into which later tests would write when it is gone
        if isinstance(handler, logging.FileHandler) and not type(handler).__module__.startswith("_pytest"):
            logging.root.removeHandler(handler)
            handler.close()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Give the device on which a test's tensors are made by default: the CPU, then a GPU (`make test-gpu`)."""
    where = torch.device(request.param)
    with nullcontext() if where.type == "cpu" else where:
        yield where


def pytest_ignore_collect(collection_path, config):
    """Import no file outside the quick tier for it: importing the others takes longer than its tests."""
    others = collection_path.suffix == ".py" and collection_path.stem not in QUICK
    return True if others and config.getoption("markexpr").startswith("quick") else None


def pytest_collection_finish():
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # known to xdist alone, which `-p no:xdist` leaves out
def pytest_xdist_make_scheduler(config, log):
    """Schedule the tests of `--dist loadgroup` by file."""
    if config.getoption("dist") == "loadgroup":
        from support.scheduling import FileScheduling

        return FileScheduling(config, log)
    return None


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` leaves out what is marked
def pytest_collection_modifyitems(items):
    mark_walks(items)
    for item in items:
        if item.path.stem in QUICK and "slow" not in item.keywords:
            item.add_marker(pytest.mark.quick)
        if "slow" in item.keywords and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(3600))  # the others' limit is for what hangs
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with a text in it, and the logging that Hydra sets up put back."""
    words = " ".join(f"word{i % 17} {'x' * (i % 5)}" for i in range(400))
    (tmp_path / "text.txt").write_text("\n\n".join([words] * 20))
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    before = list(root.handlers)
    yield tmp_path
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
        handler.close()
    root.handlers[:] = before


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Runs a command that must end with 2 and say nothing but its faults; gives them."""
    from zoo.cli import run

    def refuse(*args: str) -> list[str]:
        assert run(args) == 2
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert out == ""
        assert all(line.startswith("zoo: error: ") for line in lines)
        assert not any(line.startswith(("zoo: error: :", "zoo: error: bug:")) for line in lines)  # each has a place
        return [line.removeprefix("zoo: error: ") for line in lines]

    return refuse
