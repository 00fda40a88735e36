"""What a stranger's run folder says runs nothing, leads nowhere, and is refused in one line where it is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import zoo
from support.tiny_runs import SMALL, compose_run, read_folder, read_metrics, write_corpus
from zoo import cli, runs
from zoo.checkpoint import store
from zoo.checkpoint.manifest import MANIFEST, SKIP
from zoo.checkpoint.newest_checkpoint import choose_checkpoint
from zoo.errors import CheckpointError
from zoo.jobs.train import start_run
from zoo.training import loop
from zoo.training.eval_data import compose_evaluation
from zoo.training.planning import plan_resumption
from zoo.training.saving import check_counters

# ---------------------------------------------------------------- a run's folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus").mkdir()
    start_run(compose_run(write_corpus(folder / "corpus"), "save_every=2", "keep=5"), folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of a run of six steps, with checkpoints of each second one."""
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return Path("run")


def faults_of(*args: str, code: int = 2, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a command fails with."""
    capsys.readouterr()
    assert cli.run(args) == code
    lines = [each for each in capsys.readouterr().err.splitlines() if each.startswith("zoo: error:")]
    assert lines
    return [each.removeprefix("zoo: error: ") for each in lines]


def edit(file: Path, **changes: object) -> None:
    """Change keys of a JSON or YAML file as a stranger would, without a checksum."""
    node = yaml.safe_load(file.read_text())
    node.pop("xxh3", None)
    file.write_text(json.dumps({**node, **changes}))


def flip(file: Path) -> None:
    """Overwrite four bytes in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4] = bytes(each ^ 0x55 for each in data[len(data) // 2 :][:4])
    file.write_bytes(data)


def newest(run: Path) -> Path:
    return run / "checkpoints/step-000006"


def test_a_folder_cannot_start_programs_when_its_run_goes_on(run, capsys, tmp_path):
    canary = tmp_path / "canary"
    launcher = {"kind": "slurm", "lines": [f"touch {canary}"]}
    edit(
        run / "config.yaml",
        launcher=launcher,
        nproc=4,
        restarts=3,
        logger={"kind": "wandb", "mode": "online"},
        kernel="flash3_hub",
    )
    assert cli.run(["train", "--resume", "run", "steps=7"]) == 0
    said = capsys.readouterr().err
    asked = "run/config.yaml: asks for launcher slurm, which is not taken from a folder"
    assert f"{asked} (launcher=slurm nproc=4 restarts=3 starts it so)" in said.replace("\n", " ")
    assert "asks for logger wandb, which is not taken from a folder (logger=wandb tracks it so)" in said
    assert "asks for kernel flash3_hub, which is fetched and so is not taken from a folder" in said
    assert not canary.exists() and not (run / "launch.sbatch").exists()


def test_what_the_user_types_or_has_composed_is_taken(run):
    planned = plan_resumption(run, ["launcher=torchrun", "nproc=2", "parallel=ddp", "logger=tensorboard"])
    assert (planned.settings.launcher.kind, planned.settings.nproc, planned.notes) == ("torchrun", 2, ())
    assert planned.settings.logger.kind == "tensorboard"
    edit(run / "config.yaml", launcher={"kind": "slurm", "lines": ["evil"]}, nproc=7)
    typed = OmegaConf.create({"launcher": {"kind": "torchrun"}, "nproc": 2, "parallel": {"kind": "mesh", "dp": "auto"}})
    planned = plan_resumption(run, ["parallel=ddp"], typed)
    assert (planned.settings.launcher.kind, planned.settings.nproc, planned.notes) == ("torchrun", 2, ())


@pytest.mark.parametrize(
    "text", ["${oc.env:SECRET}", "x ${oc.decode:1}", "${up:a,${oc.env:SECRET}}", "${${up:a}:b}", "${now:%Y}"]
)
def test_a_folders_config_reads_no_environment_variable(run, text, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "7")
    node = yaml.safe_load((run / "config.yaml").read_text())
    edit(run / "config.yaml", model={**node["model"], "n_layers": text})
    (fault,) = faults_of("train", "--resume", "run", capsys=capsys)
    assert fault.startswith("run/config.yaml: model.n_layers: holds '") and "${up:…} and ${or:…}" in fault


def test_the_grammars_interpolations_are_followed_outside_the_model(run, capsys):
    node = yaml.safe_load((run / "config.yaml").read_text())
    asks = {
        "optim": {**node["optim"], "lr": "${or:rate,0.25}"},
        "schedule": {**node["schedule"], "warmup": "${up:keep}"},
    }
    edit(run / "config.yaml", **asks)
    found = plan_resumption(run, ["steps=9"])
    assert (found.settings.optim.lr, found.settings.schedule.warmup) == (0.25, 5)
    assert (found.config["optim"]["lr"], found.config["schedule"]["warmup"]) == (0.25, 5)
    edit(run / "config.yaml", schedule={**node["schedule"], "warmup": "${up:nothing}"})
    (fault,) = faults_of("train", "--resume", "run", "steps=7", capsys=capsys)
    assert fault == "schedule.warmup: looks up nothing, which no key around it has (a value)"
    edit(run / "config.yaml", schedule=node["schedule"], kernel="${or:fast,flash3_hub}")
    found = plan_resumption(run, [])
    assert found.settings.kernel == "auto" and "kernel flash3_hub, which is fetched" in found.notes[0]


def test_the_grammars_interpolations_may_be_typed_outside_the_model(tmp_path, capsys):
    typed = [*SMALL, f"data.path={write_corpus(tmp_path)}", "optim.lr=${or:rate,0.25}", "schedule.warmup=${up:keep}"]
    for shown in ([], ["--resolve"]):
        assert cli.run(["train", *typed, "keep=3", "--cfg", "job", *shown]) == 0
        found = yaml.safe_load(capsys.readouterr().out)
    assert (found["optim"]["lr"], found["schedule"]["warmup"]) == (0.25, 3)
    node = compose_evaluation(None, ["data=text", "data.path=a.txt", "data.max_bytes=${or:limit,77}"])
    assert node["data"]["max_bytes"] == 77


@pytest.mark.parametrize("name", ["{victim}", "../victim", "result.json"])
def test_lengths_name_a_runs_own_files_alone(run, name, capsys, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    before = (run / "result.json").read_text()
    edit(newest(run) / "training.json", lengths={name.format(victim=victim): 0})
    (fault,) = faults_of("train", "--resume", "run@6", "steps=7", capsys=capsys)
    assert (
        "is no file that a run appends to (one of: metrics.jsonl, metrics.csv, samples.txt, nonfinite.jsonl)" in fault
    )
    assert victim.read_text() == "precious" and (run / "result.json").read_text() == before


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "config.yaml", "result.json", "index.html", "checkpoints", "checkpoints/step-000006"]
)
def test_a_run_does_not_go_on_through_a_link_that_leads_out_of_its_folder(run, name, capsys, tmp_path):
    os.rename(run / name, tmp_path / "victim")
    (run / name).symlink_to(tmp_path / "victim")
    before = (tmp_path / "victim").stat().st_mtime_ns
    (fault,) = faults_of("train", "--resume", "run", "steps=7", capsys=capsys)
    assert fault == f"run: {name!r} is a link that leads out of run (a file inside it)"
    assert (tmp_path / "victim").stat().st_mtime_ns == before


def test_a_pointer_that_is_a_link_to_elsewhere_shows_nothing_of_it(run, capsys, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a key that nobody else may see")
    pointer = run / "checkpoints" / "latest"
    pointer.unlink()
    pointer.symlink_to(secret)
    (fault,) = faults_of("eval", "run", capsys=capsys)
    assert fault == "run/checkpoints: 'latest' is a link that leads out of run/checkpoints (a file inside it)"


@pytest.mark.parametrize("pointer", ["latest", "best"])
def test_a_pointer_names_a_checkpoint_of_its_own_run(run, pointer, capsys):
    (run / "checkpoints" / pointer).write_text("../../elsewhere\n")
    (fault,) = faults_of("eval", "run" if pointer == "latest" else "run@best", capsys=capsys)
    assert fault.startswith(f"run/checkpoints/{pointer}: names ../../elsewhere, which is not there (there are: step-")


ODD = {
    "result.json": [("steps", "x"), ("by_class", [1]), ("overrides", 3), ("model", ["a"])],
    "environment.json": [("", {"a": 1})],
    "checkpoints/step-000006/training.json": [("step", "x"), ("best", [[1]]), ("threads", {"threads": 0}), ("data", 1)],
    "config.yaml": [("model", 3), ("data", "x")],
}


@pytest.mark.parametrize("file, key, value", [(file, *each) for file, cases in ODD.items() for each in cases])
def test_an_odd_type_in_a_runs_file_is_one_line_and_nothing_is_written(run, file, key, value, capsys):
    edit(run / file, **{key: value}) if key else (run / file).write_text(json.dumps(value))
    before = read_folder(run)
    fault = faults_of("train", "--resume", "run@6", "steps=7", capsys=capsys)[0]
    assert fault.startswith(f"run/{file}: {key}")
    assert {name: text for name, text in read_folder(run).items() if name != "lock"} == {
        name: text for name, text in before.items() if name != "lock"
    }


@pytest.mark.parametrize(
    "file, text",
    [("result.json", "{"), ("result.json", "[" * 100_000), ("metrics.jsonl", '{"step": "x"}\n'), ("model.yaml", "- 1")],
)
def test_one_run_that_cannot_be_read_is_one_line_and_the_others_are_listed(trained, tmp_path, capsys, file, text):
    for name, rate in (("a", 1), ("b", 2), ("c", 3)):
        shutil.copytree(trained, tmp_path / "sweep" / name)
        edit(tmp_path / "sweep" / name / "result.json", overrides=[f"optim.lr={rate}"], status="done")
    broken = tmp_path / "sweep/b"
    if file != "result.json":  # those of a run that is done are not read
        edit(broken / "result.json", status="failed")
    (broken / file).write_text(text)
    assert cli.run(["runs", str(tmp_path / "sweep"), "--json"]) == 0
    found = capsys.readouterr()
    assert {Path(each["name"]).name: each["status"] for each in json.loads(found.out)} == {
        "a": "done",
        "b": "unreadable",
        "c": "done",
    }
    assert f"note: {broken / file}" in found.err
    assert cli.run(["report", str(tmp_path / "sweep"), "--json"]) == 0
    assert str(broken) in capsys.readouterr().err


def test_a_run_that_may_not_be_written_is_listed(run, monkeypatch):
    opened, whole = [], Path.open

    def note(self, mode="r", *args, **options):
        opened.append(mode)
        return whole(self, mode, *args, **options)

    monkeypatch.setattr(Path, "open", note)
    assert not runs.is_locked(run)
    with runs.locked(run, print):
        assert runs.is_locked(run)
    assert opened == ["rb", "a+", "rb"]


def test_a_status_with_control_characters_reaches_no_terminal(run, capsys):
    edit(run / "result.json", status="\x1b]0;evil\x07", model="\x1b[2J")
    assert cli.run(["runs", "run"]) == 0
    assert "\x1b" not in capsys.readouterr().out


# ---------------------------------------------------------------- whole checkpoints


def test_four_bytes_of_any_file_of_a_checkpoint_are_seen(run):
    for file in sorted(each for each in newest(run).rglob("*") if each.is_file()):
        whole = file.read_bytes()
        flip(file)
        with pytest.raises(CheckpointError):
            choose_checkpoint(run, "6", check_counters)
        file.write_bytes(whole)
    assert choose_checkpoint(run, "6", check_counters).counters["step"] == 6


def test_the_newest_whole_checkpoint_is_taken_and_goes_on_to_the_bit(run, trained, capsys):
    flip(newest(run) / "model.safetensors")
    (run / "checkpoints/step-000004/training.safetensors").unlink()
    assert cli.run(["train", "--resume", "run"]) == 0
    said = capsys.readouterr().err
    assert "passed over: run/checkpoints/step-000006/model.safetensors: is damaged, found another checksum" in said
    assert "passed over: run/checkpoints/step-000004/training.safetensors: " in said
    assert "step-000006: is left behind, as step-000006-left" in said and "goes on after step 2" in said
    names = sorted(each.name for each in runs.steps(run / "checkpoints"))
    assert names == ["step-000002", "step-000004", "step-000006"]
    assert read_folder(newest(run)) == read_folder(newest(trained))
    assert read_metrics(run) == read_metrics(trained)


def test_a_named_checkpoint_is_gone_on_from_and_later_ones_are_left_behind(run, trained, capsys):
    assert cli.run(["train", "--resume", "run@2", "save_every=3"]) == 0
    said = capsys.readouterr().err
    assert "goes back to step 2: metrics and samples of later steps are cut off" in said
    found = sorted(each.name for each in (run / "checkpoints").iterdir())
    assert found == ["latest", *(f"step-00000{n}" for n in ("2", "3", "4-left", "6", "6-left"))]
    assert read_folder(newest(run)) == read_folder(newest(trained))
    assert read_metrics(run) == read_metrics(trained)
    capsys.readouterr()
    assert faults_of("train", "--resume", "run@4", capsys=capsys) == [
        "run/checkpoints: no checkpoint of step 4 (there are: 2, 3, 6)"
    ]


def test_weights_that_are_not_finite_are_named_and_not_gone_on_from(run, capsys):
    file = newest(run) / "model.safetensors"
    tensors = load_file(file)
    tensors["blocks.1.ffn.up.weight"][3, 5] = float("nan")
    save_file(tensors, file)
    (newest(run) / MANIFEST).unlink()  # as an older version saved it
    (fault,) = faults_of("train", "--resume", "run@6", "steps=8", capsys=capsys)
    assert "blocks.1.ffn.up.weight is not finite, found 1 of its 1,536 values" in fault and "optim.lr" not in fault
    assert cli.run(["train", "--resume", "run", "steps=7"]) == 0
    assert "goes on after step 4" in capsys.readouterr().err


def test_no_whole_checkpoint_is_one_line_for_each(run, capsys):
    for each in runs.steps(run / "checkpoints"):
        flip(each / "model.safetensors")
    faults = faults_of("train", "--resume", "run", capsys=capsys)
    assert len(faults) == 4 and faults[-1] == "run: has no whole checkpoint (a copy of one; or a new run)"


def test_checksums_are_left_out_where_that_is_asked_and_old_checkpoints_have_none(run, capsys):
    flip(newest(run) / "model.safetensors")
    damaged = f"{newest(run) / 'model.safetensors'}: is damaged, found another checksum than manifest.json has"
    for args in (["generate", "--checkpoint", "run", "--prompt", "the", "--max-new-tokens", "1"], ["eval", "run"]):
        (fault,) = faults_of(*args, capsys=capsys)
        assert fault == f"{damaged} (another copy of it; --no-verify reads it as it is)"
        assert cli.run([*args, "--no-verify"]) == 0
        assert SKIP not in os.environ
    with pytest.raises(CheckpointError, match="is damaged"):
        zoo.load(run)
    assert zoo.load(run, verify=False).spec == zoo.load(f"{run}@4").spec
    (newest(run) / MANIFEST).unlink()
    assert zoo.load(run) is not None


def test_an_average_and_a_saved_model_have_a_manifest_too(tmp_path):
    (tmp_path / "corpus").mkdir()
    start_run(compose_run(write_corpus(tmp_path / "corpus"), "ema=0.9", "steps=3"), tmp_path / "run")
    average = runs.find(tmp_path / "run/ema")
    store.save_model(zoo.load(average), tmp_path / "model")
    for folder in (average, tmp_path / "model"):
        zoo.load(folder)
        flip(folder / "model.safetensors")
        with pytest.raises(CheckpointError, match="is damaged"):
            zoo.load(folder)
    with pytest.raises(CheckpointError, match=r"ema/model\.safetensors: is damaged"):
        choose_checkpoint(tmp_path / "run", "3", check_counters)


def test_a_manifest_names_files_of_its_folder_alone(run, capsys):
    (newest(run) / MANIFEST).write_text(json.dumps({"files": {"../../result.json": {"bytes": 1, "xxh3": "0"}}}))
    (fault,) = faults_of("eval", "run", capsys=capsys)
    assert fault.startswith(f"{newest(run) / MANIFEST}: files: '../../result.json' leads out of")


def test_every_verb_takes_the_checkpoint_of_a_step(run, capsys):
    assert cli.run(["diff", "run@2", "run@4", "--json"]) == 0
    assert cli.run(["check", "run@2"]) == 0
    assert cli.run(["convert", "run@2", "out", "--to", "zoo"]) == 0
    assert zoo.load("out").spec == zoo.load("run@2").spec
    started = ["train", "weights=run@2", "data=text", "data.path=corpus", "seq_len=16", "batch_size=4", "steps=1"]
    Path("corpus").mkdir()
    write_corpus(Path("corpus"))
    assert cli.run([*started, "sample=null", "hydra.run.dir=next", "objective=distil", "objective.teacher=run@4"]) == 0
    assert json.loads(Path("next/result.json").read_text())["status"] == "done"


# ---------------------------------------------------------------- ends and beginnings


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_from_the_beginning(run, trained, capsys):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints/.step-000002.0123456789abcdef0123456789abcdef").mkdir(parents=True)
    assert cli.run(["train", "--resume", "run"]) == 0
    said = "run: has no checkpoint yet, and starts from the beginning with its own config"
    assert said in capsys.readouterr().err
    assert read_folder(run / "checkpoints") == read_folder(trained / "checkpoints")
    assert read_metrics(run) == read_metrics(trained)


def test_a_run_whose_folder_is_deleted_fails_in_one_line_and_claims_no_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    update = loop.update

    def delete(run):
        if run.step == 2:
            shutil.rmtree("run")
        return update(run)

    monkeypatch.setattr(loop, "update", delete)
    write_corpus(tmp_path / "corpus")
    args = ["train", *SMALL, "data.path=corpus", "hydra.run.dir=run"]
    (fault,) = faults_of(*args, code=1, capsys=capsys)
    assert fault == f"{tmp_path / 'run'}: is gone, deleted while the run was training (a new run)"
    assert not Path("run").exists()


def test_null_logs_evaluates_and_saves_at_the_end_alone(tmp_path):
    (tmp_path / "corpus").mkdir()
    nothing = ("log_every=null", "eval_every=null", "save_every=null")
    start_run(compose_run(write_corpus(tmp_path / "corpus"), *nothing), tmp_path / "run")
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 6, 6]
    assert [runs.read_step(each) for each in runs.steps(tmp_path / "run/checkpoints")] == [6]
