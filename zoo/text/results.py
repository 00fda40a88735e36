"""Write the results of a file of prompts as lines of JSON, each as soon as it is done, and resume such a file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint.manifest import hash_text
from zoo.disk import replace_file
from zoo.errors import CheckpointError, ConfigError
from zoo.sampling.sampler import Logprob
from zoo.text.follow import WrittenSample
from zoo.text.prompts import Prompt
from zoo.untrusted.json_file import JsonShape, parse_json

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer


class ResultRow(JsonShape):
    """The schema of a line of results, which also has its prompt's keys."""

    index: int


class Results:
    """A file with a line for each sample. A prompt may have several samples, whose lines are written together. Prompts
    are in order of completion.

    An existing file is refused, unless `force` replaces it or `resume` keeps the lines of finished prompts. `missing`
    are the prompts without results. `model` is the hash of the model; each line has it, with a hash of the options
    (`make_mark`). Raises ConfigError for a file to resume that belongs to other prompts, another model or other
    options.
    """

    def __init__(
        self, file: Path, prompts: Sequence[Prompt], model: str, *, force: bool = False, resume: bool = False
    ) -> None:
        self.file, self.model, self._waiting = file, model, dict[int, list[WrittenSample]]()
        self._kept: dict[int, str] = {}
        if file.is_file() and not force:
            if not resume:
                raise ConfigError(f"out: {file} is there already (--resume adds what is missing, --force replaces it)")
            self._kept = self._read(prompts)
        self.missing = [prompt for prompt in prompts if prompt.index not in self._kept]

    def begin(self) -> None:
        """Rewrite the file with the lines to keep. This fails at once if the file cannot be written."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(self.file) as draft:
            draft.write_text("".join(self._kept.values()), encoding="utf-8")

    def _read(self, prompts: Sequence[Prompt]) -> dict[int, str]:
        """Read the lines of each prompt that is done. A truncated last line is left out."""
        text = self.file.read_text(encoding="utf-8", errors="replace")
        lines: dict[int, list[str]] = {}
        for number, line in enumerate(text.split("\n")[:-1], 1):  # the part after the last newline is a truncated line
            try:
                row = parse_json(line, f"{self.file}:{number}", ResultRow)
            except CheckpointError as error:
                raise ConfigError(f"out: {self.file}:{number} is no line of results (--force, or another)") from error
            index = row["index"]
            if not (0 <= index < len(prompts)) or _differs(row, prompts[index]):
                raise ConfigError(f"out: {self.file}:{number} is of other prompts (--force, or another file)")
            if (mark := str(row.get("made_by"))) != make_mark(self.model, prompts[index]):
                same = mark.startswith(f"{self.model}-")
                what = "by another seed or other options" if same else "by another model, or in another precision"
                raise ConfigError(f"out: {self.file}:{number} was written {what} (--force, or another file)")
            lines.setdefault(index, []).append(line + "\n")
        return {index: "".join(kept) for index, kept in lines.items() if len(kept) == prompts[index].options.n}

    def add(self, sample: WrittenSample, tokenizer: Tokenizer) -> None:
        """Add a finished text. A prompt's samples are written together, and only if none of them failed."""
        prompt = sample.job.prompt
        assert prompt is not None
        samples = self._waiting.setdefault(prompt.index, [])
        samples.append(sample)
        if len(samples) < sample.job.request.n:
            return
        del self._waiting[prompt.index]
        if any(each.reason == "failed" for each in samples):
            return
        samples.sort(key=lambda each: each.number)
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(dump(each, prompt, tokenizer, self.model) for each in samples))


def make_mark(model: str, prompt: Prompt) -> str:
    """Make the mark that identifies a prompt's text: the hash of the model, and that of the options and the seed."""
    return f"{model}-{hash_text(repr(prompt.options))}"


def _differs(row: dict[str, Any], prompt: Prompt) -> bool:
    return any(row.get(name) != value for name, value in prompt.given.items())


def dump(sample: WrittenSample, prompt: Prompt, tokenizer: Tokenizer, model: str) -> str:
    """Make one line of results; `model` is the model's hash."""
    request = sample.job.request
    row: dict[str, Any] = {"index": prompt.index, **prompt.given, "sample": sample.number, "text": sample.text}
    row |= {"tokens": sample.tokens, "finish_reason": sample.reason}
    row |= {"prompt_tokens": len(request.ids), "new_tokens": len(sample.tokens)}
    row["made_by"] = make_mark(model, prompt)
    row |= {} if prompt.options.adapter is None else {"adapter": prompt.options.adapter}
    if request.logprobs is not None:
        row["logprobs"] = _describe(sample.tokens, sample.logprobs, tokenizer)
    if request.prompt_logprobs is not None:
        assert sample.prompt_logprobs is not None, "the engine said nothing of the prompt"
        row["prompt_logprobs"] = _describe(request.ids, sample.prompt_logprobs, tokenizer)
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _describe(tokens: Sequence[int], logprobs: Sequence[Logprob | None], tokenizer: Tokenizer) -> list[Any]:
    """Describe each token with its log-probability and the most likely alternatives; null for a token without one."""
    rows: list[Any] = []
    for token, found in zip(tokens, logprobs, strict=True):
        if found is None:
            rows.append(None)
            continue
        top = [_name(tokenizer, each, value) for each, value in found.top]
        rows.append({**_name(tokenizer, token, found.value), "top": top})
    return rows


def _name(tokenizer: Tokenizer, token: int, value: float) -> dict[str, Any]:
    shown = value if math.isfinite(value) else None  # JSON has no −inf
    return {"id": token, "token": tokenizer.decode([token], special=True), "logprob": shown}
