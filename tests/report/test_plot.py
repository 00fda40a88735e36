"""The pictures of `zoo stats --plot`: they are there, they show something, and they say what."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.packaged_specs import load
from zoo.cli import run
from zoo.costs import Setup
from zoo.errors import ConfigError
from zoo.report.price_plot import draw_models, join_equal, list_contexts


def written(file: Path) -> str:
    """The text of an SVG, which stays text."""
    body = file.read_text()
    assert body.startswith("<?xml")
    return body


def test_a_png_is_not_one_color(tmp_path: Path) -> None:
    from matplotlib.image import imread

    file = tmp_path / "one.png"
    draw_models({"gpt2": load("gpt2")}, Setup(), file)
    pixels = imread(file)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 2 * pixels.shape[0]
    assert pixels[..., :3].std() > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]


def test_an_svg_has_its_labels_as_text(tmp_path: Path) -> None:
    file = tmp_path / "several.svg"
    draw_models({name: load(name) for name in ("llama3-8b", "mixtral-8x7b", "gpt2")}, Setup(gpu="h100", batch=4), file)
    body = written(file)
    for label in ("llama3-8b", "mixtral-8x7b", "experts", "46.7 B", "active per token", "context (tokens)", "32k"):
        assert label in body
    for label in ("Roofline of NVIDIA H100 SXM", "989 TFLOP/s, bf16", "gpt2, decode", "ridge 295 FLOP/B"):
        assert label in body


@pytest.mark.parametrize("name", ["bert-base", "t5-small", "mamba-130m", "gemma2-9b"])
def test_any_kind_of_model_can_be_drawn(name: str, tmp_path: Path) -> None:
    draw_models({name: load(name)}, Setup(gpu="h100"), tmp_path / "any.svg")
    assert f"{name}, prefill" in written(tmp_path / "any.svg")


def test_the_command_draws_beside_its_table(tmp_path: Path, capsys) -> None:
    file = tmp_path / "swept.svg"
    assert run(["stats", "-m", "gpt2", "attention=mha,mqa", "--plot", str(file)]) == 0
    assert "mqa" in written(file)
    assert "mqa" in capsys.readouterr().out
    assert run(["diff", "gpt2", "gpt2-medium", "--plot", str(file)]) == 0
    assert "gpt2-medium" in written(file)


def test_contexts_go_up_to_the_longest() -> None:
    assert list_contexts(100) == [100]
    assert list_contexts(8192)[0] == 128
    assert list_contexts(8192)[-1] == 8192
    assert list_contexts(8192) == sorted(list_contexts(8192))


@pytest.mark.parametrize(
    ("file", "fault"),
    [("x.pdf", "is not a picture"), ("none/x.png", "is no folder"), ("folder.png", "cannot be written")],
)
def test_a_file_that_cannot_be_drawn_is_refused(file: str, fault: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=fault):
        draw_models({"gpt2": load("gpt2")}, Setup(), tmp_path / file)


def test_too_many_models_are_refused_before_they_are_drawn(tmp_path: Path) -> None:
    spec = load("gpt2")
    with pytest.raises(ConfigError, match="13 models are too many for one picture"):
        draw_models({str(number): spec for number in range(13)}, Setup(), tmp_path / "x.png")


def test_equal_curves_have_one_name_in_the_legend(tmp_path: Path) -> None:
    file = tmp_path / "equal.svg"
    assert run(["stats", "-m", "gpt2", "attention=mha,mqa", "position=rope,alibi", "--plot", str(file)]) == 0
    body = written(file)
    assert "mha rope = mha alibi" in body and "mqa rope = mqa alibi" in body
    assert join_equal({"a": [1, 2], "b": [1, 3], "c": [1, 2]}) == {"a = c": [1, 2], "b": [1, 3]}


@pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "llama3-8b", "qwen3-8b", "mixtral-8x7b")])
def test_no_legend_covers_an_axis(names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn: list = []
    monkeypatch.setattr("zoo.report.price_plot.write_figure", lambda figure, file: drawn.append(figure))
    draw_models({name: load(name) for name in names}, Setup(gpu="h100"), tmp_path / "any.png")
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert legend.y1 < axes.xaxis.label.get_window_extent().y0 and legend.y0 >= 0
