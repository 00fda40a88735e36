"""Run onnxruntime-genai on the folder, converted by its own model builder. Only converting needs torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import onnxruntime_genai as og
except ImportError as error:
    sys.exit(f"missing: {error}")
import timing

PROBED_LOGITS = 256  # as in harness.py, which needs torch
PRECISIONS = {"": "fp32", "int4": "int4"}


def convert_folder(job: dict[str, Any]) -> Path:
    """Convert the folder once for each precision, and remove its end-of-text ids, so that no row ends early."""
    kind = PRECISIONS[job["weights"]]
    target = Path(job["folder"]) / f"onnx-{kind}"
    settings = target / "genai_config.json"
    if settings.is_file():
        return target
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", job["folder"], "-o", str(target)]
    command += ["-p", kind, "-e", "cpu", "-c", str(target / "cache"), "--extra_options", "hf_token=false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        sys.exit(f"missing: {last}" if "ModuleNotFoundError" in last else f"its model builder: {last}")
    found = json.loads(settings.read_text(encoding="utf-8"))
    found["model"]["eos_token_id"] = []
    settings.write_text(json.dumps(found), encoding="utf-8")
    return target


def open_model(job: dict[str, Any]) -> og.Model:
    if job["dtype"] != "fp32" and job["workload"] != "load":
        raise timing.Absent("it is raced in float32 and int4 alone")
    if job["compile"]:
        raise timing.Absent("it has nothing to compile")
    if job["weights"] not in PRECISIONS:
        raise timing.Absent(f"it is not raced with {job['weights']} weights")
    config = og.Config(str(convert_folder(job)))
    if job["threads"]:
        options = {"intra_op_num_threads": job["threads"]}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return og.Model(config)


def begin(model: og.Model, rows: timing.Rows, new: int) -> og.Generator:
    """Prefill the prompts [B, T], and return a generator for `new` more tokens."""
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=len(rows[0]) + new, batch_size=len(rows), do_sample=False)
    generator = og.Generator(model, options)
    generator.append_tokens(np.array(rows, dtype=np.int32))
    return generator


def generate(model: og.Model, rows: timing.Rows, new: int) -> timing.Rows:
    generator = begin(model, rows, new)
    for _ in range(new):
        generator.generate_next_token()
    return [generator.get_sequence(index)[len(row) :].tolist() for index, row in enumerate(rows)]


def sample_logits(model: og.Model, job: dict[str, Any]) -> list[float]:
    generator = begin(model, [timing.make_ids(32, job["shape"]["vocab_size"])], 1)
    last = np.asarray(generator.get_logits())[0, -1]
    return last[:: max(1, len(last) // PROBED_LOGITS)].tolist()


def load_folder(job: dict[str, Any]) -> dict[str, Any]:
    """Open the converted folder and generate one token. It was converted before the timed runs."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job["folder"]) / "tokenizer.json"))
    made = generate(open_model(job), [tokenizer.encode(job["prompt"]).ids], 1)
    return {"text": tokenizer.decode(made[0])}


def run(job: dict[str, Any]) -> dict[str, Any]:
    if job["workload"] == "load":
        return load_folder(job)
    model = open_model(job)
    logits = {"logits": sample_logits(model, job)}
    if job["workload"] == "check":
        return logits
    rows = timing.make_rows(job["batch"], job["length"], job["shape"]["vocab_size"])
    found = timing.time_generation(lambda count: generate(model, rows, count), job)
    return found | logits | {"busy": None}  # its own threads compute


if __name__ == "__main__":
    timing.answer_job(run, {"torch": None, "version": og.__version__})
