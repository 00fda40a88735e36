"""Price a recipe's arms before they run, and check that arms declared as matched cost the same."""

from __future__ import annotations

from collections.abc import Mapping

from zoo.costs.elementwise_flops import count_elementwise
from zoo.costs.price import price
from zoo.costs.setup import Setup
from zoo.errors import refuse
from zoo.experiments.arm_tasks import Laddering, Probing
from zoo.experiments.experiment import Experiment, list_overrides
from zoo.jobs.forecast import price_run
from zoo.jobs.plan import LaunchPlan, plan_launch
from zoo.ladder import plan_ladder
from zoo.probes.battery import load_small
from zoo.report.arms import ALIKE
from zoo.training.planning import TrainingPlan


def price_arms(recipe: Experiment) -> dict[str, dict[str, float]]:
    """Price each arm from its config: parameters, tokens and FLOPs of training, and bytes of cache of one sequence; for
    a ladder only the parameters of the largest size. Raises ConfigError for an arm that cannot be trained."""
    if recipe.probe is not None:
        return {name: price_probed(recipe.probe, list_overrides(recipe, name)) for name in recipe.arms}
    if recipe.ladder is not None:
        return {name: _price_ladder(recipe.ladder, list_overrides(recipe, name)) for name in recipe.arms}
    with plan_launch(recipe.shared, config=recipe.config_file(), sweeps=True, arms=recipe.arms) as launch:
        return price_launch(launch)


def price_launch(launch: LaunchPlan) -> dict[str, dict[str, float]]:
    """Price the first run of each arm of a launch, as `price_arms` does."""
    firsts: dict[str, TrainingPlan] = {}
    for arm, plan in zip(launch.arms, launch.planned, strict=True):
        if plan is not None:
            firsts.setdefault(arm, plan)
    return {arm: _price(plan) for arm, plan in firsts.items()}


def _price(plan: TrainingPlan) -> dict[str, float]:
    priced = price_run(plan, memory=False)
    costs = {"params": priced.params, "tokens": priced.tokens, "flops": priced.flops, "cache_bytes": priced.cache_bytes}
    return {name: float(value) for name, value in costs.items() if value is not None}


def _price_ladder(asked: Laddering, overrides: list[str]) -> dict[str, float]:
    """Return the parameters of a ladder's largest size, its only cost that is known in advance."""
    return {"params": float(plan_ladder(asked.request(overrides)).rungs[-1].params)}


def price_probed(probe: Probing, overrides: list[str]) -> dict[str, float]:
    """Price one training of a model on a probe: parameters, tokens, FLOPs, elementwise operations of the forward
    passes, and bytes of cache of one sequence."""
    task = probe.make()
    model, rest = probe.split_model(overrides)
    spec, _ = load_small(model, task, rest)
    priced = price(spec, Setup(context=task.seq_len, dtype="fp32"), parts=("params", "flops", "kv_cache"))
    tokens = task.steps * task.rows * task.seq_len
    costs = {"params": priced["params"]["total"], "tokens": tokens, "flops": tokens * priced["flops"]["train"]}
    costs |= {} if (each := count_elementwise(spec)) is None else {"elementwise": tokens * each}
    return {name: float(value) for name, value in {**costs, "cache_bytes": priced["kv_cache"]["bytes"]}.items()}


def check_matched(recipe: Experiment, costs: Mapping[str, Mapping[str, float]]) -> None:
    """Raise ConfigError for arms whose `matched` costs differ by more than 1 % from the first arm's."""
    base, *others = costs
    faults = []
    for name in others:
        for cost in recipe.matched:
            own, first = costs[name].get(cost), costs[base].get(cost)
            if own is None or first is None:
                faults.append(f"matched: {cost} follow from no config of {name} or {base} (leave it out)")
            elif abs(own - first) > ALIKE * first:
                faults.append(f"matched: {cost} of {name} is {own:,.0f}, that of {base} {first:,.0f} (within 1 %)")
    refuse(faults)
