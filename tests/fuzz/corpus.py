"""The corpus: every attack that is known, and every case that ever failed, as small JSON files.

    {"about": "what it is", "run": ["stats", "m.yaml"], "exit": 2, "seeds": ["hf"], "stdin": "…",
     "files": {"m.yaml": "text", "hf/x": {"base64": "…"}, "y": {"link": "target"}, "z": {"parts": ["[", 9, "]", 9]},
               "d.gz": {"gzip": [parts]}, "hf/config.json": {"json": {"key": "new value"}}}}

`parts` are texts, each repeated; `json` sets keys of a seed's file (`a|b` a key in a key); {"append": "…", "drop":
["key:"]} drops a seed's lines that begin so, and adds others. `$OUTSIDE` and `$CANARY` stand for the paths of a case.
Several `run`s are lists in a list, and each of them is a case (`name`, `name@1`, …).
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from pathlib import Path
from typing import Any

from .kinds import Case, copy_seeds, lay_out
from .values import Place

FOLDER = Path(__file__).with_name("corpus")


def list_names() -> list[str]:
    """List the cases: `name`, and `name@N` for further command lines of the same files."""
    found = []
    for file in sorted(FOLDER.glob("*.json")):
        lines = len(read_lines(json.loads(file.read_text())))
        found += [file.stem, *(f"{file.stem}@{number}" for number in range(1, lines))]
    return found


def read_lines(tree: dict[str, Any]) -> list[list[str]]:
    """Give the command lines of a file of the corpus."""
    return tree["run"] if isinstance(tree["run"][0], list) else [tree["run"]]


def make_kept(name: str, seed: int, number: int, place: Place) -> Case:
    """Lay out a case of the corpus."""
    stem, _, line = name.partition("@")
    tree = json.loads((FOLDER / f"{stem}.json").read_text())
    lay_out(place)
    os.chdir(place.folder)
    os.symlink("loop", "loop")
    copy_seeds(place, *tree.get("seeds", ()))

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("$OUTSIDE", str(place.outside)).replace("$CANARY", str(place.canary))
        if isinstance(value, dict):
            return {fill(key): fill(each) for key, each in value.items()}
        return [fill(each) for each in value] if isinstance(value, list) else value

    for path, content in tree.get("files", {}).items():
        write_content(place.folder / path, fill(content))
    words = fill(read_lines(tree)[int(line or 0)])
    return Case(words, tree["about"], tree.get("stdin", "").encode("utf-8", "surrogateescape"), tree.get("exit"))


def write_content(file: Path, content: Any) -> None:
    """Write a file as the corpus describes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        return
    if "append" in content:
        lines = [line for line in file.read_text().splitlines(True) if not line.startswith(tuple(content["drop"]))]
        file.write_text("".join(lines) + content["append"])
        return
    ((how, value),) = content.items()
    if how == "link":
        file.unlink(missing_ok=True)
        os.symlink(value, file)
    elif how == "base64":
        file.write_bytes(base64.b64decode(value))
    elif how == "parts":
        file.write_bytes(join(value))
    elif how == "gzip":
        file.write_bytes(b"".join(gzip.compress(join(each[:2]), mtime=0) * each[2] for each in value))
    elif how == "header":
        text = join(value)
        file.write_bytes(len(text).to_bytes(8, "little") + text)
    else:
        tree = json.loads(file.read_text())
        for path, each in value.items():
            set_key(tree, path, each)
        file.write_text(json.dumps(tree))


def join(parts: list[Any]) -> bytes:
    """Join texts, each repeated as often as the number after it says; `#` in them becomes the repetition's number."""
    made = []
    for text, times in zip(parts[::2], parts[1::2], strict=True):
        made.append("".join(text.replace("#", str(n)) for n in range(times)) if "#" in text else text * times)
    return "".join(made).encode("utf-8", "surrogatepass")


def set_key(tree: Any, path: str, value: Any) -> None:
    """Set a value in a tree, by the names and numbers on the way to it."""
    *before, last = [int(each) if each.isdigit() else each for each in path.split("|")]
    for each in before:
        tree = tree[each]
    tree[last] = value


def freeze_case(case: Case, place: Place, name: str) -> Path:
    """Write a case of the fuzzers into the corpus: what of its files is no seed's."""
    files, seeds = {}, []
    for path in sorted(place.folder.rglob("*")):
        own = path.relative_to(place.folder)
        kept = place.seeds / own
        if (place.seeds / own.parts[0]).is_dir() and own.parts[0] not in seeds:
            seeds.append(own.parts[0])
        if path.is_symlink():
            files |= {} if str(own) == "loop" else {str(own): {"link": os.readlink(path)}}
        elif path.is_file() and not (kept.is_file() and kept.read_bytes() == path.read_bytes()):
            data = path.read_bytes()
            try:
                files[str(own)] = spell(data.decode("utf-8"), place)
            except UnicodeDecodeError:
                files[str(own)] = {"base64": base64.b64encode(data).decode()}
    tree = {"about": case.about, "seeds": seeds, "files": files, "run": [spell(each, place) for each in case.words]}
    file = FOLDER / f"{name}.json"
    file.write_text(json.dumps({key: value for key, value in tree.items() if value}, indent=1) + "\n")
    return file


def spell(text: str, place: Place) -> str:
    return text.replace(str(place.canary), "$CANARY").replace(str(place.outside), "$OUTSIDE")
