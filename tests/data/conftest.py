"""Fixtures of data: records of a form, read as documents."""

from __future__ import annotations

import json

import pytest

from zoo.data import DataSettings
from zoo.data.chat.template import CHATML, ChatTemplate


@pytest.fixture
def read(tmp_path):
    """Read records of a form as documents."""

    def read(form: str, *records: object, kind: str = "jsonl", template: str | None = CHATML, refused=None, **settings):
        file = tmp_path / f"records.{kind}"
        if kind == "jsonl":
            file.write_text("".join(json.dumps(each) + "\n" for each in records))
        elif kind == "hf":
            pytest.importorskip("datasets").Dataset.from_list(list(records)).save_to_disk(file)
        else:
            arrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(list(records)), file)
        node = {"kind": kind, "path": str(file), "form": form, **settings}
        return [each.texts for each in DataSettings.read(node).open(template and ChatTemplate(template, fault=refused))]

    return read
