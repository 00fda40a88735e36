"""Describe the set-up of a price: workload, training method and hardware; everything but the architecture."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.costs.again import RECOMPUTE, explain_unknown
from zoo.distributed.mesh import Mesh
from zoo.distributed.pipeline_schedule import SCHEDULES, WHOLE_BACKWARD, PipelineSchedule
from zoo.errors import ConfigError, name_options, refuse
from zoo.untrusted.printable import quote

if TYPE_CHECKING:
    from zoo.costs.rows import Priced
    from zoo.costs.tuning import TunedModel

DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes per value, by the name that users give a dtype."""

COMPUTED = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "bfloat16"}
"""The dtype of activations by the model's dtype; with fp8 only the matrix products with weights are in float8."""

CONVENTIONS = ("exact", "palm", "megatron", "kaplan", "hfu")
ENGINES = ("ideal", "zoo", "hf", "paged")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "lion", "muon", "normuon", "schedule_free", "sgd", "soap")
DECAYS = ("uniform", "cautious", "hyperball")
PRECISIONS = ("mixed", "fp32", "bf16", "bf16_master", "bf16_pure")
OFFLOAD = ("none", "states")
ZERO = (0, 1, 2, 3)
CP_COMM = ("all_gather", "ring")

CHOICES = {
    "decay": DECAYS,
    "dtype": tuple(DTYPES),
    "cache_dtype": tuple(DTYPES),
    "convention": CONVENTIONS,
    "cp_comm": CP_COMM,
    "engine": ENGINES,
    "offload": OFFLOAD,
    "optimizer": OPTIMIZERS,
    "precision": PRECISIONS,
    "recompute": (*RECOMPUTE, "every_2"),
    "schedule": SCHEDULES,
}


MOST = 10**15
"""Largest count (ranks, sequences, tokens of a sequence), because figures are products of several counts."""
MOST_AMOUNT = 1e30
"""Largest amount (tokens of training, FLOPs, bytes), so that every figure is finite."""
MOST_DOCUMENTS = 1_000_000
"""Largest number of documents of a sequence; each one is counted by itself."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One use of a model.

    Each data-parallel rank has `batch` sequences of `context` tokens (None: the model's max_seq_len). Training packs
    documents of `document` tokens into a sequence; each sees only itself. `precision` decides the copies of a parameter
    (`zoo.costs.states`), `optimizer` its states. A `fused_optimizer` updates in place, without scratch memory of the
    model's size (torch's AdamW with fused=True; with `bf16_pure` in 16 bits Zoo's piecewise update). A `decay` other
    than uniform takes a copy of weights. `recompute` says which activations are recomputed; `chunked_loss` never makes
    the whole logits. An update sums `accumulate` passes; with `offload` the host keeps the optimizer's states between
    updates.

    `dp`, `tp`, `pp`, `ep` and `cp` are the degrees of parallelism. `cp_comm` is the way keys and values are exchanged
    (all-gather or ring), `zero` the stage of ZeRO over the data-parallel ranks (3 is FSDP). With HSDP there are several
    groups of ranks (`replicas`): each group shards a whole model, and the groups sum up their gradients. A pipeline's
    stages follow a `schedule`, with `chunks` runs of layers each (`zoo.distributed.pipeline_schedule`). `gpu` names a
    file of conf/hardware/; `train_tokens` and `mfu` are for the time to train. `page` is the tokens of a page of the
    engine "zoo" when it reads rows by page table, as on a GPU (None: it does not). Raises ConfigError with a line for
    each invalid field.
    """

    context: int | None = None
    batch: int = 1
    document: int | None = None
    dtype: str = "bf16"
    cache_dtype: str | None = None
    convention: str = "exact"
    engine: str = "ideal"
    page: int | None = None
    optimizer: str = "adamw"
    fused_optimizer: bool = False
    decay: str = "uniform"
    precision: str = "mixed"
    recompute: str = "none"
    accumulate: int = 1
    offload: str = "none"
    chunked_loss: bool = False
    dp: int = 1
    tp: int = 1
    pp: int = 1
    schedule: str = "1f1b"
    chunks: int = 1
    ep: int = 1
    cp: int = 1
    cp_comm: str = "all_gather"
    zero: int = 0
    replicas: int = 1
    gpu: str | None = None
    train_tokens: float | None = None
    mfu: float = 0.4

    def __post_init__(self) -> None:
        refuse(_faults(self))

    def tokens(self, spec: Priced) -> int:
        """Give the number of tokens of a sequence."""
        return int(spec.max_seq_len if self.context is None else self.context)

    def documents(self, spec: Priced) -> list[int] | None:
        """List the lengths of the documents in a packed sequence: `document` tokens each, and the rest of the sequence.
        None without packing. Raises ConfigError for too many documents."""
        if self.document is None:
            return None
        whole, rest = divmod(self.tokens(spec), self.document)
        if whole > MOST_DOCUMENTS:
            fault = f"document: {self.document} makes {whole:,} of a sequence (at most {MOST_DOCUMENTS:,})"
            raise ConfigError(fault)
        return [self.document] * whole + [rest] * (rest > 0)

    @property
    def cached(self) -> str:
        """Give the dtype of cached values."""
        return self.cache_dtype or self.dtype

    @property
    def computed(self) -> str:
        """Give the dtype of a training step's matrix products."""
        return "fp32" if self.precision == "fp32" else self.dtype

    @property
    def autocast(self) -> str | None:
        """Give the dtype that torch.autocast casts the operands of products to; None without autocast. With ZeRO 3
        there is no autocast: FSDP casts gathered weights, and the whole pass computes in their dtype
        (`MixedPrecisionPolicy`)."""
        return self.dtype if self.precision == "bf16" and self.zero != 3 else None

    @property
    def stream(self) -> str:
        """Give the dtype of the residual stream in a training step."""
        return "fp32" if self.precision == "fp32" or self.autocast else self.dtype

    @property
    def pipeline(self) -> PipelineSchedule:
        """Give the schedule of the pipeline; the default schedule for a single stage."""
        return PipelineSchedule(self.schedule, self.pp, self.chunks) if self.pp > 1 else PipelineSchedule()

    @property
    def ranks(self) -> int:
        """Count all GPUs. The ranks of expert parallelism are among the data-parallel ones."""
        return self.rows * self.tp * self.pp * self.cp

    @property
    def rows(self) -> int:
        """Count the parts into which a step's sequences are divided: data-parallel ranks × replicas."""
        return self.dp * self.replicas

    @property
    def gathers(self) -> bool:
        """Whether passes compute with copies of weights that FSDP2 gathers. If weights are not sharded (ddp),
        `zoo train` uses FSDP2 over one shard."""
        return self.zero == 3 or (self.zero == 0 and self.rows * self.cp > 1)

    def count_holders(self, expert: bool) -> tuple[int, int]:
        """Count the ranks among which ZeRO shards the same weights, and the replicas of these shards. Ranks of ep hold
        different experts: an `expert` has dp × cp / ep shards. If ep is larger than dp × cp, an expert is whole, and
        has fewer replicas."""
        parts, ep = self.dp * self.cp, self.ep if expert else 1
        return (parts // ep, self.replicas) if parts % ep == 0 else (1, self.replicas * parts // ep)

    tunes: ClassVar[bool] = False
    """Whether `tune` may find weights that do not train."""

    def tune(self, spec: Priced) -> TunedModel | None:
        """Describe which weights train and what is added to them; None if all weights train and nothing is added."""
        return None

    def on_mesh(self, mesh: Mesh) -> Setup:
        """Give this set-up with the ranks of a mesh. Weights are sharded over its `shard` × `cp` ranks (ZeRO 3), but
        not sharded if `shard` is 1 (ZeRO 0)."""
        sharded = mesh.shard > 1
        ways = {name: getattr(mesh, name) for name in ("cp", "cp_comm", "tp", "ep", "pp", "schedule", "chunks")}
        dp, replicas = (mesh.shard, mesh.dp) if sharded else (mesh.dp, 1)
        return replace(self, dp=dp, replicas=replicas, zero=3 if sharded else 0, **ways)


def _faults(setup: Setup) -> Any:
    for name, known in CHOICES.items():
        found = getattr(setup, name)
        if name != "recompute" and found not in known and not (name == "cache_dtype" and found is None):
            yield f"{name}: unknown {found!r}{name_options(str(found), known)}"
    if reason := explain_unknown(setup.recompute):
        yield f"recompute: {reason}"
    if setup.page is not None and setup.engine != "zoo":
        yield f"page: only applies to Zoo's own engine, found engine={setup.engine} (engine: zoo, or no page)"
    counts = ("context", "batch", "document", "page", "accumulate", "dp", "tp", "pp", "chunks", "ep", "cp", "replicas")
    for name in counts:
        found = getattr(setup, name)
        if found is not None and found < 1:
            yield f"{name}: must be 1 or more, found {found}"
        elif found is not None and found > MOST:
            yield f"{name}: is {quote(found)} (at most {MOST:,})"
    if setup.schedule in SCHEDULES:
        yield from _schedule_faults(setup)
    if setup.zero not in ZERO:
        yield f"zero: unknown stage {setup.zero} (one of: 0, 1, 2, 3)"
    if not 0 < setup.mfu <= 1:
        yield f"mfu: is a share of the peak, found {setup.mfu} (above 0, at most 1)"
    if setup.train_tokens is not None and not 0 < setup.train_tokens <= MOST_AMOUNT:
        yield f"train_tokens: must be above 0 and at most {MOST_AMOUNT:g}, found {setup.train_tokens:g}"
    if setup.replicas > 1 and setup.zero < 3:
        yield f"replicas: need sharded weights, found zero={setup.zero} (zero=3, or more dp)"
    parts, ranks = setup.dp * setup.cp, setup.rows * setup.cp
    if ranks % setup.ep or (parts % setup.ep and setup.ep % parts):
        of = "dp × cp" if ranks == parts else "dp × cp × replicas"
        yield f"ep: {setup.ep} does not divide the {ranks} data-parallel ranks ({of})"


def _schedule_faults(setup: Setup) -> Any:
    """List the faults of the pipeline. A step is priced with at least the microbatches that the schedule needs."""
    schedule = PipelineSchedule(setup.schedule, setup.pp, setup.chunks)
    if (fault := schedule.find_chunk_fault()) is not None:
        yield fault
        return
    count = max(setup.accumulate, schedule.least)
    faults = [schedule.find_microbatch_fault(count), schedule.find_recompute_fault(setup.recompute)]
    faults += [schedule.find_ring_fault(setup.cp_comm)] if setup.cp > 1 else []
    yield from (fault for fault in faults if fault is not None and setup.pp > 1)
    if setup.zero == 3 and setup.pp > 1 and schedule.splits_backward:
        yield f"zero: is 3, and schedule={setup.schedule} does not allow sharded weights (zero=0, or {WHOLE_BACKWARD})"


NAMES = tuple(field.name for field in fields(Setup))
