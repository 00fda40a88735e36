# B rows, T tokens
"""Define Objective, the base class of training objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import NonNegativeFloat, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.head import describe_lack
from zoo.model.loss import IGNORED, TokenLoss
from zoo.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from zoo.data import Batch, DataSettings, PreparedData, Tokenizer
    from zoo.data.chat.template import ChatTemplate
    from zoo.data.tokens import Collate
    from zoo.distributed.world import World
    from zoo.model.step import Output
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.gradient import Autocast
    from zoo.training.metrics import Metrics
    from zoo.training.run import Run


@dataclass(frozen=True)
class Context:
    """Settings for making batches: rows of `seq_len` tokens. With `documents` a token sees only its own document."""

    spec: Any
    tokenizer: Tokenizer
    seq_len: int
    seed: int
    documents: bool
    one_shape: bool = True
    """Whether all batches have one shape, or each is as wide as its longest row."""


class Loss(NamedTuple):
    """A batch's loss. `total` is the weighted sum to backpropagate, `targets` the number of targets, and `terms` the
    weighted terms by name, of which `loss` is the cross-entropy alone. `loads` are the token counts [E] of the experts,
    for each mixture."""

    total: Tensor
    targets: int
    terms: dict[str, Tensor]
    loads: list[Tensor]


class Objective(Spec, axis="objective"):
    """Training objective: which tokens the model reads, which it predicts, and the loss.

    The loss is cross-entropy, plus `z_loss` × (log Σ exp logits)² (PaLM, 2022). It is computed in chunks of tokens
    whose logits take `chunk_mib` MiB, so that all logits never exist at once (`zoo/model/loss.py`).
    """

    every_token: ClassVar[bool] = False
    """Whether every token is a target, given the tokens before it: then bits per byte follow from the loss, and MFU
    counts the head on all tokens."""
    scored: ClassVar[str] = "targets"
    """The targets in words, for messages. The loss is a mean over them."""
    reads: ClassVar[str] = "text"
    """The content that the objective learns from: text; pairs of a source and an answer; conversations
    (`zoo.data.chat`); preferences (`zoo.data.chat.preference_rows`); or records whose fields it names itself
    (`zoo.training.objective.labelled`), labelled or of texts to compare."""
    n_texts: ClassVar[int] = 1
    """The number of texts in a row, each of which the model reads by itself."""
    compares_rows: ClassVar[bool] = False
    """Whether a row's loss depends on the other rows of its batch: then evaluations read batches of the run's size."""
    measures: ClassVar[tuple[str, ...]] = ()
    """The metrics of an evaluation in addition to `val_loss`, by their names in lines of metrics."""
    ranked_by: ClassVar[str | None] = None
    """The metric whose largest value marks the best checkpoint; None: the lowest `val_loss`."""
    usual_lr: ClassVar[float] = 2e-5
    """The usual learning rate of AdamW from trained weights: the default of TRL's trainer, here that of SFTConfig."""
    divides: ClassVar[bool] = True
    """Whether ranks that divide the vocabulary (tensor parallelism) can each compute their part of the loss."""

    z_loss: NonNegativeFloat = 0.0
    chunk_mib: PositiveInt = 256

    def settle(self, spec: Topology, data: DataSettings | None = None) -> Objective:
        """Return the objective with `auto` and unset fields replaced by the choice for this model and data."""
        return self

    def refuses(self, spec: Topology) -> str | None:
        """Return the reason why a model cannot be trained on this objective, or None. Reads only the Spec."""
        return None

    def refuses_documents(self, spec: Topology) -> str | None:
        """Return the reason why documents of a row cannot be hidden from one another (`data.documents`), or None."""
        return "is true, and pairs are not packed (data.documents=false)" if self.reads == "pairs" else None

    def adapt(self, spec: Topology) -> Topology:
        """Return the Spec of the model that this objective trains: labelled objectives put a task head on it."""
        return spec

    def widths(self, spec: Topology, seq_len: int, documents: bool) -> dict[str, int]:
        """Count the tokens of a row in each tower, by the tower's path."""
        return dict.fromkeys(spec.towers(), seq_len)

    def count_special(self, seq_len: int) -> int:
        """Count the special tokens that the objective needs in addition to the vocabulary of plain text."""
        return 0

    def extend(self, tokenizer: Tokenizer, seq_len: int) -> None:
        """Extend the tokenizer's vocabulary by the special tokens that are missing. The model needs embedding rows for
        them. Raises ConfigError for an unsuitable tokenizer."""

    def collator(self, context: Context) -> Collate:
        """Make the function that turns rows of ids [B, T + 1] into batches; the tokenizer has been extended."""
        raise NotImplementedError

    def describe_cuts(
        self, spec: Topology, tokens: Any, of: str, seq_len: int, cure: Callable[[int], str]
    ) -> Iterator[str]:
        """Yield lines on what documents lose in rows of `seq_len` (`zoo.data.tokens.TokenFile.describe_cuts`)."""
        return tokens.describe_cuts(of, seq_len, cure)

    def accepts(self, content: str) -> bool:
        """Whether the objective learns from data with this content (`DataSettings.content`)."""
        return content == self.reads

    def list_learned(self, batch: Batch) -> list[int]:
        """List the rows of a batch whose targets are in the loss."""
        return [*range(len(batch.input_ids))]

    def finish_batch(self, run: Run, batch: Batch) -> Batch:
        """Add to a batch on the CPU the values that each microbatch's loss needs from the whole batch. The added values
        may lie on the device."""
        return batch

    def prepare_run(self, run: Run, start: Callable[[], Model], steps: int) -> None:
        """Compute the values that the loss needs, besides the batches, in the first `steps` steps. Called before the
        run's next step. `start` returns the model with its starting weights."""

    def recall(
        self, folder: Path | None, start: Callable[[], Model] | None, data: PreparedData, context: Context
    ) -> None:
        """Read the values that `prepare_run` left in a run's `folder`, to evaluate the run's own validation rows.
        Values of other rows (`folder` None) and missing values are computed: `start` loads the run's starting
        weights."""

    def targets(self, batch: Batch) -> int:
        """Count the targets of a batch, on the CPU. The batch's loss is divided by this number."""
        return int((batch.targets != IGNORED).sum())

    def split_passes(self, batch: Batch) -> tuple[Batch, Batch | None]:
        """Split a batch, on the CPU, into the rows that are trained on, and the rows that only get a forward pass (None
        if there are none)."""
        return batch, None

    def count_predictions(self, batch: Batch) -> int:
        """Count the positions of rows that the head reads in training, on the CPU."""
        return self.targets(batch)

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        """Count a batch's tokens for the run's total: whole rows of `seq_len`, padding included."""
        return len(batch.input_ids) * seq_len

    def write_prompt(self, text: str | None, template: ChatTemplate | None) -> dict[str, Any]:
        """Write the prompt of a sample (`zoo.text.prompts`): a user's turn if a chat `template` has written the data,
        else a text to continue. A `text` of None is a greeting, or the packaged prompt."""
        if template is None:
            return {"prompt": "def " if text is None else text}
        return {"messages": [{"role": "user", "content": "Hello!" if text is None else text}]}

    def list_teachers(self) -> Sequence[Topology]:
        """List the Specs of other models that a step also runs forward."""
        return ()

    def open_metrics(self) -> Metrics | None:
        """Make the accumulator of an evaluation's metrics; None if the loss is the only one."""
        return None

    def judge(self, model: Model, batch: Batch, count: int, metrics: Metrics | None) -> Tensor:
        """Compute the loss of a batch in evaluation, summed over its `count` targets. `metrics` get the results."""
        return self.loss(model, batch, count=count).terms["loss"]

    def loss(self, model: Model, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        """Compute the loss of a batch: `weight` × (the sum over its targets + `count` × the model's own losses, which
        are means). Passing the `count` of the positions that the head reads (`count_predictions`) avoids waiting for
        the device."""
        count = self.targets(batch) if count is None else count
        inputs = list_inputs(batch)
        return self.run_model(model, batch, self.weigh(inputs, weight, count), count)

    def run_model(self, model: Model, batch: Batch, loss: TokenLoss, count: int) -> Loss:
        """Run the model on a batch with a loss function, and add the model's own losses."""
        out = model(**list_inputs(batch), targets=batch.targets, loss=loss)
        return add_own_losses(out, out.loss, out.terms, loss.weight, count)

    def losses(
        self, model: Model, parts: Iterable[tuple[Batch, int]], weight: float, autocast: Autocast, rows: World
    ) -> Iterator[Loss]:
        """Compute the losses of a batch's microbatches. `parts` are (microbatch, `count` for `loss`). Each is
        backpropagated before the next is computed. `rows` are the processes that share the whole batch."""
        for part, count in parts:
            with autocast():
                found = self.loss(model, part, weight=weight, count=count)
            yield found

    def reopen(self, folder: Path) -> Objective:
        """Return the objective for a resumed run, which reads its own copies of files in `folder`."""
        return self

    def keep_files(self, folder: Path, spec: Topology) -> None:
        """Write to a new run's `folder` the files that a reader of its model needs besides the tokenizer."""

    def weigh(self, inputs: dict[str, Tensor], weight: float, count: int | None) -> TokenLoss:
        """Make the loss function of a pass with these inputs."""
        return TokenLoss(weight, self.z_loss, self.chunk_mib << 20, count)


def add_own_losses(out: Output, total: Tensor, terms: dict[str, Tensor], weight: float, count: int) -> Loss:
    """Add a model's own losses, which are means, to the weighted sum over `count` targets and to its terms."""
    own = {name: loss * (weight * count) for name, loss in out.losses.items()}
    for each in own.values():
        total = total + each
    return Loss(total, count, {**terms, **{name: loss.detach() for name, loss in own.items()}}, out.loads)


def list_inputs(batch: Batch) -> dict[str, Tensor]:
    """Return the fields of a batch that are inputs of the model, by name."""
    fields = batch._replace(reference=None)._asdict().items()
    return {name: value for name, value in fields if value is not None and name != "targets"}


def count_to_last_target(batch: Batch) -> int:
    """Count the tokens of a batch whose rows [B, T] are padded after their last target."""
    places = torch.arange(1, batch.targets.shape[1] + 1)
    return int((places * (batch.targets != IGNORED)).amax(1).sum())


def describe(spec: Topology) -> str:
    """Name a model's topology with its article ("an encoder")."""
    return f"an {spec.kind.replace('_', '-')}" if spec.kind[0] == "e" else f"a {spec.kind}"


def refuse_topology(name: str, spec: Topology, kind: str, instead: str) -> str | None:
    """Return the reason why an objective for models of `kind` cannot train this model, or None. `instead` names an
    objective that can."""
    if spec.kind != kind:
        learned = f"{name} is learned by {'an' if kind[0] == 'e' else 'a'} {kind.replace('_', '-')}"
        return f"{learned}, the model is {describe(spec)} (kind: {kind}, or objective={instead})"
    return None


def suggest(spec: Topology, data: DataSettings | None = None) -> str:
    """Return the kind of a model's default objective for this data."""
    if data is not None and data.written:
        return {"conversations": "chat", "preferences": "dpo", "judgements": "kto"}[data.content]
    return {"encoder": "mlm", "encoder_decoder": "span_corruption"}.get(spec.kind, "next_token")


def refuse_headless(name: str, spec: Topology) -> str | None:
    """Return the reason why no tower of a model predicts tokens, or None if a tower has a head that does."""
    heads = [tower.head for tower in spec.towers().values()]
    if any(head.predicts_tokens for head in heads):
        return None
    would = f"head.kind: {'mlm' if spec.kind == 'encoder' else 'lm'}"
    if all(head.kind == "none" for head in heads):
        return f"{name} needs a head, the model has none ({would})"
    return f"{name} predicts tokens, and {describe_lack(heads[-1])} ({would})"
