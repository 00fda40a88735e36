"""Read the tasks that replace training on text in an experiment: a probe or a ladder for each arm."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from zoo.compose.gate import check_overrides
from zoo.errors import ConfigError

if TYPE_CHECKING:
    from zoo.ladder import LadderRequest
    from zoo.probes.base import Probe as MadeProbe


def _split_words(overrides: Any) -> Any:
    """Split overrides given as one text, as on a command line, into a list. None is an empty list."""
    return shlex.split(overrides) if isinstance(overrides, str) else [] if overrides is None else overrides


def _name_no_code(overrides: list[str]) -> list[str]:
    """Return the overrides. Raises ValueError if they name code, because a file must not run code."""
    try:
        check_overrides(overrides, "overrides")
    except ConfigError as error:
        raise ValueError(error.faults[0].removeprefix("overrides: ")) from None
    return overrides


Overrides = Annotated[list[str], BeforeValidator(_split_words), AfterValidator(_name_no_code)]
"""Overrides, as a list or as one text. They must be data and name no code."""


class Strict(BaseModel):
    """Base of the parts of an experiment. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Modelled(Strict):
    """Base of tasks that start from a model rather than from a training config."""

    model: str = "llama-tiny"

    def split_model(self, overrides: list[str]) -> tuple[str, list[str]]:
        """Split overrides into the model (the last `model=…`, or else `self.model`) and the other overrides."""
        named = [each.removeprefix("model=") for each in overrides if each.startswith("model=")]
        return (named or [self.model])[-1], [each for each in overrides if not each.startswith("model=")]


class Laddering(Modelled):
    """A ladder (`zoo ladder`) of each arm, instead of single runs. The loss of the largest size is predicted from the
    other sizes before that size is trained. The metrics are those of `zoo.experiments.laddering`."""

    sizes: Annotated[int, Field(ge=4)] = 5
    smallest: PositiveFloat | None = None
    largest: PositiveFloat | None = None
    tokens_per_param: PositiveFloat = 20.0
    tune: bool = False
    """Whether each arm's learning rate is searched at two sizes before its runs."""
    least_updates: PositiveInt = 300
    """Minimum number of updates before the first point of every size."""

    def request(self, overrides: list[str], seeds: int = 1) -> LadderRequest:
        """Make the request for a ladder with these overrides."""
        from zoo.ladder import LadderRequest

        model, rest = self.split_model(overrides)
        rungs = self.model_dump(exclude={"model"})
        return LadderRequest(model=model, overrides=tuple(rest), seeds=seeds, **rungs)


class Probing(Modelled):
    """A probe (`zoo probe`) of each arm, shrunk to the probe's size, instead of training on text. A separate seed is
    trained at each learning rate of `rates` (None: those of `zoo probe`), and the reported seeds at the best rate. The
    metrics are `reach`, and metrics at a level, such as `accuracy at 16`."""

    name: str
    size: Literal["card", "small"] = "card"
    settings: dict[str, Any] = {}
    rates: list[PositiveFloat] | None = None

    def make(self) -> MadeProbe:
        """Make the probe."""
        from zoo.probes.all_probes import make_probe

        return make_probe(self.name, self.size, self.settings)


def _name_probe(stated: Any) -> Any:
    """Convert a text to a probe with that name and default settings."""
    return {"name": stated} if isinstance(stated, str) else stated


Probe = Annotated[Probing, BeforeValidator(_name_probe)]
