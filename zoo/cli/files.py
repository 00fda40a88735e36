"""Read a text file that the command line names, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from zoo.errors import ConfigError


def read_text(file: Path, where: str) -> str:
    """Read a UTF-8 file, or standard input for `-`. Raises ConfigError, under the name `where`, for a file that cannot
    be read, is larger than FILE bytes, or has NUL bytes and so is no text."""
    from zoo.untrusted.json_file import FILE

    try:
        if str(file) == "-":
            stream = getattr(sys.stdin, "buffer", None)  # a text-only stream, such as StringIO, has none
            data = sys.stdin.read().encode() if stream is None else stream.read(FILE + 1)
        else:
            with file.expanduser().open("rb") as opened:
                data = opened.read(FILE + 1)
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"found byte 0x{error.object[error.start]:02x} at {error.start:,}"
        raise ConfigError(f"{where}: {file} is not UTF-8, {found} (convert it)") from error
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where}: {file} is not UTF-8, found {error.reason} (convert it)") from error
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or "a name with NUL"
        raise ConfigError(f"{where}: cannot read {file}, found {found} (a UTF-8 file)") from error
    if len(data) > FILE:
        raise ConfigError(f"{where}: {file} is larger than {FILE >> 20} MiB (several files)")
    if "\0" in text:
        raise ConfigError(f"{where}: {file} is no text, found byte 0x00 at {data.index(0):,} (a UTF-8 file)")
    return text
