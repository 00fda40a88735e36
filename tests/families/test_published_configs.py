"""config.json files as they are published, hub quirks and all: each is priced to the parameter."""

import json
from pathlib import Path

import pytest

import zoo
import zoo.verify
from support.packaged_specs import load, one_in
from zoo.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*(quantised|text model alone)")
PUBLISHED = json.loads((Path(__file__).parents[1] / "support/published_configs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", one_in(2, PUBLISHED))
def test_a_published_config_is_priced_to_the_parameter(name, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PUBLISHED[name]["config"]))
    priced = zoo.stats(file)
    assert priced["params"]["total"] == PUBLISHED[name]["parameters"]
    assert priced["flops"]["forward"] > 0 and "activations_unknown" not in priced["memory"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_what_was_counted(name, tmp_path, monkeypatch):
    """At full size, in torch's fake mode; the peak is left to test_verify.py."""
    monkeypatch.setattr(zoo.verify, "_peak", lambda *args: iter(()))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(PUBLISHED[name]["config"]))
    rows = zoo.verify.verify(load(file))
    assert len(rows) >= 4 and [row["name"] for row in rows if not row["equal"]] == []


def test_one_unknown_field_that_asks_for_something_is_refused_by_name(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**PUBLISHED["llama-2-7b"]["config"], "n_future_heads": 4}))
    with pytest.raises(CheckpointError, match="n_future_heads: is 4, a field that llama does not have"):
        zoo.stats(file)


def test_a_decoder_that_is_to_look_both_ways_is_refused_where_its_family_has_no_such_models(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**PUBLISHED["llama-2-7b"]["config"], "is_causal": False}))
    with pytest.raises(CheckpointError, match="is_causal: is false, which no model here implements"):
        zoo.stats(file)
