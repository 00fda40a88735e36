# N pairs, Q queries, M documents, D vector width
"""Evaluate text embeddings from a local file: agreement with human similarity scores (STS), and retrieval."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.checkpoint.finding import find
from zoo.data.records import FIELDS_SHOWN, JSONL, Faults, is_text, read_json_lines
from zoo.errors import ConfigError, ZooError
from zoo.text.vectors import embed
from zoo.untrusted.lines import read_lines
from zoo.untrusted.printable import quote, shorten

if TYPE_CHECKING:
    import numpy as np

    from zoo.run.layer import Model

KINDS = (*JSONL, ".csv", ".tsv")
LARGEST = 1e30
"""Bound of scores, so that their squares are finite."""
CUTS = (1, 5, 10)
"""Values of k in recall@k."""

NEAREST = 10
"""Number of nearest documents in MRR and nDCG, as in MTEB."""


class Judged(NamedTuple):
    """Two sentences, and their similarity as scored by people."""

    first: str
    second: str
    score: float


class Sought(NamedTuple):
    """A query, and a document that answers it."""

    query: str
    positive: str


def evaluate_similarity(model: str | Path | Model, file: str | Path, **options: Any) -> dict[str, Any]:
    """Correlate the cosine similarity of sentence pairs with human scores: `spearman` (of ranks) and `pearson`, over
    `pairs` pairs. This is STS of MTEB (Muennighoff et al., 2022), whose main metric is `spearman`.

    `file` has the fields sentence1, sentence2 and score: JSON Lines, or CSV or TSV with a header. `options` are those
    of `zoo.embed`. Raises ConfigError for a faulty file, ZooError if the correlation is undefined.
    """
    pairs = read_pairs(file)
    scores = [pair.score for pair in pairs]
    if len(set(scores)) < 2:
        raise ConfigError(f"similarity: {file} has one score for all, found {len(pairs)} pairs (scores that differ)")
    vectors = embed_once(model, (text for pair in pairs for text in pair[:2]), **options)
    cosines = [float(vectors[pair.first] @ vectors[pair.second]) for pair in pairs]
    if not all(map(math.isfinite, cosines)) or len(set(cosines)) < 2:
        raise ZooError("eval: the cosines of all pairs are the same or no numbers (a model that was trained)")
    return {
        "model": name_model(model),
        "spearman": correlate(rank(cosines), rank(scores)),
        "pearson": correlate(cosines, scores),
        "pairs": len(pairs),
    }


def evaluate_retrieval(model: str | Path | Model, file: str | Path, **options: Any) -> dict[str, Any]:
    """Rank the documents of all queries by their cosine with each query. Returns means over the queries: `recall@k`
    (the share of the query's own documents that are among the k nearest), `mrr@10` (1 / rank of the query's nearest own
    document, 0 beyond rank 10) and `ndcg@10`. In ties, other documents rank before the query's own. Also returns the
    numbers of `queries` and of `documents`.

    `file` has the fields query and positive: a query on several lines has several documents. `options` are those of
    `zoo.embed`. Raises ConfigError for a faulty file, and for one with a single document.
    """
    sought = read_sought(file)
    wanted: dict[str, set[str]] = {}
    for query, positive in sought:
        wanted.setdefault(query, set()).add(positive)
    documents = list(dict.fromkeys(pair.positive for pair in sought))
    if len(documents) < 2:
        raise ConfigError(f"retrieval: {file} has one document, which every query would find (two at least)")
    vectors = embed_once(model, [*wanted, *documents], **options)
    found = [place_documents(vectors, query, documents, wanted[query]) for query in wanted]
    return {"model": name_model(model), **summarize_places(found), "queries": len(found), "documents": len(documents)}


def name_model(model: str | Path | Model) -> str:
    """Name a model's folder; "" for a model in memory."""
    return str(find(model)) if isinstance(model, str | Path) else ""


def embed_once(model: str | Path | Model, texts: Iterable[str], **options: Any) -> dict[str, np.ndarray]:
    """Embed each text once: unit vectors [D] by text, in float64."""
    import numpy as np

    distinct = list(dict.fromkeys(texts))
    vectors = embed(model, distinct, normalize=True, **options).numpy().astype(np.float64)
    return dict(zip(distinct, vectors, strict=True))


# ---------------------------------------------------------------- figures


def rank(values: Sequence[float]) -> np.ndarray:
    """Rank values from 1; equal values share the mean of their ranks.

    Example: 3, 1, 3, 2 have the ranks 3.5, 1, 3.5, 2.
    """
    import numpy as np

    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def correlate(a: Any, b: Any) -> float:
    """Compute Pearson's correlation of two lists."""
    import numpy as np

    return float(np.corrcoef(np.asarray(a, np.float64), np.asarray(b, np.float64))[0, 1])


def place_documents(
    vectors: Mapping[str, np.ndarray], query: str, documents: Sequence[str], wanted: set[str]
) -> list[int]:
    """Find the ranks, from 1, of the wanted documents by cosine with the query. Unwanted ones win ties."""
    import numpy as np

    cosines = np.stack([vectors[each] for each in documents]) @ vectors[query]
    hit = np.array([each in wanted for each in documents])
    order = np.lexsort((hit, -cosines))
    return (np.flatnonzero(hit[order]) + 1).tolist()


def summarize_places(found: Sequence[Sequence[int]]) -> dict[str, float]:
    """Compute recall, MRR and nDCG from the ranks of each query's documents, nearest first."""

    def mean(values: Iterable[float]) -> float:
        return sum(values) / len(found)

    figures = {f"recall@{k}": mean(sum(place <= k for place in places) / len(places) for places in found) for k in CUTS}
    figures[f"mrr@{NEAREST}"] = mean(1 / places[0] if places[0] <= NEAREST else 0.0 for places in found)
    figures[f"ndcg@{NEAREST}"] = mean(discount(places) / discount(range(1, len(places) + 1)) for places in found)
    return figures


def discount(places: Iterable[int]) -> float:
    """Compute the discounted cumulative gain of documents at these ranks (Järvelin and Kekäläinen, 2002): the sum of
    1/log2(1 + rank) up to NEAREST."""
    return sum(1 / math.log2(1 + place) for place in places if place <= NEAREST)


# ---------------------------------------------------------------- files


def read_pairs(file: str | Path) -> list[Judged]:
    """Read judged pairs. Raises ConfigError with the first faults, each with its line."""

    def read(record: Mapping[str, Any], where: str, faults: Faults) -> Judged | None:
        texts = read_texts(record, ("sentence1", "sentence2"), where, faults)
        score = read_score(record, where, faults) if texts else None
        return Judged(texts[0], texts[1], score) if texts and score is not None else None

    return read_rows(file, read, "similarity", "pairs")


def read_sought(file: str | Path) -> list[Sought]:
    """Read queries and their documents. Raises ConfigError with the first faults, each with its line."""

    def read(record: Mapping[str, Any], where: str, faults: Faults) -> Sought | None:
        texts = read_texts(record, ("query", "positive"), where, faults)
        return Sought(texts[0], texts[1]) if texts else None

    return read_rows(file, read, "retrieval", "queries")


def read_rows(file: str | Path, read: Callable[..., Any], name: str, what: str) -> list[Any]:
    """Read each record of a file with `read`. Raises ConfigError with the first faults, or if there are no records."""
    faults = Faults(name)
    found = [read(record, where, faults) for where, record in read_records(Path(file), name, faults)]
    faults.settle()
    if not found:
        raise ConfigError(f"{name}: {file} has no {what} in it (a line for each)")
    return found


def read_texts(record: Mapping[str, Any], names: Sequence[str], where: str, faults: Faults) -> list[str] | None:
    """Read fields that hold text; None after adding a fault."""
    for name in names:
        text = record.get(name)
        if not isinstance(text, str) or not text.strip():
            there = ", ".join(shorten(str(key), 40) for key in list(record)[:FIELDS_SHOWN]) or "none"
            found = f"'{name}' is {_show(text)}" if name in record else f"there are {there}"
            faults.add(f"{where} has no text '{name}', found {found} (fields: {', '.join(names)})")
            return None
        if not is_text(text, name, where, faults):
            return None
    return [record[name] for name in names]


def read_score(record: Mapping[str, Any], where: str, faults: Faults) -> float | None:
    """Read the score; None after adding a fault."""
    given = record.get("score")
    try:
        score = float("nan" if given is None or isinstance(given, bool) else given)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not abs(score) < LARGEST:
        faults.add(f"{where} has no number 'score', found {_show(given)} (how alike the two are)")
        return None
    return score


def _show(value: object) -> str:
    return quote(value) if isinstance(value, list | dict) else quote(str(value)[:80], 40)


def read_records(file: Path, name: str, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the records of a file, each with its place for messages. A line that is no JSON object is a fault. Raises
    ConfigError for a file that cannot be read, and at the first line that is no row of a table."""
    if file.suffix not in KINDS:
        raise ConfigError(f"{name}: {file} ends in {file.suffix or 'nothing'} (one of: {', '.join(KINDS)})")
    file = file.expanduser()
    if file.suffix in JSONL:
        yield from ((f"{file}, line {number:,}:", record) for number, record in read_json_lines(file, faults))
        return
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for number, record in _read_table(read_lines(stream, f"{name}: {file}"), f"{name}: {file}", file.suffix):
                yield f"{file}, line {number:,}:", record
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: {file} is not UTF-8, found byte 0x{error.object[error.start]:02x}") from error
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {file}, found {error.strerror} (a UTF-8 file)") from error


def _read_table(stream: Iterable[str], place: str, suffix: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the rows of a table with a header, each with its line. In TSV, quotes are part of the text."""
    how: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {"strict": True}
    table = csv.DictReader(stream, **how)
    try:
        for record in table:
            yield table.line_num, {key: value for key, value in record.items() if key}
    except csv.Error as error:
        raise ConfigError(f"{place}, line {table.line_num:,}: is no table, found {error} (a header, then rows)") from (
            error
        )
