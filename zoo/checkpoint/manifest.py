"""Write and verify a checkpoint's checksums: a manifest has the size and xxh3 hash of each file.

    step-000400/manifest.json    {"files": {"model.safetensors": {"bytes": 1234, "xxh3": "…"}, …}, "xxh3": "…"}

The manifest's last key, its seal, is the hash of all text before it. training.json has its own seal and is not listed,
because evaluations are added to it later and a process killed between two writes must leave both files valid. An
average (`ema`) has its own manifest. Checkpoints of older versions have no manifest and are read unverified.

Hashing takes about 0.1 s per GB: it reads the files into the system's cache, as loading the weights would anyway.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from zoo.disk import write_text
from zoo.errors import CheckpointError, short
from zoo.paths import find_cache_folder
from zoo.runs import ARCHITECTURE, AVERAGES, COUNTERS
from zoo.untrusted.json_file import COUNTED, JsonShape, check_shape, parse_json, read_bytes
from zoo.untrusted.stated_paths import find_inside

MANIFEST = "manifest.json"
SKIP = "ZOO_NO_VERIFY"
"""Environment variable that turns verification off (`--no-verify`); processes that a run starts inherit it."""

SEAL, END = ',\n  "xxh3": "', '"\n}\n'
BUFFER = 4 << 20  # bytes that are read and hashed at a time
MOST_FAULTS = 5

WORTH = 10**6  # bytes of a file whose hash is worth a note
RACE = 2.0  # seconds in which a file may be written again without another time


class ManifestEntry(JsonShape):
    """A file's size and hash when it was written."""

    bytes: int
    xxh3: str


class Manifest(JsonShape):
    """The files of a checkpoint's folder, by their relative paths."""

    files: dict[str, ManifestEntry]


@contextmanager
def unverified() -> Iterator[None]:
    """Skip verification inside this block, in this process and in those that it starts."""
    before = os.environ.get(SKIP)
    os.environ[SKIP] = "1"
    try:
        yield
    finally:
        os.environ.pop(SKIP) if before is None else os.environ.update({SKIP: before})


def is_verified() -> bool:
    """Tell whether checkpoints are verified."""
    return not os.environ.get(SKIP)


def write_manifests(folder: Path) -> None:
    """Write the manifest of a checkpoint that is not published yet, and the manifests of the averages in it."""
    averages = [folder / name for name in AVERAGES if (folder / name / ARCHITECTURE).is_file()]
    for each in averages:
        write_manifests(each)
    own = (each for each in sorted(folder.rglob("*")) if each.is_file() and not {*each.parents} & {*averages})
    listed = {each.relative_to(folder).as_posix(): each for each in own if each.name not in (MANIFEST, COUNTERS)}
    files = {name: {"bytes": each.stat().st_size, "xxh3": hash_file(each)} for name, each in listed.items()}
    (folder / MANIFEST).write_text(seal({"files": files}), encoding="utf-8", newline="\n")


def verify(folder: Path, *, training: bool = False) -> None:
    """Compare a model's files with its manifest; with `training` also the files for resuming a run, and the averages.
    Raises CheckpointError, one line for each file that differs (the first few)."""
    if not is_verified() or not (folder / MANIFEST).is_file():
        return
    faults = [
        fault
        for name, entry in read_manifest(folder).items()
        if (training or not name.startswith("training."))
        and (fault := find_fault(find_inside(folder, name, f"{folder / MANIFEST}: files"), entry))
    ]
    if faults:
        raise CheckpointError(*faults[:MOST_FAULTS])
    for name in AVERAGES if training else ():
        verify(folder / name)


def read_manifest(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read the entries of a manifest. Raises CheckpointError if it is damaged."""
    return read_sealed(folder / MANIFEST, Manifest)["files"]


def identify(folder: Path) -> str:
    """Hash a model's folder, without the files that only resume a run. Equal folders have equal hashes, whatever their
    paths. Hashes of the files come from the manifest; without a manifest they are computed. Raises OSError."""
    if (folder / MANIFEST).is_file():
        found = {name: entry["xxh3"] for name, entry in read_manifest(folder).items()}
    else:
        found = {each.name: hash_file(each) for each in folder.iterdir() if each.is_file()}
    kept = {name: each for name, each in found.items() if not name.startswith("training.")}
    return hash_text(json.dumps(kept, sort_keys=True))


def hash_text(text: str) -> str:
    """Hash a text by xxh3 (64 bits, in hex)."""
    from xxhash import xxh3_64_hexdigest

    return xxh3_64_hexdigest(text.encode())


def find_fault(file: Path, entry: Mapping[str, Any]) -> str | None:
    """Describe how a file differs from its manifest entry; None if it does not."""
    would = "another copy of it; --no-verify reads it as it is"
    if not file.is_file():
        return f"{file}: is missing, {MANIFEST} lists it ({would})"
    try:
        if (size := file.stat().st_size) != entry["bytes"]:
            return f"{file}: is damaged, found {size:,} bytes, written were {entry['bytes']:,} ({would})"
        if hash_file(file) != entry["xxh3"]:
            return f"{file}: is damaged, found another checksum than {MANIFEST} has ({would})"
    except OSError as error:
        return f"{file}: cannot be read, found {error.strerror or short(error)} ({would})"
    return None


def hash_file(file: Path) -> str:
    """Hash a file by xxh3 (128 bits, in hex). Raises OSError."""
    from xxhash import xxh3_128

    found, buffer = xxh3_128(), memoryview(bytearray(min(BUFFER, max(file.stat().st_size, 1))))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            found.update(buffer[:count])
    return found.hexdigest()


def recall_hash(file: Path) -> str:
    """Hash a file by `hash_file`, or recall its hash from the cache folder if the file is unchanged: the same inode,
    size, mtime and ctime, both at least RACE seconds before the hash was made. Raises OSError.

    Hashing takes 0.1 to 0.4 s a GB, as long as mapping a model, and a base is hashed whenever its adapters are loaded.
    """
    found = file.stat()
    key = hash_text(f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}")
    if found.st_size >= WORTH and (known := recall_note(key)) is not None:
        return known
    made, later = hash_file(file), file.stat()
    unchanged = (found.st_mtime_ns, found.st_ctime_ns) == (later.st_mtime_ns, later.st_ctime_ns)
    if found.st_size >= WORTH and unchanged and time.time() - found.st_ctime > RACE:
        write_note(key, made)
    return made


def recall_note(key: str) -> str | None:
    """Recall the hash (128 bits, in hex) that was noted under a key in the cache folder; None if there is none."""
    note = find_cache_folder() / "hashes" / key
    known = note.read_text().strip() if note.is_file() else ""
    return known if re.fullmatch(r"[0-9a-f]{32}", known) else None


def write_note(key: str, made: str) -> None:
    """Note a hash under a key in the cache folder, if the folder can be written."""
    note = find_cache_folder() / "hashes" / key
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, made)


# ---------------------------------------------------------------- a JSON file with its own hash


def seal(node: Mapping[str, Any]) -> str:
    """Serialise a mapping as JSON whose last key is the hash of all text before it."""
    from xxhash import xxh3_128_hexdigest

    body = json.dumps(node, indent=2).removesuffix("\n}")
    return f"{body}{SEAL}{xxh3_128_hexdigest(body.encode())}{END}"


def read_sealed(file: Path, shape: Any) -> dict[str, Any]:
    """Read a JSON file and verify its seal, if it has one. Returns the mapping without the seal. Raises CheckpointError
    if the text differs from the sealed text or does not fit `shape`, and FileNotFoundError if there is no file."""
    from xxhash import xxh3_128_hexdigest

    data = read_bytes(file).replace(b"\r\n", b"\n")  # line ends as Windows writes them
    node = parse_json(data, str(file), largest=COUNTED)
    if isinstance(node, dict) and "xxh3" in node:
        body, _, tail = data.rpartition(SEAL.encode())
        if is_verified() and tail != f"{xxh3_128_hexdigest(body)}{END}".encode():
            what = "is damaged, found another checksum than it was written with"
            raise CheckpointError(f"{file}: {what} (another copy of it; --no-verify reads it as it is)")
        del node["xxh3"]
    return check_shape(node, shape, str(file))
