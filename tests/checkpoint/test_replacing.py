"""What `zoo convert` never replaces, and what stops it before anything is written."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file, save_file

from support.reference_folders import folder, run


def test_a_folder_with_files_of_ones_own_is_never_replaced(tmp_path, capsys):
    made = folder(tmp_path / "there")
    for name, file, said in (
        ("project", "config.json", "is the config of no model"),  # as a program has one
        ("model", "thesis.tex", "found thesis.tex, which is no part of a checkpoint"),
    ):
        out = tmp_path / name
        if name == "model":
            folder(out)
        out.mkdir(exist_ok=True)
        (out / file).write_text('{"name": "mine"}')
        code, _, fault = run(capsys, "convert", made, out, "--no-verify")
        assert code == 2 and said in fault
        assert (out / file).read_text() == '{"name": "mine"}'
    run(capsys, "convert", made, tmp_path / "ours", "--to", "zoo")
    code, _, fault = run(capsys, "convert", tmp_path / "ours", tmp_path / "ours", "--to", "zoo")
    assert code == 2 and "is the checkpoint itself" in fault
    for force in ([], ["--force"]):
        code, _, fault = run(capsys, "convert", made, made, "--no-verify", *force)
        assert code == 2 and f"{made}: is the checkpoint itself (a new folder would do)" in fault


@pytest.mark.parametrize("kind", ["hf", "zoo"])
def test_a_model_that_was_not_written_here_is_replaced_only_by_force(kind, tmp_path, capsys):
    made, theirs = folder(tmp_path / "there"), folder(tmp_path / "theirs", hidden_size=16)
    before = (theirs / "model.safetensors").read_bytes()
    (theirs / "model.safetensors").rename(theirs / "model-00001-of-00001.safetensors")
    args = ["convert", made, theirs, "--no-verify", "--to", kind]
    if kind == "zoo":  # whose files have other names
        for each in theirs.iterdir():
            each.unlink()
        (theirs / "model.safetensors").write_bytes(before)
    code, _, fault = run(capsys, *args)
    assert code == 2 and f"{theirs}: would be replaced, and zoo did not write it (a new folder, or --force)" in fault
    assert before in [each.read_bytes() for each in theirs.iterdir()]
    assert run(capsys, *args, "--force")[0] == 0
    assert run(capsys, *args)[0] == 0  # now it is one of ours
    (theirs / "thesis.tex").write_text("mine")
    code, _, fault = run(capsys, *args, "--force")
    assert code == 2 and "found thesis.tex, which is no part of" in fault


@pytest.mark.parametrize("kind", ["hf", "zoo"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_nothing_is_written(kind, value, tmp_path, capsys):
    made = folder(tmp_path / "there")
    tensors = load_file(made / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5:7] = value
    save_file(tensors, made / "model.safetensors", {"format": "pt"})
    code, _, fault = run(capsys, "convert", made, tmp_path / "out", "--no-verify", "--to", kind)
    found = "blocks.1.ffn.up.weight: is not finite, found 2 of its 1,536 values"
    assert code == 2 and f"{found} (an earlier checkpoint, or another --dtype)" in fault
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
