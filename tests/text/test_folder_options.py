"""Options that a Hugging Face folder states for its model: `zoo generate` writes what transformers' `generate` does."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.text.defaults import FILE, read_defaults

GREEDY = [
    {"repetition_penalty": 1.3},
    {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 0.7},
    {"min_new_tokens": 20, "eos_token_id": [*range(0, 256, 2), 256]},
    {"max_new_tokens": 7},
    {"bad_words_ids": [[token] for token in range(100)]},
    {"num_beams": 3},
    {"num_beams": 4, "length_penalty": 2.5, "eos_token_id": [*range(0, 60), 256]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Llama of transformers' whose texts vary, with a tokenizer of bytes."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, eos_token_id=256)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.3)
    place = tmp_path_factory.mktemp("made") / "theirs"
    model.save_pretrained(place)
    make_byte_tokenizer().save(place)
    return place


@pytest.fixture
def stating(folder):
    """Write a generation_config.json for the folder."""

    def write(options: dict) -> Path:
        (folder / FILE).write_text(json.dumps({"eos_token_id": 256, **options}))
        return folder

    yield write
    (folder / FILE).unlink(missing_ok=True)


@pytest.fixture
def generating(stating, tmp_path, monkeypatch, capsys):
    """The tokens that `zoo generate` writes for a folder that states these options, and what it says."""
    monkeypatch.chdir(tmp_path)

    def command(options: dict, *args: str, prompts: str | None = None) -> tuple[list[int], str]:
        place = ["--checkpoint", str(stating(options)), "--device", "cpu", "--out", "o.jsonl", "--force"]
        asked = ["--prompt", "abcab"] if prompts is None else ["--prompt-file", prompts]
        assert run(["generate", *place, *asked, *args]) == 0
        return json.loads(Path("o.jsonl").read_text().splitlines()[0])["tokens"], capsys.readouterr().err

    return command


@pytest.mark.parametrize("options", GREEDY, ids=lambda options: " ".join(options))
def test_greedy_text_is_what_transformers_writes_with_the_same_file(generating, folder, options):
    options = {"do_sample": False, "max_new_tokens": 24, **options}
    written, said = generating(options)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder)
    ids = torch.tensor([list(b"abcab")])
    with torch.inference_mode():
        expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=256)[0, 5:].tolist()
    assert written == expected
    assert "temperature 0" in said
    plain, _ = generating({"do_sample": False, "max_new_tokens": 24})
    assert written != plain  # the options change something


def test_the_note_names_what_is_taken_and_the_command_line_goes_before_it(generating):
    options = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.0}
    seeded = ["--seed", "4", "--max-new-tokens", "30"]
    taken, said = generating(options, *seeded)
    note = "zoo: note: generation_config.json: takes temperature 0.6, top_k 20, top_p 0.9"
    assert f"{note} (an option that is given goes before it)\n" in said
    explicit, said = generating({}, *seeded, "--temperature", "0.6", "--top-k", "20", "--top-p", "0.9")
    assert taken == explicit
    assert "generation_config" not in said
    over, said = generating(options, *seeded, "--temperature", "2", "--top-k", "200")
    assert "takes top_p 0.9 (" in said
    assert over == generating({}, *seeded, "--temperature", "2", "--top-k", "200", "--top-p", "0.9")[0]
    assert over != taken


def test_an_option_that_draws_is_not_undone_by_a_folder_whose_text_is_greedy(generating):
    drawn, said = generating({"do_sample": False}, "--top-k", "9", "--seed", "1", "--max-new-tokens", "30")
    assert "generation_config" not in said
    assert drawn == generating({}, "--top-k", "9", "--seed", "1", "--max-new-tokens", "30")[0]
    assert drawn != generating({}, "--temperature", "0", "--max-new-tokens", "30")[0]


@pytest.mark.parametrize(
    ("stated", "given", "written"),
    [
        ({"num_beams": 3}, ["--n", "2"], ["--n-beams", "3", "--n", "2"]),
        ({"num_beams": 3}, ["--temperature", "0.9"], ["--temperature", "0.9"]),
        ({"num_beams": 3}, ["--n-beams", "1"], ["--temperature", "0"]),
        ({"num_beams": 3}, ["--n-beams", "2"], ["--n-beams", "2"]),
        ({"do_sample": True, "top_p": 0.5, "temperature": 0.3}, ["--n-beams", "2"], ["--n-beams", "2"]),
        ({"do_sample": True, "num_beams": 3}, [], ["--temperature", "0.8"]),
    ],
    ids=str,
)
def test_beams_that_a_folder_states_and_options_that_are_given(generating, stated, given, written):
    common = ["--seed", "1", "--max-new-tokens", "20"]
    assert generating(stated, *common, *given)[0] == generating({}, *common, *written)[0]


def test_a_line_of_a_file_goes_before_both(generating, monkeypatch, folder, stating, capsys):
    stating({"do_sample": False, "max_new_tokens": 3})
    lines = [{"prompt": "ab"}, {"prompt": "ab", "max_new_tokens": 9}]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    args = ["--checkpoint", str(folder), "--device", "cpu", "--prompt-file", "p.jsonl", "--out", "o.jsonl"]
    for given, counts in (([], {3, 9}), (["--max-new-tokens", "5"], {5, 9})):
        assert run(["generate", *args, "--force", *given]) == 0
        rows = map(json.loads, Path("o.jsonl").read_text().splitlines())
        assert {len(row["tokens"]) for row in rows} == counts


@pytest.mark.parametrize(
    ("stated", "row", "written"),
    [
        ({"num_beams": 3}, {}, ["--n-beams", "3"]),
        ({"num_beams": 3}, {"temperature": 0.9}, ["--temperature", "0.9"]),
        ({"num_beams": 3}, {"top_k": 5}, ["--top-k", "5"]),
        ({"num_beams": 3, "length_penalty": 2.0}, {"n_beams": 2}, ["--n-beams", "2", "--length-penalty", "2.0"]),
        ({"do_sample": True, "top_p": 0.5, "temperature": 0.3}, {"n_beams": 2}, ["--n-beams", "2"]),
        ({"do_sample": False}, {"top_p": 0.9}, ["--temperature", "0.8", "--top-p", "0.9"]),
        ({}, {"n_beams": 2}, ["--n-beams", "2"]),
    ],
    ids=str,
)
def test_a_line_of_json_acts_as_the_same_options_on_the_command_line(generating, stated, row, written):
    common = ["--seed", "1", "--max-new-tokens", "20"]
    expected = generating({}, *common, *written)[0]
    Path("p.jsonl").write_text(json.dumps({"prompt": "abcab", **row}))
    assert generating(stated, *common, prompts="p.jsonl")[0] == expected


def test_beams_of_the_command_line_and_a_temperature_of_a_line_are_refused_by_name(folder, stating, tmp_path, capsys):
    stating({})
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "ab", "temperature": 0.5}))
    args = ["--checkpoint", str(folder), "--device", "cpu", "--prompt-file", str(file), "--n-beams", "2"]
    assert run(["generate", *args]) == 2
    told = f"zoo: error: {file}:1: temperature: a beam search looks for the likeliest text (leave it out, or n_beams=1)"
    assert told in capsys.readouterr().err


def test_what_transformers_reads_of_the_file_is_what_is_read_here(stating):
    rng = random.Random(0)
    ranges = {
        "temperature": lambda: rng.choice([0.2, 1.0, 1.7]),
        "top_k": lambda: rng.choice([0, 1, 50]),
        "top_p": lambda: rng.choice([0.3, 1.0]),
        "min_p": lambda: rng.choice([0.0, 0.2]),
        "typical_p": lambda: rng.choice([0.5, 1.0]),
        "repetition_penalty": lambda: rng.choice([0.8, 1.0, 1.2]),
        "max_new_tokens": lambda: rng.choice([1, 500]),
    }
    off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0}
    for _ in range(100):
        stated = {name: choose() for name, choose in ranges.items() if rng.random() < 0.5}
        place = stating({"do_sample": True, **stated})
        theirs = transformers.GenerationConfig.from_pretrained(place)
        found = read_defaults(place).options
        for name in ranges:
            if name in stated:
                assert found.get(name, off.get(name)) == getattr(theirs, name)
            else:
                assert name not in found


def test_options_of_transformers_that_zoo_does_not_have_are_named(generating):
    options = {"do_sample": False, "num_beams": 1, "no_repeat_ngram_size": 3, "suppress_tokens": [], "min_length": 0}
    _, said = generating(options, "--max-new-tokens", "2")
    assert "zoo: note: generation_config.json: takes temperature 0 (an option that is given goes before it); " in said
    assert "cannot take no_repeat_ngram_size\n" in said


def test_values_that_will_not_do_are_refused_with_the_file_named(stating, capsys):
    place = stating({"temperature": -1, "top_p": "much"})
    with pytest.raises(ConfigError) as caught:
        read_defaults(place)
    starts = [f"{place / FILE}: {name}: " for name in ("temperature", "top_p")]
    assert [fault.startswith(start) for fault, start in zip(caught.value.faults, starts, strict=True)] == [True, True]
    assert run(["generate", "--checkpoint", str(place), "--device", "cpu", "--prompt", "x"]) == 2
    assert "generation_config.json: temperature: is -1" in capsys.readouterr().err


def test_chat_takes_them_as_well(stating, tmp_path, monkeypatch, capsys):
    import io

    place = stating({"do_sample": False, "max_new_tokens": 4})
    (plain := tmp_path / "plain.jinja").write_text("{{ messages[0].content }}")
    said = []
    for args in ([], ["--max-new-tokens", "4", "--temperature", "0"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
        assert run(["chat", "--checkpoint", str(place), "--device", "cpu", "--template", str(plain), *args]) == 0
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out
    assert "takes max_new_tokens 4, temperature 0 (" in said[0].err
    assert "generation_config" not in said[1].err
