"""Collect the gallery's facts on families: lineage, measured difference from the reference, and packaged models."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zoo.paths import list_conf, load_yaml, read_conf

MEASURED, NOTES = (Path(__file__).parent / name for name in ("measured.yaml", "notes.yaml"))


@dataclasses.dataclass(frozen=True)
class FamilyFacts:
    """A family: the family it is based on (`like`, "" for none), and its `difference` from the reference
    implementation."""

    name: str
    title: str
    source: str
    like: str
    difference: str


@functools.cache
def read_families() -> dict[str, FamilyFacts]:
    """Read all families, by name."""
    measured = read_measured()["difference"]
    found = {}
    for name in list_conf("family"):
        body = read_conf(f"family/{name}")
        about = body.get("about") or {}
        title, source = str(about.get("title", name)), str(about.get("source", ""))
        found[name] = FamilyFacts(name, title, source, body.get("like", ""), f"{float(measured[name]):.0e}")
    return found


@functools.cache
def read_measured() -> dict[str, Any]:
    """Read how the families' differences from the reference were measured (`by`), and each family's `difference`."""
    return load_yaml(MEASURED)


@functools.cache
def read_notes() -> dict[str, dict]:
    """Read the gallery's notes on models, which are not in the models' own files."""
    return load_yaml(NOTES)


def find_family(model: str) -> FamilyFacts | None:
    """Return the family of a packaged model. None if the gallery's notes do not name the model."""
    patterns = read_notes()["families"]
    name = next((name for pattern, name in patterns.items() if fnmatch.fnmatchcase(model, pattern)), None)
    return None if name is None else read_families()[name]


def trace_lineage(family: FamilyFacts) -> list[FamilyFacts]:
    """List a family and its ancestors, oldest first."""
    line = [family]
    while line[0].like:
        line.insert(0, read_families()[line[0].like])
    return line


def list_children(name: str) -> list[FamilyFacts]:
    """List the families based directly on this one, earliest source first. For "", list the families without a base."""
    return sorted(
        (each for each in read_families().values() if each.like == name),
        key=lambda each: (find_year(each.source) or 0, each.title),
    )


def find_year(source: str) -> int | None:
    """Return the last year in a source. None if there is none."""
    years: Iterable[str] = re.findall(r"\b(?:19|20)\d\d\b", source)
    return max(map(int, years), default=None)
