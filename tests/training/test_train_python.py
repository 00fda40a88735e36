"""Training from Python: the result, callbacks, and the program around it, which stays as it was."""

from __future__ import annotations

import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from support.command_lines import TINY
from support.packaged_specs import one_in
from zoo.errors import ConfigError, ZooError

OVERRIDES = [*TINY, "steps=6", "eval_every=2", "save_every=3", "log_every=2"]


class Noting(zoo.Callback):
    """Notes each call: the moment, the step, and a weight as it is then."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.states: list[zoo.TrainingState] = []
        self.weights: dict[int, torch.Tensor] = {}

    def after_update(self, state):
        assert state.model.training
        state.model.eval()  # a callback need not put it back
        self.calls.append(("update", state.step))
        self.states.append(state)
        self.weights[state.step] = state.model.norm.weight.detach().clone()

    def after_eval(self, state):
        self.calls.append(("eval", state.step))
        self.states.append(state)

    def on_save(self, state, checkpoint):
        self.calls.append(("save", state.step))
        assert torch.equal(zoo.load(checkpoint).norm.weight, self.weights[state.step])


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> zoo.TrainingResult:
    """The result of a run without callbacks."""
    folder = tmp_path_factory.mktemp("alone")
    words = " ".join(f"word{i % 17} {'x' * (i % 5)}" for i in range(400))
    (folder / "text.txt").write_text("\n\n".join([words] * 20))  # as that of `here`
    return zoo.train("gpt-tiny", [*OVERRIDES, f"data.path={folder / 'text.txt'}", f"hydra.run.dir={folder / 'run'}"])


def test_the_result_has_outcome_history_folder_and_the_trained_model(alone: zoo.TrainingResult) -> None:
    result = alone
    assert isinstance(result, zoo.TrainingResult)
    assert json.loads((result.folder / "result.json").read_text())["val_loss"] == result["val_loss"]
    assert {**result}.keys() >= {"train_loss", "val_loss", "steps", "status"}
    history, lines = result.history, (result.folder / "metrics.jsonl").read_text().splitlines()
    assert history["step"].tolist() == [1, 2, 4, 6] and history["step"].dtype == np.int64
    assert {values.shape for values in history.values()} == {(4,)}
    written = [json.loads(line) for line in lines]
    for name in ("loss", "lr", "grad_norm", "val_loss"):
        told = {line["step"]: line[name] for line in written if name in line}
        assert dict(zip(history["step"], history[name], strict=True)) == pytest.approx(
            {step: told.get(step, np.nan) for step in (1, 2, 4, 6)}, nan_ok=True, abs=0
        )
    assert np.isnan(history["val_loss"][0]) and history["val_loss"][-1] == result["val_loss"]
    ids, saved = torch.tensor([[1, 2, 3]]), zoo.load(result.folder)
    assert not result.model.training
    assert torch.equal(result.model(ids).logits, saved(ids).logits)


def test_callbacks_are_called_at_their_moments_and_change_nothing(here: Path, alone: zoo.TrainingResult) -> None:
    noted = Noting()
    result = zoo.train("gpt-tiny", OVERRIDES, callbacks=[noted])
    every = {"update": 1, "save": 3, "eval": 2}
    expected = [(what, step) for step in range(1, 7) for what in every if step % every[what] == 0]
    assert noted.calls == expected
    first = noted.states[0]
    assert (first.step, first.tokens, first.folder.resolve()) == (1, 32, result.folder.resolve())
    assert first.metrics["loss"] == result.history["loss"][0] and "val_loss" not in first.metrics
    assert noted.states[-1].metrics["val_loss"] == result["val_loss"]
    assert not torch.equal(noted.weights[1], noted.weights[6])
    for name in ("loss", "val_loss", "grad_norm"):
        np.testing.assert_array_equal(alone.history[name], result.history[name])


@pytest.mark.parametrize("moment", one_in(3, ["on_save", "after_update", "after_eval"]))
def test_an_exception_in_a_callback_ends_the_run_and_says_which(here: Path, moment: str) -> None:
    class Failing:
        pass

    def fail(self, state, *more):
        raise LookupError("no such thing")

    setattr(Failing, moment, fail)
    with pytest.raises(
        ZooError, match=rf"callback Failing\.{moment}, after step \d: LookupError no such thing"
    ) as failed:
        zoo.train("gpt-tiny", [*OVERRIDES, "hydra.run.dir=run"], callbacks=[Noting(), Failing()])
    assert isinstance(failed.value.__cause__, LookupError)
    assert json.loads(Path("run/result.json").read_text())["status"] == "failed"
    if moment == "on_save":  # the checkpoint is whole
        result = zoo.train(resume="run")
        assert result["steps"] == 6 and result.history["step"].tolist() == [1, 2, 4, 6]


def test_what_is_no_callback_is_refused_before_anything_is_written(here: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        zoo.train("gpt-tiny", OVERRIDES, callbacks=[Noting(), print, Noting])
    assert [fault.split(":")[0] for fault in refused.value.faults] == ["callbacks[1]", "callbacks[2]"]
    assert not Path("runs").exists()
    with pytest.raises(ConfigError, match="resume: the run has its config"):
        zoo.train("gpt-tiny", resume="runs/last")


def test_a_program_that_uses_hydra_logging_signals_and_random_numbers_keeps_its_own(here: Path, monkeypatch) -> None:
    from hydra import compose, initialize
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    def refuse():
        raise AssertionError("the process is the program's own")

    monkeypatch.setattr("zoo.training.building.keep_memory", refuse)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    mine = {number: signal.signal(number, lambda *_: None) for number in before} and {
        number: signal.getsignal(number) for number in before
    }
    handler = logging.FileHandler(here / "mine.log", mode="w")
    root, logger = logging.getLogger(), logging.getLogger("mine")
    handlers, level = list(root.handlers), root.level
    root.addHandler(handler)
    try:
        with initialize(version_base=None, config_path=None):
            theirs, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
            logger.error("before")
            torch.manual_seed(5)
            zoo.train("gpt-tiny", TINY)
            drawn = torch.rand(3)
            logger.error("after")
            assert GlobalHydra.instance().hydra is theirs and HydraConfig.instance().cfg is config
            assert compose(overrides=["+a=1"]).a == 1
        assert {number: signal.getsignal(number) for number in before} == mine
        assert root.handlers == [*handlers, handler] and root.level == level and not logger.disabled
        assert (here / "mine.log").read_text() == "before\nafter\n"
        torch.manual_seed(5)
        assert torch.equal(torch.rand(3), drawn)
        assert Path.cwd() == here and "HYDRA_FULL_ERROR" not in os.environ
    finally:
        root.removeHandler(handler)
        handler.close()
        for number, each in before.items():
            signal.signal(number, each)


def test_a_training_that_fails_leaves_hydra_and_signals_too(here: Path) -> None:
    from hydra import initialize
    from hydra.core.global_hydra import GlobalHydra

    before = signal.getsignal(signal.SIGINT)
    with initialize(version_base=None, config_path=None):
        theirs = GlobalHydra.instance().hydra
        with pytest.raises(ConfigError):
            zoo.train("gpt-tiny", [*TINY, "stepz=1"])
        with pytest.raises(ZooError):
            zoo.train("gpt-tiny", [*TINY, "steps=5", "optim.lr=1e30", "clip=null", "skip_nonfinite=0"])
        assert GlobalHydra.instance().hydra is theirs
    assert signal.getsignal(signal.SIGINT) is before
