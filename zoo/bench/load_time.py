"""Time loading: a whole process that opens a Hugging Face folder and generates one token."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.bench.calling import make_environment, run_worker
from zoo.bench.race_plan import OURS, Race, Racer
from zoo.errors import ConfigError, ZooError

PROMPT = "abcdefgh"
BYTES = {"fp32": 4, "bf16": 2}
SPARE = 2**30  # bytes left free on the disk


def require_room(plan: Race, place: str) -> None:
    """Raise ConfigError if the disk lacks room for the folder and for a peer's conversion of it (up to float32)."""
    needed = plan.shape.count_params() * (BYTES[plan.dtype] + 4) + SPARE
    free = shutil.disk_usage(place).free
    if free < needed:
        found = f"{free / 2**30:.1f} GiB free in {place}, {needed / 2**30:.1f} are needed"
        raise ConfigError(f"load: {found} (--shape for a smaller model, or TMPDIR on another disk)")


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of single characters, the smallest that zoo, transformers and `tokenizers` can all read."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {chr(code): code for code in range(32, 127)} | {"<unk>": 0, "<eos>": 1}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(""), behavior="isolated")  # pyright: ignore
    made.decoder = decoders.Fuse()  # pyright: ignore
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in ("<unk>", "<eos>")])
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def time_load(racer: Racer, job: Mapping[str, Any]) -> dict[str, Any]:
    """Time one whole process, including its start and its end."""
    start = time.perf_counter()
    if racer.worker == OURS:
        answer = _run_zoo(racer.python, job)
    else:
        answer = run_worker(racer.worker, racer.python, dict(job, prompt=PROMPT))
    seconds = time.perf_counter() - start
    return answer | {"seconds": seconds, "rate": 1 / seconds, "busy": None}


def _run_zoo(python: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run `zoo generate` as a user would."""
    command = [python, "-m", "zoo", "generate", "--checkpoint", job["folder"], "--prompt", PROMPT]
    command += ["--max-new-tokens", "1", "--temperature", "0", "--device", "cpu"]
    env = make_environment(OURS, job)
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ZooError(f"zoo generate {os.path.basename(job['folder'])}: {said}")
    from zoo import __version__

    text = done.stdout.removesuffix("\n")
    return {"text": text, "version": __version__, "torch": None, "peak_bytes": None}
