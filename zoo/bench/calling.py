"""Run benchmark workers: each job in a fresh process, under the Python interpreter of its implementation."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.bench.race_plan import HELD, INSTALL, OURS
from zoo.errors import ConfigError, ZooError

MACHINE = "machine"
"""Name of the worker that measures the machine itself, under zoo's interpreter."""
LONGEST = 1200.0  # seconds after which a worker counts as stuck
CHECKOUT = Path(__file__).parents[2]
WORKERS = CHECKOUT / "peers"
"""Folder with the worker scripts of zoo, of the machine and of other libraries. Only a checkout has it."""


class MissingPeer(ConfigError):
    """Raised if a peer's Python lacks the peer's package."""


def run_worker(name: str, python: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run a worker in a fresh process and parse the last line of its output as JSON. Raises MissingPeer for a missing
    package, ConfigError for a Python that cannot be run, and ZooError if the worker fails."""
    command = [python, str(find_worker(name)), json.dumps(job)]
    try:
        env = make_environment(name, job)
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired as error:
        raise ZooError(f"{name} {job['workload']}: not done after {LONGEST / 60:.0f} minutes, stopped") from error
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"--peer-python {name}={python}: {error.strerror} (a Python that has {name})") from error
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if last.startswith("missing: "):
        found = f"{python} says: {last.removeprefix('missing: ')}"
        cure = f"{INSTALL[name]}; or --peer-python {name}=PATH, the Python of an environment that has it"
        raise MissingPeer(f"--against {name}: {found} ({cure})")
    if done.returncode < 0:
        raise ZooError(f"{name} {job['workload']}: ended by signal {-done.returncode} (9 is often a lack of memory)")
    if done.returncode:
        raise ZooError(f"{name} {job['workload']}: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def find_worker(name: str) -> Path:
    """Find the script of a worker. Raises ConfigError if zoo is not run from a checkout."""
    file = WORKERS / f"run_{name}.py"
    if not file.is_file():
        raise ConfigError(f"bench: races need a checkout of zoo, found none at {CHECKOUT} (git clone)")
    return file


def make_environment(name: str, job: Mapping[str, Any]) -> dict[str, str]:
    """Make a worker's environment variables: number of threads, limit of the instruction set, and PYTHONPATH."""
    env = os.environ | HELD.get(job["isa"], {})
    if threads := job["threads"]:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    if name in (OURS, MACHINE):  # a script run by path imports from its own folder: not from an uninstalled checkout
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))
    return env
