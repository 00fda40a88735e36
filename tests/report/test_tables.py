"""Tables of the terminal: on a narrow screen they are wrapped where a reader expects it."""

from __future__ import annotations

import pytest

from zoo import report

HEADER = ("arm", "seeds", "val_loss ± σ", "difference, 95 %", "p", "verdict")
ROWS = [
    ["attention=short_conv optim.lr=0.0356 ffn=gated", "3", "6.9951 ± 0.0083", "+0.01 ± 0.17", "0.616", "baseline"],
    ["attention=gqa optim.lr=0.02", "3", "6.9860 ± 0.0280", "+0.01 ± 0.17", "0.616", "no significant difference"],
]


def print_at(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    report.print_tables(report.make_table("", HEADER, ROWS, right=range(1, 5)))
    return capsys.readouterr().out.splitlines()


def test_at_80_columns_no_word_and_no_number_is_broken(monkeypatch, capsys) -> None:
    lines = print_at(80, monkeypatch, capsys)
    assert max(map(len, lines)) <= 80
    shown = {word for line in lines for word in line.split()}
    assert {word for row in ROWS for cell in row for word in cell.split()} <= shown
    assert all(row[2] in "\n".join(lines) for row in ROWS)  # nor a number from its spread


def test_a_word_that_is_wider_than_its_column_breaks_after_a_sign(monkeypatch, capsys) -> None:
    lines = print_at(66, monkeypatch, capsys)
    first = [line[1:].split("  ")[0].strip() for line in lines]
    assert max(map(len, lines)) <= 66
    assert "attention=" in first and "short_conv" in first


def test_a_table_that_fits_is_left_as_it_is(monkeypatch, capsys) -> None:
    lines = print_at(200, monkeypatch, capsys)
    assert all(any(cell in line for line in lines) for row in ROWS for cell in row)


def test_expendable_columns_go_in_turn_and_one_that_is_empty_is_gone_already(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    table = report.drop_empty(("arm", "a step", "params"), [["a" * 10, "", "1 M"]])
    assert report.fit_columns(*table, ("a step", "params")) == (["arm"], [["a" * 10]])
