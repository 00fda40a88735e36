# B records, T tokens
"""Objectives of preferences: learn which of two answers to a prompt is the better, by their probabilities or by a
reward model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveFloat

from zoo.lazy import Tensor, torch
from zoo.model.head import Head
from zoo.model.loss import IGNORED
from zoo.model.row_loss import RowLoss
from zoo.model.task_head import RegressionHead
from zoo.training.objective.base import (
    Context,
    Loss,
    Objective,
    add_own_losses,
    count_to_last_target,
    describe,
    list_inputs,
)
from zoo.training.objective.causal import refuse_decoder
from zoo.training.objective.labelled import RowTask, TaskObjective

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.data import Batch, PreparedData
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.metrics import Metrics
    from zoo.training.run import Run

REWARDS = ("reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected")
"""The share of records whose chosen answer has the larger reward; the difference; and both rewards. TRL names them
rewards/accuracies, rewards/margins, rewards/chosen and rewards/rejected."""


class Answers(NamedTuple):
    """The answers [B, 2] of each record, the chosen one first: log-probability, number of tokens, and log-probability
    under the starting weights (None for an objective without a reference)."""

    log_probs: Tensor
    lengths: Tensor
    reference: Tensor | None


class Preference(Objective):
    """Base of the objectives of preferences: the loss is a mean over records, a function of the log-probabilities of
    both answers, each a sum over its tokens."""

    reads: ClassVar[str] = "preferences"
    scored: ClassVar[str] = "records of two answers"
    measures: ClassVar[tuple[str, ...]] = tuple(f"val_{name}" for name in REWARDS)
    ranked_by: ClassVar[str | None] = "val_reward_accuracy"
    n_texts: ClassVar[int] = 2
    terms: ClassVar[tuple[str, ...]] = ("loss", *REWARDS)
    """Names of the loss's terms; the first is the loss itself."""
    rows: ClassVar[int] = 2
    """Number of rows in a batch for each record."""
    collate: ClassVar[str] = "collate_answers"
    """The function of `zoo.data.chat.preference_rows` that makes a batch."""

    def __post_init__(self) -> None:
        if self.z_loss:
            raise ValueError(
                f"z_loss: is of a mean over tokens, and {self.kind}'s is over records, found {self.z_loss} (0)"
            )

    def refuses(self, spec: Topology) -> str | None:
        if spec.kind != "decoder":
            return f"{self.kind} is learned by a decoder, the model is {describe(spec)} (a decoder)"
        return refuse_decoder(self.kind, spec)

    def targets(self, batch: Batch) -> int:
        return len(batch.input_ids) // 2

    def count_predictions(self, batch: Batch) -> int:
        return int((batch.targets != IGNORED).sum())

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        return count_to_last_target(batch)

    def collator(self, context: Context) -> Collate:
        from zoo.data.chat import preference_rows

        how = {"seq_len": context.seq_len, "one_shape": context.one_shape}
        return partial(getattr(preference_rows, self.collate), pad_id=context.tokenizer.eos_id, **how)

    def open_metrics(self) -> Metrics:
        from zoo.training.metrics import MeanMetrics

        return MeanMetrics()

    def compare(self, answers: Answers) -> dict[str, Tensor]:
        """Compute the loss and the REWARDS by name, as sums over records."""
        raise NotImplementedError

    def loss(self, model: Model, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        lengths = (batch.targets != IGNORED).sum(1).view(-1, 2)
        known = None if batch.reference is None else batch.reference.view(-1, 2)

        def combine(log_probs: Tensor) -> dict[str, Tensor]:
            return self.compare(Answers(log_probs.view(-1, 2), lengths, known))

        loss = self.sum_rows(batch, self.terms, combine, weight, count)
        return self.run_model(model, batch, loss, self.targets(batch))

    def sum_rows(
        self,
        batch: Batch,
        terms: tuple[str, ...],
        combine: Callable[[Tensor], Mapping[str, Tensor]],
        weight: float = 1.0,
        count: int | None = None,
        runs: Tensor | None = None,
    ) -> RowLoss:
        """Make a loss function that computes its terms from the log-probability of each row's targets, or of each of a
        row's two runs of targets. `runs` [2B, T] has the run's number. `count` is the number of targets, if known."""
        rows, tokens = batch.targets.shape
        n_runs = rows if runs is None else 2 * rows
        if runs is None:
            runs = torch.arange(rows, device=batch.targets.device)[:, None].expand(rows, tokens)
        how = {"terms": terms, "runs": runs.flatten(), "n_runs": n_runs, "combine": combine}
        return RowLoss(weight, 0.0, self.chunk_mib << 20, count, **how)

    def judge(self, model: Model, batch: Batch, count: int, metrics: Metrics | None) -> Tensor:
        from zoo.training.metrics import MeanMetrics

        terms = self.loss(model, batch).terms
        if isinstance(metrics, MeanMetrics):
            metrics.add_sums({name: (terms[name], count) for name in REWARDS})
        return terms["loss"]


def sum_rewards(rewards: Tensor) -> dict[str, Tensor]:
    """Sum the REWARDS of records, given the rewards [B, 2] of both answers."""
    chosen, rejected = rewards.detach().unbind(1)
    found = ((chosen > rejected).to(rewards.dtype), chosen - rejected, chosen, rejected)
    return {name: each.sum() for name, each in zip(REWARDS, found, strict=True)}


class Referenced(Preference):
    """Base of the objectives that compare an answer's log-probability with that under the starting weights. These
    reference log-probabilities are computed once, before the first step, and kept in the run's folder. An answer's
    reward is `beta` · log (its probability ÷ its probability under the starting weights)."""

    usual_lr: ClassVar[float] = 1e-6

    beta: PositiveFloat = 0.1

    def measure_rewards(self, answers: Answers) -> Tensor:
        """Compute the rewards [B, 2] of answers."""
        assert answers.reference is not None
        return self.beta * (answers.log_probs - answers.reference)

    def prepare_run(self, run: Run, start: Callable[[], Model], steps: int) -> None:
        from zoo.training.objective.kept_reference import prepare_reference

        prepare_reference(run, start, steps, self.measure, self.rows)

    def recall(
        self, folder: Path | None, start: Callable[[], Model] | None, data: PreparedData, context: Context
    ) -> None:
        from zoo.training.objective.kept_reference import RowMeasure, recall_reference

        how = RowMeasure(self.measure, self.collator(context), context.seq_len)
        recall_reference(folder, start, data, how, self.rows)

    def measure(self, model: Model, batch: Batch, count: int | None = None) -> Tensor:
        """Compute the log-probability of each row's targets [2B]. `count` is the number of targets, if known."""
        names = tuple(map(str, range(len(batch.input_ids))))
        loss = self.sum_rows(batch, names, lambda sums: dict(zip(names, sums, strict=True)), count=count)
        found = self.run_model(model, batch, loss, 0).terms
        return torch.stack([found[name] for name in names])


class DPO(Referenced, kind="dpo"):
    """Raise the reward r of the chosen answer over that of the rejected one (direct preference optimisation; Rafailov
    et al., 2023): the loss is −log σ(r⁺ − r⁻). An answer's reward is `beta` · log (its probability ÷ its probability
    under the starting weights). The probability under the starting weights is computed once, before the first step.
    Data: `data.form=preference`.

    With `label_smoothing` ε the loss is (1 − ε) · −log σ(r⁺ − r⁻) + ε · −log σ(r⁻ − r⁺), for records whose answers are
    swapped in a share ε of cases (conservative DPO; Mitchell, 2023).
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0

    def compare(self, answers: Answers) -> dict[str, Tensor]:
        rewards = self.measure_rewards(answers)
        margins = rewards[:, 0] - rewards[:, 1]
        right, wrong = (-torch.nn.functional.logsigmoid(each) for each in (margins, -margins))
        losses = (1 - self.label_smoothing) * right + self.label_smoothing * wrong
        return {"loss": losses.sum(), **sum_rewards(rewards)}


class IPO(Referenced, kind="ipo"):
    """Raise the chosen answer over the rejected one by a margin (Azar et al., 2023): the loss is (h⁺ − h⁻ − 1/2β)²,
    where h is log (an answer's probability ÷ its probability under the starting weights) ÷ its number of tokens. Unlike
    with `dpo`, answers that differ by the margin already are not pushed further."""

    def compare(self, answers: Answers) -> dict[str, Tensor]:
        rewards = self.measure_rewards(answers)
        means = rewards / (self.beta * answers.lengths)
        losses = (means[:, 0] - means[:, 1] - 1 / (2 * self.beta)).square()
        return {"loss": losses.sum(), **sum_rewards(rewards)}


class ORPO(Preference, kind="orpo"):
    """Learn the chosen conversation, and raise the odds of its answer over those of the rejected one, without reference
    to the starting weights (Hong et al., 2024): the loss is −mean log p(conversation⁺) − `beta` · log σ(log odds⁺ − log
    odds⁻), with odds p / (1 − p) of an answer whose log p is a mean over its tokens.

    The first mean is over all tokens of the conversation, as in TRL and in the authors' code. An answer's reward is
    `beta` times its log p.
    """

    terms: ClassVar[tuple[str, ...]] = ("loss", "nll", *REWARDS)
    usual_lr: ClassVar[float] = 1e-6

    beta: PositiveFloat = 0.1

    def count_predictions(self, batch: Batch) -> int:
        return super().count_predictions(self.learn_prompts(batch))

    def learn_prompts(self, batch: Batch) -> Batch:
        """Return a batch whose chosen rows have targets in their prompts too."""
        asked = ~find_answered(batch)
        asked[1::2] = False
        return batch._replace(targets=torch.where(asked, batch.input_ids.roll(-1, 1), batch.targets))

    def loss(self, model: Model, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        whole, answered = self.learn_prompts(batch), find_answered(batch)
        runs = 2 * torch.arange(len(answered), device=answered.device)[:, None] + answered  # prompt, answer of each row
        targets = whole.targets != IGNORED
        lengths = torch.stack([(targets & run).sum(1) for run in (~answered, answered)], 1).view(-1, 2, 2)

        def combine(log_probs: Tensor) -> dict[str, Tensor]:
            sums = log_probs.view(-1, 2, 2)  # record, chosen or rejected, prompt or answer
            chosen = -sums[:, 0].sum(1) / lengths[:, 0].sum(1)
            means = sums[..., 1] / lengths[..., 1]
            log_odds = means - torch.log1p(-means.exp())
            ratios = torch.nn.functional.logsigmoid(log_odds[:, 0] - log_odds[:, 1])
            losses = chosen - self.beta * ratios
            return {"loss": losses.sum(), "nll": chosen.sum(), **sum_rewards(self.beta * means)}

        loss = self.sum_rows(whole, self.terms, combine, weight, count, runs)
        return self.run_model(model, whole, loss, self.targets(batch))


class Reward(RowTask, Preference, kind="reward"):
    """Learn a reward r for a conversation, larger with the chosen answer than with the rejected one (Ouyang et al.,
    2022): the loss is −log σ(r⁺ − r⁻) (Bradley and Terry, 1952), plus `centre_coef` · (r⁺ + r⁻)², which keeps rewards
    around 0 (Eisenstein et al., 2023). Data: `data.form=preference`.

    The model gets a head of one number, without a bias, at the conversation's last token (`pooling`) that is not the
    tokenizer's padding (`skip_id`), as in transformers.
    """

    head: ClassVar[type[Head]] = RegressionHead
    shared: ClassVar[tuple[str, ...]] = ("n_outputs", "bias", "pooling", "skip_id")
    n_outputs: ClassVar[int] = 1
    bias: ClassVar[bool] = False
    collate: ClassVar[str] = "collate_rated"
    usual_lr: ClassVar[float] = 1e-4

    centre_coef: NonNegativeFloat = 0.0

    def refuses(self, spec: Topology) -> str | None:
        return Preference.refuses(self, spec) if spec.kind != "decoder" else TaskObjective.refuses(self, spec)

    def learn(self, data: PreparedData) -> dict[str, Any]:
        return {"skip_id": self.find_skipped(data)}

    def count_predictions(self, batch: Batch) -> int:
        return len(batch.input_ids)

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        assert batch.attention_mask is not None
        return int(batch.attention_mask.sum())

    def loss(self, model: Model, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        out = model(**list_inputs(batch))
        rewards = out.logits.float().view(-1, 2)
        losses = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1])
        losses = losses + self.centre_coef * rewards.sum(1).square()
        found = {name: each * weight for name, each in {"loss": losses.sum(), **sum_rewards(rewards)}.items()}
        terms = {name: each.detach() for name, each in found.items()}
        total = model.seam.own_share(found["loss"])
        return add_own_losses(out, total, terms, weight, self.targets(batch))


def find_answered(batch: Batch) -> Tensor:
    """Mark the positions [2B, T] from a row's first target on."""
    return (batch.targets != IGNORED).cumsum(1) > 0
