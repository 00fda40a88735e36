"""Time a contender's work. Needs neither torch nor a model, so that a peer without torch can use it, too.

Every measurement is bounded by seconds, not by a count: a fast contender is measured more often.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Rows = list[list[int]]
"""New tokens, a list for each row."""
Request = tuple[list[int], int]
"""A prompt's token ids, and the number of new tokens."""
LEAST, MOST = 1, 50  # calls of a measurement


class Absent(Exception):
    """Raised by a contender for an unsupported job; the race goes on without that row."""


def make_ids(count: int, vocab_size: int) -> list[int]:
    """Make the same token ids for every contender, by arithmetic: random generators differ between versions."""
    return [index * 7919 % vocab_size for index in range(count)]


def make_rows(batch: int, length: int, vocab_size: int) -> Rows:
    """Make `batch` prompts of `length` tokens."""
    ids = make_ids(batch * length, vocab_size)
    return [ids[row * length : (row + 1) * length] for row in range(batch)]


def make_requests(job: dict[str, Any]) -> list[Request]:
    """Make ragged requests: prompts of 1/8 to 8/8 of `length` tokens, each with 1/8 to 8/8 of `new_tokens` to follow.

    In each group of eight requests both lengths take all eight values, and every group pairs them differently.
    """
    requests = []
    for index in range(job["batch"]):
        length = max(job["length"] * (1 + (5 * index + 3) % 8) // 8, 1)
        new = max(job["new_tokens"] * (1 + (3 * index + index // 8) % 8) // 8, 1)
        ids = [(index + token) * 7919 % job["shape"]["vocab_size"] for token in range(length)]
        requests.append((ids, new))
    return requests


def time_call(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_calls(run: Callable[[], object], spend: float) -> list[float]:
    """Time at least one call, and up to MOST while another one, as long as the longest so far, would end within `spend`
    seconds."""
    times: list[float] = []
    while len(times) < LEAST or (len(times) < MOST and sum(times) + max(times) <= spend):
        times.append(time_call(run))
    return times


class Busy:
    """Measure this thread's CPU time ÷ wall time. Well below 1 means that other programs were running."""

    def __enter__(self) -> "Busy":
        self.wall, self.cpu = time.perf_counter(), time.thread_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.share = (time.thread_time() - self.cpu) / (time.perf_counter() - self.wall)


def time_generation(generate: Callable[[int], Rows], job: dict[str, Any]) -> dict[str, Any]:
    """Time greedy generation: `first` is the seconds to one new token (the prefill), `full` to all new tokens.

    The rate is of the tokens after the first, or of the prompt's tokens if only one new token is made. `startup` is the
    seconds of the untimed first calls, which include compilation.
    """
    batch, new = job["batch"], job["new_tokens"]
    made: Rows = []

    def take(count: int) -> None:
        made[:] = generate(count)
        if [len(row) for row in made] != [count] * batch:
            raise ValueError(f"{[len(row) for row in made]} new tokens came back, {count} a row were asked for")

    startup = time_call(lambda: [take(count) for count in ({1, new} if job["compile"] else {min(new, 8)})])
    with Busy() as busy:
        first = time_calls(lambda: take(1), job["spend"] / 4)
        full = time_calls(lambda: take(new), job["spend"] * 3 / 4) if new > 1 else []
    if full:
        rate = batch * (new - 1) / max(statistics.median(full) - statistics.median(first), 1e-9)
    else:
        rate = batch * job["length"] / statistics.median(first)
    found = {"rate": rate, "first": first, "full": full, "startup": startup, "tokens": made}
    return found | {"busy": busy.share}


def time_requests(serve: Callable[[list[Request]], Rows], job: dict[str, Any]) -> dict[str, Any]:
    """Time all ragged requests together, from the first prompt to the last token; the rate is of new tokens."""
    requests = make_requests(job)
    made: Rows = []

    def run() -> None:
        made[:] = serve(requests)
        if wrong := [len(row) for row, (_, new) in zip(made, requests, strict=True) if len(row) != new]:
            raise ValueError(
                f"{len(wrong)} of {len(requests)} requests got another number of tokens than they asked for"
            )

    startup = time_call(lambda: serve([(ids[:8], 2) for ids, _ in requests[:2]]))
    with Busy() as busy:
        full = time_calls(run, job["spend"])
    rate = sum(new for _, new in requests) / statistics.median(full)
    return {"rate": rate, "full": full, "startup": startup, "tokens": made, "busy": busy.share}


def measure_peak() -> int | None:
    """Read this process's peak resident memory in bytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer_job(run: Callable[[dict[str, Any]], dict[str, Any]], versions: dict[str, str | None]) -> None:
    """Run the job given on the command line, and print its answer as the last line of standard output."""
    try:
        answer = run(json.loads(sys.argv[1]))
    except Absent as reason:
        answer = {"absent": str(reason)}
    print(json.dumps(answer | {"peak_bytes": measure_peak()} | versions))
