"""Send a run's metrics to an experiment tracker as well: TensorBoard, Weights & Biases, MLflow or Trackio."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from zoo.disk import write_text
from zoo.errors import ConfigError, short
from zoo.spec import Spec
from zoo.untrusted.json_file import SETTINGS, read_json

LOGGER = "logger.json"  # in a run's folder: the tracker's id of the run


@dataclass(frozen=True)
class RunDescription:
    """The description of a run that a tracker gets when it starts or resumes."""

    folder: Path
    config: Mapping[str, Any]
    """The training config, by dotted path."""
    step: int = 0
    """The last step before the start: 0, or the step of the checkpoint that the run resumes from."""
    key: str | None = None
    """The tracker's id of the resumed run."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


class Sink(Protocol):
    """An open run of a tracker."""

    @property
    def key(self) -> str | None:
        """The tracker's id of the run, needed to resume it."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of a step."""

    def write_sample(self, step: int, text: str) -> None:
        """Send a sample of text."""

    def close(self, status: str) -> None:
        """Send the rest and close. `status` is done, failed or stopped."""


class Logger(Spec, axis="logger", default="none"):
    """An experiment tracker that gets each line of metrics and each sample, in addition to the run's own files."""

    package: ClassVar[str | None] = None
    """The package that this tracker imports."""

    def refuses(self) -> str | None:
        """Return an error that names the missing package; None if it is installed."""
        if self.package is None or importlib.util.find_spec(self.package) is not None:
            return None
        return f"{self.kind} needs {self.package}, which is not installed (pip install 'transformer-zoo[{self.kind}]')"

    def open(self, start: RunDescription) -> Sink | None:
        """Open a run of the tracker."""
        return None


class NoLogger(Logger, kind="none"):
    """No tracker: only the run's own files are written."""


class TensorBoard(Logger, kind="tensorboard"):
    """Event files for TensorBoard. A resumed run hides the events after its checkpoint."""

    package = "tensorboardX"
    folder: str | None = None

    def open(self, start: RunDescription) -> Sink:
        return _TensorBoardSink(Path(self.folder or start.folder / "tensorboard"), start)


class _TensorBoardSink:
    def __init__(self, folder: Path, start: RunDescription) -> None:
        from tensorboardX import SummaryWriter

        self.key = str(folder)
        # Files are read in the order of their names, which begin with the time in seconds: the step orders files of one
        # second.
        purge, suffix = start.step + 1 if start.key else None, f".{start.step:08}"
        self.writer = SummaryWriter(str(folder), purge_step=purge, filename_suffix=suffix)
        if not start.key:
            rows = "".join(f"    {name}: {value}\n" for name, value in start.config.items())
            self.writer.add_text("config", rows, 0)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def write_sample(self, step: int, text: str) -> None:
        self.writer.add_text("sample", text, step)

    def close(self, status: str) -> None:
        self.writer.close()


class WandB(Logger, kind="wandb"):
    """Weights & Biases. Offline, a resumed run is a further part of the same run; syncing joins the parts."""

    package = "wandb"
    project: str = "zoo"
    name: str | None = None
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"

    def open(self, start: RunDescription) -> Sink:
        return _WandBSink(self, start)


class _WandBSink:
    def __init__(self, logger: WandB, start: RunDescription) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run = wandb.init(
            project=logger.project,
            name=logger.name or start.name,
            entity=logger.entity,
            mode=logger.mode,
            dir=str(start.folder),
            config=dict(start.config),
            id=start.key,
            resume="allow" if logger.mode == "online" and start.key else None,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.key: str = self.run.id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def write_sample(self, step: int, text: str) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        self.run.log({"sample": wandb.Html(text, inject=False)}, step=step)

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "done" else 1)


class MLflow(Logger, kind="mlflow"):
    """MLflow, through its client, so that the active run of a surrounding program is not changed."""

    package = "mlflow"
    experiment: str = "zoo"
    name: str | None = None
    uri: str | None = None

    def open(self, start: RunDescription) -> Sink:
        return _MLflowSink(self, start)


class _MLflowSink:
    def __init__(self, logger: MLflow, start: RunDescription) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        self.client = MlflowClient(tracking_uri=logger.uri)
        if start.key is None:
            found = self.client.get_experiment_by_name(logger.experiment)
            place = found.experiment_id if found else self.client.create_experiment(logger.experiment)
            self.key = self.client.create_run(place, run_name=logger.name or start.name).info.run_id
            for name, value in start.config.items():
                self.client.log_param(self.key, name, value)
        else:
            self.key = start.key
            self.client.update_run(self.key, status="RUNNING")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.client.log_metric(self.key, name, value, step=step)

    def write_sample(self, step: int, text: str) -> None:
        self.client.log_text(self.key, text, f"samples/step-{step:06}.txt")

    def close(self, status: str) -> None:
        self.client.set_terminated(self.key, {"done": "FINISHED", "stopped": "KILLED"}.get(status, "FAILED"))


class Trackio(Logger, kind="trackio"):
    """Trackio: wandb's interface on a local database."""

    package = "trackio"
    project: str = "zoo"
    name: str | None = None
    space: str | None = None

    def open(self, start: RunDescription) -> Sink:
        return _TrackioSink(self, start)


class _TrackioSink(_WandBSink):
    def __init__(self, logger: Trackio, start: RunDescription) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self.key: str = start.key or logger.name or start.name
        self.run = trackio.init(
            project=logger.project,
            name=self.key,
            space_id=logger.space,
            config=dict(start.config),
            resume="allow" if start.key else "never",
        )

    def write_sample(self, step: int, text: str) -> None:
        self.run.log({"sample": text}, step=step)

    def close(self, status: str) -> None:
        self.run.finish()


class Relay:
    """Passes a run's lines on to a tracker. If the tracker fails, one line reports the failure, nothing more is sent,
    and training continues."""

    def __init__(self, sink: Sink | None, kind: str, say: Callable[[str], object]) -> None:
        self._sink, self._kind, self._say = sink, kind, say

    def write_line(self, line: Mapping[str, Any]) -> None:
        """Send a line of metrics, without values that are null or not numbers."""
        values = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        step = int(values.pop("step"))
        self._pass(lambda sink: sink.write(step, values))

    def write_sample(self, step: int, text: str) -> None:
        self._pass(lambda sink: sink.write_sample(step, text))

    def close(self, status: str) -> None:
        self._pass(lambda sink: sink.close(status))
        self._sink = None

    def _pass(self, send: Callable[[Sink], object]) -> None:
        if self._sink is None:
            return
        try:
            send(self._sink)
        except Exception as error:  # a tracker's own code: it may raise anything
            self._say(f"logger: {self._kind} gets no more, found {short(error)} (training goes on)")
            self._sink = None


def open_relay(
    logger: Logger, folder: Path, config: Mapping[str, Any], step: int, say: Callable[[str], object]
) -> Relay:
    """Open the tracker for a run that starts, or resumes after `step` as the same run of the tracker.

    Raises ConfigError when the tracker cannot be started.
    """
    from zoo.analysis.compare import flatten

    key = _read_key(folder / LOGGER, logger.kind) if step else None
    try:
        sink = logger.open(RunDescription(folder, flatten(config), step, key))
    except Exception as error:  # a tracker's own code: it may raise anything
        would = "logger=none trains without"
        raise ConfigError(f"logger: {logger.kind} cannot be started, found {short(error)} ({would})") from error
    if sink is not None:
        write_text(folder / LOGGER, json.dumps({"kind": logger.kind, "key": sink.key}) + "\n")
    return Relay(sink, logger.kind, say)


def _read_key(file: Path, kind: str) -> str | None:
    from zoo.untrusted.run_types import LoggerNote

    if not file.is_file():
        return None
    found = read_json(file, LoggerNote, most=SETTINGS)
    return found.get("key") if found["kind"] == kind else None
