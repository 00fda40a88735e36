"""Run the fuzzers, or one case again: `python tests/fuzz --help`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(TESTS), str(TESTS.parent)]  # the tree that these files are of, whatever is installed

from fuzz import command_lines, corpus  # noqa: E402
from fuzz.files import data, gguf, models, runs, yamls  # noqa: E402
from fuzz.judge import Verdict, run_case  # noqa: E402
from fuzz.kinds import KINDS, make_case  # noqa: E402
from fuzz.pool import Job, Pool, warm_up  # noqa: E402
from fuzz.seeds import find_seeds  # noqa: E402
from fuzz.values import Place  # noqa: E402

__all__ = ["command_lines", "data", "gguf", "models", "runs", "yamls"]  # each registers its kinds
SEED = 0


def main() -> int:
    """Read the arguments and do as they say; gives the exit code."""
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description="Fuzz Zoo.")
    parser.add_argument("--kind", help=f"one kind, or several by comma: {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--case", type=int, help="run this case again, show it, and keep its folder")
    parser.add_argument("--cases", type=int, help="run so many cases of each kind")
    parser.add_argument("--quick", action="store_true", help="run those that the tests run")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--corpus", action="store_true", help="replay the corpus, or the names that follow")
    parser.add_argument("--serve", action="store_true", help="answer the jobs on standard input (tests/test_fuzz.py)")
    parser.add_argument("--keep", metavar="NAME", help="with --case: write it into the corpus under this name")
    parser.add_argument("--seeds", type=Path, help="where the seeds are kept")
    parser.add_argument("--json", type=Path, help="write all verdicts into this file")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    kinds = args.kind.split(",") if args.kind else list(KINDS)
    if unknown := [each for each in kinds if each not in KINDS]:
        parser.error(f"no kind {unknown[0]} (one of: {', '.join(KINDS)})")
    os.environ["OMP_NUM_THREADS"] = "1"
    seeds = find_seeds(args.seeds)
    warm_up(seeds)
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="zoo-fuzz-", dir=shared if os.access(shared, os.W_OK) else None))
    try:
        if args.case is not None:
            return show_case(kinds[0], args.seed, args.case, seeds, args.keep)
        if args.serve:
            return serve(Pool(seeds, root, 1), Pool(seeds, root, 1, corpus.make_kept))
        if args.corpus:
            return replay(Pool(seeds, root, args.workers, corpus.make_kept), args.names)
        return fuzz(Pool(seeds, root, args.workers), kinds, args)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def show_case(name: str, seed: int, number: int, seeds: Path, keep: str | None) -> int:
    """Run one case in this process, print all of it, and leave its folder."""
    place = Place(Path(tempfile.mkdtemp(prefix="zoo-case-")), seeds)
    case = make_case(name, seed, number, place)
    if keep:
        print(corpus.freeze_case(case, place, keep))
    print(f"about: {case.about}\nfolder: {place.folder}\nzoo", *map(ascii, case.words), flush=True)
    made = run_case(case, place, name, seed, number)
    for each in ("stdout", "stderr"):
        print(f"--- {each}\n{ascii_lines((place.root / each).read_text(errors='replace')[-4000:])}")
    print(f"--- exit {made.code}, {made.seconds:.2f} s, {made.memory >> 20} MB\n{made.frames}")
    print("\n".join(f"FAULT {each}" for each in made.faults) or "passed")
    return bool(made.faults)


def ascii_lines(text: str) -> str:
    """Escape what a terminal would obey."""
    return "\n".join(
        line.encode("unicode_escape").decode() if not line.isprintable() else line for line in text.split("\n")
    )


def serve(pool: Pool, kept: Pool) -> int:
    """Answer each line of standard input, a list of jobs, with a line: the verdicts of those that failed."""
    for line in sys.stdin:
        asked = json.loads(line)
        jobs: list[Job] = [tuple(each) for each in asked["jobs"]]
        runs_in = kept if asked["kept"] else pool
        failed = [verdict.to_dict() for verdict in runs_in.run(jobs) if verdict.faults]
        print(json.dumps({"cases": len(jobs), "failed": failed}), flush=True)
    return 0


def replay(pool: Pool, names: list[str]) -> int:
    """Run the cases of the corpus."""
    jobs = [(name, 0, 0) for name in names or corpus.list_names()]
    return print_outcome(list(pool.run(jobs)))


def fuzz(pool: Pool, kinds: list[str], args: argparse.Namespace) -> int:
    """Run cases of the kinds in turn, for so many minutes or of so many each; print the failures and a table."""
    until = time.monotonic() + 60 * args.minutes if args.cases is None and not args.quick else float("inf")
    jobs = list_jobs(kinds, args.seed, args.first, args.cases)
    if args.quick:
        jobs = ((name, 0, number) for name in kinds for number in range(KINDS[name].quick))
    found, shown = [], Counter[str]()
    for verdict in pool.run(jobs, until):
        found.append(verdict)
        if verdict.faults:
            shown[verdict.group()] += 1
            if shown[verdict.group()] == 1:
                print_failure(verdict)
    if args.json:
        args.json.write_text(json.dumps([each.to_dict() for each in found], indent=1))
    return print_outcome(found, listed=False)


def list_jobs(kinds: list[str], seed: int, first: int, cases: int | None) -> Iterator[Job]:
    """List so many cases of each kind; or cases without end, of quick kinds more than of slow ones."""
    if cases is not None:
        yield from ((name, seed, number) for number in range(first, first + cases) for name in kinds)
        return
    rng, numbers = Random(seed), {name: count(first) for name in kinds}
    shares = [KINDS[name].quick for name in kinds]
    while True:
        name = rng.choices(kinds, shares)[0]
        yield name, seed, next(numbers[name])


def print_failure(verdict: Verdict) -> None:
    """Print a failure: how to bring it back, what was odd, and what was wrong."""
    print(
        f"\n{verdict.kind} --seed {verdict.seed} --case {verdict.case}: zoo {' '.join(map(ascii, verdict.words))[:300]}"
    )
    print(f"  {ascii(verdict.about)[1:-1][:300]}")
    for each in verdict.faults:
        print(f"  FAULT {ascii(each)[1:-1]}")
    print("\n".join(f"    {line}" for line in verdict.frames.splitlines()), flush=True)


def print_outcome(found: list[Verdict], listed: bool = True) -> int:
    """Print the groups of failures, and a table of the kinds; gives the exit code."""
    failed, groups = [each for each in found if each.faults], defaultdict(list)
    for each in failed:
        groups[each.group()].append(each)
        if listed:
            print_failure(each)
    if groups:
        print(f"\n{len(failed)} failures in {len(groups)} groups")
    for name, members in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(
            f"  {len(members):4}  {ascii(name)[1:-1]}: {', '.join(f'{each.kind} {each.case}' for each in members[:5])}"
        )
    print_table(found)
    return bool(failed)


def print_table(found: list[Verdict]) -> None:
    """Print a line for each kind: cases, failures, seconds of processors and of the slowest, the largest memory."""
    head = f"{'cpu s':>8}{'a case':>8}{'slowest':>9}{'of':>8}{'memory':>10}  exits 0/1/2"
    print(f"\n{'kind':22}{'cases':>8}{'failures':>10}{head}")
    for name in dict.fromkeys(each.kind for each in found):
        own = [each for each in found if each.kind == name]
        slow, total = max(own, key=lambda each: each.seconds), sum(each.cpu for each in own)
        codes, failures = Counter(each.code for each in own), sum(bool(each.faults) for each in own)
        print(
            f"{name:22}{len(own):8,}{failures:10,}{total:8.1f}{total / len(own):8.3f}{slow.seconds:9.1f}{slow.case:8}"
            f"{max(each.memory for each in own) >> 20:7} MB  {codes[0]}/{codes[1]}/{codes[2]}"
        )
    failures, total = sum(bool(each.faults) for each in found), sum(each.cpu for each in found)
    print(f"{'in all':22}{len(found):8,}{failures:10,}{total:8.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
