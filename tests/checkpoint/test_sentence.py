"""sentence-transformers folders: MiniLM's real weights under every pooling, dense layers, norms, prompts and widths.
Each text stands beside the formulas on transformers' hidden states of it alone; sentence-transformers where it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

import zoo
import zoo.cli
from support.minilm import MINILM, needs_minilm
from zoo.checkpoint.sentence_files import POOLINGS
from zoo.errors import ConfigError

TEXTS = ["A man is eating food.", "word " * 30, "The stock market fell sharply, didn't it?"]

pytestmark = needs_minilm

FORMULAS = {  # of one text's hidden states [T, D]
    "cls": lambda x: x[0],
    "max": lambda x: x.max(0).values,
    "mean": lambda x: sum(x) / len(x),
    "mean_sqrt_len": lambda x: sum(x) / len(x) ** 0.5,
    "weighted": lambda x: sum(number * each for number, each in enumerate(x, 1)) / sum(range(1, len(x) + 1)),
    "last": lambda x: x[-1],
}
THEIRS = {"weighted": "weightedmean", "last": "lasttoken", "mean_sqrt_len": "mean_sqrt_len_tokens"}


@pytest.fixture(scope="module")
def minilm() -> Path:
    return MINILM


@pytest.fixture
def folder(minilm, tmp_path) -> Path:
    return Path(shutil.copytree(minilm, tmp_path / "model"))


@pytest.fixture(scope="module")
def states(minilm):
    """The hidden states of a text alone, by transformers."""
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)

    def run(text: str) -> torch.Tensor:
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]

    return run


def write_json(file: Path, value) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def write_modules(folder: Path, *names: str) -> None:
    """modules.json with these modules after the model."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, name in enumerate(names, 1):
        modules.append(
            {
                "idx": index,
                "name": str(index),
                "path": f"{index}_{name}",
                "type": f"sentence_transformers.models.{name}",
            }
        )
    write_json(folder / "modules.json", modules)


def check(vectors, wanted) -> None:
    torch.testing.assert_close(vectors, torch.stack(list(wanted)), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("name", POOLINGS)
def test_every_pooling_is_the_one_of_its_name_in_either_form_of_the_file(name, folder, states):
    write_modules(folder, "Pooling")
    for node in ({POOLINGS[name]: True}, {"pooling_mode": THEIRS.get(name, name), "embedding_dimension": 384}):
        write_json(folder / "1_Pooling" / "config.json", node)
        check(zoo.embed(folder, TEXTS), (FORMULAS[name](states(text)) for text in TEXTS))
    unit = (F.normalize(FORMULAS[name](states(text)), dim=-1) for text in TEXTS)
    check(zoo.embed(folder, TEXTS, pooling=name, normalize=True), unit)


def test_the_parts_of_several_poolings_are_joined(folder, states):
    write_modules(folder, "Pooling")
    write_json(folder / "1_Pooling" / "config.json", {POOLINGS["mean"]: True, POOLINGS["cls"]: True})
    parts = [FORMULAS["cls"], FORMULAS["mean"]]
    check(zoo.embed(folder, TEXTS), (torch.cat([part(states(text)) for part in parts]) for text in TEXTS))


def make_chain(folder: Path) -> dict[str, torch.Tensor]:
    """A folder with two dense layers, a norm and the scaling, as LaBSE or GTR have them."""
    drawn = torch.Generator().manual_seed(0)
    write_modules(folder, "Pooling", "Dense", "Dense", "LayerNorm", "Normalize")
    shapes = {"a": (64, 384), "b": (64,), "c": (32, 64), "r": (32, 64), "n": (32,), "m": (32,)}
    weights = {name: torch.randn(*shape, generator=drawn) / 8 for name, shape in shapes.items()}
    dense = {
        "in_features": 384,
        "out_features": 64,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    write_json(folder / "2_Dense" / "config.json", dense)
    save_file({"linear.weight": weights["a"], "linear.bias": weights["b"]}, folder / "2_Dense" / "model.safetensors")
    plain = {"in_features": 64, "out_features": 32, "bias": False, "use_residual": True}
    write_json(folder / "3_Dense" / "config.json", {**plain, "activation_function": "torch.nn.modules.linear.Identity"})
    save_file(
        {"linear.weight": weights["c"], "residual.weight": weights["r"]}, folder / "3_Dense" / "model.safetensors"
    )
    write_json(folder / "4_LayerNorm" / "config.json", {"dimension": 32})
    torch.save({"norm.weight": weights["n"], "norm.bias": weights["m"]}, folder / "4_LayerNorm" / "pytorch_model.bin")
    return weights


def run_chain(weights, hidden) -> torch.Tensor:
    x = torch.tanh(weights["a"] @ hidden.mean(0) + weights["b"])
    y = (weights["c"] + weights["r"]) @ x
    y = (y - y.mean()) / (y.var(unbiased=False) + 1e-5).sqrt() * weights["n"] + weights["m"]
    return y / y.norm()


def test_dense_layers_norms_and_the_scaling_follow_the_pooling(folder, states):
    weights = make_chain(folder)
    wanted = [run_chain(weights, states(text)) for text in TEXTS]
    check(zoo.embed(folder, TEXTS, batch_size=2), wanted)
    check(zoo.embed(folder, TEXTS, dim=8), (each[:8] / each[:8].norm() for each in wanted))


def test_prompts_are_put_before_texts_and_are_left_out_of_the_pooling_where_the_folder_says_so(folder, states):
    prompts = {"query": "search for: ", "passage": "title: none | "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    write_modules(folder, "Pooling")
    check(zoo.embed(folder, TEXTS, prompt="query"), (states("search for: " + text).mean(0) for text in TEXTS))
    check(zoo.embed(folder, TEXTS), (states(text).mean(0) for text in TEXTS))
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "include_prompt": False})
    after = (states("search for: " + text)[4:].mean(0) for text in TEXTS)  # [CLS] search for :
    check(zoo.embed(folder, TEXTS, prompt="query"), after)
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": "passage"})
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    check(zoo.embed(folder, TEXTS), (states("title: none | " + text).mean(0) for text in TEXTS))
    with pytest.raises(ConfigError, match=r"prompt: 'querry' is none of the folder's \(did you mean 'query'\?\)"):
        zoo.embed(folder, TEXTS, prompt="querry")


def test_texts_are_cut_at_the_folders_limit(folder, states):
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    notes: list[str] = []
    found = zoo.embed(folder, TEXTS[1:2], normalize=False, note=notes.append)
    check(found, [states("word " * 7).mean(0)])
    assert notes == ["1 of 1 texts are cut at 9 tokens, which is what the model reads"]


@pytest.mark.parametrize("kind", ["hf", "zoo"])
def test_a_converted_folder_gives_the_same_vectors(kind, folder, tmp_path, capsys):
    make_chain(folder)
    out = tmp_path / "out"
    for _ in range(2):  # the second time in place of the first
        assert zoo.cli.run(["convert", str(folder), str(out), "--to", kind, "--no-verify"]) == 0
    check(zoo.embed(out, TEXTS), zoo.embed(folder, TEXTS))
    capsys.readouterr()
    assert (
        zoo.cli.run(["embed", str(out), TEXTS[0], "--dim", "16", "--similarity", "--out", str(tmp_path / "v.npy")]) == 0
    )
    assert "1 vectors of 16" in capsys.readouterr().out


def test_a_model_is_written_as_a_folder_with_the_pooling_that_is_asked_for(folder, tmp_path):
    out = tmp_path / "out"
    assert zoo.cli.run(["convert", str(folder), str(out), "--pooling", "cls", "--no-verify"]) == 0
    check(zoo.embed(out, TEXTS), zoo.embed(folder, TEXTS, pooling="cls", normalize=True))
    assert [each["type"].rpartition(".")[2] for each in json.loads((out / "modules.json").read_text())] == [
        "Transformer", "Pooling", "Normalize",
    ]  # fmt: skip
    assert json.loads((out / "sentence_bert_config.json").read_text())["max_seq_length"] == 512


@pytest.mark.slow
def test_a_folder_is_trained_further_and_written_as_one_again(folder, tmp_path):
    records = [
        {"text": f"{text} {n}", "label": label} for n in range(8) for text, label in zip(TEXTS, "abc", strict=True)
    ]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    data = ["data=jsonl", f"data.path={tmp_path / 'records.jsonl'}", "objective=classify", f"weights={folder}"]
    steps = ["steps=3", "batch_size=6", "seq_len=32", "eval_every=3", "eval_batches=1", "sample=null", "optim.lr=1e-5"]
    zoo.train(None, [*data, *steps, f"hydra.run.dir={tmp_path / 'run'}"])
    out = tmp_path / "out"
    assert zoo.cli.run(["convert", str(tmp_path / "run"), str(out), "--pooling", "mean", "--no-verify"]) == 0
    before, after = zoo.embed(folder, TEXTS), zoo.embed(out, TEXTS)
    check(after, zoo.embed(tmp_path / "run", TEXTS))
    alike = (before * after).sum(-1)
    assert (alike > 0.9).all() and (alike < 1 - 1e-5).all()


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (
            "modules.json",
            [{"path": "", "type": "a.Transformer"}, {"path": "1_CNN", "type": "a.CNN"}],
            "has a module CNN",
        ),
        ("modules.json", [{"path": "", "type": "a.Pooling"}], "begins with Pooling"),
        ("modules.json", {"a": 1}, "modules.json: is a mapping of 1 (a list)"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "median"]}, "found median"),
        ("1_Pooling/config.json", {"pooling_mode_median_tokens": True}, "found pooling_mode_median_tokens"),
        ("2_Dense/config.json", {"activation_function": "mine.Swish"}, "activation_function Swish"),
        ("config_sentence_transformers.json", {"prompts": ["query"]}, "prompts: is a list of 1 (a mapping)"),
    ],
)
def test_what_is_not_read_is_refused_in_one_line(name, value, fault, folder, capsys):
    make_chain(folder)
    write_json(folder / name, value)
    assert zoo.cli.run(["embed", str(folder), "a text"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and fault in said[0]


ASKED = [({"dim": 500}, "dim: is 500, the vectors have 384"), ({"pooling": "median"}, "pooling: 'median' is none")]


@pytest.mark.parametrize(("options", "fault"), ASKED)
def test_what_is_asked_for_must_be_there(options, fault, minilm):
    with pytest.raises(ConfigError, match=fault):
        zoo.embed(minilm, TEXTS, **options)


def test_sentence_transformers_gives_the_same_vectors(folder, tmp_path):
    there = pytest.importorskip("sentence_transformers")
    model = there.SentenceTransformer(str(folder), device="cpu")
    check(zoo.embed(folder, TEXTS), torch.tensor(model.encode(TEXTS)))
    make_chain(folder)
    model = there.SentenceTransformer(str(folder), device="cpu", prompts={"query": "search for: "})
    check(zoo.embed(folder, TEXTS), torch.tensor(model.encode(TEXTS)))
    zoo.cli.run(["convert", str(folder), str(tmp_path / "out"), "--pooling", "weighted", "--no-verify"])
    model = there.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    check(zoo.embed(tmp_path / "out", TEXTS), torch.tensor(model.encode(TEXTS)))
