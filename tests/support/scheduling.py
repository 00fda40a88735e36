"""Give a worker of the suite several tests of one file at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xdist.scheduler import LoadGroupScheduling
from xdist.workermanage import WorkerController

TOGETHER = 16
"""Number of tests of a file that one worker runs, where they name no group."""


class FileScheduling(LoadGroupScheduling):
    """Schedule groups as `--dist loadgroup` does, and ungrouped tests by `TOGETHER` of one file instead of singly.

    Whenever a test ends, xdist looks through all units that its worker was ever given: thousands if each test is one.
    And what a file's tests share is made by fewer workers.
    """

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Divide a worker's tests, which are the same for every worker, into units."""
        if not hasattr(self, "units"):
            seen: Counter[str] = Counter()
            self.units: dict[str, str] = {}
            for test in collection:
                if (unit := super()._split_scope(test)) == test:
                    file = test.partition("::")[0]
                    unit = f"{file} {seen[file] // TOGETHER}"
                    seen[file] += 1
                self.units[test] = unit
        super().add_node_collection(node, collection)

    def _split_scope(self, nodeid: str) -> str:
        return self.units[nodeid]
