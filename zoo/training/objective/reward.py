# B records
"""Reward model: a number for a conversation, larger for a better answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import NonNegativeFloat

from zoo.lazy import torch
from zoo.model.head import Head
from zoo.model.task_head import RegressionHead
from zoo.training.objective.base import Loss, add_own_losses, list_inputs
from zoo.training.objective.labelled import RowTask, TaskObjective
from zoo.training.objective.preference import Preference, sum_rewards

if TYPE_CHECKING:
    from zoo.data import Batch, PreparedData
    from zoo.model.tower import Topology
    from zoo.run.layer import Model


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
