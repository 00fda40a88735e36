"""Data names no code: no file of a model, run, recipe or task makes a program run or leaves its folder unless it is
trusted. Every attack would make a canary file, and none does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import hydra
import omegaconf
import pytest
import yaml

from support.tiny_runs import compose_run, write_corpus
from zoo import grammar, runs
from zoo.cli import run
from zoo.compose import load
from zoo.compose.gate import check_overrides
from zoo.errors import ConfigError
from zoo.training.planning import plan_training
from zoo.untrusted.json_file import parse_json
from zoo.untrusted.stated_paths import find_inside
from zoo.untrusted.yaml_file import check_yaml, read_yaml_text

pytestmark = pytest.mark.quick

CODE = "{_target_: os.system, command: touch CANARY}"
ALONE = "only the command line may, and a file of -c with --trust"
SHORT = ["steps=1", "batch_size=1", "seq_len=8", "eval_every=null", "sample=null", "--cfg", "job"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's folder, as the working folder. Beside it lies a file that nothing in it may reach."""
    folder = tmp_path / "stranger"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "outside.yaml").write_text("kind: gqa\n")
    (folder / "evil.yaml").write_text("_target_: os.system\ncommand: touch CANARY\n")
    (folder / "plain.yaml").write_text("run: {dir: elsewhere}\n")
    (folder / "placed.yaml").write_text("# @package _global_.hydra.callbacks.e\n_target_: os.system\n")
    return folder


MODELS = {
    "defaults: [/model/llama-tiny@_here_, /evil@_global_.hydra.callbacks.e]": (
        "defaults: puts '/evil' into Hydra's own settings, at '_global_.hydra.callbacks.e'"
    ),
    "defaults: [/model/llama-tiny@_here_, /plain@_global_.hydra]": "defaults: puts '/plain' into Hydra's own settings",
    "defaults: [/model/llama-tiny@_here_, /placed]": "_target_: names code, found 'os.system'",
    "defaults: [/model/llama-tiny@_here_, override /hydra/launcher: joblib]": (
        "mine.yaml:1: defaults: chooses '/hydra/launcher', which is Hydra's own"
    ),
    f"defaults: [/model/llama-tiny@_here_]\nhydra: {{callbacks: {{e: {CODE}}}}}": (
        "hydra: sets Hydra's own settings, found 'callbacks'"
    ),
    f"defaults: [/model/llama-tiny@_here_]\nattention: {CODE}": "attention._target_: names code, found 'os.system'",
    "defaults: [/model/llama-tiny@_here_]\nattention: ../../outside": (
        "defaults: '../../outside' leads out of the file's folder (a file in it)"
    ),
    "defaults: [/model/llama-tiny@_here_, /../outside]": "defaults: '/../outside' leads out of the file's folder",
    "defaults: [/model/llama-tiny@_here_]\nabout: {title: '${oc.env:HOME}'}": "about.title: asks '${oc.env:…}'",
    "defaults: [/model/llama-tiny@_here_]\nabout: {title: '${${x}:HOME}'}": "about.title: asks '${${x}:…}'",
}


@pytest.mark.parametrize("text", MODELS)
def test_a_models_file_names_no_code_and_reads_nothing_outside(here: Path, text: str, refused) -> None:
    (here / "mine.yaml").write_text(text + "\n")
    for args in (["stats", "mine.yaml"], ["train", "model=mine.yaml", *SHORT]):
        assert MODELS[text] in refused(*args)[0]
    assert not (here / "CANARY").exists()


def test_an_absolute_path_is_no_group(here: Path, refused) -> None:
    for entry in (f"/{here.parent}/outside@_here_", f"/model/{here.parent}/outside@_here_"):
        (here / "mine.yaml").write_text(f"defaults: [/model/llama-tiny@_here_, '{entry}']\n")
        assert "leads out of the file's folder (a file in it)" in refused("stats", "mine.yaml")[0]


CONFIGS = {
    f"hydra: {{callbacks: {{e: {CODE}}}}}": (
        f"mine.yaml:1: hydra: sets Hydra's own settings, found 'callbacks' ({ALONE})"
    ),
    "defaults: [/config, {override /hydra/launcher: joblib}, _self_]": (
        f"mine.yaml:1: defaults: chooses '/hydra/launcher', which is Hydra's own ({ALONE})"
    ),
    "launcher: {kind: slurm, lines: [touch CANARY]}": (
        f"mine.yaml:1: launcher.lines: states lines for a shell, found a list of 1 ({ALONE})"
    ),
    "logger: {kind: mlflow, uri: 'http://stranger'}": (
        f"mine.yaml:1: logger.uri: states where to send what is logged, found 'http://stranger' ({ALONE})"
    ),
    "kernel: flash2_hub": f"mine.yaml:1: kernel: is 'flash2_hub', which is fetched from the hub ({ALONE})",
    "sample: {prompt: '${oc.env:HOME}'}": (
        f"mine.yaml:1: sample.prompt: asks '${{oc.env:…}}' (a value, or ${{up:…}} and ${{or:…}}; {ALONE})"
    ),
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_training_config_names_no_code_unless_it_is_trusted(here: Path, text: str, refused, capsys) -> None:
    (here / "mine.yaml").write_text(text + "\n")
    assert refused("train", "-c", "mine.yaml", *SHORT) == [CONFIGS[text]]
    assert run(["train", "-c", "mine.yaml", "--trust", *SHORT]) == 0
    assert not (here / "CANARY").exists()  # --cfg runs nothing


def test_a_file_that_is_trusted_sets_what_hydra_has(here: Path, capsys) -> None:
    (here / "mine.yaml").write_text("hydra: {job: {name: mine}}\n")
    assert run(["train", "-c", "mine.yaml", "--trust", "--cfg", "hydra"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["hydra"]["job"]["name"] == "mine"


def test_trust_is_said_of_a_file(here: Path, refused) -> None:
    assert refused("train", "--trust") == ["trust: needs a file (-c FILE)"]


@pytest.mark.parametrize(
    "override",
    [
        f"+hydra.callbacks.e={CODE}",
        "hydra/launcher=joblib",
        "hydra.run.dir=/tmp/x",
        "+hydra={callbacks: {}}",
        "+a@hydra.callbacks=evil",
        "+x@_global_.hydra=evil",
        f"++anything={CODE}",
        "launcher.lines=[touch CANARY]",
        "launcher={kind: slurm, lines: [touch CANARY]}",
        "logger.uri=http://stranger",
        "kernel=flash3_hub",
        "model.about.title='${oc.env:HOME}'",
    ],
)
def test_a_recipes_overrides_name_no_code(here: Path, override: str, refused) -> None:
    arms = {"one": ["steps=1"], "two": ["steps=2"]}
    recipe = {"claim": "c", "source": "s", "minutes": 1, "config": "small", "arms": arms}
    recipe["expect"] = [{"arm": "one", "against": "two", "verdict": "better"}]
    for place in ("shared", "arms.one", "short.overrides"):
        body = recipe | {"shared": []}
        if place == "shared":
            body["shared"] = [override]
        elif place == "arms.one":
            body["arms"] = arms | {"one": [override]}
        else:
            body["short"] = {"overrides": [override]}
        (here / "mine.yaml").write_text(yaml.safe_dump(body))
        (line,) = [each for each in refused("recipes", "mine.yaml") if "config:" not in each]
        assert re.match(rf"mine\.yaml:\d+: {re.escape(place)}: ", line) and ALONE in line
    assert not (here / "CANARY").exists()


def test_the_packaged_recipes_name_no_code() -> None:
    from zoo.experiments.experiment import find_recipe, list_recipes

    for name in list_recipes():
        find_recipe(name)
    check_overrides(["optim.lr=1e-3,3e-4", "attention=mqa", "model.hydration=1", "+model.n_layers=2"], "mine")


def test_the_yaml_of_a_task_is_a_program(here: Path, refused) -> None:
    (here / "task.yaml").write_text("task: mine\ndoc_to_text: !function evil.run\n")
    line = "tasks: task.yaml: a task's YAML may run any program (--trust says it may)"
    assert refused("eval", "nothing", "--tasks", "task.yaml") == [line]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BOMB, "mine.yaml:5: holds more than 20,000 values, aliases expanded (fewer)"),
        ("a: &a [*a]\n", "mine.yaml:1: holds more than 20,000 values, aliases expanded (fewer)"),
        ("[" * 100_000, "mine.yaml:1:1001: not YAML, exceeded maximum nesting depth"),
        ("? " * 5_000, "mine.yaml:1: is nested more than 64 deep (a flatter file)"),
        (f"n_layers: {'9' * 5000}\n", "mine.yaml:1: holds a number of 5,000 digits (at most 40)"),
        ('a: 1\nb: [1, {c: "x\\0"}]\n', "mine.yaml:2: b.1.c: 'x\\x00' holds a NUL (a text)"),
        (
            "a: !!python/object/apply:os.system [touch CANARY]\n",
            "mine.yaml:1:4: not YAML, could not determine a constructor for the tag "
            "'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
    ],
)
def test_yaml_stays_within_its_budgets(here: Path, text: str, fault: str, refused) -> None:
    (here / "mine.yaml").write_text(text)
    for args in (["stats", "mine.yaml"], ["train", "-c", "mine.yaml"], ["train", "model=mine.yaml"]):
        assert refused(*args) == [fault]
    assert not (here / "CANARY").exists()


def test_yaml_that_repeats_a_little_is_read() -> None:
    text = "base: &b {a: 1}\none: *b\ntwo: {<<: *b, c: 2}\n"
    check_yaml(text, "mine")
    assert yaml.safe_load(text)["two"] == {"a": 1, "c": 2}


def test_a_file_of_a_size_that_no_settings_have_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as stream:
        stream.truncate(5 << 20)
    with pytest.raises(ConfigError, match=r"large\.yaml: is larger than 4 MiB"):
        read_yaml_text(file)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[" * 100_000, "mine: is nested more than 64 deep (a flatter file)"),
        ('{"a":' * 65 + "1" + "}" * 65, "mine: is nested more than 64 deep (a flatter file)"),
        ("9" * 40, "mine: holds a number of 133 bits (whole numbers of 64 bits)"),
    ],
)
def test_json_stays_within_its_budgets(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_json(text, "mine")
    assert error.value.faults == [fault]


def test_a_stated_path_stays_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "good").symlink_to(folder / "inner")
    for stated in ("", "/etc/passwd", "../secret", "inner/../../secret", "link", "loop", "a\0b", 3, None, ["a"]):
        with pytest.raises(ConfigError, match=r"^index\.json: file\.0: "):
            find_inside(folder, stated, "index.json: file.0")
    for stated in ("inner", "good/x", "not-there", "..a", "a.b"):
        assert find_inside(folder, stated, "index.json: file.0") == folder / stated


def test_a_folders_settings_are_no_link_to_a_file_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"model_type": "llama", "note": "secret"}')
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ConfigError, match=r"'config\.json' is a link that leads out of .*folder \(a file inside it\)$"):
        runs.find(folder)


def test_a_hubs_cache_links_to_its_store(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--one" / "snapshots" / "abc"
    blobs = tmp_path / "models--one" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "sum").write_text("x")
    (snapshot / "config.json").symlink_to(Path("..", "..", "blobs", "sum"))
    assert find_inside(snapshot, "config.json", "here").read_text() == "x"


# ---------------------------------------------------------------- where a config names code

RUNS_CODE = {
    "hydra/_internal/callbacks.py": "instantiate: hydra.callbacks",
    "hydra/_internal/instantiate/_instantiate2.py": "_locate: what instantiate is given",
    "hydra/_internal/target_policy.py": "_locate: the class that a target belongs to",
    "hydra/_internal/utils.py": "import_module: what _locate is given",
    "hydra/_internal/core_plugins/structured_config_source.py": "import_module: a search path of structured://",
    "hydra/core/plugins.py": "instantiate, import_module: hydra.launcher, hydra.sweeper; installed plugins by name",
    "hydra/core/override_parser/overrides_visitor.py": "eval: functions of the override grammar (choice, range, …)",
    "hydra/utils.py": "_locate: get_class, get_method and get_object, which zoo does not call",
    "omegaconf/_utils.py": "import_module: classes of structured configs, which are stored by programs",
}
"""Every file of Hydra and OmegaConf in which a call turns a name or a text into code, and where that comes from. All
of it is in the `hydra` node or in a search path, which no file may state. A new line here needs a look at the gate."""

CALLS = {"instantiate", "_instantiate", "_locate", "import_module", "__import__", "exec", "eval", "system", "Popen"}


def test_every_place_where_hydra_or_omegaconf_run_what_a_config_names_is_known() -> None:
    found = set()
    for package in (hydra, omegaconf):
        root = Path(package.__file__).parent
        for file in root.rglob("*.py"):
            name = file.relative_to(root.parent).as_posix()
            if not name.startswith(("hydra/test_utils", "hydra/grammar", "omegaconf/grammar")):
                calls = [each for each in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(each, ast.Call)]
                called = {getattr(each.func, "attr", getattr(each.func, "id", "")) for each in calls}
                found |= {name} if called & CALLS else set()
    assert found == RUNS_CODE.keys()


WRITES_CODE = [
    ("run/recording.py", "exec(_compile(self.source), names)"),
    ("run/recording.py", "compile(source, '<recording>', 'exec')"),
]
"""The only two calls that may run Python: a recorded decoding step, whose source `test_recording` holds to numbered
names. Any other such call is refused, in that file too."""


def test_zoo_itself_instantiates_nothing_by_name() -> None:
    root, written = Path(__file__).parents[2] / "zoo", []
    for file in root.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func)
                if name in ("eval", "exec", "compile", "hydra.utils.instantiate", "instantiate", "os.system"):
                    written.append((file.relative_to(root).as_posix(), ast.unparse(call)))
                assert name != "yaml.load" or "loader" in ast.unparse(call).casefold(), file
    assert sorted(written) == sorted(WRITES_CODE)


ASKS = ["model.d_ff=${oc.env:D_FF}", "optim.lr=${oc.env:RATE}"]


def test_what_is_typed_or_trusted_may_ask_the_environment(here: Path, refused, capsys, monkeypatch) -> None:
    monkeypatch.setenv("D_FF", "72")
    monkeypatch.setenv("RATE", "0.25")
    (here / "mine.yaml").write_text("model: {d_ff: '${oc.env:D_FF}'}\noptim: {lr: '${oc.env:RATE}'}\n")
    assert len(refused("train", "-c", "mine.yaml", *SHORT)) == 2
    for args in (["-c", "mine.yaml", "--trust"], ASKS):
        assert run(["train", *args, *SHORT, "--resolve"]) == 0
        found = yaml.safe_load(capsys.readouterr().out)
        assert (found["model"]["d_ff"], found["optim"]["lr"]) == ("72", "0.25")
    assert load("llama-tiny", ["d_ff=${oc.env:D_FF}"]) == load("llama-tiny", ["d_ff=72"])
    assert load("llama-tiny", ["d_ff=${oc.select:d_model}"]) == load("llama-tiny", ["d_ff=${d_model}"])
    monkeypatch.delenv("D_FF")
    (line,) = refused("stats", "llama-tiny", "d_ff=${oc.env:D_FF}")
    assert line.startswith("d_ff: ") and "Environment variable 'D_FF' not found" in line


def test_what_the_environment_says_is_no_interpolation(monkeypatch) -> None:
    monkeypatch.setenv("TITLE", "${oc.env:HOME} ${up:d_ff}")
    body = {"a": {"one": "${oc.env:TITLE}", "two": "is ${oc.env:TITLE}, ${up:n}"}, "n": 4}
    said = "${oc.env:HOME} ${up:d_ff}"
    assert grammar.resolve(body)["a"] == {"one": said, "two": f"is {said}, 4"}


def test_a_run_keeps_what_the_environment_said_when_it_began(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("D_FF", "72")
    plan = plan_training(compose_run(write_corpus(tmp_path), *ASKS[:1]))
    assert plan.config["model"]["d_ff"] == "72"  # which resuming reads, where nothing may be asked
