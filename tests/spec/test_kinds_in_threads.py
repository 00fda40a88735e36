"""Two threads that meet the kinds of an axis for the first time."""

import subprocess
import sys

import pytest

AXIS = """
import threading
from zoo.spec import Spec

begun, asked = threading.Event(), threading.Event()

class Shape(Spec, axis="shape_for_a_test"):
    pass

class Dot(Shape, kind="dot"):
    pass
"""

ROUND = """
import time
from two_threads.axis import Dot, Shape, asked, begun

{before}

class Round(Shape, kind="round"):
    inner: Shape

    def __post_init__(self):
        assert self.inner == WITHIN

{after}
WITHIN = Dot()
"""

TOLD = "begun.set(); asked.wait(); time.sleep(0.2)"
"""A module stops amid its import, which holds its import lock, until another thread has asked for its kind."""

READ = """
import importlib, threading
from two_threads.axis import Dot, Shape, asked, begun
from zoo.spec.kinds import Kinds

Kinds.searched.add("two_threads")
threading.Thread(target=importlib.import_module, args=("two_threads.round",), daemon=True).start()
begun.wait()
asked.set()
print(Shape.parse({"kind": "round", "inner": {"kind": "dot"}}))
"""


@pytest.mark.parametrize(
    "places", [{"before": TOLD, "after": ""}, {"before": "", "after": TOLD}], ids=["no class yet", "class made"]
)
def test_a_kind_is_read_while_another_thread_imports_its_module(places, tmp_path):
    package = tmp_path / "two_threads"
    package.mkdir()
    for name, text in {"__init__": "", "axis": AXIS, "round": ROUND.format(**places)}.items():
        (package / f"{name}.py").write_text(text)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{READ}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "Round(inner=Dot())\n", done.stderr


TOGETHER = """
import sys, threading
sys.setswitchinterval(1e-6)
from zoo.model.norm import Norm
import zoo.model.norm

start, found = threading.Barrier(8), []

def read():
    start.wait()
    found.append(Norm.parse({"kind": "rmsnorm", "eps": 1e-3}))

threads = [threading.Thread(target=read) for _ in range(8)]
[each.start() for each in threads]
[each.join() for each in threads]
print(len(found), *set(found))
"""


def test_threads_that_make_the_first_component_of_a_kind_make_equal_ones():
    done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("8 RMSNorm(eps=0.001") and done.stdout.count("RMSNorm") == 1, done.stderr
