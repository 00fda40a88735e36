# B records, K texts of a record, N records of all processes, T tokens, D width of a vector
"""Contrastive learning of sentence encoders: bring a text's vector close to its positive's, and away from other
texts'."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat, PositiveInt

from zoo.checkpoint.beside import MODULES, SENTENCE, copy_beside, list_beside
from zoo.checkpoint.sentence_files import POOLINGS, write_modules
from zoo.errors import ConfigError
from zoo.lazy import F, Tensor, torch
from zoo.model.head import NoHead
from zoo.text.sentence import CONFIG, SentencePipeline, read_pipeline
from zoo.training.objective.base import Context, Loss, Objective, add_own_losses, describe
from zoo.training.objective.labelled import RecordObjective

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zoo.data import Batch, DataSettings
    from zoo.data.labelled_records import LabelledTask
    from zoo.data.tokens import Collate
    from zoo.distributed.world import World
    from zoo.model.step import Output
    from zoo.model.tower import Topology
    from zoo.run.layer import Model
    from zoo.training.gradient import Autocast
    from zoo.training.metrics import RankMetrics


class Contrastive(RecordObjective, kind="contrastive"):
    """Learn vectors of texts by InfoNCE with in-batch negatives (van den Oord et al., 2018; Henderson et al., 2017):
    the cross-entropy of an anchor's own positive among the positives and `negatives` of the whole batch, with cosine /
    `temperature` as logits. `symmetric` averages it with the cross-entropy of a positive's own anchor among all
    anchors. `dims` sums the loss over vectors cut to these widths (Matryoshka; Kusupati et al., 2022), times
    `dim_weights` (default: 1). Equal texts of a batch are negatives of one another, as in sentence-transformers; with
    `skip_copies` a text is not a negative if it equals the anchor's positive, or belongs to an equal anchor.

    `anchor`, `positive` and `negatives` name the fields of the records. The vectors are those of `zoo embed`: pooled by
    the sentence-transformers `modules` (default: those in the folder of the weights), else by `pooling` (default: the
    mean). The head of a language model is left out.

    The batch spans all microbatches and processes. If there are several, all texts are first embedded without
    gradients, then again, a microbatch at a time, to backpropagate the gradients of their vectors (GradCache; Gao et
    al., 2021).
    """

    reads: ClassVar[str] = "records of texts"
    named: ClassVar[str] = "objective.anchor and objective.positive"
    scored: ClassVar[str] = "anchors"
    compares_rows: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("val_accuracy", "val_mrr")
    ranked_by: ClassVar[str | None] = "val_mrr"

    anchor: str = "anchor"
    positive: str = "positive"
    negatives: tuple[str, ...] = ()
    temperature: PositiveFloat = 0.05
    symmetric: bool = False
    skip_copies: bool = False
    dims: tuple[PositiveInt, ...] = ()
    dim_weights: tuple[PositiveFloat, ...] = ()
    pooling: str | None = None
    modules: str | None = None

    def __post_init__(self) -> None:
        if self.z_loss:
            raise ValueError(f"z_loss: is of a vocabulary's softmax, found {self.z_loss} (0)")
        if len(names := self.texts) != len(set(names)):
            raise ValueError(f"negatives: two texts of a record have one field, found {', '.join(names)} (one each)")
        if self.dim_weights and len(self.dim_weights) != len(self.dims):
            found = f"found {len(self.dim_weights)} for {len(self.dims)} dims"
            raise ValueError(f"dim_weights: must be one for each of dims, {found} (as many, or null)")
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise ValueError(f"pooling: must be a pooling, found {self.pooling!r} (one of: {', '.join(POOLINGS)})")

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields of a record's texts, in order."""
        return (self.anchor, self.positive, *self.negatives)

    @property
    def n_texts(self) -> int:  # type: ignore[override]
        return len(self.texts)

    # ---------------------------------------------------------------- the model and its modules

    def settle(self, spec: Topology, data: DataSettings | None = None) -> Objective:
        path = None if data is None else data.tokenizer.path
        return self if self.modules or path is None else self.reopen(Path(path))

    def reopen(self, folder: Path) -> Objective:
        return replace(self, modules=str(folder.absolute())) if has_modules(folder) else self

    def refuses(self, spec: Any) -> str | None:
        if spec.kind == "encoder_decoder" or spec.reads_memory:
            return f"contrastive embeds texts with one tower, the model is {describe(spec)} (an encoder or a decoder)"
        if spec.causal and self.pooling == "cls":
            return (
                "contrastive pools the first token, which in a decoder sees no other (objective.pooling=last, or mean)"
            )
        if self.modules is None:
            return None
        if not has_modules(Path(self.modules)):
            return f"modules is {self.modules}, which has no {MODULES} (a folder of sentence-transformers, or null)"
        own = open_pipeline(self.modules, None).pooled.names
        if self.pooling is not None and own != (self.pooling,):
            found = f"found {', '.join(own)} in the modules of {self.modules}"
            return f"pooling is {self.pooling}, {found} (objective.pooling=null)"
        return None

    def adapt(self, spec: Any) -> Topology:
        return replace(spec, head=NoHead(vocab_size=spec.vocab_size))

    def keep_files(self, folder: Path, spec: Any) -> None:
        """Write the sentence-transformers modules that make the vectors. Raises ConfigError if the folder has other
        modules already, copied with the weights."""
        own = {} if self.modules is None else read_modules(Path(self.modules))
        if (folder / MODULES).is_file():
            if own != read_modules(folder):
                found = "and not those that make the vectors"
                raise ConfigError(f"objective.modules: the weights have modules, {found} (objective.modules=WEIGHTS)")
            return
        folder.mkdir(parents=True, exist_ok=True)
        if MODULES in own:
            copy_beside(Path(self.modules or ""), folder, SENTENCE)
            return
        names = open_pipeline(self.modules, self.pooling).pooled.names
        write_modules(folder, names, spec.out_width or spec.d_model, spec.max_seq_len)

    # ---------------------------------------------------------------- the data

    def make_task(self) -> LabelledTask:
        from zoo.data.compared_texts import ComparedTask

        return ComparedTask(self.texts, lower=open_pipeline(self.modules, self.pooling).lower)

    def prepare(self, data: DataSettings, limit: int, **how: Any) -> Any:
        most = open_pipeline(self.modules, self.pooling).limit
        return super().prepare(data, min(limit, most or limit), **how)

    def collator(self, context: Context) -> Collate:
        from zoo.data.collate import pad_compared

        spec = context.spec
        width = open_pipeline(self.modules, self.pooling).find_width(spec.out_width or spec.d_model)
        if self.dims and max(self.dims) > width:
            raise ConfigError(f"objective.dims: has {max(self.dims)}, the vectors have {width} numbers (1 to {width})")
        how: dict[str, Any] = {"pad_id": spec.position.skip_id or 0, "seq_len": context.seq_len}
        return partial(pad_compared, one_shape=context.one_shape, **how)  # type: ignore[return-value]

    def targets(self, batch: Batch) -> int:
        return len(batch.targets)

    # ---------------------------------------------------------------- the loss

    def embed(self, model: Model, batch: Batch) -> tuple[Tensor, Output]:
        """Embed a batch: vectors [B, K, D], float32, and the model's output."""
        ids, real, numbers = batch.input_ids, batch.attention_mask, batch.row_numbers
        assert real is not None
        if numbers is not None:  # each text of a record drops other values
            numbers = (numbers[:, None] * ids.shape[1] + torch.arange(ids.shape[1], device=ids.device)).flatten()
        out = model(ids.flatten(0, 1), real.flatten(0, 1), row_numbers=numbers, logits_to_keep=0)
        pipeline = open_pipeline(self.modules, self.pooling, ids.device)
        vectors = pipeline.apply(out.hidden.float(), real.flatten(0, 1).bool(), 0, None)
        return vectors.float().unflatten(0, ids.shape[:2]), out

    def score(self, vectors: Tensor, keys: Tensor, rows: slice) -> Tensor:
        """Sum the loss over the anchors `rows` of all records, whose texts have vectors [N, K, D] and keys [N, K]."""
        targets = torch.arange(len(vectors), device=vectors.device)[rows]
        skipped = find_copies(keys, rows) if self.skip_copies else None
        total = vectors.new_zeros(())
        dims = self.dims or (vectors.shape[-1],)
        with torch.autocast(vectors.device.type, enabled=False):
            for dim, weight in zip(dims, self.dim_weights or (1.0,) * len(dims), strict=True):
                anchors, *others = F.normalize(vectors[..., :dim], dim=-1).unbind(1)  # N D each
                logits = anchors[rows] @ torch.cat(others).T / self.temperature
                if skipped is not None:
                    logits = logits.masked_fill(skipped, -torch.inf)
                loss = F.cross_entropy(logits, targets, reduction="sum")
                if self.symmetric:
                    back = others[0][rows] @ anchors.T / self.temperature
                    if skipped is not None:  # the same pairs of records, read from the positive
                        back = back.masked_fill(skipped[:, : len(anchors)], -torch.inf)
                    loss = (loss + F.cross_entropy(back, targets, reduction="sum")) / 2
                total = total + weight * loss
        return total

    def differentiate(self, vectors: Tensor, keys: Tensor, rows: slice, weight: float) -> tuple[Tensor, Tensor]:
        """Compute `weight` × the loss of the anchors `rows` (`score`), and its gradient with respect to all vectors [N,
        K, D]. The logits of a chunk of anchors take `chunk_mib` MiB."""
        leaf, total = vectors.detach().requires_grad_(), vectors.new_zeros(())
        size = max((self.chunk_mib << 20) // (4 * leaf.shape[:2].numel()), 1)
        with torch.enable_grad():
            for first in range(rows.start, rows.stop, size):
                loss = weight * self.score(leaf, keys, slice(first, min(first + size, rows.stop)))
                loss.backward()
                total += loss.detach()
        assert leaf.grad is not None
        return total, leaf.grad

    def loss(self, model: Model, batch: Batch, *, weight: float = 1.0, count: int | None = None) -> Loss:
        vectors, out = self.embed(model, batch)
        found, gradient = self.differentiate(vectors, batch.targets, slice(0, len(vectors)), weight)
        return join_losses(found, model.seam.own_share((vectors * gradient).sum()), out, weight, len(vectors))

    def losses(
        self, model: Model, parts: Iterable[tuple[Batch, int]], weight: float, autocast: Autocast, rows: World
    ) -> Iterator[Loss]:
        batches = [part for part, _ in parts]
        if len(batches) == rows.size == 1:
            yield from super().losses(model, [(batches[0], len(batches[0].targets))], weight, autocast, rows)
            return
        seeds = torch.randint(1 << 62, (len(batches),)).tolist()
        with torch.no_grad():
            embedded = []
            for batch, seed in zip(batches, seeds, strict=True):
                with autocast(), drawing(seed, batch.input_ids.device):
                    embedded.append(self.embed(model, batch)[0])
            vectors = gather_records(torch.cat(embedded), rows)
            keys = gather_records(torch.cat([batch.targets for batch in batches]), rows)
        size = len(vectors) // rows.size
        mine = slice(rows.rank * size, (rows.rank + 1) * size)
        found, gradient = self.differentiate(vectors, keys, mine, weight)
        gradient = rows.all_reduce_(gradient)[mine]
        for batch, seed, own in zip(batches, seeds, gradient.split([len(each) for each in embedded]), strict=True):
            with autocast(), drawing(seed, batch.input_ids.device):
                vectors, out = self.embed(model, batch)
            linear = model.seam.own_share((vectors * own).sum())
            yield join_losses(found, linear, out, weight, len(vectors))
            found = torch.zeros_like(found)  # told once

    # ---------------------------------------------------------------- evaluation

    def open_metrics(self) -> RankMetrics:
        from zoo.training.metrics import RankMetrics

        return RankMetrics()

    def judge(self, model: Model, batch: Batch, count: int, metrics: Any) -> Tensor:
        vectors, _ = self.embed(model, batch)
        metrics.add(vectors, batch.targets)
        return self.score(vectors, batch.targets, slice(0, len(vectors)))


def find_copies(keys: Tensor, rows: slice) -> Tensor:
    """Mark the texts [rows, (K − 1)·N], positives first, that are no negatives of the anchors `rows`: texts of other
    records that equal the anchor's positive, or whose own anchor is equal. Texts are equal if their keys [N, K] are."""
    same = (keys[rows, 1, None, None] == keys[:, 1:].T) | (keys[rows, 0, None, None] == keys[:, 0])  # rows K-1 N
    numbers = torch.arange(len(keys), device=keys.device)
    others = numbers[rows, None] != numbers  # rows N
    return (same & others[:, None]).flatten(1)


def gather_records(own: Tensor, rows: World) -> Tensor:
    """Gather the tensors [B, …] of all processes to [N, …], in order."""
    whole = own.new_zeros(rows.size, *own.shape)
    whole[rows.rank] = own
    return rows.all_reduce_(whole).flatten(0, 1)


def join_losses(found: Tensor, linear: Tensor, out: Output, weight: float, count: int) -> Loss:
    """Make the loss of `count` records: the value `found` with the gradient of `linear`, and the model's own losses."""
    return add_own_losses(out, linear + (found - linear).detach(), {"loss": found}, weight, count)


def has_modules(folder: Path) -> bool:
    """Whether a folder has sentence-transformers modules, which make vectors of hidden states."""
    return any((folder / each).is_file() for each in (MODULES, f"1_Pooling/{CONFIG}"))


def read_modules(folder: Path) -> dict[str, bytes]:
    """Read the files of sentence-transformers' modules in a folder, by path."""
    return {name: (folder / name).read_bytes() for name in list_beside(folder, SENTENCE)}


def open_pipeline(modules: str | None, pooling: str | None, device: torch.device | str = "cpu") -> SentencePipeline:
    """Read the pipeline that makes vectors of hidden states. Cached until files of the modules change."""
    files = [] if modules is None else [Path(modules, name) for name in list_beside(Path(modules), SENTENCE)]
    return _read_pipeline(modules, pooling, device, tuple((each, each.stat().st_mtime_ns) for each in files))


@cache
def _read_pipeline(modules: str | None, pooling: str | None, device: Any, stamps: object) -> SentencePipeline:
    return read_pipeline(None if modules is None else Path(modules)).choose(pooling, None).to(device)


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from torch's generators with a given seed inside the block, so that two passes over a microbatch drop the
    same values."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
