# B rows, T tokens, C classes or numbers
"""Metrics of labelled rows, accumulated over batches: accuracy and F1, F1 of entities, correlations, ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.lazy import F, Tensor, torch
from zoo.model.loss import IGNORED
from zoo.text.similarity import rank

if TYPE_CHECKING:
    import numpy as np

OUTSIDE = "O"
"""The tag of a word that is in no entity."""

PREFIXES = "BIES"
"""First letters of tags: of an entity's first (B), inner (I), last (E) and only word (S)."""

MOST_CLASSES = 64
"""Maximum number of classes for which a confusion matrix is written."""

ANCHORS = 1024
"""Number of anchors that are ranked in one matrix product."""


class Metrics:
    """Metrics over all batches added since creation."""

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [B, C] or [B, T, C], and the batch's `targets`."""
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Compute the metrics. Undefined ones are left out."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Describe the metrics by class, as plain data."""
        return {}


class MeanMetrics(Metrics):
    """Means, over records, of numbers that a loss computes in addition to its value, such as an answer's reward."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}  # name → sum, number of records

    def add_sums(self, sums: Mapping[str, tuple[Tensor, int]]) -> None:
        """Add the sums over a batch, and the number of records of each, by name."""
        for name, each in sums.items():
            self.sums[name] = [a + float(b) for a, b in zip(self.sums.get(name, (0.0, 0)), each, strict=True)]

    def compute(self) -> dict[str, float]:
        found = {name: total / count for name, (total, count) in self.sums.items() if count}
        if {"reward_chosen", "reward_rejected"} <= found.keys():
            found["reward_margin"] = found["reward_chosen"] - found["reward_rejected"]
        return found


class ClassMetrics(Metrics):
    """Accuracy, and macro F1: the mean over classes of F1 = 2tp / (2tp + fp + fn), without classes that are neither
    true nor predicted in any row (Lewis et al., 1996; as in scikit-learn)."""

    def __init__(self, labels: Sequence[str]) -> None:
        import numpy as np

        self.labels = tuple(labels)
        self.counts = np.zeros((len(self.labels), len(self.labels)), np.int64)  # [true class, predicted class]

    def add(self, logits: Tensor, targets: Tensor) -> None:
        import numpy as np

        found = logits.float().argmax(-1).flatten().cpu().numpy()
        true = targets.flatten().cpu().numpy()
        scored = true != IGNORED
        np.add.at(self.counts, (true[scored], found[scored]), 1)

    def compute(self) -> dict[str, float]:
        f1 = [row.f1 for row in self.rows() if row.met]
        return {"accuracy": float(self.counts.trace() / self.counts.sum()), "f1": sum(f1) / len(f1)}

    def rows(self) -> Iterator[ClassRow]:
        """Yield the counts of each class."""
        counted = zip(self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0), strict=True)
        for label, counts in zip(self.labels, counted, strict=True):
            yield ClassRow(label, *map(int, counts))

    def describe(self) -> dict[str, Any]:
        few = {"confusion": self.counts.tolist()} if len(self.labels) <= MOST_CLASSES else {}
        return {"by_class": {row.label: row.figures() for row in self.rows()}, **few}


class ClassRow(NamedTuple):
    """Counts of a class: `right` (true and predicted), `true`, and `taken` (predicted)."""

    label: str
    right: int
    true: int
    taken: int

    @property
    def met(self) -> bool:
        return bool(self.true or self.taken)

    @property
    def f1(self) -> float:
        return 2 * self.right / (self.true + self.taken) if self.met else 0.0

    def figures(self) -> dict[str, Any]:
        precision, recall = (self.right / each if each else 0.0 for each in (self.taken, self.true))
        return {"precision": precision, "recall": recall, "f1": self.f1, "count": self.true}


class TagMetrics(Metrics):
    """Accuracy of words, and F1 = 2·right / (true + found), from the numbers of right, true and found tags or entities.
    If tags are spelled B-PER, I-PER and O (also E- and S-), F1 is that of entities, counted as in conlleval and seqeval
    (Tjong Kim Sang and De Meulder, 2003; Nakayama, 2018). With any other tags, F1 is that of the words whose tag is not
    O."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.of_entities = spell_entities(self.labels)
        self.words = ClassMetrics(self.labels)
        self.counts: dict[str, list[int]] = {}  # kind of entity → right, true, found

    def add(self, logits: Tensor, targets: Tensor) -> None:
        self.words.add(logits, targets)
        every, true = logits.float().argmax(-1).cpu().numpy(), targets.cpu().numpy()
        for row, wanted in zip(every, true, strict=True):
            scored = wanted != IGNORED
            self._add_row(*([self.labels[tag] for tag in tags[scored]] for tags in (wanted, row)))

    def _add_row(self, true: list[str], found: list[str]) -> None:
        list_them = list_entities if self.of_entities else list_words
        wanted, given = set(list_them(true)), set(list_them(found))
        for place, of in enumerate((wanted & given, wanted, given)):
            for entity in of:
                self.counts.setdefault(entity.kind, [0, 0, 0])[place] += 1

    def compute(self) -> dict[str, float]:
        right, true, found = (sum(counts[place] for counts in self.counts.values()) for place in range(3))
        f1 = 2 * right / (true + found) if true + found else 0.0
        return {"accuracy": self.words.compute()["accuracy"], "f1": f1}

    def describe(self) -> dict[str, Any]:
        rows = [ClassRow(kind, *counts) for kind, counts in sorted(self.counts.items())]
        return {"by_class": {row.label: row.figures() for row in rows}}


def spell_entities(labels: Sequence[str]) -> bool:
    """Whether tags mark entities: each is O, or a letter B, I, E or S, alone or followed by a dash and a kind (B-PER).
    At least one has the letter B or I."""
    inside = [label for label in labels if label != OUTSIDE]
    spelled = all(label[:1] in PREFIXES and label[1:2] in ("", "-") for label in inside)
    return spelled and any(label[0] in "BI" for label in inside)


class Entity(NamedTuple):
    """An entity of a row: its kind, and its first and last word."""

    kind: str
    first: int
    last: int


def list_words(tags: Sequence[str]) -> Iterator[Entity]:
    """List the words whose tag is not O, each as an entity."""
    return (Entity(tag, at, at) for at, tag in enumerate(tags) if tag != OUTSIDE)


def list_entities(tags: Sequence[str]) -> Iterator[Entity]:
    """List the entities of a row of tags. An I- without a B- before it begins an entity, as in conlleval.

    Example: B-PER I-PER O I-LOC B-LOC gives PER from 0 to 1, LOC from 3 to 3 and LOC from 4 to 4.
    """
    kind, first, before = "", 0, OUTSIDE
    for at, tag in enumerate([*tags, OUTSIDE]):
        mark, name = tag[:1], tag[2:]
        if before != OUTSIDE and (mark in "BSO" or before in "ES" or name != kind):
            yield Entity(kind, first, at - 1)
            before = OUTSIDE
        if mark != OUTSIDE and before == OUTSIDE:
            kind, first = name, at
        before = mark


class NumberMetrics(Metrics):
    """Pearson's correlation of outputs and targets, and Spearman's: Pearson's of their ranks (equal numbers share the
    mean of their ranks). If a row has several numbers, each correlation is the mean over them. A correlation is
    undefined if an output or a target is the same in all rows."""

    def __init__(self) -> None:
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        self.pairs.append((logits.double().cpu().numpy(), targets[:, 0].double().cpu().numpy()))

    def compute(self) -> dict[str, float]:
        import numpy as np

        found, true = (np.concatenate(each) for each in zip(*self.pairs, strict=True))  # B C each
        columns = list(zip(found.T, true.T, strict=True))
        pearson = [correlate(a, b) for a, b in columns]
        spearman = [correlate(rank(a), rank(b)) for a, b in columns]
        means = {"pearson": sum(pearson) / len(pearson), "spearman": sum(spearman) / len(spearman)}
        return {name: float(value) for name, value in means.items() if value == value}


class RankMetrics(Metrics):
    """Rank the distinct positives and negatives of the evaluation for each anchor, by cosine: the share of anchors
    whose positive is first (accuracy), and the mean of 1 / the positive's rank (MRR). Other texts win ties."""

    def __init__(self) -> None:
        self.found: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: vectors [B, K, D] of records, anchors first, then positives; and the keys [B, K] of the
        texts."""
        self.found.append((F.normalize(logits.float(), dim=-1).cpu(), targets.cpu()))

    def compute(self) -> dict[str, float]:
        import numpy as np

        vectors, keys = (torch.cat(each) for each in zip(*self.found, strict=True))
        of, first = np.unique(keys[:, 1:].flatten().numpy(), return_index=True)
        texts, of = vectors[:, 1:].flatten(0, 1)[first], torch.from_numpy(of)
        places = torch.cat(
            [self._rank(*each, texts, of) for each in zip(vectors.split(ANCHORS), keys.split(ANCHORS), strict=True)]
        )
        return {"accuracy": float((places == 1).double().mean()), "mrr": float((1 / places.double()).mean())}

    def _rank(self, vectors: Tensor, keys: Tensor, texts: Tensor, of: Tensor) -> Tensor:
        """Rank the positives of B anchors from 1, among all texts [M, D] with keys [M]."""
        own = (vectors[:, 0] * vectors[:, 1]).sum(-1, keepdim=True)
        nearer = (vectors[:, 0] @ texts.T >= own) & (keys[:, 1:2] != of)
        return 1 + nearer.sum(-1)


def correlate(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Pearson's correlation of two arrays [B]; NaN if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float((a @ a) * (b @ b)) ** 0.5
    return float(a @ b) / scale if scale else float("nan")
