"""Read what the packaged models say about themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ConfigError, did_you_mean
from zoo.paths import conf_dir


def read_models() -> list[dict[str, Any]]:
    """Read name, kind, title, published parameters, source and note of every packaged model, smallest first."""
    files = {path.stem: _read(path) for path in (conf_dir() / "model").glob("*.yaml")}
    return sorted((_about(name, files) for name in files), key=lambda m: (m["params"], m["name"]))


def select_models(
    models: Sequence[dict[str, Any]], words: Iterable[str] = (), kind: str | None = None
) -> list[dict[str, Any]]:
    """Pick the models of a kind in which every word stands: in name, title, note or source, in capitals or not.

    Raises ConfigError for a kind that does not exist, and where no model is left.
    """
    kinds = sorted({model["kind"] for model in models})
    if kind is not None and kind not in kinds:
        raise ConfigError(f"kind: there is no {kind!r}{did_you_mean(kind, kinds)} (one of: {', '.join(kinds)})")
    words = [word.casefold() for word in words]
    found = [model for model in models if kind in (None, model["kind"]) and all(word in _text(model) for word in words)]
    if not found:
        whose = "" if kind is None else f" among those of kind {kind}"
        told = f"no packaged model{whose} has {' and '.join(map(repr, words))} in its name, title, note or source"
        names = [model["name"] for model in models if kind in (None, model["kind"])]
        hint = did_you_mean(words[-1], names) or " (`zoo list` shows all)"
        raise ConfigError(f"list: {told}{hint}")
    return found


def read_bodies() -> dict[str, dict[str, Any]]:
    """Read the YAML of every packaged model. One that starts from another has the keys and choices of that, under its
    own."""
    files = {path.stem: _read(path) for path in (conf_dir() / "model").glob("*.yaml")}
    return {name: _read_whole(name, files) for name in sorted(files)}


def _read_whole(name: str, files: dict[str, Any]) -> dict[str, Any]:
    body = files[name]
    base = next(iter(body.get("defaults", ())), None)
    inherited = _read_whole(base, files) if isinstance(base, str) and base in files else {}
    return {**inherited, **body, "defaults": [*inherited.get("defaults", ()), *body.get("defaults", ())]}


def _text(model: dict[str, Any]) -> str:
    return " ".join(str(model[key]) for key in ("name", "title", "note", "source")).casefold()


def _read(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it: ten times as fast
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def _about(name: str, files: dict[str, Any]) -> dict[str, Any]:
    """Read a file's `about`. A file without one is another name for the model that its defaults list starts from."""
    body = files[name]
    if "about" in body:
        return {"name": name, "kind": _kind(body, files), **body["about"]}
    base = body["defaults"][0]
    return {**_about(base, files), "name": name, "note": f"another name for {base}"}


def _kind(body: Any, files: dict[str, Any]) -> str:
    """Read the topology that a file states, or that of the model its defaults list starts from."""
    base = next(iter(body.get("defaults", ())), None)
    inherited = _kind(files[base], files) if isinstance(base, str) and base in files else "decoder"
    return body.get("kind", inherited)
