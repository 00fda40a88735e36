"""Experiment trackers get what metrics.jsonl gets. Each is tested offline where it is installed, and read back."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from support.tiny_runs import compose_run
from zoo.errors import ConfigError
from zoo.jobs.train import resume_run, start_run
from zoo.paths import conf_dir
from zoo.report.history import RunRecord
from zoo.training import loggers
from zoo.training.planning import plan_training


def told_of(folder: Path) -> dict[tuple[str, int], float]:
    """The metrics of a run by name and step, as its own file has them."""
    return {
        (name, line["step"]): value
        for line in RunRecord(folder).lines
        for name, value in line.items()
        if name != "step" and value is not None
    }


def read_events(folder: Path) -> list:
    """Read TensorBoard's event files: each record is its length, a checksum, the event, and a checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += 12 + length + 4
        assert at == len(data)
    return found


def scalars_of(events: list) -> dict[tuple[str, int], float]:
    """The scalars that TensorBoard shows: those before a restart at a step are hidden from that step on."""
    found: dict[tuple[str, int], float] = {}
    for event in events:
        if event.session_log.status == event.session_log.START and event.HasField("session_log"):
            found = {(name, step): value for (name, step), value in found.items() if step < event.step}
        found |= {
            (each.tag, event.step): each.simple_value for each in event.summary.value if not each.HasField("tensor")
        }
    return found


def test_tensorboard_gets_every_metric_and_sample_and_a_resumed_run_goes_on_in_its_files(corpus, tmp_path) -> None:
    pytest.importorskip("tensorboardX")
    sample = "sample={prompt: the, tokens: 3}"
    start_run(compose_run(corpus, "logger=tensorboard", sample), tmp_path)
    events = read_events(tmp_path / "tensorboard")
    assert scalars_of(events) == pytest.approx(told_of(tmp_path), rel=1e-6)  # float32
    texts = {each.tag for event in events for each in event.summary.value if each.HasField("tensor")}
    assert texts == {"config/text_summary", "sample/text_summary"}
    (tmp_path / "checkpoints" / "latest").write_text("step-000003\n")
    resume_run(tmp_path, ["steps=8", "logger=tensorboard"])
    assert scalars_of(read_events(tmp_path / "tensorboard")) == pytest.approx(told_of(tmp_path), rel=1e-6)
    assert json.loads((tmp_path / "logger.json").read_text()) == {
        "kind": "tensorboard",
        "key": str(tmp_path / "tensorboard"),
    }


def test_mlflow_gets_every_metric_and_a_resumed_run_is_the_same_run(corpus, tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file://{tmp_path / 'store'}"
    start_run(compose_run(corpus, "logger=mlflow", f"logger.uri='{uri}'", "logger.name=mine"), tmp_path / "run")
    resume_run(tmp_path / "run", ["steps=8", "logger=mlflow", f"logger.uri='{uri}'"])
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("zoo").experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["optim.kind"]) == ("FINISHED", "mine", "adamw")
    for name in ("loss", "val_loss", "lr"):
        history = {(name, each.step): each.value for each in client.get_metric_history(run.info.run_id, name)}
        assert history == {key: value for key, value in told_of(tmp_path / "run").items() if key[0] == name}


def test_wandb_offline_gets_the_metrics_of_a_run_and_goes_on_under_the_same_id(corpus, tmp_path) -> None:
    pytest.importorskip("wandb")
    start_run(compose_run(corpus, "logger=wandb"), tmp_path)
    key = json.loads((tmp_path / "logger.json").read_text())["key"]
    resume_run(tmp_path, ["steps=8", "logger=wandb"])
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{key}*/run-{key}.wandb"))
    assert files and all(file.stat().st_size > 0 for file in files)
    assert json.loads((tmp_path / "logger.json").read_text())["key"] == key
    written = b"".join(file.read_bytes() for file in files)
    assert all(name.encode() in written for name in ("val_loss", "grad_norm", "batch_size"))


def test_trackio_gets_every_metric_in_its_database(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    start_run(compose_run(corpus, "logger=trackio", "logger.project=mine", "logger.name=first"), tmp_path / "run")
    logged = {row["step"]: row for row in SQLiteStorage.get_logs("mine", "first") if "loss" in row}
    told = told_of(tmp_path / "run")
    assert {("loss", step): row["loss"] for step, row in logged.items()} == {
        key: value for key, value in told.items() if key[0] == "loss"
    }


def test_a_tracker_that_fails_midway_is_told_once_and_training_goes_on(corpus, tmp_path, monkeypatch, capsys) -> None:
    written = []

    class Failing:
        key = "some"

        def write(self, step, values):
            written.append(step)
            if step == 3:
                raise ConnectionError("no route to host")

    monkeypatch.setattr(loggers.NoLogger, "open", lambda self, start: Failing())
    assert start_run(compose_run(corpus), tmp_path)["status"] == "done"
    assert capsys.readouterr().err.count("logger: none gets no more, found no route to host") == 1
    assert written == [1, 2, 3]
    assert max(step for _, step in told_of(tmp_path)) == 6


def test_a_tracker_that_cannot_be_started_ends_the_run_before_its_first_step(corpus, tmp_path, monkeypatch) -> None:
    def refuse(self, start):
        raise PermissionError("not logged in")

    monkeypatch.setattr(loggers.NoLogger, "open", refuse)
    with pytest.raises(ConfigError, match=r"logger: none cannot be started, found .*not logged in \(logger=none"):
        start_run(compose_run(corpus), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.mark.parametrize("kind", sorted(file.stem for file in (conf_dir() / "logger").glob("*.yaml")))
def test_a_tracker_that_is_not_installed_is_refused_with_what_installs_it(corpus, monkeypatch, kind) -> None:
    cfg = compose_run(corpus, f"logger={kind}")
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    if kind == "none":
        assert plan_training(cfg).settings.logger == loggers.NoLogger()
        return
    with pytest.raises(
        ConfigError, match=rf"logger: {kind} needs \w+, which is not installed \(pip install .*\[{kind}\]"
    ):
        plan_training(cfg)
