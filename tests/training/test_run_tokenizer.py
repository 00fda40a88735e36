"""A run keeps the tokenizer that it was given, and goes on where the original is gone."""

import shutil
from dataclasses import replace

from support.tiny_runs import compose_run, read_metrics, write_corpus
from zoo.data import DataSettings
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.jobs.train import resume_run, start_run
from zoo.training.evaluate import evaluate
from zoo.training.planning import plan_training, use_own_files


def test_a_run_goes_on_after_its_tokenizer_was_moved(tmp_path):
    (tmp_path / "corpus").mkdir()
    make_byte_tokenizer().save(tmp_path / "words")
    chosen = ["data.tokenizer.kind=file", f"data.tokenizer.path={tmp_path / 'words'}"]
    config = compose_run(write_corpus(tmp_path / "corpus"), *chosen, "steps=2", "save_every=1", "eval_every=null")
    start_run(config, tmp_path / "whole")
    shutil.rmtree(tmp_path / "words")
    shutil.copytree(tmp_path / "whole", tmp_path / "moved")
    (tmp_path / "moved/checkpoints/latest").write_text("step-000001\n")
    resume_run(tmp_path / "moved")
    assert read_metrics(tmp_path / "moved") == read_metrics(tmp_path / "whole")
    assert f"path: {tmp_path / 'words'}" in (tmp_path / "moved/config.yaml").read_text()  # as the user typed it
    scored = evaluate(tmp_path / "moved", device="cpu")
    assert scored["results"][0]["loss"] > 0  # on the run's own validation split


def test_a_mix_reads_the_copy_too(tmp_path):
    make_byte_tokenizer().save(tmp_path / "copy")
    source = {"kind": "text", "path": str(tmp_path), "weight": 1}
    data = DataSettings.read({"kind": "mix", "of": {"a": source}, "tokenizer": {"kind": "file", "path": "/gone"}})
    planned = plan_training(compose_run(tmp_path))
    found = use_own_files(replace(planned, data=data), tmp_path / "copy")
    assert found.data.tokenizer.path == str(tmp_path / "copy")
    assert found.data.sources == data.sources  # type: ignore[attr-defined]
