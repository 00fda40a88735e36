"""Fit a scaling law as Besiroglu et al. (2024) do: Huber's loss of the log loss, many starts, a bootstrap.

With x = log N, y = log D the law's logarithm is log(e^(a − αx) + e^(b − βy) + e^e). Hoffmann et al. (2022) stopped
their minimiser early and rounded; here every start runs until it converges.

The bootstrap resamples runs, not points: a run with several decays gives several points that share its noise. A
prediction interval adds that noise, estimated from the residuals, to the law's own uncertainty.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from statistics import stdev
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from zoo.analysis.scaling.isoflop import find_interval
from zoo.analysis.scaling.law import Law
from zoo.analysis.scaling.points import LEAST, LossPoints
from zoo.analysis.verdict.speedup import PowerLaw
from zoo.analysis.verdict.student import student_quantile
from zoo.errors import ConfigError, refuse
from zoo.untrusted.json_file import JsonShape, check_shape

HUBER = 1e-3
"""The residual of the log loss beyond which Huber's loss is linear."""

WIDEST = 0.2
"""Largest width of an exponent's 95 % interval for which a loss beyond the points is predicted."""

STEEPEST = 3.0
"""Upper bound of an exponent; resamples that do not determine it would let it grow without limit."""

LEAST_CHANGE = 1e-4
"""An exponent is determined only if its term of the law changes by at least this much over the points, relative to the
lowest loss."""

Array = np.ndarray


Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Measured = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LawData(JsonShape):
    """A law in a file of `zoo fit --out`."""

    E: Figure
    A: Figure
    B: Figure
    alpha: Figure
    beta: Figure


class FitData(JsonShape):
    """A file of `zoo fit --out`."""

    law: LawData
    objective: Figure
    points: Annotated[list[Annotated[list[Measured], Field(min_length=3, max_length=3)]], Field(min_length=1)]
    runs: Annotated[list[str], Field(default_factory=list)]
    resampled: list[Annotated[list[Figure], Field(min_length=5, max_length=5)]]


@dataclass(frozen=True)
class RunNoise:
    """The standard deviation of a run's log loss about the law, and its degrees of freedom."""

    deviation: float
    freedom: int


@dataclass(frozen=True)
class FittedLaw:
    """A law, the points that it was fitted to, Huber's loss over them (`objective`), and the laws of resamples."""

    law: Law
    points: LossPoints
    objective: float
    resampled: tuple[Law, ...] = ()

    def interval(self, name: str, share: float = 0.95) -> tuple[float, float] | None:
        """Give the central interval with this share of a parameter's resampled values; None without resamples."""
        return find_interval([getattr(each, name) for each in self.resampled], share)

    def error(self, name: str) -> float | None:
        """Give a parameter's standard error: half of the interval with 68.27 % of its resampled values."""
        found = self.interval(name, 0.6827)
        return None if found is None else (found[1] - found[0]) / 2

    def estimate_noise(self) -> RunNoise | None:
        """Estimate the noise of a run's log loss from the residuals; None if the runs are too few.

        Runs with several points determine B and β within themselves, so only E, A and α take degrees of freedom.
        """
        logs = [math.log(loss / self.law.loss(n, d)) for n, d, loss in self.points.rows()]
        count = len(set(self.points.number_runs()))
        freedom = count - (3 if count < len(logs) else 5)
        if freedom < 1:
            return None
        return RunNoise(math.sqrt(sum(each**2 for each in logs) / len(logs) * count / freedom), freedom)

    def predict_interval(self, params: float, tokens: float, runs: int = 1) -> tuple[float, float] | None:
        """Give the 95 % prediction interval of the mean loss of `runs` further runs; None without resamples or noise.
        It is Student's interval of the log loss, whose variance is the sum of the resampled laws' variance and the
        runs' noise."""
        noise, logs = self.estimate_noise(), [math.log(each.loss(params, tokens)) for each in self.resampled]
        if noise is None or len(logs) < 2:
            return None
        error = math.hypot(stdev(logs), noise.deviation / math.sqrt(runs))
        loss, factor = self.law.loss(params, tokens), math.exp(student_quantile(0.975, noise.freedom) * error)
        return loss / factor, loss * factor

    def decays(self, params: float) -> list[PowerLaw]:
        """Give the loss of `params` parameters against tokens, by the law and by each resampled law."""
        return [PowerLaw(law.loss(params, math.inf), law.beta) for law in (self.law, *self.resampled)]

    def to_dict(self) -> dict[str, Any]:
        """Write the fit as plain data, which `from_dict` reads back."""
        points, resampled = map(list, self.points.rows()), (list(asdict(each).values()) for each in self.resampled)
        found = {"points": list(points), "resampled": list(resampled)}
        return {"law": asdict(self.law), "objective": self.objective, "runs": list(self.points.runs), **found}

    @classmethod
    def from_dict(cls, data: Any, place: str = "fit") -> FittedLaw:
        """Read the plain data of `to_dict`; `place` names the data in messages. Raises ConfigError for other data."""
        check_shape(data, FitData, place)
        law = Law(**{name: data["law"][name] for name in LawData.model_fields})
        laws = [Law(*map(float, each)) for each in data["resampled"]]
        points = LossPoints.collect(data["points"], data.get("runs", []))
        return cls(law, points, float(data["objective"]), tuple(laws))

    def list_open(self) -> list[str]:
        """List the exponents that the points do not determine, a message for each: an exponent at a bound, or of a term
        that hardly changes the loss over the points. Resamples start at the fit and stay near it, so the interval of
        such an exponent is misleading."""
        law, found = self.law, []
        terms = (("alpha", law.A, self.points.params, "parameters"), ("beta", law.B, self.points.tokens, "tokens"))
        for name, scale, values, what in terms:
            exponent = getattr(law, name)
            change = scale * (min(values) ** -exponent - max(values) ** -exponent)
            if not 0 < exponent < STEEPEST or change < LEAST_CHANGE * min(self.points.loss):
                found.append(f"{name}: is not told, as no part of the loss is seen to fall with {what}")
        return found

    def measure_reach(self, params: float, tokens: float) -> dict[str, float]:
        """Measure how far a point lies beyond those of the fit: `params` and `tokens` divided by the largest among the
        points. Ratios of 1 and less are left out."""
        ratios = {"params": params / max(self.points.params), "tokens": tokens / max(self.points.tokens)}
        return {name: ratio for name, ratio in ratios.items() if ratio > 1}

    def check_reach(self, params: float, tokens: float) -> None:
        """Raise ConfigError for a point beyond those of the fit if an exponent is too uncertain or undetermined, or if
        there are no resamples."""
        if not self.measure_reach(params, tokens):
            return
        for name in ("alpha", "beta"):
            found = self.interval(name)
            if found is None:
                raise ConfigError("bootstrap: is 0, and nothing beyond the points is predicted without it (1000)")
            if found[1] - found[0] > WIDEST:
                raise ConfigError(
                    f"{name}: lies between {found[0]:.3f} and {found[1]:.3f}, too wide to predict beyond the points "
                    f"(an interval of {WIDEST} at most: more points, over a wider range)"
                )
        refuse(f"{each} (sizes further apart, or trained longer)" for each in self.list_open())


def fit_law(points: LossPoints, bootstrap: int = 1000, seed: int = 0) -> FittedLaw:
    """Fit L(N, D) = E + A/N^α + B/D^β to points, and to `bootstrap` resamples of their runs. Two fits with equally many
    runs and the same `seed` draw the same runs.

    Raises ConfigError for fewer than LEAST points, or fewer than three values of N or D.
    """
    if len(points) < LEAST:
        raise ConfigError(f"points: there are {len(points)}, and the law has five numbers (at least {LEAST})")
    for name, values in (("params", points.params), ("tokens", points.tokens)):
        if len(set(values)) < 3:
            raise ConfigError(f"{name}: too few different values for an exponent, found {len(set(values))} (3 or more)")
    x, y, z = (np.log(np.array(each)) for each in (points.params, points.tokens, points.loss))
    starts = list_starts(x, y, z)
    found, objectives = minimise(x, y, z, np.ones((len(starts), len(z))), starts)
    best = int(np.argmin(objectives))
    resampled: tuple[Law, ...] = ()
    if bootstrap:
        draw = np.random.default_rng(seed)
        run = np.array(points.number_runs())
        count = run.max() + 1
        counts = draw.multinomial(count, np.full(count, 1 / count), size=bootstrap).astype(float)[:, run]
        again, _ = minimise(x, y, z, counts, np.repeat(found[best][None], bootstrap, 0))
        resampled = tuple(_make_law(each) for each in again)
    return FittedLaw(_make_law(found[best]), points, float(objectives[best]), resampled)


def minimise(x: Array, y: Array, z: Array, weights: Array, starts: Array) -> tuple[Array, Array]:
    """Minimise Huber's loss Σ w·h(z − log L) for P problems at once, by Levenberg-Marquardt steps on reweighted least
    squares.

    x, y, z [n] are the logarithms of parameters, tokens and losses; weights [P, n]; starts [P, 5] are (a, b, e, α, β).
    Returns the parameters [P, 5] and the sums [P]. A problem ends when 12 steps in a row gain less than a billionth.
    """
    theta, damping = starts.copy(), np.full(len(starts), 1e-3)
    value = _huber(theta, x, y, z, weights)[0]
    open_, idle = np.ones(len(theta), bool), np.zeros(len(theta), int)
    for _ in range(3000):
        at = np.flatnonzero(open_)
        if not len(at):
            break
        _, residual, slopes = _huber(theta[at], x, y, z, weights[at])
        scale = weights[at] * np.minimum(1, HUBER / np.maximum(np.abs(residual), 1e-300))
        normal = np.einsum("pni,pn,pnj->pij", slopes, scale, slopes, optimize=True)
        gradient = np.einsum("pni,pn->pi", slopes, scale * residual)
        diagonal = np.einsum("pii->pi", normal)
        damped = normal + np.einsum("pi,ij->pij", damping[at, None] * diagonal + 1e-12, np.eye(5))
        tried = theta[at] + np.linalg.solve(damped, gradient[..., None])[..., 0]
        tried[:, 3:] = np.clip(tried[:, 3:], 0, STEEPEST)
        new = _huber(tried, x, y, z, weights[at])[0]
        better = new < value[at]
        gained = np.where(better, value[at] - new, 0) > 1e-9 * value[at] + 1e-300
        theta[at] = np.where(better[:, None], tried, theta[at])
        value[at] = np.where(better, new, value[at])
        damping[at] = np.clip(np.where(better, damping[at] / 3, damping[at] * 4), 1e-12, 1e12)
        idle[at] = np.where(gained, 0, idle[at] + 1)
        open_[at] = idle[at] < 12
    return theta, value


def _huber(theta: Array, x: Array, y: Array, z: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Compute Huber's sums [P], the residuals [P, n] and the law's gradients [P, n, 5] at parameters `theta` [P, 5]."""
    a, b, e, alpha, beta = (each[:, None] for each in theta.T)
    parts = np.stack((a - alpha * x, b - beta * y, np.broadcast_to(e, (len(theta), len(x)))))
    peak = parts.max(0)
    powers = np.exp(parts - peak)
    total = powers.sum(0)
    shares = powers / total
    residual = z - peak - np.log(total)
    size = np.abs(residual)
    each = np.where(size <= HUBER, 0.5 * residual**2, HUBER * (size - 0.5 * HUBER))
    slopes = np.stack((shares[0], shares[1], shares[2], -shares[0] * x, -shares[1] * y), -1)
    return (weights * each).sum(1), residual, slopes


def list_starts(x: Array, y: Array, z: Array) -> Array:
    """List starts [18, 5]: a grid of exponents, with E a share of the lowest loss, and A, B > 0 by least squares."""
    found, losses = [], np.exp(z)
    for alpha, beta, share in itertools.product((0.2, 0.4, 0.7), (0.2, 0.4, 0.7), (0.5, 0.95)):
        floor = share * losses.min()
        terms = np.stack((np.exp(-alpha * (x - x.mean())), np.exp(-beta * (y - y.mean()))), 1)
        scales = np.maximum(np.linalg.lstsq(terms, losses - floor, rcond=None)[0], 1e-3 * losses.min())
        a, b = np.log(scales) + np.array([alpha * x.mean(), beta * y.mean()])
        found.append((a, b, np.log(floor), alpha, beta))
    return np.array(found)


def _make_law(theta: Array) -> Law:
    a, b, e, alpha, beta = map(float, theta)
    return Law(E=float(np.exp(e)), A=float(np.exp(a)), B=float(np.exp(b)), alpha=alpha, beta=beta)
