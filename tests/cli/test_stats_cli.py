"""`zoo stats` of several models and of sweeps, and `zoo diff`: what they print, in which form, and what they refuse."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import fields
from typing import Any

import pytest

import zoo
from zoo.analysis.compare import flatten
from zoo.cli import run
from zoo.cli.setup import HELP, read_amount
from zoo.cli.showing import shorten_labels, split_words
from zoo.costs.setup import Setup
from zoo.errors import ConfigError
from zoo.report.figures import find_unit, format_cost_table
from zoo.units import format_change, format_figure, format_seconds


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """What a command prints at 80 columns; it must end with 0."""
    monkeypatch.setenv("COLUMNS", "80")

    def get(*args: str) -> str:
        assert run(args) == 0
        return capsys.readouterr().out

    return get


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """The faults of a command that must end with 2 and say nothing else."""

    def get(*args: str) -> list[str]:
        assert run(args) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return [line.removeprefix("zoo: error: ") for line in err.splitlines()]

    return get


def narrow(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


def markdown(text: str) -> list[list[str]]:
    """The cells of a GitHub table, its rule apart; every row has as many as the header."""
    lines = [line for line in text.splitlines() if line]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(set(cell) <= {"-", ":", " "} and "---" in cell for cell in cells[1])
    return [cells[0], *cells[2:]]


# ---------------------------------------------------------------- several models


def test_several_models_are_columns_of_one_table(printed) -> None:
    out = printed("stats", "llama3-8b", "mixtral-8x7b", "deepseek-v3", "attention.bias=false")
    assert narrow(out)
    assert out.split("total")[1].split()[:6] == ["8.03", "B", "46.7", "B", "671", "B"]


def test_two_models_have_their_difference_beside_them(printed) -> None:
    out = printed("stats", "llama3-8b", "gemma2-9b")
    assert narrow(out)
    assert out.split("total")[1].split()[:7] == ["8.03", "B", "9.24", "B", "+1.21", "B", "+15.1"]


def test_more_models_than_fit_are_several_tables(printed) -> None:
    out = printed("stats", *(["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"] * 2))
    assert narrow(out)
    assert out.count("gpt2-xl (2)") == 1
    assert out.count(" total ") >= 2


def test_overrides_are_for_all_models(printed) -> None:
    found = json.loads(printed("stats", "llama3-8b", "n_layers=4", "mistral-7b-v0.1", "--json", "--batch", "2"))
    assert [each.pop("model") for each in found] == ["llama3-8b", "mistral-7b-v0.1"]
    assert found == [zoo.stats(name, ["n_layers=4"], batch=2) for name in ("llama3-8b", "mistral-7b-v0.1")]


@pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "t5-small", "mixtral-8x7b")])
def test_csv_holds_the_figures_of_json(names: tuple[str, ...], printed) -> None:
    header, *rows = csv.reader(io.StringIO(printed("stats", *names, "--csv", "--context", "77")))
    assert header == ["figure", *names]
    for column, name in enumerate(names, 1):
        exact = flatten(zoo.stats(name, context=77))
        held = {row[0]: row[column] for row in rows if row[column]}
        assert held == {path: str(value) for path, value in exact.items() if value is not None and value != ""}


@pytest.mark.parametrize("names", [("gpt2",), ("gpt2", "t5-small"), ("gpt2", "bert-base", "mixtral-8x7b")])
def test_markdown_is_a_table_of_equal_rows(names: tuple[str, ...], printed) -> None:
    header, *rows = markdown(printed("stats", *names, "--md"))
    assert len(header) == {1: 3, 2: 5, 3: 4}[len(names)]
    assert all(len(row) == len(header) for row in rows)
    assert any(row[0] == "total" for row in rows)


def test_every_field_of_a_set_up_is_an_option(printed) -> None:
    out = printed("stats", "--help")
    assert set(HELP) == {field.name for field in fields(Setup)}
    for name in HELP:
        assert f"--{'tokens' if name == 'train_tokens' else name.replace('_', '-')}" in out


def test_options_reach_the_price(printed) -> None:
    out = printed(
        "stats", "gpt2", "--context", "64", "--batch", "2", "--dtype", "fp32", "--cache-dtype", "fp8", "--json"
    )
    assert json.loads(out) == zoo.stats("gpt2", context=64, batch=2, dtype="fp32", cache_dtype="fp8")


def test_a_difference_names_its_whole_field_on_a_narrow_screen(printed) -> None:
    out, _, _ = printed("diff", "llama3-8b", "gemma3-1b").partition(" total ")
    folded = re.sub(r" +-? *\S* *\n +\.", ".", out)  # what goes on in the next line begins with a dot
    assert "blocks.layer/global.attention.qk_norm.norm.weight_first" in folded
    assert narrow(out) and "…" not in out


def test_bytes_have_both_powers_beside_each_other(printed) -> None:
    assert "16.1 GB (15.0 GiB)" in printed("stats", "llama3-8b")


@pytest.mark.parametrize(("text", "value"), [("15T", 15e12), ("1e12", 1e12), ("300B", 3e11), ("2.5m", 2.5e6), ("7", 7)])
def test_tokens_are_read_as_the_literature_writes_them(text: str, value: float) -> None:
    assert read_amount(text) == value


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["stats", "gpt2", "lama", "gpt3"], "lama: no packaged model of that name (did you mean 'llama'?)"),
        (
            ["stats", "gpt2", "llama3-8b", "n_layer=3"],
            "gpt2: n_layer: unknown key (n_layers is Zoo's name for it: n_layers=3)",
        ),
        (["stats", "gpt2", "--json", "--csv"], "output: --json and --csv are two formats (leave one out)"),
        (["stats", "gpt2", "--dtype", "bf61"], "dtype: unknown 'bf61' (did you mean 'bf16'?)"),
        (["stats", "gpt2", "--tokens", "many"], "tokens: cannot read 'many' as a number (1e12, 300B or 15T)"),
        (["stats", "gpt2", "--tokens", "1T"], "tokens: are for the time to train on a GPU (--gpu h100, say)"),
        (["stats", "gpt2", "--mfu", "1.5"], "mfu: is a share of the peak, found 1.5"),
        (["stats", "gpt2", "--ep", "3"], "ep: 3 does not divide the 1 data-parallel ranks"),
        (["stats", "gpt2", "--columns", "kv"], "columns: only apply to a sweep's table (add -m)"),
        (["stats", "gpt2", "llama3-8b", "--cfg", "job"], "cfg: shows one model, 2 were named (name one)"),
        (["stats", "n_layers=3"], "target: is missing (a packaged model from `zoo list`"),
        (["stats", "gpt2", "--plot", "x.pdf"], "plot: x.pdf is not a picture"),
        (["stats", "-m", "gpt2", "n_layers=1,2", "--explain"], "multirun: takes no --cfg"),
        (["stats", "-m", "gpt2", "attention=foo,bar"], "attention: no option 'foo'"),
        (["stats", "-m", "gpt2", "n_layers=1,2", "--columns", "parms"], "columns: no figure is called 'parms'"),
        (["diff", "gpt2", "llama3-8b", "opt-125m"], "diff: compares two models, found gpt2, llama3-8b, opt-125m ("),
        (["diff", "gpt2", "n_layers=2"], "diff: compares two models, found gpt2 ("),
    ],
)
def test_bad_input_is_refused_in_a_line_that_says_what_would_do(args: list[str], fault: str, refused) -> None:
    assert refused(*args)[0].startswith(fault)


def test_each_unknown_model_is_one_line(refused) -> None:
    assert [line.split(":")[0] for line in refused("stats", "gpt2", "lama", "gpt9")] == ["lama", "gpt9"]


# ---------------------------------------------------------------- sweeps


def test_a_sweep_is_a_row_a_point(printed) -> None:
    out = printed("stats", "-m", "llama3-8b", "attention=mha,gqa,mqa", "position=rope,alibi")
    assert narrow(out)
    rows = [line.split() for line in out.splitlines() if line.split()[:1] in (["mha"], ["gqa"], ["mqa"])]
    assert [row[:2] for row in rows] == [[a, p] for a in ("mha", "gqa", "mqa") for p in ("rope", "alibi")]
    assert rows[2][2:4] == ["8.03", "B"]


def test_a_sweep_shows_what_a_window_saves_at_the_context(printed) -> None:
    out = printed("stats", "-m", "llama3.2-1b", "attention=gqa,sliding")
    assert "KV/token    cache" in out
    assert [re.findall(r"[\d.]+ [KMG]?B\b", line)[-3:-1] for line in out.splitlines() if "GFLOP" in line] == [
        ["32.8 KB", "4.29 GB"],
        ["32.8 KB", "134 MB"],
    ]


def test_a_refused_point_is_a_row_that_says_why(printed) -> None:
    out = printed("stats", "-m", "mixtral-8x7b", "top_k=1,2,99")
    assert narrow(out)
    assert "refused (1)" in out
    assert "(1) router: top_k=99 is more than n_experts=8" in out


def test_a_sweep_has_one_figure_in_every_form(printed) -> None:
    args = ("stats", "-m", "mixtral-8x7b", "llama3-8b", "attention=mha,fourier", "--columns", "params,kv_cache.bytes")
    data = json.loads(printed(*args, "--json"))
    header, *rows = csv.reader(io.StringIO(printed(*args, "--csv")))
    table = markdown(printed(*args, "--md"))
    assert header == ["model", "attention", "params.total", "kv_cache.bytes", "refused"]
    assert len(data) == len(rows) == len(table) - 1 == 4
    for each, row in zip(data, rows, strict=True):
        assert each["model"] == row[0]
        if "refused" in each:
            assert row[2:] == ["", "", "; ".join(each["refused"])]
        else:
            assert row[2:] == [str(each["params"]["total"]), str(each["kv_cache"]["bytes"]), ""]
            assert each["params"] == zoo.stats(row[0], each["overrides"])["params"]


# ---------------------------------------------------------------- diff, explain, verify


def test_diff_names_the_fields_first_and_leaves_out_what_is_equal(printed) -> None:
    out = printed("diff", "llama3-8b", "gemma2-9b")
    assert narrow(out)
    assert out.index("blocks.layer/local.attention.window") < out.index("total")
    assert not any("  =  " in line for line in out.splitlines())
    same = printed("diff", "llama3-8b", "llama3-8b")
    assert same.strip() == "the same in every field and figure"
    assert " = " in printed("diff", "llama3-8b", "llama3-8b", "--all")


def test_diff_cuts_no_name_that_the_screen_has_room_for(printed, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert printed("diff", "llama3-8b", "deepseek-v2-lite").count("deepseek-v2-lite ") == 2


def test_diff_leaves_out_a_scale_of_attention_that_is_what_none_means(printed) -> None:
    usual, others = (zoo.diff("llama3-8b", name)["architecture"] for name in ("gemma3-1b", "granite-4.0-micro"))
    assert not any(path.endswith("attention.scale") for path in usual)
    assert any(path.endswith("attention.scale") for path in others)


def test_diff_has_the_same_figures_in_every_form(printed) -> None:
    args = ("diff", "gpt2", "gpt2-medium", "--batch", "2")
    data = json.loads(printed(*args, "--json"))
    assert data == {"a": "gpt2", "b": "gpt2-medium", **zoo.diff("gpt2", "gpt2-medium", batch=2)}
    header, *rows = csv.reader(io.StringIO(printed(*args, "--csv")))
    assert header == ["figure", "gpt2", "gpt2-medium", "delta", "relative"]
    held = {row[0]: row[1:] for row in rows}
    total = data["figures"]["params.total"]
    assert held["params.total"] == [str(total[key]) for key in ("a", "b", "delta", "relative")]
    fields_table, figures_table = printed(*args, "--md").split("\n\n")
    assert ["d_model", "768", "1024"] in markdown(fields_table)
    assert any(row[0] == "total" for row in markdown(figures_table))


def test_explain_and_verify_are_held_in_json_and_fit_the_screen(printed) -> None:
    data = json.loads(printed("stats", "llama-tiny", "--explain", "--json"))
    total = next(line for line in data["explain"] if line["name"] == "total")
    assert total["result"] == data["params"]["total"]
    out = printed("stats", "llama-tiny", "--explain", "--verify")
    assert narrow(out)
    assert "equal: parameters" in out


# ---------------------------------------------------------------- small things


def test_arguments_with_a_sign_are_overrides_and_paths_that_exist_are_not(tmp_path) -> None:
    odd = tmp_path / "lr=1"
    odd.mkdir()
    words = ["gpt2", "n_layers=2", "+window=3", "~position", str(odd), "llama3-8b"]
    assert split_words(words) == (["gpt2", str(odd), "llama3-8b"], ["n_layers=2", "+window=3", "~position"])
    with pytest.raises(ConfigError):
        split_words(["n_layers=2"])


def test_labels_are_short_and_never_the_same() -> None:
    assert shorten_labels(["a/x.yaml", "b/y.yaml", "gpt2"]) == ["x.yaml", "y.yaml", "gpt2"]
    assert shorten_labels(["a/x.yaml", "b/x.yaml"]) == ["a/x.yaml", "b/x.yaml"]
    assert shorten_labels(["gpt2", "gpt2"]) == ["gpt2 (1)", "gpt2 (2)"]


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("params.by_component.experts", "params"),
        ("params.by_layer_kind.layer.layers", ""),
        ("flops.decode_expanded", "FLOP"),
        ("flops.context", ""),
        ("kv_cache.state_bytes", "B"),
        ("kv_cache.tokens", ""),
        ("memory.activations", "B"),
        ("roofline.decode.seconds", "s"),
        ("roofline.decode.tokens_per_second_each", "tok/s"),
        ("roofline.peak_flops_per_second", "FLOP/s"),
        ("roofline.ridge", "FLOP/B"),
    ],
)
def test_a_figure_has_its_unit_by_its_name(path: str, unit: str) -> None:
    assert find_unit(path) == unit


def test_numbers_are_written_for_people() -> None:
    assert [format_seconds(value) for value in (0.0123, 4e-6, 90, 7200, 864000)] == [
        "12.3 ms",
        "4.00 µs",
        "90.0 s",
        "2.00 h",
        "10.0 days",
    ]
    assert [format_change(value) for value in (0.151, -1, 24)] == ["+15.1 %", "-100.0 %", "×25.0"]
    assert format_figure(16.1e9, "B", short=True) == "16.1 GB"
    assert format_figure(None, "B") == "-"


def test_figures_that_have_no_label_of_their_own_are_shown_and_fit() -> None:
    priced = zoo.stats("gpt2")
    priced["memory"]["something_new"] = 5_000_000
    out = format_cost_table(priced, "gpt2")
    assert narrow(out)
    assert re.search(r"something new +5.00 MB \(4.77 MiB\)", out)


@pytest.mark.parametrize("name", ["llama3-8b", "deepseek-v3", "qwen3-30b-a3b", "t5-small", "bert-base", "mamba-130m"])
def test_a_roofline_says_what_binds_each_use(name: str) -> None:
    priced = zoo.stats(name, gpu="h100", batch=2, context=512, train_tokens=1e12, dp=8, zero=3)
    out = format_cost_table(priced, name)
    assert narrow(out)
    uses = [use for use in ("decode", "prefill") if use in priced["roofline"]]
    assert [
        re.search(rf"{use}.*, batch 2 .*(compute|memory)-bound ", out.replace("decoding", "decode")) for use in uses
    ]
    assert ("decoding a token, batch 2" in out) == (name != "bert-base")
    assert re.search(r"training, 40 % MFU, 8 GPUs +.*/step", out) and "GPU hours" in out


def test_what_to_change_first_is_said_with_what_it_saves() -> None:
    memory = zoo.stats("llama3-8b")["memory"]
    assert memory["bottleneck"] == "optimizer"
    saved = [each["saves"] for each in memory["change_first"]]
    assert saved == sorted(saved, reverse=True) and min(saved) > 0
    for each in memory["change_first"]:
        name, *value = each["change"].removeprefix("--").split()
        if name != "dp":
            fields = {name.replace("-", "_"): value[0] if value else True}
            assert zoo.stats("llama3-8b", **fields)["memory"]["train_peak"] == each["train_peak"]
    out = format_cost_table(zoo.stats("llama3-8b"), "llama3-8b")
    assert re.search(r"with --chunked-loss +saves 1.11 GB.*\n +as zoo train computes the loss\n", out)
    assert "equal savings: the peak is then in the optimizer's step" in out


@pytest.mark.parametrize("setting", [{}, {"context": 64}, {"dp": 8, "zero": 3}, {"pp": 2, "recompute": "full"}])
@pytest.mark.parametrize("name", ["llama3-8b", "mixtral-8x7b", "falcon-h1-0.5b"])
def test_the_rows_marked_plus_add_up_to_the_peak(name: str, setting: dict[str, Any]) -> None:
    priced = zoo.stats(name, **setting)
    row = r"^  ([+=]) (.*?)  +([\d.,]+) ([KMGT]?B) "
    for use, peak in (("train", "train_peak"), ("generate", "generate_peak")):
        told = format_cost_table(priced, name).split(f"Memory to {use}")[1].split("\n\n")[0]
        found = [(sign, text, as_bytes(size, unit)) for sign, text, size, unit in re.findall(row, told, re.MULTILINE)]
        *parts, (sign, text, total) = found
        assert (sign, text) == ("=", "peak") and {each[0] for each in parts} == {"+"} and len(parts) >= 3
        assert total == pytest.approx(priced["memory"][peak], rel=5e-3)
        assert sum(size for *_, size in parts) == pytest.approx(total, rel=1e-2)
    served = next(size for _, text, size in parts if text == "weights")
    assert setting.get("pp") or served == pytest.approx(2 * priced["params"]["total"], rel=5e-3)


def as_bytes(size: str, unit: str) -> float:
    return float(size.replace(",", "")) * 1000 ** "BKMGT".index(unit[0])


def test_the_rules_of_thumb_are_explained_beside_the_exact_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.cli.run(("stats", "mixtral-8x7b", "--explain")) == 0
    out = capsys.readouterr().out
    assert narrow(out)
    assert "12·L·d² = 6.44 B, -86.2 % of the exact 46.7 B" in out and "holds: GPT blocks" in out


# ---------------------------------------------------------------- a run that trains a part


def test_adapters_and_frozen_weights_are_priced_as_a_run_trains_them(printed):
    whole = json.loads(printed("stats", "llama-tiny", "--json"))
    lora = json.loads(printed("stats", "llama-tiny", "--json", "--lora", "{rank: 2, on: [attention]}"))
    figures = zoo.stats("llama-tiny", lora={"rank": 2, "on": ["attention"]})
    assert figures == lora
    built = zoo.build("llama-tiny", device="meta")
    shapes = [each.shape for name, each in built.named_parameters() if ".attention." in name]
    assert lora["trained"]["parameters"] == sum(2 * sum(shape) for shape in shapes if len(shape) == 2)
    assert lora["memory"]["gradients"] == 2 * lora["trained"]["parameters"]
    assert "trained" not in whole and lora["memory"]["train_peak"] < whole["memory"]["train_peak"]
    frozen = json.loads(printed("stats", "llama-tiny", "--json", "--freeze", "embedding*", "--freeze", "*norm*"))
    assert frozen["trained"]["adapters"] == 0
    assert frozen["trained"]["checkpoint"] == 4 * whole["params"]["total"] + 8 * frozen["trained"]["parameters"]


def test_a_part_that_trains_is_told_first_and_in_a_sweep(printed):
    text = printed("stats", "llama-tiny", "--train", "norm*", "--precision", "fp32")
    assert re.search(r"^  trained     \d+, 0\.\d\d % of all; .* per checkpoint$", text, re.MULTILINE)
    assert "FLOP with backward of the trained part" in " ".join(text.split())
    text = printed("stats", "llama-tiny", "--train", "norm*", "--convention", "palm")
    assert "FLOP with backward of all weights (palm)" in " ".join(text.split())
    table = printed("stats", "llama-tiny", "-m", "n_layers=1,2", "--lora", "{rank: 2}", "--columns", "trained.adapters")
    assert re.findall(r"(\d)\s+(\d\.\d\d) K", table) == [("1", "2.56"), ("2", "5.12")]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--lora", "{rank: 0}"], "lora.rank: must be greater than 0, found 0"),
        (["--lora", "{ranks: 4}"], "lora.ranks: no such field (did you mean 'rank'?)"),
        (["--lora", "{on: [atention]}"], "lora.on: 'atention' names no product (did you mean 'attention'?)"),
        (["--lora", "{rank: 4,8"], "lora={rank: 4,8: bad override syntax"),
        (["--lora", "{rank: 4}", "--tp", "2"], "lora: is priced without tp, pp and ep (--dp, --cp, --zero)"),
        (["--train", "zzz*"], "train: 'zzz*' matches no weight"),
        (["--train", "norm*", "--verify"], "verify: builds no adapters, and trains all weights"),
    ],
)
def test_what_cannot_train_is_refused_by_name(refused, options, fault):
    (line,) = refused("stats", "llama-tiny", *options)
    assert line.startswith(fault)


def test_a_folder_with_the_name_of_a_packaged_model_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert run(["stats", "gpt2"]) == 0
    assert capsys.readouterr().err == ""  # a folder without a model
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    assert run(["stats", "gpt2"]) == 0
    assert capsys.readouterr().err == "zoo: note: gpt2: the packaged model; the folder here is ./gpt2\n"
