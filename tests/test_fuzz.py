"""The fuzzers' quick tier and their corpus: random command lines and mutated files end with a result or a line, in
time, without running, reading or changing what is not theirs (tests/fuzz).

The cases run in forked processes of one server beside the tests. A chunk holds cases of each kind, the first chunk one
of every kind, and each run has a part of the chunks (support.walks); `make fuzz` runs as many as there is time for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz.command_lines import command_line  # noqa: F401  (its kinds are registered)
from fuzz.corpus import list_names
from fuzz.files import data, gguf, models, runs, yamls
from fuzz.judge import judge_output
from fuzz.kinds import KINDS, Case
from fuzz.mutate import write_json
from fuzz.values import MADE, Raw, repeat

assert all((data, gguf, models, runs, yamls))
FUZZ = Path(__file__).with_name("fuzz")
CHUNKS = 80
Run = Callable[..., list[dict[str, Any]]]

pytestmark = pytest.mark.xdist_group("fuzz")  # one server, whose seeds take a while


@pytest.fixture(scope="module")
def run_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run cases in the server, and give the verdicts of those that failed."""
    shared = tmp_path_factory.getbasetemp().parent  # of all workers of this session: the seeds are made once
    command = [sys.executable, str(FUZZ), "--serve", "--seeds", str(shared)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None

    def run(jobs: list[tuple[str, int, int]], kept: bool = False) -> list[dict[str, Any]]:
        server.stdin.write(json.dumps({"jobs": jobs, "kept": kept}) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        assert answer["cases"] == len(jobs)
        return answer["failed"]

    yield run
    server.stdin.close()
    server.wait(60)
    server.stdout.close()


def describe(failed: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"python tests/fuzz --kind {each['kind']} --case {each['case']}: {each['faults']} {each['frames']}"
        for each in failed
    )


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_odd_input_ends_with_a_result_or_a_line(run_jobs: Run, chunk: int) -> None:
    jobs = [(kind.name, 0, case) for kind in KINDS.values() for case in range(chunk, kind.quick, CHUNKS)]
    assert not (failed := run_jobs(jobs)), describe(failed)


@pytest.mark.parametrize(
    "part", [part if part % 2 else pytest.param(part, marks=pytest.mark.slow) for part in range(6)]
)
def test_what_ever_failed_does_so_no_more(run_jobs: Run, part: int) -> None:
    jobs = [(name, 0, 0) for name in list_names()[part::6]]
    assert not (failed := run_jobs(jobs, kept=True)), (
        describe(failed).replace("--kind", "--corpus").replace(" --case 0", "")
    )


def test_a_value_is_repeated_within_a_budget() -> None:
    deep = Raw("[" * 100_000 + "]" * 100_000)
    assert len(write_json(repeat([{"a": deep}], 1000))) < 2 * MADE
    assert repeat([1, "a"], 100) == [1, "a"] * 100 and repeat([[]], 0) == []
    assert write_json([Raw("1e400"), {"a": [Raw("NaN"), "x"]}]) == b'[1e400, {"a": [NaN, "x"]}]'


def test_a_number_that_is_none_is_a_fault_and_a_text_in_quotes_is_not() -> None:
    case = Case(["train", "--cfg", "all"], "")
    assert not list(judge_output(case, 0, "steps: 'nan'\nname: \"inf\"\n", ""))
    assert list(judge_output(case, 0, "loss: nan\n", "")) == ["exit 0 and not finite: loss: nan"]


def test_all_chunks_together_have_two_thousand_cases() -> None:
    assert sum(kind.quick for kind in KINDS.values()) >= 2000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KINDS))
def test_more_cases_of_each_kind_end_so_too(run_jobs: Run, name: str) -> None:
    assert not (failed := run_jobs([(name, 1, case) for case in range(10 * KINDS[name].quick)])), describe(failed)
