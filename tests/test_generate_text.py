"""Text from a checkpoint: up to a stop string, up to the end-of-text token, from the last run."""

import pytest
import torch

import zoo
from zoo.checkpoint import store
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.generation.generate import generate
from zoo.generation.sampling import Sampling
from zoo.runs import LAST_RUN
from zoo.text.complete import complete, stream


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


def test_text_streams_from_a_checkpoint_up_to_a_stop_string(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    ids = torch.tensor([tokenizer.encode("def f")])
    whole = tokenizer.decode(generate(model, ids, 60, 1.0, [tokenizer.eos_id], seed=1)[0, 5:].tolist())
    options = {"max_new_tokens": 60, "sampling": Sampling(temperature=1.0, seed=1), "device": "cpu"}
    assert len(whole) > 13
    assert "".join(stream(checkpoint, "def f", **options)) == whole
    stop = whole[10:13]
    assert "".join(stream(checkpoint, "def f", stop=[stop], **options)) == whole[: whole.index(stop)]


def test_text_ends_at_the_end_of_text_token(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    options = {"max_new_tokens": 30, "sampling": Sampling(temperature=1.0, seed=1)}
    ids = generate(model, torch.tensor([[ord("x")]]), 30, 1.0, seed=1)[0, 1:].tolist()
    tokenizer.eos_id = ids[20]
    assert "".join(complete(model, tokenizer, "x", **options)) == tokenizer.decode(ids[: ids.index(ids[20])])


def test_an_empty_prompt_starts_from_the_end_of_text(checkpoint):
    model, tokenizer = store.load(checkpoint), make_byte_tokenizer()
    expected = generate(model, torch.tensor([[tokenizer.eos_id]]), 8)[0, 1:].tolist()
    assert "".join(complete(model, tokenizer, "", max_new_tokens=8)) == tokenizer.decode(expected)


def test_the_model_is_free_again_once_a_stop_string_has_come(checkpoint):
    model, tokenizer = store.load(checkpoint).train(), make_byte_tokenizer()
    first = next(complete(model, tokenizer, "x", max_new_tokens=9))
    assert model.training  # the iterator is gone already
    assert list(complete(model, tokenizer, "x", max_new_tokens=9, stop=[first])) == []
    assert model.training


def test_without_a_checkpoint_the_last_run_writes_and_its_absence_is_said_in_one_line(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(ConfigError, match=r"--checkpoint DIR") as caught:
        stream(None, "x", max_new_tokens=4)
    assert len(caught.value.faults) == 1
    LAST_RUN.parent.mkdir()
    LAST_RUN.write_text(str(checkpoint))
    assert "".join(stream(None, "x", max_new_tokens=4)) == "".join(stream(checkpoint, "x", max_new_tokens=4))


def test_going_beyond_the_trained_length_is_noted_but_allowed(checkpoint):
    notes = []
    assert stream(checkpoint, "xy", max_new_tokens=62, note=notes.append)
    assert notes == []
    assert stream(checkpoint, "xy", max_new_tokens=63, note=notes.append)
    assert notes == ["65 tokens may come, the model is made for 64: what lies beyond may make less sense"]
