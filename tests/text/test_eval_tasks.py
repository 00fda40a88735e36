"""`zoo eval --tasks`: each log-likelihood, text and metric as lm-evaluation-harness has it with its own `hf` model."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import pytest
import transformers
from test_eval import save

import zoo
from zoo.cli import run
from zoo.data.tokenizer import Tokenizer, train_bpe
from zoo.errors import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lm_eval = pytest.importorskip("lm_eval", reason="needs pip install lm-eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

from zoo.text.eval_harness import Harness, read_options
from zoo.text.tasks import load

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it brings

WORDS = "the cat sat on the mat and the dog ran after the cat; then a cow said moo to the hen, and the hen said no. "
QUESTIONS = [
    {"q": f"what does the {name} say", "choices": ["moo", "no", "woof", "the cat sat"], "label": n % 4, "say": "moo"}
    for n, name in enumerate(("cow", "hen", "dog", "cat on the mat", "dog after the hen"))
]
PAIRS = [
    ("", "the cat"),
    ("the cat", " sat on the mat"),
    ("the cat ", "sat"),  # the space belongs to what follows
    ("the dog \n", "ran"),
    ("the hen said", " no"),
    ("the hen said", " moo"),
    ("the hen said", "<s>"),
    ("<s>the hen", " said"),
    ("é ∑", " of the cat"),
    (WORDS * 3, " sat on the mat"),  # is cut from the left
    (WORDS * 3, WORDS[:60]),
]


def make_tokenizer(kind: str) -> Tokenizer:
    """A tokenizer that has merges: of bytes, of bytes with <s> before each text, or of words with their spaces before
    them, of which an answer loses the first."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import TemplateProcessing

    if kind == "metaspace":
        backend = Backend(models.BPE(unk_token="<unk>"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>", "<s>"], show_progress=False)
        backend.train_from_iterator([WORDS], trainer)
        return Tokenizer(backend, "</s>")
    tokenizer = train_bpe([WORDS], 290)
    tokenizer.backend.add_special_tokens(["<s>"])
    if kind == "opened":
        at = tokenizer.backend.token_to_id("<s>")
        tokenizer.backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", at)])
    return tokenizer


@pytest.fixture(scope="module", params=["bytes", "opened", "metaspace"])
def folder(request, tmp_path_factory) -> Path:
    """A random Llama with a tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("llama"), make_tokenizer(request.param)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    vocab = {"vocab_size": tokenizer.vocab_size + 3, "eos_token_id": tokenizer.eos_id, "bos_token_id": None}
    save(folder, transformers.LlamaConfig(**size, **vocab, max_position_embeddings=48))
    tokenizer.save(folder)
    if request.param == "opened":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3)


@pytest.fixture(scope="module")
def harness(folder) -> Harness:
    return Harness(load(folder, None, {"device": "cpu"}, lambda line: None), 48, kernel=None, progress=None)


def ask(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


# ---------------------------------------------------------------- what is asked of a model


def test_likelihoods_are_those_of_the_harness_own_model(harness, reference):
    ours, theirs = (lm.loglikelihood(ask("loglikelihood", *PAIRS)) for lm in (harness, reference))
    for (value, greedy), (expected, as_greedy) in zip(ours, theirs, strict=True):
        assert value == pytest.approx(expected, abs=1e-4)
        assert greedy == as_greedy
    likeliest = reference.generate_until(ask("generate_until", ("the cow", {"until": ["\x00"], "max_gen_toks": 3})))[0]
    ((_, greedy),) = harness.loglikelihood(ask("loglikelihood", ("the cow", likeliest)))
    assert greedy == reference.loglikelihood(ask("loglikelihood", ("the cow", likeliest)))[0][1]


def test_whole_texts_are_likely_as_the_harness_own_model_finds_them(harness, reference):
    texts = [("a",), (WORDS,), (WORDS * 4,), ("é ∑ 漢",), ("the cat sat on the mat",)]
    ours, theirs = (lm.loglikelihood_rolling(ask("loglikelihood_rolling", *texts)) for lm in (harness, reference))
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_texts_are_written_as_the_harness_own_model_writes_them(harness, reference):
    contexts = ["the cat", "the cat sat", "the hen said", WORDS * 3, "the dog "]
    how = [{"until": ["\n", "a"], "max_gen_toks": 12}, {"until": "e", "max_gen_toks": 20}, {"max_gen_toks": 5}]
    asked = [(context, each) for each in how for context in contexts] + [
        ("the cat", {"until": ["x"], "max_new_tokens": 7, "temperature": 0.0})
    ]
    ours, theirs = (lm.generate_until(ask("generate_until", *asked)) for lm in (harness, reference))
    assert ours == theirs
    assert any(ours)
    assert harness.generate_until(ask("generate_until", ("", {"max_gen_toks": 2})))


def test_rows_that_answers_share_are_read_once(harness):
    asked = [(f"the {name} said", f" {letter}") for name in ("hen", "cow") for letter in "abcd"]
    encoded = [harness._encode_pair(*each) for each in asked]
    distinct = {tuple([*context, *tokens][:-1]) for context, tokens in encoded}
    rows: list[int] = []
    seen = harness.model.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    assert len(harness.loglikelihood(ask("loglikelihood", *asked))) == 8
    seen.remove()
    assert sum(rows) == len(distinct) < 8


def test_what_a_task_asks_of_writing_is_checked(harness):
    options = read_options({"until": ["a", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9}, "</s>")
    assert options.stop == ("a", "</s>") and options.max_new_tokens == 256
    assert (options.sampling.temperature, options.sampling.top_p) == (0.7, 0.9)
    assert read_options({"do_sample": False, "temperature": 0.7}, "</s>").sampling.temperature == 0
    with pytest.raises(ConfigError, match="tasks: generation_kwargs: penalty_alpha: no such option"):
        read_options({"penalty_alpha": 0.6}, "</s>")
    with pytest.raises(ConfigError, match="max_gen_toks is 256, and the model reads 48"):
        harness.generate_until(ask("generate_until", ("a", {})))
    long = ("the cat", " sat" * 60)
    with pytest.raises(ConfigError, match="tasks: a continuation has"):
        harness.loglikelihood(ask("loglikelihood", long))


# ---------------------------------------------------------------- whole tasks


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> list[str]:
    """A task of choices, one of answers and one of perplexity, over a local file."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}, train: {data}}}}}
test_split: test
fewshot_split: train
metadata: {{version: 2.0}}
"""
    kinds = {
        "choices": """
output_type: multiple_choice
doc_to_text: "Q: {{q}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
        "answers": """
output_type: generate_until
doc_to_text: "{{q}}: "
doc_to_target: say
generation_kwargs: {until: ["\\n", "o"], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
num_fewshot: 0
""",
        "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: q
metric_list: [{metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    }
    files = []
    for name, text in kinds.items():
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(f"task: local_{name}\n{common}{text}")
    return [str(file) for file in files]


def test_tasks_end_as_with_the_harness_own_model(folder, reference, tasks, capsys, monkeypatch):
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)  # takes seconds
    before = random.getstate()
    found = zoo.evaluate(folder, tasks=tasks, limit=4, trust=True)
    assert random.getstate() == before
    how = {"model": reference, "log_samples": False}
    theirs = lm_eval.simple_evaluate(**how, tasks=tasks, limit=4, task_manager=TaskManager(include_defaults=False))
    for name in ("choices", "answers", "texts"):
        ours, expected = found["tasks"][f"local_{name}"], theirs["results"][f"local_{name}"]
        for metric, each in ours["metrics"].items():
            assert each["value"] == pytest.approx(expected[f"{metric},none"], rel=1e-5)
            stderr = expected[f"{metric}_stderr,none"]
            assert each["stderr"] == (None if stderr == "N/A" else pytest.approx(stderr))
        assert (ours["examples"], ours["num_fewshot"], ours["version"]) == (4, 0, 2.0)
    assert set(found["tasks"]["local_choices"]["metrics"]) == {"acc", "acc_norm"}
    capsys.readouterr()
    few = ["--tasks", tasks[0], "--trust", "--num-fewshot", "1", "--device", "cpu"]
    assert run(["eval", str(folder), *few, "--json"]) == 0
    shot = json.loads(capsys.readouterr().out)["tasks"]["local_choices"]
    manager = TaskManager(include_defaults=False)
    theirs = lm_eval.simple_evaluate(**how, tasks=tasks[:1], num_fewshot=1, task_manager=manager)
    assert shot["metrics"]["acc"]["value"] == theirs["results"]["local_choices"]["acc,none"]
    assert (shot["examples"], shot["num_fewshot"]) == (5, 1)
    assert run(["eval", str(folder), *few, "--weights", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "local_choices" in out and "acc_norm" in out and "bf16 weights, computes in float32" in out


def test_tasks_that_cannot_be_run_say_why(folder, tasks, tmp_path, refused):
    (tmp_path / "bad.yaml").write_text("task: bad\ndataset_path: json\ndataset_kwargs: {data_files: none.jsonl}\n")
    cases = {
        (tasks[1], "--num-fewshot", "2"): "num_fewshot: the task local_answers itself fixes it at 0 (leave it out)",
        ("none.yaml",): "tasks: none.yaml is no file (a task's YAML)",
        (str(tmp_path / "bad.yaml"),): f"tasks: {tmp_path / 'bad.yaml'} cannot be loaded, found ",
        (tasks[0], "--stride", "2"): "stride: has no effect beside --tasks (leave it out)",
        (tasks[0], "--context", "99"): "context: is 99, not a whole number from 2 to 48, the model's length",
    }
    for args, fault in cases.items():
        (line,) = refused("eval", str(folder), "--tasks", *args, "--trust", "--device", "cpu")
        assert line.startswith(fault)
