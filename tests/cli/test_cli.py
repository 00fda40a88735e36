"""The command line as its users meet it: what it prints, what it leaves behind, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import zoo
from support.command_lines import ROOT, TINY, zoo_process
from zoo.cli import app, run
from zoo.cli.build import describe_wait
from zoo.compose import load
from zoo.paths import conf_dir

# ---------------------------------------------------------------- what it costs to ask


def test_help_imports_neither_hydra_nor_torch_and_names_every_verb() -> None:
    heavy = "('torch', 'hydra', 'omegaconf', 'rich', 'pydantic')"
    code = f"import sys; from zoo.cli import run; run(['--help']); print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.splitlines()[-1] in ("[]", "['pydantic']")
    for verb, line in app.VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(line[:30])}", out, re.MULTILINE)


@pytest.mark.parametrize("verb", app.VERBS)
def test_every_verb_has_help_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: zoo {verb}" in out
    assert "--help" in out


def test_stats_load_few_modules_and_help_almost_none() -> None:
    """What a start costs, counted rather than timed; `zoo bench` has the seconds."""

    def modules(arguments: list[str]) -> int:
        code = f"import sys; from zoo.cli import run; run({arguments!r}); print(len(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        return int(done.stdout.splitlines()[-1])

    assert modules(["stats", "llama3-8b", "attention=mqa", "n_layers=4"]) < 750  # torch alone loads 1,124
    assert modules(["--help"]) < 190  # Python itself some 60


def test_a_price_leaves_nothing_for_python_to_collect_at_its_end() -> None:
    """The last collection would take a fifth of the time of `zoo stats`."""
    code = (
        "import zoo.cli\nclass Ring:\n    def __del__(self): print('collected')\n"
        "ring = Ring(); ring.itself = ring; del ring\nzoo.cli.main({})"
    )

    def collects(arguments: list[str]) -> bool:
        program = [sys.executable, "-c", code.format(arguments)]
        done = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT)
        return "collected" in done.stdout.splitlines()

    assert not collects(["list", "llama3-8b"]) and collects(["--version"])


# ---------------------------------------------------------------- list and stats


def test_list_has_a_line_for_every_packaged_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "kind", "params", "what", "is", "special"]
    assert {line.split()[0] for line in lines} == {path.stem for path in (conf_dir() / "model").glob("*.yaml")}
    assert any(re.match(r"llama3-8b +decoder +8\.03 B +GQA", line) for line in lines)
    assert any(re.match(r"llama +decoder +8\.03 B +another name for llama3-8b", line) for line in lines)


def test_on_a_narrow_terminal_the_list_has_every_word_whole(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "qwen"]) == 0
    words = capsys.readouterr().out.split()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(["list", "qwen"]) == 0
    shown = re.sub(r"\033\[\dm|[\ufdd0\ufdd1]", "", capsys.readouterr().out)
    assert shown.split() == words and max(map(len, shown.splitlines())) <= 80


def listed(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    """The names that `zoo list` prints."""
    assert run(["list", *args]) == 0
    return [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]


def test_list_keeps_the_models_that_have_every_word_and_the_kind(capsys: pytest.CaptureFixture[str]) -> None:
    every = listed(capsys)
    llamas = listed(capsys, "Llama", "--kind", "decoder")
    assert "llama3-8b" in llamas and "tinyllama-1.1b" in llamas and "gpt2" not in llamas
    nodes = {name: yaml.safe_load((conf_dir() / f"model/{name}.yaml").read_text()) for name in every}
    named = [name for name in every if "llama" in name]
    assert set(named) <= set(llamas) < set(every)
    encoders = listed(capsys, "--kind", "encoder")
    assert {name for name, node in nodes.items() if node.get("kind") == "encoder"} <= set(encoders)
    assert set(listed(capsys, "bert", "wider", "--kind", "encoder")) == {"bert-large", "roberta-large"}


def test_list_refuses_a_kind_that_there_is_not_and_words_that_no_model_has(refused) -> None:
    assert refused("list", "--kind", "decodr") == ["kind: there is no 'decodr' (did you mean 'decoder'?)"]
    assert refused("list", "lamma3-8b") == [
        "list: no packaged model has 'lamma3-8b' in its name, title, note, source or parts (did you mean 'llama3-8b'?)"
    ]
    assert refused("list", "llama", "--kind", "encoder") == [
        "list: no packaged model of kind encoder has 'llama' in its name, title, note, source or parts "
        "(`zoo list` shows all)"
    ]


def test_zoo_alone_says_what_it_does_and_three_commands_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    alone = capsys.readouterr().out
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == alone
    assert max(map(len, alone.splitlines())) <= 80
    commands = re.findall(r"^    (zoo .*?)(?:  |$)", alone, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["list", "stats", "train"]
    for command in commands[:2]:
        assert run(command.split()[1:]) == 0
    assert run([*commands[2].split()[1:], "--cfg", "job"]) == 0


def test_a_verb_without_its_model_says_where_there_are_some(refused) -> None:
    takes = "a packaged model from `zoo list`, a YAML, config.json or GGUF file, a folder with a model or a run, or "
    takes += "ORG/NAME on the Hugging Face hub"
    for verb in ("stats", "build"):
        assert refused(verb) == [f"target: is missing ({takes})"]
    assert refused("diff", "gpt2") == ["diff: compares two models, found gpt2 (`zoo stats` takes any number)"]
    assert refused("diff", "gpt2", "./none/") == ["none: no such file"], "once"
    assert refused("resume")[0].endswith("no such command (zoo train --resume RUN)")
    assert refused("stats", "attention=mqa")[0].startswith("target: is missing (a packaged model from `zoo list`")


def test_stats_json_is_what_python_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["stats", "llama3-8b", "attention=mqa", "--context", "100", "--batch", "3", "--dtype", "fp32", "--json"])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == zoo.stats("llama3-8b", ["attention=mqa"], context=100, batch=3, dtype="fp32")


@pytest.mark.parametrize("name", ["llama3.1-405b", "mixtral-8x22b", "gpt-tiny"])
def test_the_table_of_stats_fits_eighty_columns_and_shows_the_exact_count(name: str, capsys) -> None:
    assert run(["stats", name, "--batch", "128"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert f"{zoo.stats(name)['params']['total']:,}" in out
    assert re.search(r"per token +[\d,]+ B +[\d.]+ [KM]?B \([\d.]+ [KM]iB\)", out)


def test_cfg_and_resolve_print_yaml_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stats", "llama3-8b", "attention=mqa", "--cfg", "job"]) == 0
    raw = yaml.safe_load(capsys.readouterr().out)
    assert (raw["attention"]["n_heads"], raw["attention"]["n_kv_heads"]) == ("${up:n_heads}", 1)
    assert run(["stats", "llama3-8b", "--resolve"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["attention"]["n_heads"] == 32


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (["stat"], "'stat': no such command (did you mean 'stats'?)"),
        (["stats"], "target: is missing (a packaged model from `zoo list`"),
        (["stats", "gpt2", "--jsn"], "No such option: --jsn (Possible options: --csv, --json)"),
        (["new", "--tour"], "tour: FOLDER is missing (write twelve models instead"),
        (["list", "--axis"], "axis: AXIS is missing (list the choices of one axis instead of models"),
        (["list", "--params", "10B..1B"], "params: FROM is larger than TO, found '10B..1B' (1B..10B)"),
        (["stats", "gpt2", "ffn.moe"], "ffn.moe: no packaged model of that name (ffn=moe chooses the ffn of a model)"),
        (["stats", "gpt2", "d_ff:512"], "d_ff:512: no packaged model of that name (d_ff=512 sets a model's d_ff)"),
        (
            ["stats", "gpt2", "base=llama3-8b"],
            "base: unknown key (a model is named first: `zoo stats llama3-8b`; in a file: [/model/llama3-8b@_here_])",
        ),
        (["stats", "gpt2", "--batch", "0"], "--batch: is '0' (at least 1)"),
        (["stats", "lama"], "lama: no packaged model of that name (did you mean 'llama'?)"),
        (["stats", "gemma2"], "gemma2: no packaged model of that name (did you mean 'gemma2-2b'?)"),
        (["stats", "no/such.yaml"], "no/such.yaml: no such file"),
        (["stats", "gpt2", "n_layer=3"], "n_layer: unknown key (n_layers is Zoo's name for it: n_layers=3)"),
        (["build", "gpt2", "n_layers=x"], "n_layers: must be a whole number above 0, found 'x'"),
        (["experiment", "--margin", "abc"], "--margin: is 'abc' (a number)"),
        (["build", "llama3.1-405b", "--device", "cpu"], "memory: 405,853,388,800 parameters need 811.7 GB"),
        (["build", "gpt-tiny", "--kernel", "flsh"], "kernel: there is no 'flsh'"),
        (["build", "gpt-tiny", "--device", "meta", "--out", "x"], "out: a model on meta has no weights to write"),
        (["train", "stepss=3"], "stepss: unknown key (did you mean 'steps'?)"),
        (["train", "model=lama-tiny"], "model: no option 'lama-tiny' (did you mean 'llama-tiny'? "),
        (["train", "model=nope.yaml"], "nope.yaml: no such file"),
        (["train", "-c", "nope.yaml"], "nope.yaml: no such file"),
        (["train", "steps=1,2"], "steps=1,2: several values are a sweep, for train, stats and probe -m"),
        (["train", "--resume", "nope"], "nope: is no run"),
        (["train", "--resume", "nope", "-m"], "resume: takes overrides of what may change, and no other option"),
        (["train", "-m", "attention=mqa,mka"], "attention: no option 'mka'"),
        (["train", "hydra/launcher=nope", "-m"], "hydra/launcher: no option 'nope'"),
        (["generate"], "checkpoint: there is no runs/last here"),
        (["generate", "--top-p", "3"], "top_p: is 3.0"),
    ],
)
def test_a_users_fault_is_one_line_ends_with_two_and_writes_nothing(here, refused, args: list[str], fault: str) -> None:
    (line,) = refused(*args)
    assert fault in line
    assert [path.name for path in here.iterdir()] == ["text.txt"]


def test_every_fault_of_a_training_config_is_told_at_once(here: Path, refused) -> None:
    found = refused("train", "data=text", "stepss=3", "n_layer=2", "optim.lr=fast", "model.attention.foo=1", "steps=-1")
    assert {line.split(":")[0] for line in found} == {
        *("stepss", "n_layer", "optim.lr", "model.attention.foo", "steps", "data.path"),
    }


def test_a_fault_of_one_job_says_which_and_stops_the_sweep_before_it_starts(here: Path, refused) -> None:
    (line,) = refused("train", "-m", *TINY, "model=llama-tiny,gpt-tiny", "model.head_dim=32,x")
    assert line.startswith("model.head_dim: ")
    assert line.endswith("[model=llama-tiny model.head_dim=x]")
    assert not (here / "sweeps").exists()


def test_debug_shows_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stats", "lama", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("zoo: error: lama: ")


FULL_DISK = """
import resource, sys
import zoo.cli
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # no file may grow past this: the weights are larger
sys.exit(zoo.cli.run(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file's size")
@pytest.mark.parametrize("to", ["zoo", pytest.param("hf", marks=pytest.mark.slow)])
def test_a_disk_that_is_full_costs_convert_one_line_and_leaves_nothing(here: Path, to: str) -> None:
    assert run(["build", "llama-tiny", "n_layers=1", "--device", "cpu", "--out", "there"]) == 0
    line = [sys.executable, "-c", FULL_DISK, "convert", "there", "out", "--to", to, "--no-verify"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}  # a cut .pyc would stay
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("zoo: error: ") and "File too large" in done.stderr
    assert [path.name for path in here.iterdir() if "out" in path.name] == []


def test_a_file_that_may_not_be_read_costs_one_line_and_debug_shows_the_trace(monkeypatch, capsys) -> None:
    def denied() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "conf/model")

    monkeypatch.setattr("zoo.compose.catalogue.read_models", denied)
    assert run(["list"]) == 1
    assert capsys.readouterr().err == "zoo: error: conf/model: cannot be read or written, found Permission denied\n"
    assert run(["list", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interrupt_ends_quietly_with_130(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.compose.catalogue.read_models", interrupted)
    assert run(["list"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    line = f"{sys.executable} -m zoo list --json | true"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_doubtful_override_is_noted_and_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["stats", "gpt2", "n_layers=1", "n_layers=2", "--json"]) == 0
    assert capsys.readouterr().err == "zoo: note: n_layers is given 2 times, n_layers=2 counts\n"


# ---------------------------------------------------------------- build and doctor


def test_build_shows_the_tree_the_kernel_and_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "mixtral-tiny", "n_layers=3"]) == 0
    out = capsys.readouterr().out
    total = zoo.stats("mixtral-tiny", ["n_layers=3"])["params"]["total"]
    assert f"built {total:,} parameters on cpu, as counted" in out
    assert re.search(r"^    0-2 +pre +3 × [\d,]+$", out, re.MULTILINE)
    assert re.search(r"^        q +Linear +192×192 +36,864$", out, re.MULTILINE)
    assert "kernel: sdpa on cpu" in out
    assert f"weights: {2 * total / 1e6:#.3g}".rstrip(".") in out


def test_a_deep_model_says_beforehand_how_long_it_takes_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.cli.build.WAIT", 4)  # a fast machine takes 20 s for as many layers as there may be
    assert describe_wait(load("llama-tiny")) is None
    said = describe_wait(load("llama-tiny", ["n_layers=100000"]))
    assert said is not None
    found = re.fullmatch(r"building 100,000 layers, with a module for each weight: takes (\d+) (s|min) at least", said)
    assert found and int(found[1]) * {"s": 1, "min": 60}[found[2]] >= 4
    one_set_of_weights = load("llama-tiny", ["n_layers=100000", "shared_layers=true"])
    assert describe_wait(one_set_of_weights) is None


def test_build_says_why_a_kernel_was_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "llama-tiny", "attention.softcap=30", "--device", "meta"]) == 0
    out = capsys.readouterr().out
    assert "kernel: eager on cpu" in out or "kernel: eager on cuda" in out
    assert re.search(r"^  not sdpa: .*softcap", out, re.MULTILINE)


def test_build_writes_a_checkpoint_that_loads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "gpt-tiny", "n_layers=1", "--out", "made", "--dtype", "fp32"]) == 0
    assert sorted(path.name for path in (here / "made").iterdir()) == ["manifest.json", "model.safetensors", "zoo.yaml"]
    assert zoo.load(here / "made").spec == zoo.build("gpt-tiny", ["n_layers=1"], device="meta").spec


def test_a_file_from_anywhere_builds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.yaml").write_text("defaults: [/model/gpt-tiny@_here_]\nn_layers: 1\nattention: mqa\n")
    assert run(["build", "mine.yaml", "attention.bias=false"]) == 0
    assert run(["build", str(here / "mine.yaml"), "--device", "meta"]) == 0


@pytest.mark.slow
def test_doctor_names_versions_devices_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  torch +\d+\.\d+", out, re.MULTILINE)
    assert re.search(r"^  plain +\S", out, re.MULTILINE)
    assert re.search(r"^  compiler +", out, re.MULTILINE)


# ---------------------------------------------------------------- what is printed to


@pytest.mark.parametrize("verb", ["list", "solve batch llama3-8b --gpu h100"])
def test_what_a_terminals_encoding_lacks_is_printed_escaped(verb: str) -> None:
    done = zoo_process(*verb.split(), env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stderr == ""
    whole = zoo_process(*verb.split(), env={"PYTHONIOENCODING": "utf-8"}, encoding="utf-8")
    assert done.stdout == whole.stdout.encode("ascii", "backslashreplace").decode() != whole.stdout


@pytest.mark.skipif(os.name == "nt", reason="needs a shell that closes a stream")
def test_output_that_nobody_takes_is_no_fault() -> None:
    command = f"'{sys.executable}' -m zoo stats llama-tiny >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_place_that_cannot_be_written_to_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["n_layers=1", "d_model=32", "d_ff=32"]
    assert run(["build", "llama-tiny", *small, "--device", "cpu", "--out", "text.txt/out"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("zoo: error: ") and "text.txt" in said and "cannot be read or written" in said
    assert said.count("\n") == 1
