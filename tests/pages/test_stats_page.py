"""docs/stats.md says what the code counts."""

from pages import stats_page


def test_the_page_is_what_its_command_writes():
    written = stats_page.PAGE.read_text(encoding="utf-8")
    assert written == stats_page.page(), "docs/stats.md is old (python tests/pages stats)"


def test_every_model_of_the_table_has_errors_or_a_reason():
    rows = [line for line in stats_page.rules().splitlines()[2:]]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(stats_page.MODELS)
    assert "−20 %" in rows[1] and "does not fit" in rows[-1]
