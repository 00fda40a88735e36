"""Read a data set of Hugging Face's `datasets`: a folder on disk, or a name on the hub, which can be streamed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.records import FIELDS_SHOWN, Faults, RecordSource, import_package
from zoo.errors import ConfigError, short

if TYPE_CHECKING:
    from zoo.data.settings import HF


SAVED = ("state.json", "dataset_dict.json")
"""The files by which a folder of `save_to_disk` is recognised: of one split, and of several."""

DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class HubRows(RecordSource):
    """The rows of a data set as documents. `n_bytes` is the data set's size if the library knows it, else 0."""

    rows: Any
    name: str
    columns: tuple[str, ...]
    max_rows: int | None

    @property
    def n_bytes(self) -> int:
        return int(getattr(self.rows, "dataset_size", None) or 0)

    def read(self, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each row with its place for messages; null becomes "". Raises ConfigError if the rows cannot be read
        (the network fails, say)."""
        number = 0
        try:
            for number, record in enumerate(islice(iter(self.rows), self.max_rows), 1):
                values = {name: "" if value is None else value for name, value in record.items()}
                yield f"{self.name}, row {number:,}", values
        except (OSError, ValueError) as error:
            line = f"{self.name} cannot be read after row {number:,}, found {short(error)}"
            raise ConfigError(f"data.path: {line} (a network, or streaming=false)") from error

    def refuse_nothing(self, found: bool) -> None:
        """Raise ConfigError if no row could be used."""
        if not found:
            raise ConfigError(f"data.path: {self.name}: nothing to read, found no row with a text (rows with texts)")


def open_dataset(settings: HF, columns: tuple[str, ...], keys: str) -> HubRows:
    """Open the data set that the settings name, to read `columns`. Messages name `keys`, the config keys that chose the
    columns. Raises ConfigError if the data set cannot be opened (without a network, say) or lacks a column."""
    path = str(settings.path)
    datasets = import_package("datasets", "'transformer-zoo[hf]'", f"{path} is read by Hugging Face's datasets")
    folder = Path(path).expanduser()
    try:
        if any((folder / file).is_file() for file in SAVED):
            refuse_idle_fields(settings)
            rows = pick_split(datasets.load_from_disk(str(folder)), settings)
        else:
            known = str(folder) if folder.exists() else path
            split = settings.split or DEFAULT_SPLIT
            rows = datasets.load_dataset(known, settings.name, split=split, streaming=settings.streaming)
    except (OSError, ValueError, LookupError, ImportError, RuntimeError) as error:
        would = "a folder of save_to_disk, a name on the hub, or a network to reach it"
        raise ConfigError(f"data.path: cannot open {path}, found {short(error)} ({would})") from error
    names = getattr(rows, "column_names", None)
    if names and (lacking := [column for column in columns if column not in names]):
        fields = ", ".join(names[:FIELDS_SHOWN])
        raise ConfigError(f"data.path: {path} has no field '{lacking[0]}', found {fields} ({keys})")
    return HubRows(rows, path, columns, settings.max_rows)


def refuse_idle_fields(settings: HF) -> None:
    """Raise ConfigError for settings that have no effect on a folder of `save_to_disk`."""
    if settings.name is not None:
        raise ConfigError(f"data.name: {settings.path} is a saved data set, found name {settings.name!r} (null)")
    if settings.streaming:
        raise ConfigError(f"data.streaming: {settings.path} is on this disk and is read as it lies, found true (false)")


def pick_split(saved: Any, settings: HF) -> Any:
    """Return the split that the settings name; by default a folder's single split, or "train". Raises ConfigError, with
    the names of all splits, if that split is missing."""
    wanted = settings.split or DEFAULT_SPLIT
    if not isinstance(saved, dict):
        own = str(saved.split) if saved.split is not None else None
        if settings.split is None or settings.split == own:
            return saved
        saved = {str(own): saved}
    if wanted not in saved:
        raise ConfigError(
            f"data.split: {settings.path} has no split '{wanted}', found {', '.join(saved)} (one of these)"
        )
    return saved[wanted]
