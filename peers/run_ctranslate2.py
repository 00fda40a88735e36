"""Run CTranslate2's Generator on the folder, converted by its own converter. Only converting needs torch.

On a CPU it computes bfloat16 and float16 in float32, so only float32 and int8 are raced.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import ctranslate2
except ImportError as error:
    sys.exit(f"missing: {error}")
import timing

PROBED_LOGITS = 256  # as in harness.py, which needs torch
COMPUTE_TYPES = {"": "float32", "int8": "int8_float32"}


def convert_folder(job: dict[str, Any]) -> Path:
    """Convert the folder once. Each token's text is its id, as there is no tokenizer."""
    target = Path(job["folder"]) / "ctranslate2"
    if (target / "model.bin").is_file():
        return target
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError as error:
        sys.exit(f"missing: {error}")

    class Words:
        bos_token = eos_token = unk_token = "0"

        def get_vocab(self) -> dict[str, int]:
            return {str(index): index for index in range(job["shape"]["vocab_size"])}

    class Converter(TransformersConverter):
        def load_tokenizer(self, *args: Any, **options: Any) -> Words:
            return Words()

    Converter(job["folder"]).convert(str(target))
    return target


def open_generator(job: dict[str, Any]) -> ctranslate2.Generator:
    if job["dtype"] != "fp32":
        raise timing.Absent("it computes float32 and int8 alone on a CPU")
    if job["compile"]:
        raise timing.Absent("it has nothing to compile")
    if job["weights"] not in COMPUTE_TYPES:
        raise timing.Absent(f"it has no {job['weights']} weights on a CPU")
    kind = COMPUTE_TYPES[job["weights"]]
    return ctranslate2.Generator(str(convert_folder(job)), compute_type=kind, intra_threads=job["threads"] or 0)


def generate(generator: ctranslate2.Generator, requests: list[timing.Request]) -> timing.Rows:
    """Generate greedily; each row ends after its own number of tokens."""
    words = [[str(token) for token in ids] for ids, _ in requests]
    most = max(new for _, new in requests)
    made = generator.generate_batch(
        words,
        max_length=most,
        include_prompt_in_result=False,
        sampling_topk=1,
        end_token=[],
        callback=make_stop(requests),
    )
    return [row.sequences_ids[0] for row in made]


def make_stop(requests: list[timing.Request]) -> Callable[[Any], bool] | None:
    """Make the callback that ends each row; None if all rows have equally many new tokens. Steps are counted from the
    end of the shortest prompt; the rest of a longer prompt is forwarded token by token, one step each."""
    shortest = min(len(ids) for ids, _ in requests)
    last = [len(ids) - shortest + new - 1 for ids, new in requests]
    if len({new for _, new in requests}) == 1:
        return None
    return lambda step: step.step >= last[step.batch_id]


def sample_logits(generator: ctranslate2.Generator, job: dict[str, Any]) -> list[float]:
    import numpy as np

    words = [str(token) for token in timing.make_ids(32, job["shape"]["vocab_size"])]
    last = np.array(generator.forward_batch([words]))[0, -1]
    return last[:: max(1, len(last) // PROBED_LOGITS)].tolist()


def load_folder(job: dict[str, Any]) -> dict[str, Any]:
    """Open the converted folder and generate one token. It was converted before the timed runs."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job["folder"]) / "tokenizer.json"))
    generator = ctranslate2.Generator(str(convert_folder(job)), intra_threads=job["threads"] or 0)
    made = generate(generator, [(tokenizer.encode(job["prompt"]).ids, 1)])
    return {"text": tokenizer.decode(made[0])}


def run(job: dict[str, Any]) -> dict[str, Any]:
    if job["workload"] == "load":
        return load_folder(job)
    generator = open_generator(job)
    logits = {"logits": sample_logits(generator, job)}
    if job["workload"] == "check":
        return logits
    if job["workload"] == "batch":
        found = timing.time_requests(lambda requests: generate(generator, requests), job)
    elif job["workload"] in ("decode", "prefill"):
        rows = timing.make_rows(job["batch"], job["length"], job["shape"]["vocab_size"])
        found = timing.time_generation(lambda count: generate(generator, [(ids, count) for ids in rows]), job)
    else:
        raise timing.Absent("it does not train")
    return found | logits | {"busy": None}  # its own threads compute, and this one waits


if __name__ == "__main__":
    timing.answer_job(run, {"torch": None, "version": ctranslate2.__version__})
