# N labelled tokens, V vocabulary
"""Distillation: learn from another model's logits in addition to the targets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, PositiveFloat

from zoo.errors import ZooError
from zoo.lazy import Tensor, torch
from zoo.model.loss import TeacherLoss
from zoo.training.objective.base import Context, Objective, describe
from zoo.training.objective.causal import NextToken
from zoo.training.objective.labelled import RecordObjective
from zoo.training.packaged import read_packaged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zoo.checkpoint.stored import StoredModel
    from zoo.data import Batch, DataSettings, Tokenizer
    from zoo.data.chat.template import ChatTemplate
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.run import Run


class Distil(Objective, kind="distil"):
    """Minimise (1 − mix) × the cross-entropy of another objective, `base`, plus mix × t² · KL(teacher ‖ student) at the
    same tokens, with both models' logits divided by the `temperature` t (Hinton et al., 2015).

    The `teacher` is a model's folder that `zoo.load` reads. Topology, vocabulary and tokenizer must be the student's.
    """

    divides: ClassVar[bool] = False

    teacher: str
    base: Annotated[Objective, BeforeValidator(partial(read_packaged, "objective"))] = NextToken()
    temperature: PositiveFloat = 1.0
    mix: Annotated[float, Field(gt=0, le=1)] = 0.5

    @property
    def reads(self) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The content that the base objective learns from."""
        return self.base.reads

    def settle(self, spec: Topology, data: DataSettings | None = None) -> Objective:
        from dataclasses import replace

        return replace(self, base=self.base.settle(spec, data))  # type: ignore[type-var]

    def refuses(self, spec: Topology) -> str | None:
        from zoo.checkpoint import store

        if isinstance(self.base, Distil):
            return "distil: base is distil itself (another objective, whose targets are learned beside the teacher)"
        if isinstance(self.base, RecordObjective):
            return f"distil: base is {self.base.kind}, whose head predicts no token (an objective of text)"
        if type(self.base).loss is not Objective.loss:
            found = f"base is {self.base.kind}, whose loss compares whole records, and a teacher's is of tokens"
            return f"distil: {found} (an objective of text, pairs or conversations)"
        if reason := self.base.refuses(spec):
            return reason
        try:
            taught = store.load_spec(self.teacher)
        except ZooError as error:
            return f"teacher: {error} (a folder that zoo train or transformers wrote)"
        if taught.kind != spec.kind:
            return f"teacher is {describe(taught)}, the model is {describe(spec)} (one of the same kind)"
        if taught.output_vocab_size != spec.output_vocab_size:
            found = f"has a vocabulary of {taught.output_vocab_size}, the model's is {spec.output_vocab_size}"
            return f"teacher {found} (model.vocab_size={taught.vocab_size})"
        return self.base.refuses(taught)

    def widths(self, spec: Topology, seq_len: int, documents: bool) -> dict[str, int]:
        return self.base.widths(spec, seq_len, documents)

    def count_special(self, seq_len: int) -> int:
        return self.base.count_special(seq_len)

    def extend(self, tokenizer: Tokenizer, seq_len: int) -> None:
        self.base.extend(tokenizer, seq_len)
        refuse_other_tokenizer(self.teacher, tokenizer)

    def collator(self, context: Context) -> Collate:
        return self.base.collator(context)

    def count_tokens(self, batch: Batch, seq_len: int) -> int:
        return self.base.count_tokens(batch, seq_len)

    def write_prompt(self, text: str | None, template: ChatTemplate | None) -> dict[str, Any]:
        return self.base.write_prompt(text, template)

    def list_teachers(self) -> Sequence[Topology]:
        from zoo.checkpoint import store

        return [store.load_spec(self.teacher)]

    def prepare_run(self, run: Run, start: Callable[[], Model], steps: int) -> None:
        stored = open_teacher(self.teacher)
        shards = run.layout.mesh.shard > 1
        model = run.layout.spread_frozen(stored, run.settings, run.device) if shards else stored.build(run.device)
        TEACHERS[self.teacher, run.device] = model.requires_grad_(False)

    def weigh(self, inputs: dict[str, Tensor], weight: float, count: int | None) -> TeacherLoss:
        teacher = load_teacher(self.teacher, inputs["input_ids"].device)
        with torch.no_grad():
            hidden = teacher(**inputs, logits_to_keep=0).hidden.flatten(0, 1)  # N D

        def teach(rows: Any) -> Tensor:
            with torch.no_grad():
                return teacher.head_logits(hidden[rows])

        how = {"teacher": teach, "temperature": self.temperature, "mix": self.mix}
        return TeacherLoss(weight, self.z_loss, self.chunk_mib << 20, count, **how)


TEACHERS: dict[tuple[str, Any], Any] = {}
"""Frozen teachers in float32 by folder and device. A run that shards its weights also shards its teacher's weights."""


def open_teacher(folder: str) -> StoredModel:
    """Open a teacher's weights in float32, read lazily."""
    from zoo.checkpoint import store

    return store.open_model(folder, torch.float32)


def load_teacher(folder: str, device: Any) -> Any:
    """Return the teacher of a folder on a device; without a run it is loaded at its first use."""
    if (folder, device) not in TEACHERS:
        TEACHERS[folder, device] = open_teacher(folder).build(device).requires_grad_(False)
    return TEACHERS[folder, device]


def refuse_other_tokenizer(folder: str, tokenizer: Tokenizer) -> None:
    """Raise ConfigError if a teacher's folder has a tokenizer that gives other ids."""
    from zoo.checkpoint.finding import find
    from zoo.data.tokenizer import Tokenizer
    from zoo.errors import ConfigError

    place = find(folder)
    if not (place / "tokenizer.json").is_file():
        return
    theirs = Tokenizer.load(place, tokenizer.eos, where="objective.teacher").backend
    ours = tokenizer.backend.get_vocab(with_added_tokens=True)
    if any(theirs.token_to_id(piece) not in (None, number) for piece, number in ours.items()):
        found = "has another tokenizer than the data"
        would = f"data.tokenizer={{kind: file, path: {place}}}"
        raise ConfigError(f"objective.teacher: {folder} {found} ({would})")
