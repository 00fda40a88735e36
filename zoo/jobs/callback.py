# ruff: noqa: TID253
"""Hydra callback that writes the outcome of each job, also in a launcher's workers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from zoo import disk
from zoo.compose.hydra_engine import get_failure
from zoo.errors import ZooError
from zoo.runs import RESULT, read_whole_result


class Record(Callback):
    """Write each job's outcome to its result.json.

    A failed job is marked as completed: Hydra would raise the first failure of a sweep and drop the results of all
    other jobs. The job's value is then its error, or None in a sweep, where the error is logged.
    """

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.started = time.monotonic()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        outcome: dict[str, Any] = {"overrides": list(job_return.overrides or []), "status": "done"}
        outcome["seconds"] = outcome["wall_seconds"] = round(time.monotonic() - self.started, 3)
        if job_return.status is JobStatus.FAILED:
            error = get_failure(job_return)
            outcome |= {"status": getattr(error, "status", "failed"), "error": f"{type(error).__name__}: {error}"}
            job_return.status = JobStatus.COMPLETED
            if config.hydra.mode == RunMode.MULTIRUN:
                self._log_failure(error)
                job_return.return_value = None
        elif isinstance(job_return.return_value, Mapping):
            outcome |= job_return.return_value
        file = Path(config.hydra.runtime.output_dir) / RESULT
        if not file.parent.is_dir():  # deleted while the job ran, which failed because of it
            return
        said = read_whole_result(file)  # training writes a result.json too
        disk.write_text(file, json.dumps({**said, **outcome}, indent=2, default=str) + "\n")

    def _log_failure(self, error: BaseException) -> None:
        trace = None if isinstance(error, ZooError) else error
        logging.getLogger(__name__).error("job failed: %s: %s", type(error).__name__, error, exc_info=trace)
