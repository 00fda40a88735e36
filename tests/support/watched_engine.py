"""An engine that remembers what was asked of it."""

from typing import Any

from zoo.generation.engine import Engine


class WatchedEngine(Engine):
    def __init__(self, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        self.seen, self.aborted = [], []

    def add(self, request):
        self.seen.append(request)
        return super().add(request)

    def abort(self, number, *sample):
        self.aborted.append((number, *sample))
        return super().abort(number, *sample)
