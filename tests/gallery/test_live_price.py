"""The playground's answers have the figures of `zoo stats --json`, and name the field that a fault concerns."""

import json
from pathlib import Path

import pytest

import zoo
from zoo.compose import load
from zoo.costs import price
from zoo.costs.hardware import hardware
from zoo.gallery.playground.live_price import answer_request

START = "defaults: [/model/llama3-8b@_here_]\n"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def answer(text, *edits, **setup):
    made = [{"path": path.split("."), "value": value} for path, value in edits]
    return answer_request({"text": text, "setup": setup, "edits": made})


def test_a_changed_model_has_the_figures_of_its_overrides():
    found = answer(START, ("attention", "mla"), ("n_layers", "24"), batch=4, engine="hf")
    expected = zoo.stats("llama3-8b", ["attention=mla", "n_layers=24"], batch=4, engine="hf")
    assert json.loads(json.dumps(found["figures"])) == json.loads(json.dumps(expected))
    assert found["text"] == START + "attention: mla\nn_layers: 24\n"


def test_the_change_is_told_beside_the_model_that_it_starts_from():
    found = answer(START, ("n_layers", "16"))
    row = next(each for each in found["rows"] if each["path"] == "params.total")
    assert row["exact"]["a"] == zoo.stats("llama3-8b")["params"]["total"] == 8_030_261_248
    assert row["exact"]["b"] == price(load("llama3-8b", ["n_layers=16"]))["params"]["total"]
    assert row["change"] == f"{100 * (row['exact']['b'] / row['exact']['a'] - 1):+.1f} %"
    assert found["stated"].keys() == {"defaults", "n_layers"}


def test_the_start_itself_has_no_change():
    found = answer(START)
    assert {row["change"] for row in found["rows"]} == {""}
    assert found["differs"] == {}


def test_a_gpu_holds_its_batch_and_not_one_more():
    gpus = {title: now for title, _, now in answer(START, context=4096)["gpus"]}
    device = hardware("h100")
    count, batch = gpus[device.title]
    assert count == 1
    needed = [_weights_and_cache(context=4096, batch=each) for each in (batch, batch + 1)]
    assert needed[0] <= device.usable < needed[1]


def _weights_and_cache(**setup):
    memory = zoo.stats("llama3-8b", **setup)["memory"]
    return memory["weights"] + memory["kv_cache"]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("n_heads", "-3", "n_heads: must be greater than 0, found -3"),
        ("attention.softcap", "-1", "attention.softcap: must be greater than 0, found -1"),
        ("attention", "mlaa", "no option 'mlaa' (did you mean 'mla'? "),
    ],
)
def test_a_fault_is_told_at_its_field(path, value, told):
    (fault,) = answer(START, (path, value))["faults"]
    assert fault["path"] == path
    assert told in fault["text"]


def test_a_text_that_is_no_yaml_is_told_and_kept():
    found = answer("attention: {kind: gqa\n", ("n_layers", "4"))
    assert "not YAML" in found["faults"][0]["text"]
    assert found["text"] == "attention: {kind: gqa\n"


def test_positions_that_end_early_leave_the_rest_of_the_page():
    found = answer(START, ("position", "learned"), ("max_seq_len", "8"))
    assert found["figures"]["kv_cache"]["tokens"] == 8
    assert found["chart"].startswith("<svg")


def test_a_strange_field_of_a_setup_is_refused():
    assert "no field" in answer(START, contxt=4)["faults"][0]["text"]


def test_a_config_of_a_published_model_becomes_yaml_when_it_is_edited():
    whole = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 100,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    text = json.dumps(whole)
    assert answer(text)["figures"]["params"] == zoo.stats(_saved(text))["params"]
    edited = answer(text, ("n_layers", "2"))
    assert "n_layers: 2" in edited["text"]
    assert edited["figures"]["params"] == zoo.stats(_saved(text), ["n_layers=2"])["params"]


def _saved(text):
    file = Path("config.json")
    file.write_text(text)
    return file
