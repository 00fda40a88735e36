"""The playground's form changes one value of a text, and leaves every other line as somebody wrote it."""

import pytest
import yaml

from zoo.gallery.playground.yaml_edit import edit_text

TEXT = """\
# mine
defaults: [/model/llama-tiny@_here_]
attention: mla  # new

# depth
n_layers: 4
layers:
  near: {attention: gqa}
  far:
    position: none
# end
pattern: [near, far]
"""


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (["n_layers"], 8, "n_layers: 8"),
        (["attention"], "gqa", "attention: gqa  # new"),
        (["attention", "window"], 512, "attention: {kind: mla, window: 512}  # new"),
        (["rope_theta"], 1e6, "rope_theta: 1000000.0"),
    ],
)
def test_an_edit_changes_one_line(path, value, line):
    before, after = TEXT.splitlines(), edit_text(TEXT, path, value).splitlines()
    assert [each for each in after if each not in before] == [line]
    assert [each for each in before if each not in after and not each.startswith(path[0])] == []


def test_a_value_within_a_kind_of_layer_is_set_there():
    body = yaml.safe_load(edit_text(TEXT, ["layers", "far", "attention", "window"], 64))
    assert body["layers"] == {"near": {"attention": "gqa"}, "far": {"position": "none", "attention": {"window": 64}}}
    assert body["pattern"] == ["near", "far"]


@pytest.mark.parametrize("path", [["attention"], ["n_layers"], ["pattern"], ["layers"]])
def test_what_was_set_can_be_removed(path):
    body = yaml.safe_load(TEXT)
    del body[path[0]]
    removed = edit_text(TEXT, path, None)
    assert yaml.safe_load(removed) == body
    assert "# depth" in removed and "# end" in removed


def test_a_field_that_is_removed_leaves_the_word():
    set_once = edit_text("attention: mla\n", ["attention", "window"], 512)
    assert edit_text(set_once, ["attention", "window"], None) == "attention: mla\n"


def test_an_empty_text_gets_its_first_key():
    assert edit_text("", ["n_layers"], 2) == "n_layers: 2\n"
