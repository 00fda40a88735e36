"""Run a folder's tokenizer, model and pipeline in transformers: `python reference.py FOLDER PLACE`. Imports nothing of
zoo."""

import json
import sys
from pathlib import Path
from typing import Any

Rows = list[list[int]]

OPTIONS = {
    "fill-mask": {"tokenizer_kwargs": {"truncation": True}},
    "token-classification": {},  # truncates by itself
    "text-generation": {"truncation": True, "max_new_tokens": 1},
}
"""Options by which a task's pipeline truncates a text to model_max_length; other pipelines take `truncation=True`."""


def main(folder: Path, place: Path) -> None:
    """Read inputs at PLACE/asked.safetensors, and readings (texts, messages or a pipeline's text) at PLACE/asked.json.
    Write logits or hidden states to PLACE/given.safetensors: `given` for the inputs, and `N.R` for row R of reading N.
    Write the ids to PLACE/given.json."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = _open_model(folder, config, torch.float32).eval()
    asked = load_file(place / "asked.safetensors")
    readings = json.loads((place / "asked.json").read_text(encoding="utf-8"))
    beside = {name: each for name, each in asked.items() if name != "input_ids"}
    with torch.inference_mode():
        given = {"given": _compute(model, asked)}
        tokenizer = AutoTokenizer.from_pretrained(folder) if readings else None
        found = [_read(tokenizer, model, reading, beside) for reading in readings]
    for number, (_, outputs, _) in enumerate(found):
        given |= {f"{number}.{row}": each.contiguous() for row, each in enumerate(outputs)}
    save_file(given, place / "given.safetensors")
    (place / "given.json").write_text(json.dumps([[rows, how] for rows, _, how in found]), encoding="utf-8")


def _compute(model: Any, inputs: dict[str, Any]) -> Any:
    """Compute the logits or hidden states of a batch."""
    import torch

    if type(model).__name__.endswith("ForMultipleChoice"):  # each row is a question with a single choice
        inputs = {name: tensor[:, None] for name, tensor in inputs.items()}
    out = model(**inputs)
    spans = "start_logits" in out
    return (torch.stack((out.start_logits, out.end_logits), -1) if spans else out[0]).contiguous()


def _read(tokenizer: Any, model: Any, asked: dict[str, Any], beside: dict[str, Any]) -> tuple[Rows, list[Any], str]:
    """Run a model on texts, messages, or the text of a pipeline. Returns ids and logits of each row, without padding,
    and how texts were batched, in words."""
    if "task" in asked:
        return *_watch_pipeline(model, tokenizer, asked), ""
    rows, outputs = [], []
    for batch in _encode(tokenizer, asked):
        repeated = {name: each.expand(len(batch["input_ids"]), -1) for name, each in beside.items()}
        out = _compute(model, {**batch, **repeated})
        for ids, real, each in zip(batch["input_ids"], batch["attention_mask"].bool(), out, strict=True):
            by_token = not beside and each.ndim == 2 and len(each) == len(ids)
            rows.append(ids[real].tolist())
            outputs.append((each[real] if by_token else each)[None])
    if len(rows) == 1:
        return rows, outputs, ""
    return rows, outputs, " one by one (no padding token)" if tokenizer.pad_token is None else " padded to one length"


def _encode(tokenizer: Any, asked: dict[str, Any]) -> list[Any]:
    """Encode messages, or texts: as one padded batch if the tokenizer has a token for padding."""
    if "messages" in asked:
        how = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        return [tokenizer.apply_chat_template(asked["messages"], **how)]
    pads = tokenizer.pad_token is not None
    groups = [asked["texts"]] if pads else [[text] for text in asked["texts"]]
    how = {"truncation": True, "max_length": asked["limit"], "return_tensors": "pt"}
    return [tokenizer(group, padding=pads, padding_side="right", **how) for group in groups]


def _watch_pipeline(model: Any, tokenizer: Any, asked: dict[str, Any]) -> tuple[Rows, list[Any]]:
    """Run a text through a task's pipeline. Returns ids and output of the first row of the model's first call."""
    from transformers import pipeline

    seen: list[tuple[Any, Any]] = []
    hook = model.register_forward_hook(
        lambda _, args, inputs, out: seen.append((inputs["input_ids"], out[0])), with_kwargs=True
    )
    run = pipeline(asked["task"], model=model, tokenizer=tokenizer)
    run(asked["text"], **OPTIONS.get(asked["task"], {"truncation": True}))
    hook.remove()
    ids, out = seen[0]
    return ids[:1].tolist(), [out[:1]]


def _open_model(folder: Path, config: dict[str, Any], dtype: Any) -> Any:
    """Open the folder's model by its class, or by the Auto class of its task if transformers has no such class (it
    reads EXAONE as Llama)."""
    import transformers

    name = config["architectures"][0]
    task = "" if name.endswith("Model") else name[name.find("For") :]
    auto = getattr(transformers, f"AutoModel{task}", transformers.AutoModelForCausalLM)
    model = getattr(transformers, name, auto).from_pretrained(folder, dtype=dtype)
    restore_buffers(model, folder)
    return model


def restore_buffers(model: Any, folder: Path) -> None:
    """Set a model's buffers to the values in the folder's files. transformers 5.24 overwrites some by initial values
    after reading them: the last of ZAYA1's balancing biases becomes -1."""
    from safetensors import safe_open

    buffers = dict(model.named_buffers())
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stored:
            for name in buffers.keys() & stored.keys():
                buffers[name].copy_(stored.get_tensor(name))


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder: its module names would hide others
    main(Path(sys.argv[1]), Path(sys.argv[2]))
