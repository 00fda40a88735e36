"""`zoo convert` of a model that no published family describes."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import zoo
import zoo.hf
from support.tiny_tokenizers import byte_level
from zoo import cli
from zoo.checkpoint.store import save_model
from zoo.data.tokenizer import Tokenizer

OWN = ["n_layers=2", "d_model=32", "d_ff=48", "vocab_size=300", "attention.softcap=7.0", "block=post_inside"]


@pytest.fixture
def made(tmp_path):
    """A checkpoint of ours, and its model."""
    model = zoo.build("llama-tiny", OWN, device="cpu").eval()
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<end>"])
    save_model(model, tmp_path / "made", Tokenizer(tokenizer, "<end>"))
    return tmp_path / "made", model


def convert(capsys, *words):
    code = cli.run(["convert", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_is_written_for_zoo_hf_and_says_so(made, capsys):
    folder, model = made
    out = folder.parent / "out"
    code, said, _ = convert(capsys, folder, out)
    assert code == 0 and "no family: layers.attention.softcap: is 7.0, would be None; " in said
    assert f"transformers opens it after `import zoo.hf`: AutoModelForCausalLM.from_pretrained('{out}')" in said
    assert "as ZooForCausalLM" in said and "verified: transformers gives the same logits" in said
    assert json.loads((out / "config.json").read_text())["model_type"] == "zoo"
    ids = torch.randint(0, 300, (2, 9))
    for read in (AutoModelForCausalLM.from_pretrained(out), zoo.load(out)):
        torch.testing.assert_close(read(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("def f(x)").input_ids == byte_level().encode("def f(x)").ids
    opened = AutoModelForCausalLM.from_pretrained(out)
    assert opened.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<end>")
    assert zoo.stats(out)["params"] == zoo.stats(model.spec)["params"]
    assert convert(capsys, folder, out, "--no-verify")[0] == 0  # what was written so is written again
    assert convert(capsys, out, out, "--no-verify")[0] == 2  # but never onto itself


def test_a_sentence_transformers_folder_is_refused_as_before(made, capsys):
    folder, _ = made
    code, said, fault = convert(capsys, folder, folder.parent / "out", "--pooling", "mean", "--no-verify")
    assert code == 2 and not said and "the nearest family, cannot describe this" in fault


def test_a_head_that_no_class_has_is_refused(tmp_path, capsys):
    save_model(zoo.build("bert-tiny", ["head={kind: replaced}", "block=post_inside"], device="cpu"), tmp_path / "made")
    code, _, fault = convert(capsys, tmp_path / "made", tmp_path / "out", "--no-verify")
    assert code == 2 and "head: is of kind 'replaced', which none of these classes has" in fault
    assert "the nearest family, cannot describe this" in fault
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_importing_zoo_hf_prints_nothing_of_the_packages_that_transformers_imports():
    done = subprocess.run([sys.executable, "-c", "import zoo.hf"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
