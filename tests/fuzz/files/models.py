"""Model folders as a hub has them: config.json, weights, tokenizer, settings, modules, adapters, templates."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

from ..kinds import Case, choose_words, copy_seeds, kind
from ..mutate import mutate_file, mutate_tree, write_json
from ..values import Place, Raw, list_paths
from .gguf import mutate_gguf

CONFIG = (
    *(
        "quantization_config",
        "architectures",
        "model_type",
        "layer_types",
        "rope_scaling",
        "rope_parameters",
        "num_experts",
    ),
    *("text_config", "auto_map", "torch_dtype", "dtype", "head_dim", "sliding_window", "hidden_act", "vocab_size"),
    *(
        "id2label",
        "num_labels",
        "tie_word_embeddings",
        "pad_token_id",
        "quant_method",
        "bits",
        "group_size",
        "_target_",
    ),
)
SETTINGS = ("stop_strings", "bad_words_ids", "max_new_tokens", "suppress_tokens", "num_beams", "eos_token_id", "min_p")
TOKENIZER = (
    "normalizer",
    "pre_tokenizer",
    "decoder",
    "post_processor",
    "added_tokens",
    "model",
    "chat_template",
    "type",
)
PRICE = (
    *("stats hf", "stats hf/config.json", "stats hf --json", "stats hf --explain", "stats hf --kernels", "check hf"),
    *(
        "diff hf llama-tiny",
        "stats hf --cfg job",
        "stats hf --cfg job --resolve",
        "build hf --device meta",
        "stats hf gpt2",
    ),
    *("stats hf --gpu h100 --tokens 1B", "solve batch hf --gpu h100", "stats hf --columns params,kv n_layers=2"),
)
GENERATE = "generate --checkpoint hf --prompt cat --max-new-tokens 2 --device cpu"
LOAD = (
    *(GENERATE, GENERATE, GENERATE + " --weights int8", "generate --checkpoint hf --prompt cat --device cpu"),
    *("eval hf --file data/text.txt --context 16 --device cpu", "embed hf cat --device cpu", "check hf", "stats hf"),
    *("convert hf out --no-verify", "convert hf out --to zoo", "build hf --device cpu", "inspect hf --device cpu"),
    "eval hf --file data/text.txt --context 16 --weights int8 --device cpu",
)


@functools.cache
def read_published() -> dict[str, Any]:
    """Read the config.json files of published models that the tests have."""
    file = Path(__file__).parents[2] / "support/published_configs.json"
    return {name: each["config"] for name, each in json.loads(file.read_text()).items()}


@kind(quick=60)
def config_json(rng: Random, place: Place) -> Case:
    """The config.json of a published model, priced."""
    configs = read_published()
    name = rng.choice(sorted(configs))
    tree, what = mutate_tree(rng, configs[name], place, CONFIG)
    place.folder.joinpath("hf").mkdir()
    place.folder.joinpath("hf", "config.json").write_bytes(write_json(tree))
    return Case(choose_words(rng, PRICE), f"config.json of {name}: {what}")


@kind(quick=20)
def config_of_folder(rng: Random, place: Place) -> Case:
    """The config.json of a tiny model whose other files are whole, or its headers and index."""
    source = rng.choice(["hf", "sharded"])
    copy_seeds(place, source)
    place.folder.joinpath(source).rename("hf")
    files = [*sorted(place.folder.glob("hf/*.json")), *place.folder.glob("hf/*.safetensors")]
    weighted = [each for each in files if not each.name.startswith("tokenizer")]
    return Case(choose_words(rng, PRICE), mutate_file(rng, rng.choice(weighted), place, CONFIG))


@kind(quick=12)
def folder_loaded(rng: Random, place: Place) -> Case:
    """Any file of a tiny model, which is loaded."""
    source = rng.choice(["hf", "hf", "sharded"])
    copy_seeds(place, source, "data")
    place.folder.joinpath(source).rename("hf")
    file = rng.choice(sorted(place.folder.glob("hf/*")))
    names = {"tokenizer.json": TOKENIZER, "generation_config.json": SETTINGS}.get(file.name, CONFIG)
    return Case(choose_words(rng, LOAD), mutate_file(rng, file, place, names))


@kind(quick=10)
def settings_of_folder(rng: Random, place: Place) -> Case:
    """Its generation_config.json, tokenizer_config.json or tokenizer.json, with which it writes."""
    copy_seeds(place, "hf", "data")
    name = rng.choice(["generation_config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
    names = {"tokenizer.json": TOKENIZER, "generation_config.json": SETTINGS}.get(name, TOKENIZER)
    what = mutate_file(rng, place.folder / "hf" / name, place, names)
    chat = "generate --checkpoint hf --prompt-file data/prompts.jsonl --max-new-tokens 2 --device cpu"
    return Case(choose_words(rng, [GENERATE, chat, "generate --checkpoint hf --prompt cat --device cpu"]), what)


@kind(quick=6)
def tokenizer_json(rng: Random, place: Place) -> Case:
    """The parts of a tokenizer that do work: normalisers, splits, decoders, nested and repeated."""
    copy_seeds(place, "hf")
    file = place.folder / "hf" / "tokenizer.json"
    tree = json.loads(file.read_text())
    part = rng.choice(["normalizer", "pre_tokenizer", "decoder", "post_processor"])
    tree[part] = choose_part(rng, part)
    file.write_bytes(write_json(tree))
    return Case(GENERATE.split(), f"{part}: {ascii(tree[part])[:200]}")


def choose_part(rng: Random, part: str, depth: int = 0) -> Any:
    """Choose a part of a tokenizer: one that grows text, a pattern that takes long, or a sequence of such."""
    if depth < 3 and rng.random() < 0.4:
        key = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}.get(
            part, "processors"
        )
        return {"type": "Sequence", key: [choose_part(rng, part, depth + 1)] * rng.choice([0, 1, 4, 30])}
    pattern = rng.choice(
        [{"String": rng.choice(["a", "", "c"])}, {"Regex": rng.choice(["", ".", "(a*)*$", "(.*)*c", "(", "\\p{L}"])}]
    )
    grown = rng.choice(["", "aa", "a" * 1000, "a" * 100_000, "\0", "\ud800"])
    return rng.choice(
        [
            {"type": "Replace", "pattern": pattern, "content": grown},
            {"type": "Prepend", "prepend": grown},
            {
                "type": "Split",
                "pattern": pattern,
                "behavior": rng.choice(["Isolated", "Removed", "x"]),
                "invert": False,
            },
            {"type": "Precompiled", "precompiled_charsmap": rng.choice(["", "AAAA", "/" * 4000, "=="])},
            {"type": "ByteLevel", "add_prefix_space": rng.choice([True, False, "a"]), "trim_offsets": True},
            {
                "type": "Metaspace",
                "replacement": rng.choice(["", "▁", "aaa"]),
                "prepend_scheme": "always",
                "split": True,
            },
            {"type": "Strip", "content": "a", "start": rng.choice([0, 2**31, -1]), "stop": 2**63},
            {"type": rng.choice(["NFKD", "Fuse", "ByteFallback", "BertNormalizer", "none", ""])},
            {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 2**32}}],
                "pair": [],
                "special_tokens": {},
            },
        ]
    )


@kind(quick=6)
def template(rng: Random, place: Place) -> Case:
    """Chat templates that attack, do not end, or are no template."""
    copy_seeds(place, "hf", "data")
    text = rng.choice(
        [
            "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.__class__.__init__.__globals__ }}",
            "{% for i in range(10**9) %}{{ i }}{% endfor %}",
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{{ 'x' * 10**10 }}",
            "{{ '%1000000000d' % 1 }}",
            "{% include '../outside/secret.json' %}",
            "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
            "{{ raise_exception('\x1b]0;title\x07') }}",
            "{{ raise_exception('x' * 5000) }}",
            "{{ lipsum.__globals__['os'].environ }}",
            "{% if %}",
            "{{ nothing.at.all }}",
            "{{ messages[10**30] }}",
            "{{ 9**9**9 }}",
            "\x1b[2J{{ messages }}",
            "{{ messages | tojson(indent=10**8) }}",
            "{{ strftime_now('%Y' * 2000) }}",
            "(" * 5000,
            "{{ " + "(" * 5000 + ")" * 5000 + " }}",
            "{{ x" + "|upper" * 50_000 + " }}",
        ]
    ).replace("CANARY", str(place.canary))
    place.folder.joinpath("hf", "chat_template.jinja").write_text(text)
    if rng.random() < 0.5:
        place.folder.joinpath("own.jinja").write_text(text)
    own = ["--template", "own.jinja"] if place.folder.joinpath("own.jinja").exists() else []
    lines = "--prompt-file data/prompts.jsonl --max-new-tokens 2 --device cpu"
    return Case(["generate", "--checkpoint", "hf", *lines.split(), *own], f"template: {text[:100]!r}")


@kind(quick=6)
def sentence_folder(rng: Random, place: Place) -> Case:
    """The files of a sentence-transformers folder."""
    copy_seeds(place, "sentence")
    files = [each for each in sorted(place.folder.glob("sentence/**/*.json")) if each.name != "tokenizer.json"]
    file = rng.choice([*files, place.folder / "sentence" / "modules.json"])
    what = mutate_file(
        rng, file, place, ("path", "type", "idx", "name", "prompts", "default_prompt_name", "word_embedding_dimension")
    )
    if file.name == "modules.json" and rng.random() < 0.5:
        tree = json.loads((place.seeds / "sentence" / "modules.json").read_text())
        at = rng.randrange(len(tree))
        tree[at]["path"] = rng.choice(list_paths(place))
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
        file.write_bytes(write_json(tree))
        what = f"modules.json: path {tree[at]['path'][:80]!r}"
    commands = [
        "embed sentence cat --device cpu",
        "convert sentence out --no-verify",
        "convert sentence out --to zoo",
        "stats sentence",
    ]
    return Case(choose_words(rng, [*commands, "check sentence"]), what)


@kind(quick=6)
def peft_folder(rng: Random, place: Place) -> Case:
    """The files of adapters, and of the run that trained them."""
    copy_seeds(place, "peft", "adapted", "hf")
    files = [*place.folder.glob("peft/*"), *place.folder.glob("adapted/checkpoints/step-000002/*")]
    what = mutate_file(
        rng, rng.choice(sorted(files)), place, ("r", "lora_alpha", "target_modules", "base_model_name_or_path")
    )
    lines = [
        "generate --checkpoint adapted --prompt cat --max-new-tokens 2 --device cpu",
        "convert adapted out --to peft",
    ]
    more = [
        "stats peft",
        "check adapted",
        "convert adapted out --no-verify",
        "generate --checkpoint peft --prompt a --device cpu",
    ]
    return Case(choose_words(rng, [*lines, *more]), what)


@kind(quick=6)
def task_folder(rng: Random, place: Place) -> Case:
    """A classifier and a masked model, and the records that they are given."""
    name = rng.choice(["labels", "masked"])
    copy_seeds(place, name, "data")
    files = [*sorted(place.folder.glob(f"{name}/*")), place.folder / "data" / "labels.jsonl"]
    what = mutate_file(rng, rng.choice(files), place, (*CONFIG, "text", "label"))
    score = [
        "score labels cat --device cpu",
        "score labels --file data/labels.jsonl --device cpu",
        "score labels cat --probabilities",
    ]
    fill = [
        ["fill", "masked", "the <mask> is", "--device", "cpu"],
        "eval masked data=text data.path=data/text.txt",
        "stats masked",
    ]
    return Case(choose_words(rng, score if name == "labels" else fill), what)


@kind(quick=80)
def gguf_file(rng: Random, place: Place) -> Case:
    """A GGUF file, priced or loaded."""
    copy_seeds(place, "gguf", "data")
    what = mutate_gguf(rng, place.folder / "gguf" / "model.gguf", place)
    price = [
        "stats gguf/model.gguf",
        "stats gguf",
        "check gguf/model.gguf",
        "stats gguf/model.gguf --json",
        "diff gguf llama-tiny",
    ]
    return Case(choose_words(rng, price), what)


@kind(quick=6)
def gguf_loaded(rng: Random, place: Place) -> Case:
    """A GGUF file, loaded."""
    copy_seeds(place, "gguf", "data")
    what = mutate_gguf(rng, place.folder / "gguf" / "model.gguf", place)
    write = "generate --checkpoint gguf/model.gguf --prompt cat --max-new-tokens 2 --device cpu"
    more = [
        "convert gguf/model.gguf out --to zoo",
        "embed gguf/model.gguf cat --device cpu",
        "convert gguf out --no-verify",
    ]
    return Case(choose_words(rng, [write, write, *more]), what)


@kind(quick=2)
def many_things(rng: Random, place: Place) -> Case:
    """Files that are valid and large where they should be small: lists of a million entries, names, tensors."""
    copy_seeds(place, "hf")
    count = rng.choice([10_000, 200_000, 1_000_000])
    config = json.loads((place.folder / "hf" / "config.json").read_text())
    what = rng.choice(["layer_types", "vocab_size", "layers", "tensors", "index", "labels", "architectures", "added"])
    if what == "layer_types":
        config |= {"layer_types": [rng.choice(["full_attention", "x", "sliding_attention"])] * count}
    elif what == "vocab_size":
        config |= {"vocab_size": ["a"] * count}
    elif what == "layers":
        config |= {"num_hidden_layers": rng.choice([count, 10**9, 10**15, Raw("1" * 30)])}
    elif what == "labels":
        config |= {"id2label": {str(n): "x" for n in range(count)}, "architectures": ["LlamaForSequenceClassification"]}
    elif what == "architectures":
        config |= {"architectures": ["x"] * count}
    elif what == "tensors":
        header = {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(min(count, 200_000))}
        text = write_json(header)
        place.folder.joinpath("hf", "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    elif what == "index":
        weights = {f"t{n}": f"model-{n % 3000}.safetensors" for n in range(min(count, 200_000))}
        place.folder.joinpath("hf", "model.safetensors").unlink()
        place.folder.joinpath("hf", "model.safetensors.index.json").write_bytes(write_json({"weight_map": weights}))
    else:
        file = place.folder / "hf" / "tokenizer.json"
        tree = json.loads(file.read_text())
        tree["added_tokens"] = [
            {**tree["added_tokens"][0], "id": n, "content": f"<{n}>"} for n in range(min(count, 200_000))
        ]
        file.write_bytes(write_json(tree))
    place.folder.joinpath("hf", "config.json").write_bytes(write_json(config))
    return Case(choose_words(rng, ["stats hf", "check hf", GENERATE]), f"{what}: {count:,} of them")
