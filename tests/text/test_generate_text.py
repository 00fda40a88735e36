"""Text from a checkpoint: up to a stop string, up to the end-of-text token, from the last run."""

import pytest
import torch

import zoo
from zoo.checkpoint import store
from zoo.checkpoint.stored import StoredModel
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError, ZooError
from zoo.generation.generate import generate
from zoo.kernels import Machine, machine_of
from zoo.runs import LAST_RUN
from zoo.sampling.options import Sampling
from zoo.text import loading
from zoo.text.follow import complete
from zoo.text.loading import load
from zoo.text.prompts import Options


@pytest.fixture
def checkpoint(tmp_path):
    """A model of bytes and its tokenizer, saved."""
    small = [
        "vocab_size=257",
        "d_model=32",
        "n_layers=1",
        "n_heads=2",
        "n_kv_heads=2",
        "head_dim=16",
        "d_ff=32",
        "max_seq_len=64",
    ]
    store.save_model(zoo.build("llama-tiny", small, device="cpu"), tmp_path / "some", make_byte_tokenizer())
    return tmp_path / "some"


def written(checkpoint, prompt="x", **options) -> str:
    """What `complete` makes of a checkpoint."""
    loaded = load(checkpoint, device="cpu")
    return "".join(
        complete(loaded.model, loaded.tokenizer, {"prompt": prompt}, Options.checked(options), ends=loaded.ends)
    )


def test_text_streams_from_a_checkpoint_up_to_a_stop_string(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    ids = torch.tensor([tokenizer.encode("def f")])
    whole = tokenizer.decode(generate(model, ids, 60, 1.0, [tokenizer.eos_id], seed=1)[0, 5:].tolist())
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": 1}
    assert len(whole) > 13
    assert written(checkpoint, "def f", **options) == whole
    stop = whole[10:13]
    assert written(checkpoint, "def f", stop=[stop], **options) == whole[: whole.index(stop)]


def test_text_ends_at_the_end_of_text_token_unless_it_is_ignored(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    options = {"max_new_tokens": 30, "temperature": 1.0, "seed": 1}
    ids = generate(model, torch.tensor([[ord("x")]]), 30, 1.0, seed=1)[0, 1:].tolist()
    tokenizer.eos_id = ids[20]
    upto = tokenizer.decode(ids[: ids.index(ids[20])])
    assert "".join(complete(model, tokenizer, {"prompt": "x"}, Options.checked(options))) == upto
    on = Options.checked({**options, "ignore_eos": True})
    assert "".join(complete(model, tokenizer, {"prompt": "x"}, on)) == tokenizer.decode(ids)
    tokenizer.eos_id = 256
    assert "".join(complete(model, tokenizer, {"prompt": "x"}, Options.checked(options), ends=[ids[20]])) == upto


def test_an_empty_prompt_starts_from_the_end_of_text(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    expected = generate(model, torch.tensor([[tokenizer.eos_id]]), 8)[0, 1:].tolist()
    assert written(checkpoint, "", max_new_tokens=8) == tokenizer.decode(expected)


def test_the_model_is_free_again_once_a_stop_string_has_come(checkpoint):
    model, tokenizer = store.load(checkpoint).train(), make_byte_tokenizer()
    pieces = complete(model, tokenizer, {"prompt": "x"}, Options(max_new_tokens=9), kernel="eager")
    first = next(pieces)
    assert (model.training, model.kernel) == (False, "eager")
    pieces.close()
    assert (model.training, model.kernel) == (True, "auto")
    assert list(complete(model, tokenizer, {"prompt": "x"}, Options(max_new_tokens=9, stop=(first,)))) == []
    assert model.training


def test_what_will_not_do_is_refused_at_the_call(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    with pytest.raises(ConfigError, match="stop: an empty string"):
        complete(model, tokenizer, {"prompt": "x"}, Options(stop=("",)))
    with pytest.raises(ConfigError, match="logit_bias: names token 999"):
        complete(model, tokenizer, {"prompt": "x"}, Options.checked({"logit_bias": {999: 1.0}}))


def test_options_that_leave_no_token_end_the_text_with_its_token_named(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    sound = generate(model, torch.tensor([[ord("x")]]), 3)[0, 1:].tolist()
    options = {"process": lambda ids, logits: logits * (float("nan") if len(ids) == 4 else 1)}
    pieces, came = (
        complete(model, tokenizer, {"prompt": "x"}, Options(max_new_tokens=9, sampling=Sampling(**options))),
        [],
    )
    told = r"^generate: token 4 is barred by its options \(fewer bad_words, or another logit_bias or process\)$"
    with pytest.raises(ZooError, match=told):
        came.extend(pieces)
    assert "".join(came) == tokenizer.decode(sound)


def test_without_a_checkpoint_the_last_run_writes_and_its_absence_is_said_in_one_line(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(ConfigError, match=r"--checkpoint DIR") as caught:
        load(None)
    assert len(caught.value.faults) == 1
    LAST_RUN.parent.mkdir()
    LAST_RUN.write_text(str(checkpoint))
    assert written(None, max_new_tokens=4) == written(checkpoint, max_new_tokens=4)


def test_going_beyond_the_trained_length_is_noted_but_allowed(checkpoint, capsys):
    args = ["generate", "--checkpoint", str(checkpoint), "--device", "cpu", "--prompt", "xy", "--max-new-tokens"]
    assert run([*args, "62"]) == 0
    assert capsys.readouterr().err == ""
    assert run([*args, "63"]) == 0
    said = "65 tokens may come, the model is made for 64: what lies beyond may make less sense"
    assert capsys.readouterr().err == f"zoo: note: {said}\n"


def test_one_prompt_writes_its_text_and_nothing_else(checkpoint, capsys):
    args = ["generate", "--checkpoint", str(checkpoint), "--device", "cpu", "--prompt", "xy", "--max-new-tokens", "20"]
    assert run([*args, "--seed", "5"]) == 0
    expected = written(checkpoint, "xy", max_new_tokens=20, temperature=0.8, seed=5)
    assert capsys.readouterr().out == expected + "\n"


# ---------------------------------------------------------------- the dtype on a GPU


@pytest.fixture
def gpu(request, monkeypatch):
    """A GPU that stands for the CPU: models are built in the CPU's memory, and all else is decided as for CUDA."""
    build = StoredModel.build
    capability = getattr(request, "param", (9, 0))
    machines = {"cuda": Machine("cuda", capability), "cpu": machine_of(torch.device("cpu"))}
    monkeypatch.setattr(loading, "machine_of", lambda device: machines[device.type])
    monkeypatch.setattr(
        loading, "pick_rank_device", lambda device, _: torch.device("cuda" if device == "auto" else device)
    )
    monkeypatch.setattr(StoredModel, "build", lambda self, where: build(self, torch.device("cpu")))


@pytest.mark.parametrize(
    ("device", "dtype", "computes"),
    [("auto", None, torch.bfloat16), ("auto", "fp32", torch.float32), ("cpu", None, torch.float32)],
)
def test_saved_float32_weights_generate_in_bfloat16_on_a_gpu_unless_a_dtype_is_named(
    checkpoint, gpu, device, dtype, computes
):
    said = []
    loaded = load(checkpoint, device=device, dtype=dtype, note=said.append)
    assert loaded.model.embedding.tokens.weight.dtype == computes
    assert any("in bfloat16" in line for line in said) == (computes == torch.bfloat16)


@pytest.mark.parametrize("gpu", [(7, 5)], indirect=True)
def test_a_gpu_without_bfloat16_generates_in_the_weights_float32(checkpoint, gpu):
    assert load(checkpoint).model.embedding.tokens.weight.dtype == torch.float32


def test_what_the_processor_is_good_at_does_not_decide_the_dtype_of_a_gpu(checkpoint, gpu, monkeypatch):
    monkeypatch.setattr("zoo.run.fastest_dtype.is_slow", lambda *_, **__: True)
    assert load(checkpoint, dtype="bf16").model.embedding.tokens.weight.dtype == torch.bfloat16
    assert load(checkpoint).model.embedding.tokens.weight.dtype == torch.bfloat16
