"""Model folders that strangers made: what each file may say, where its paths may lead, and how much work it may ask.
Each fault is a line with the file and the key; what is published is read as before."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
import zoo.cli
from support.tokenizer_splits import PATTERNS
from zoo.checkpoint.backtracking import find_slow_part
from zoo.checkpoint.headers import compare_shapes
from zoo.checkpoint.sentence_files import write_modules
from zoo.checkpoint.tensor_files import read_header
from zoo.checkpoint.tokenizer_file import GROWTH, check_tokenizer
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import CheckpointError, ConfigError, did_you_mean
from zoo.families import family
from zoo.families.config_types import ConfigFile
from zoo.families.expression import Expression
from zoo.families.gguf import read_catalogue
from zoo.text.defaults import read_defaults
from zoo.untrusted.json_file import check_shape

SIZES = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SECONDS = 5.0
"""For one refused folder: a tenth of a second on an idle machine, and hours before."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A Llama in several files, with a tokenizer of bytes and sentence-transformers' modules."""
    torch.manual_seed(3)
    config = transformers.LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=2, eos_token_id=256)
    place = tmp_path_factory.mktemp("made") / "model"
    transformers.LlamaForCausalLM(config).save_pretrained(place, max_shard_size="20KB")
    make_byte_tokenizer().save(place)
    write_modules(place, ("mean",), 32, 64)
    return place


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "model"))


def rewrite(file: Path, change) -> None:
    """Change a JSON file: keys that are replaced, or a function of all of it."""
    node = json.loads(file.read_text())
    file.write_text(json.dumps(change(node) or node if callable(change) else {**node, **change}))


def refuse(capsys, *args: object, code: int = 2) -> str:
    """Run a verb that is to end with one line; gives the line."""
    start = time.monotonic()
    assert zoo.cli.run([str(each) for each in args]) == code
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("zoo: error:")]
    assert len(said) == 1 and len(said[0]) < 3_000
    assert time.monotonic() - start < SECONDS
    return said[0]


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"quantization_config": "x"}, "quantization_config: is 'x' (a mapping)"),
        (
            {"quantization_config": {"quant_method": ["x"]}},
            "quant_method: is a list of 1 (a text)",
        ),
        ({"architectures": [["a"]]}, "architectures.0: is a list of 1 (a text)"),
        ({"model_type": ["llama"]}, "model_type: is a list of 1 (a text)"),
        ({"vocab_size": ["a"] * 10**5}, "vocab_size: is a list of 100,000 (a whole number)"),
        ({"layer_types": ["x"] * 10**6}, "layer_types: is a list of 1,000,000"),
        ({"num_hidden_layers": 10**6}, "n_layers: is 1000000 (at most 2,000)"),
        (
            {"num_attention_heads": 0},
            "'head_dim or hidden_size // num_attention_heads', found null, 32, 0 (",
        ),
        ({"hidden_size": "a"}, "found null, 'a', 2 (numbers, and 'a' is none)"),
        ({"rope_parameters": {"rope_theta": {}}}, "rope_parameters, default_theta: give no 'whole(rope("),
        ({"intermediate_size": "${oc.env:HOME}"}, "intermediate_size: gives '${oc.env:HOME}' (a text without ${)"),
        ({"eos_token_id": "x"}, "eos_token_id: is 'x' (a whole number or a list)"),
        ({"hidden_size": 10**30}, f"holds {10**30} (whole numbers of 64 bits)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_odd_value_in_a_config_costs_one_line(folder, capsys, change, fault):
    rewrite(folder / "config.json", lambda node: {**node, "head_dim": None, **change})
    assert fault in refuse(capsys, "check", folder)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"a": ' + "[" * 10**5 + "]" * 10**5 + "}", "is nested more than 64 deep"),
        ('{"a": ' + "9" * 5_000 + "}", "cannot be read as JSON, found Exceeds the limit"),
        ("[]", "config.json: is a list of 0 (a mapping)"),
        ('{"a": "' + "x" * (17 << 20) + '"}', "is larger than 16 MiB"),
    ],
    ids=["nested", "digits", "list", "large"],
)
def test_a_config_beyond_a_budget_costs_one_line(folder, capsys, text, fault):
    (folder / "config.json").write_text(text)
    assert fault in refuse(capsys, "stats", folder)


def test_a_model_type_is_no_path(folder, capsys, tmp_path):
    """A family's YAML of the stranger's own was read, and its expressions with it."""
    evil = "model_type: EVIL\narchitectures: {A: {prefix: ''}}\nmodel: {d_model: =9**64**9}\nkeys: {}\n"
    where = os.path.relpath(tmp_path / "evil", family.family_folder())
    (tmp_path / "evil.yaml").write_text(evil.replace("EVIL", where))
    for kind in (where, str(tmp_path / "evil"), "\0"):
        rewrite(folder / "config.json", {"model_type": kind})
        assert "is no family here" in refuse(capsys, "stats", folder)


@pytest.mark.parametrize(
    "config, fault",
    [
        (transformers.WhisperConfig(), "text models only: num_mel_bins is for images or sound"),
        (transformers.ViTConfig(), "text models only: image_size is for images or sound"),
        ({"model_type": "lama", "auto_map": {"AutoModel": "m.M"}}, "the code of the folder (auto_map) is not run"),
        ({"model_type": "qwen4"}, "(did you mean 'qwen4_exp_text' or 'qwen3' or "),
    ],
)
def test_a_model_of_no_family_is_told_what_it_is(folder, capsys, config, fault):
    rewrite(folder / "config.json", config if isinstance(config, dict) else config.to_dict())
    assert fault in refuse(capsys, "stats", folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named_so(folder, capsys, name):
    for file in folder.glob("model*.safetensors*") if "model" in name else ():
        file.unlink()
    (folder / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * 'a'}\nsize 12345\n")
    said = refuse(capsys, "generate", "--checkpoint", folder, "--prompt", "a")
    assert said.endswith(f"{name}: is a Git LFS pointer, not the file itself (`git lfs pull` fetches the file)")


def test_a_hundred_thousand_unknown_fields_are_ten_lines_and_a_count(folder, capsys):
    rewrite(folder / "config.json", {f"field_{number}": 1 for number in range(10**5)})
    start = time.monotonic()
    assert zoo.cli.run(["stats", str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11 and said[-1].endswith("llama: … and 99,990 more like field_9")
    assert time.monotonic() - start < SECONDS


def test_odd_but_harmless_fields_of_published_configs_are_let_through():
    node = {
        **{"architectures": None, "model_type": "llama", "torch_dtype": "bfloat16", "rope_scaling": None},
        **{"eos_token_id": [1, 2], "pad_token_id": -1, "model_max_length": 10**30, "id2label": {"0": "LABEL_0"}},
        **{"anything": [{"a": [None, float("inf")]}], "text_config": {"model_type": "llama", "vocab_size": 5}},
    }
    assert check_shape(node, ConfigFile, "config.json") is node


@pytest.mark.parametrize(
    "text",
    [
        *("9**64**9", " * ".join(["9**64"] * 12), "x + x", "texts + texts", "range(0, 10**18)"),
        *("texts['a']", "[1][None]", "1 < None", "{[]: 1}", "len(3)", "max()", "1 / 0", "int(1e308 * 10)"),
        "(" * 40 + "1" + ")" * 40 + " + 1" * 60,
    ],
)
def test_an_expression_works_within_bounds_and_names_what_it_cannot_take(text):
    fields = {"x": "a" * 60_000, "texts": ["a"] * 60_000}
    with pytest.raises(ConfigError) as refused:
        Expression(text).value(fields)
    (fault,) = refused.value.faults
    assert len(fault) < 300


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("stated", ["../theirs.safetensors", "/tmp/theirs.safetensors", "a\0b", ""])
def test_an_index_names_files_of_its_folder_alone(folder, capsys, stated):
    file = folder / "model.safetensors.index.json"
    name = min(json.loads(file.read_text())["weight_map"])
    rewrite(file, lambda node: node["weight_map"].update({name: stated}))
    assert f"index.json: weight_map.{name}: " in refuse(capsys, "check", folder)


def test_a_link_out_of_the_folder_is_no_weight_and_is_not_copied(folder, capsys, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (folder / "chat_template.jinja").symlink_to(secret)
    said = refuse(capsys, "convert", folder, tmp_path / "out", "--no-verify")
    assert "chat_template.jinja' is a link that leads out of" in said
    assert not (tmp_path / "out").exists()
    (folder / "chat_template.jinja").unlink()
    (folder / "1_Pooling" / "more.txt").symlink_to(secret)
    assert "1_Pooling/more.txt' is a link" in refuse(capsys, "convert", folder, tmp_path / "out", "--no-verify")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("absolute", [True, False])
def test_a_module_of_another_folder_is_not_copied(folder, capsys, tmp_path, absolute):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    stated = str(tmp_path / "private") if absolute else "../private"
    rewrite(folder / "modules.json", lambda node: node[2].update(path=stated))
    said = refuse(capsys, "convert", folder, tmp_path / "out", "--no-verify")
    assert "modules.json: 2.path: " in said and "leads out of" in said
    assert not (tmp_path / "out").exists()


def test_a_snapshot_of_the_hubs_cache_whose_files_are_links_is_read_and_copied(made, tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(each for each in made.rglob("*") if each.is_file())):
        shutil.copyfile(file, blobs / str(number))
        link = snapshot / file.relative_to(made)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert zoo.cli.run(["convert", str(snapshot), str(tmp_path / "out"), "--no-verify"]) == 0
    copied = tmp_path / "out" / "1_Pooling" / "config.json"
    assert copied.read_bytes() == (made / "1_Pooling" / "config.json").read_bytes() and not copied.is_symlink()


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        (
            "model.safetensors.index.json",
            {"weight_map": {"a": ["b"]}},
            "weight_map.a: is a list of 1 (a text)",
        ),
        ("model.safetensors.index.json", {"weight_map": "x"}, "index.json: weight_map: is 'x' (a mapping)"),
        ("modules.json", [{"path": 3, "type": "a.b"}], "modules.json: 0.path: is 3 (a text)"),
        ("modules.json", {"a": 1}, "modules.json: is a mapping of 1 (a list)"),
        ("generation_config.json", {"eos_token_id": 2**40}, "generation_config.json: eos_token_id: is 1099511627776"),
    ],
)
def test_an_odd_type_in_a_file_beside_the_weights_costs_one_line(folder, capsys, file, text, fault):
    (folder / file).write_text(json.dumps(text))
    args = ("generate", "--checkpoint", folder, "--prompt", "a") if "generation" in file else ("embed", folder, "a")
    assert fault in refuse(capsys, *args)


def test_twenty_thousand_empty_tensors_are_ten_lines_and_a_count(tmp_path, made, capsys):
    """Each was compared with each."""
    model = zoo.load(made)
    zoo.export(model, tmp_path / "one", verify=False)
    file = tmp_path / "one" / "model.safetensors"
    raw = file.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    place = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    header |= {f"model.layers.{number}.x": place for number in range(20_000)}
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    start = time.monotonic()
    assert zoo.cli.run(["check", str(tmp_path / "one")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 11 and "… and 19,990 more like" in said[-1]
    assert time.monotonic() - start < SECONDS


def test_a_header_of_two_hundred_thousand_tensors_is_refused_before_it_is_parsed(tmp_path):
    place = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps(dict.fromkeys(map(str, range(200_000)), place)).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match="header: lists 200,000 tensors"):
        read_header(tmp_path / "a.safetensors")


def test_differences_of_many_tensors_are_few_lines_and_quickly_found():
    start = time.monotonic()
    with pytest.raises(CheckpointError) as refused:
        compare_shapes(Path("a"), {f"x.{n}": (1,) for n in range(50_000)}, {f"y.{n}": (1,) for n in range(50_000)})
    assert len(refused.value.faults) == 22 and time.monotonic() - start < SECONDS
    assert did_you_mean("tok9", (f"tok{number}" for number in range(10**6))) == " (did you mean 'tok9'?)"
    assert did_you_mean("x" * 10**6, ["x"]) == "" and time.monotonic() - start < SECONDS


@pytest.mark.parametrize("held", [[torch.ones(2)], {"a": 3}, {1: torch.ones(2)}, {"a": torch.eye(2).to_sparse()}])
def test_a_file_of_torchs_that_holds_no_plain_tensors_costs_one_line(folder, capsys, held):
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    torch.save(held, folder / "pytorch_model.bin")
    assert "pytorch_model.bin: " in refuse(capsys, "check", folder)


def test_a_dense_module_that_does_not_fit_costs_one_line(folder, capsys):
    rewrite(folder / "modules.json", lambda node: node.insert(2, {"path": "2_Dense", "type": "a.Dense"}))
    (folder / "2_Dense").mkdir()
    for weights, fault in (
        ({"linear.weight": torch.ones(4, 5)}, "2_Dense: reads vectors of 5 numbers, found 32"),
        ({"linear.weight": torch.ones(4)}, "2_Dense: linear.weight: has shape [4]"),
        ({"linear.weights": torch.ones(4, 32)}, "2_Dense: linear.weight: is missing"),
    ):
        save_file(weights, folder / "2_Dense" / "model.safetensors")
        assert fault in refuse(capsys, "embed", folder, "a text")
    assert load_file(folder / "2_Dense" / "model.safetensors")  # it was read as it is


# ---------------------------------------------------------------- generation and tokenizers


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ({"max_new_tokens": 3 * 10**9}, "max_new_tokens: is 3000000000 (less than or equal to 1048576)"),
        ({"max_new_tokens": 3e9}, "max_new_tokens: is 3000000000.0 (a whole number)"),
        ({"bad_words_ids": "x"}, "bad_words_ids: is 'x' (a list)"),
        ({"temperature": []}, "temperature"),
        ({"top_k": "x"}, "top_k"),
        ({"num_beams": 10**6}, "n_beams: is 1000000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_generation_config_asks_for_what_a_request_may_ask(folder, stated, fault):
    (folder / "generation_config.json").write_text(json.dumps(stated))
    with pytest.raises(ConfigError) as refused:
        read_defaults(folder)
    assert len(refused.value.faults) == 1 and f"generation_config.json: {fault}" in refused.value.faults[0]


def replace(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(key: str, *steps: dict) -> dict:
    return {"type": "Sequence", key: list(steps)}


GROWING = [
    ("normalizer", sequence("normalizers", *[replace({"String": "a"}, "a" * 100)] * 5)),
    ("normalizer", sequence("normalizers", *[sequence("normalizers", replace({"String": "a"}, "aa"))] * 30)),
    ("normalizer", sequence("normalizers", *[replace({"Regex": "."}, "a" * 20)] * 2)),
    ("normalizer", replace({"Regex": ""}, "a" * 1_000)),
    ("pre_tokenizer", sequence("pretokenizers", *[{"type": "ByteLevel"}] * 30)),
    ("decoder", sequence("decoders", *[replace({"String": "a"}, "a" * 100)] * 5)),
    ("post_processor", {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 300}),
]


@pytest.mark.parametrize(("part", "steps"), GROWING)
def test_a_tokenizer_that_makes_a_text_very_long_is_refused_before_it_runs(part, steps):
    with pytest.raises(CheckpointError, match=rf"tokenizer.json: {part}.*: makes more than {GROWTH} characters of one"):
        check_tokenizer({"model": {}, part: steps}, "tokenizer.json")


@pytest.mark.parametrize(
    ("step", "key"), [(replace({"String": ""}, "aa"), "pattern"), ({"type": "Prepend", "prepend": ""}, "prepend")]
)
def test_a_step_that_tokenizers_would_panic_at_is_refused(step, key):
    with pytest.raises(CheckpointError, match=rf"^tokenizer.json: normalizer.normalizers\[0\].{key}: is an empty text"):
        check_tokenizer({"model": {}, "normalizer": sequence("normalizers", step)}, "tokenizer.json")


def test_the_steps_of_published_tokenizers_are_within_the_bounds():
    llama = [{"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")]
    t5 = [replace({"Regex": " {2,}"}, " "), {"type": "Nmt"}, {"type": "NFKC"}, *llama, replace({"String": "``"}, '"')]
    spoken = [replace({"Regex": "(?=.)|(?<!^)$"}, "<pad>"), {"type": "Lowercase"}]
    for steps in (llama, t5, spoken):
        pre = sequence("pretokenizers", {"type": "WhitespaceSplit"}, {"type": "Metaspace"}, {"type": "ByteLevel"})
        node = {"normalizer": sequence("normalizers", *steps), "pre_tokenizer": pre}
        check_tokenizer({"model": {"vocab": {"a": 0}}, **node}, "tokenizer.json")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_published_pattern_is_let_through(pattern):
    assert find_slow_part(pattern) is None


def test_the_patterns_that_come_with_zoo_are_let_through():
    rows = read_catalogue()["splits"].values()
    assert not [each for row in rows for each in row["patterns"] if find_slow_part(each)]


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"(a+)+$", r"(a|aa)+$", r"(a?){30}b", r"a*a*b", r"\s*\s*x", r"(?:.?){23}", r".?.?.?.?.?.?.?.?.?.?x"),
        *(r"(\w+)\1", r"(a{1,50}){1,50}x", r"[\s\S]*[\s\S]*[^\s\S]", r"(?<n>a)\k<n>", r"(((a+)))*", r"a**"),
        *(r"(x+x+)+y", r"a{1,9}+b", r"(?x)( a + )+", r"[[a]b]+[ab]*c", "(" * 30 + ")" * 30, "(a", "a)", "[a"),
    ],
)
def test_a_pattern_that_may_never_end_is_not(pattern):
    assert find_slow_part(pattern)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}},
            "pre_tokenizer.pattern: '(a+)+$' may take very long, it repeats a part that is itself of several lengths",
        ),
        ({"added_tokens": [{"id": 2**31, "content": "x"}]}, "the id of x: is 2147483648 (a number from 0 to"),
        ({"added_tokens": [{"id": "x", "content": "x"}]}, "added_tokens.0.id: is 'x' (a whole number)"),
        ({"added_tokens": 3}, "added_tokens: is 3 (a list)"),
        ({"normalizer": [1]}, "normalizer: is a list of 1 (a mapping)"),
        ({"model": 5}, "model: is 5 (a mapping)"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "xx"}}, "normalizer: is no table of Sent"),
    ],
    ids=["slow", "id", "no id", "added", "normalizer", "model", "table"],
)
def test_an_odd_tokenizer_costs_one_line(folder, capsys, change, fault):
    rewrite(folder / "tokenizer.json", change)
    assert fault in refuse(capsys, "generate", "--checkpoint", folder, "--prompt", "aaaaaaaaaaaaaaaaaaaaaaaaab")


def test_half_of_a_surrogate_pair_is_no_text(folder, capsys):
    file = folder / "tokenizer_config.json"
    file.write_text('{"eos_token": "\\ud800"}')
    said = refuse(capsys, "generate", "--checkpoint", folder, "--prompt", "a")
    assert "tokenizer_config.json: holds half of a surrogate pair" in said
    rewrite(file, {"eos_token": "<|endoftext|>", "note": "\ud83d\ude42"})
    assert zoo.cli.run(["check", str(folder)]) == 0


def test_a_size_that_no_memory_holds_costs_one_line(folder, capsys):
    rewrite(folder / "config.json", {"intermediate_size": 10**15, "hidden_size": 2**20})
    assert "has shape [1000000000000000, 1048576], too many values for any memory" in refuse(capsys, "check", folder)
