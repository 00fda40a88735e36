"""Writes docs/serving.md from conf/serving.yaml and conf/family/: which engines serve what `zoo convert` writes.
`make docs` runs it; test_serving.py holds the page against both."""

# ruff: noqa: E501  (the page's own lines)

from __future__ import annotations

import sys
from pathlib import Path

from support.packaged_specs import load
from zoo.checkpoint.inverse import find_config
from zoo.errors import ConfigError
from zoo.families import family as families
from zoo.families.serving import describe_serving, read_engines

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"

REFUSED = ("llama-tiny", ("block=parallel",))
"""A model that no family describes, for the example."""

CELLS = {"text": "yes", "transformers": "through transformers", "pooling": "pooling"}

HEAD = """\
# Serving: hand a model to vLLM, SGLang or TensorRT-LLM

Written by `python tests/pages serving` from `conf/serving.yaml`; a test holds this page against it. **None of these engines was
run here.** The lists and the options below were read in the engines' own files:

{sources}

## Write the model

```sh
zoo convert RUN OUT --dtype bf16
```

This writes a Hugging Face folder and compares its logits with transformers (extra `hf`; `--no-verify` leaves that out). Adapters are
merged into the weights. One line says which engines list the architecture:

    {line}

For llama.cpp and what is built on it, `zoo convert RUN OUT.gguf --to gguf --type q8_0` writes one file ([convert.md](convert.md)).

## Start a server

```sh
# not run here: needs vLLM, SGLang, TensorRT-LLM
vllm serve OUT --host 127.0.0.1 --tensor-parallel-size 2
python -m sglang.launch_server --model-path OUT --host 127.0.0.1 --tp-size 2
trtllm-serve OUT --host 127.0.0.1 --tp_size 2
```

- Each divides the model over two GPUs of one machine. vLLM refuses a number that does not divide the attention heads.
- `--host 127.0.0.1` admits this machine alone. vLLM without `--host` listens on every network interface.
- SGLang recommends `sglang serve --model-path OUT` in place of `python -m sglang.launch_server`, with the same options.
- Each answers OpenAI's API, at `/v1/completions` and `/v1/chat/completions`. vLLM and SGLang answer for a pooling model at
  `/v1/embeddings`.

## What the folder needs

- **Tokenizer**: `zoo convert` copies `tokenizer.json`, `tokenizer_config.json` and their like byte for byte, of a run those of the folder
  that its weights or its tokenizer came from. A tokenizer trained here gets a `tokenizer_config.json` (padding, length).
- **End of a text**: for a model trained here, config.json and generation_config.json state in `eos_token_id` what it learned to end a text
  with: the tokenizer's end of text, and what the chat template puts after an answer. Without it, vLLM and SGLang would also stop at the
  default token of the transformers class (Llama: 2).
- **Chat template**: `/v1/chat/completions` needs one. That of the folder that a run started from, or the one that the run named
  (`data.template=`), is in the folder. Any other is named: `--chat-template FILE` (vLLM, SGLang), `--chat_template FILE` (TensorRT-LLM).
  `/v1/completions` works without.
- **Sampling**: `generation_config.json` is copied where there is one. vLLM and SGLang take their defaults (temperature, top_p, …) from it.

## What is not handed over

- **An architecture that no family describes.** Every family of [zoo.md](zoo.md) can be written, but a model may mix choices that no family
  has together. Then it is written for [`import zoo.hf`](transformers.md), which vLLM serves in part, and each field in the
  way has a line. Here for `block=parallel` on a Llama:

{error}

  `zoo generate` and `zoo.Engine` still run such a model.
- **Quantized weights.** `zoo convert` writes fp32, bf16 or fp16.
- **Adapters by themselves.** `zoo convert RUN OUT` merges them. `--to peft` writes them alone, as below.

## Two adapters on one base

Zoo's own engine holds the base once, and each request names its adapter, a run with `weights=BASE lora=…` or a folder of peft's:

```sh
zoo generate --checkpoint BASE --adapter one=RUN1 --adapter two=RUN2 --prompt-file asked.jsonl
```

```json
{{"prompt": "def main(", "adapter": "one"}}
{{"prompt": "def main("}}
```

```python
import torch
import zoo

ids = torch.tensor([[5, 6, 7, 8]])
model = zoo.load("BASE", adapters={{"one": "RUN1", "two": "RUN2"}})
zoo.generate(model, ids, max_new_tokens=20, adapter="one")
zoo.Engine(model).add(zoo.Request(ids=[1, 2, 3], max_new_tokens=20, adapter="two"))
```

- Rows of different adapters share a pass: the base's products are computed for all of them, then the low-rank products of each adapter's
  rows. A row gets the tokens that it gets alone. A prompt's cached keys are reused for its own adapter only.
- DoRA is served. Weights trained whole (`modules_to_save`), experts' adapters and another base are refused by name: `--checkpoint RUN`
  merges those. `--tp` is refused. On a GPU a step with an adapter is not replayed as a CUDA graph.

For the other engines, write the base and each adapter by itself:

```sh
zoo convert BASE OUT
zoo convert RUN1 one --to peft
zoo convert RUN2 two --to peft
```

peft holds them side by side. This was run, on a Llama: the logits differ by less than 1e-4 from those of `zoo convert RUN1 OUT`.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("OUT"), "one", adapter_name="one")
model.load_adapter("two", adapter_name="two")
model.set_adapter("two")
```

By their documentation, vLLM and SGLang do so in one server, where each request names its adapter (not run here):

```sh
# not run here: needs vLLM, SGLang
vllm serve OUT --host 127.0.0.1 --enable-lora --max-loras 2 --lora-modules one=one two=two
python -m sglang.launch_server --model-path OUT --host 127.0.0.1 --enable-lora --lora-paths one=one two=two
```

vLLM takes ranks up to `--max-lora-rank` (16). It refuses DoRA and `modules_to_save`, such as a new head: merge those.

## Families and engines

| cell | meaning |
| --- | --- |
| yes | the engine lists this class and has its own code for it |
| through transformers | the engine lists this class and runs it by the transformers package |
| pooling | the engine lists this class, for vectors or scores instead of text |
| - | the engine does not list this name |

- A listed class may still have options that an engine refuses. Try yours.
- vLLM and SGLang try a class that they do not list through transformers. TensorRT-LLM refuses it (`Unknown architecture`).
- A name may differ: Zoo writes the names of transformers. vLLM lists `PhiMoEForCausalLM` for `PhimoeForCausalLM`, SGLang
  `Ernie4_5_ForCausalLM` for `Ernie4_5ForCausalLM`.
- vLLM names a plugin for BART and mBART, `vllm-project/bart-plugin`. TensorRT-LLM has a second backend, AutoDeploy, with a list of its own.

"""


def list_exported() -> dict[str, list[str]]:
    """List the classes that each family writes by itself: a name that is read `as` another is not written, and a class
    `within` a multimodal folder is written as a part of that."""
    every = {name: families.read_family(name).architectures for name in families.family_names()}
    return {
        name: [each for each, patch in those.items() if not {"as", "within"} & (patch or {}).keys()]
        for name, those in every.items()
    }


def title(name: str) -> str:
    return str(families.read_family(name).about.get("title", name))


def refusal() -> str:
    """Write what `zoo convert` prints for a model that no family describes."""
    try:
        find_config(load(*REFUSED))
    except ConfigError as error:
        return "".join(f"      no family: {fault}\n" for fault in error.faults).rstrip()
    raise AssertionError("a family describes it")


def table() -> str:
    engines = read_engines()
    head = ("family", "architecture", *(each.title for each in engines))
    rows, without = [], []
    for name, classes in list_exported().items():
        listed = [each for each in classes if any(each in engine.ways for engine in engines)]
        without += [] if listed else [title(name)]
        for each in listed:
            cells = (CELLS[engine.ways[each]] if each in engine.ways else "-" for engine in engines)
            rows.append((title(name), f"`{each}`", *cells))
    lines = [head, tuple("---" for _ in head), *rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{text}\nFamilies of which no engine lists a class: {'; '.join(without)}.\n"


def page() -> str:
    """Write the whole page."""
    engines = read_engines()
    sources = "\n".join(f"- {each.title} {each.version}: {each.source}; read on {each.checked}" for each in engines)
    line = f"{describe_serving('GPT2LMHeadModel')} (docs/serving.md)"
    return HEAD.format(sources=sources, line=line, error=refusal()) + table()


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.name}, {len(read_engines())} engines", file=sys.stderr)


if __name__ == "__main__":
    main()
