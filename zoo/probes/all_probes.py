"""List all probes, and make a probe by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from zoo.errors import ConfigError, name_options
from zoo.probes.arithmetic import Mano
from zoo.probes.base import Probe
from zoo.probes.compressing import Compress
from zoo.probes.copying import Copy, Induction, Select
from zoo.probes.hops import Hops
from zoo.probes.recall import MQAR, Bind, Memorise, Needle, Overwrite
from zoo.probes.repeating import Fuzzy, Noisy
from zoo.probes.tracking import Parity, WordS3, WordS5, WordS5Swaps, WordZ6

EVERY: tuple[type[Probe], ...] = (
    *(MQAR, Overwrite, Bind, Needle, Noisy, Fuzzy, Select, Copy, Induction),
    *(Parity, WordZ6, WordS3, WordS5, WordS5Swaps, Hops, Mano, Memorise, Compress),
)
"""All probes, in the order in which a card lists them."""

UNLISTED = (Bind, Noisy, Fuzzy, WordZ6, WordS5, WordS5Swaps, Mano, Compress)

CARD = tuple(each.name for each in EVERY if each not in UNLISTED)
"""The ten probes of a default card. The only word problem is S3, the smallest non-commutative group."""


def make_probe(name: str, size: str = "card", settings: Mapping[str, object] | None = None) -> Probe:
    """Make a probe by its name, at the size `card`, `small` or `paper`, with these settings. Raises ConfigError for an
    unknown name or size, and for unknown or impossible settings."""
    if name not in Probe.kinds:
        hint = name_options(name, Probe.kinds)
        raise ConfigError(f"probe: there is no {name!r}{hint}")
    kind, given = Probe.kinds[name], dict(settings or {})
    known = [field.name for field in fields(kind)]
    for key in given:
        if key not in known:
            raise ConfigError(f"{name}.{key}: no such setting{name_options(key, known)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    own: Mapping[str, object] = {} if size == "card" else getattr(kind, size)
    return kind(**{**own, **given})
