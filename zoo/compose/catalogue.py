"""What the packaged models say about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zoo.paths import conf_dir


def models() -> list[dict[str, Any]]:
    """Name, kind, title, published parameters, source and note of every packaged model, smallest first."""
    files = {path.stem: _read(path) for path in (conf_dir() / "model").glob("*.yaml")}
    return sorted((_about(name, files) for name in files), key=lambda m: (m["params"], m["name"]))


def _read(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it: ten times as fast
    return yaml.load(path.read_text(encoding="utf-8"), loader)


def _about(name: str, files: dict[str, Any]) -> dict[str, Any]:
    """A file that says nothing about itself is another name for the model that its defaults list starts from."""
    body = files[name]
    if "about" in body:
        return {"name": name, "kind": _kind(body, files), **body["about"]}
    base = body["defaults"][0]
    return {**_about(base, files), "name": name, "note": f"another name for {base}"}


def _kind(body: Any, files: dict[str, Any]) -> str:
    """The topology that a file states, or the model that its defaults list starts from."""
    base = next(iter(body.get("defaults", ())), None)
    inherited = _kind(files[base], files) if isinstance(base, str) and base in files else "decoder"
    return body.get("kind", inherited)
