"""`zoo generate`: generate text with the last run or a checkpoint: for one prompt, or for each line of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from zoo.cli.common import (
    Device,
    Dtype,
    Fp8,
    Kernel,
    Sampled,
    WeightStorage,
    keep_memory_on,
    print_note,
    read_folder_options,
)
from zoo.cli.files import read_text
from zoo.cli.options import flag, option, options
from zoo.distributed.world import ALONE, leaves_at_once_after_errors, read_world
from zoo.errors import ConfigError, refuse

if TYPE_CHECKING:
    from zoo.distributed.world import World
    from zoo.text.prompts import Complete, Prompt
    from zoo.text.results import Results

MOST_GUESSES = 64


@options()
class Texts:
    """Options for the prompt, the model and the number of texts."""

    prompt: str | None = option("The text to continue; - reads standard input.")
    checkpoint: Path | None = option("A checkpoint, run folder or GGUF file. [default: the last run]")
    max_new_tokens: int | None = option("Maximum number of new tokens. [default: the checkpoint's, else 256]")
    n: int = option("Number of texts per prompt.", "--n", default=1)
    n_beams: int | None = option("Beam width; 1 means no beam search. [default: 1]")
    length_penalty: float | None = option("Length penalty of beam search: above 1 prefers longer texts. [default: 1]")


@options("Batches of prompts")
class BatchOptions:
    """Options for files of prompts and of results."""

    prompt_file: Path | None = option("A file with one prompt per line; - reads standard input.")
    form: Literal["lines", "jsonl"] | None = option(
        "lines: one prompt per line; jsonl: one object per line, with prompt, ids or messages and any option. "
        "[default: by file suffix]",
        "--prompt-format",
    )
    out: Path | None = option("Write a line of JSON for each text, as soon as it is done.")
    resume: bool = flag("Keep the results in --out and compute the missing ones.")
    force: bool = flag("Overwrite --out.")
    logprobs: int | None = option(
        "With --out: write log-probabilities of each token and of the N most likely ones.", metavar="N"
    )

    def check(self, template: str | None) -> None:
        """Raise ConfigError for options without the file that they need, and for options that exclude each other."""
        without = [name for name in ("resume", "force") if getattr(self, name) and self.out is None]
        faults = [f"{name}: there is no file that it could be about (--out FILE)" for name in without]
        if self.resume and self.force:
            faults.append("resume: --force would replace what it keeps (one of the two)")
        if self.logprobs is not None and self.out is None:
            faults.append("logprobs: are written with the texts (--out FILE)")
        if template is not None and self.prompt_file is None:
            faults.append("template: is for messages (--prompt-file FILE.jsonl, or zoo chat)")
        refuse(faults)


@options("Sampling")
class Drawing(Sampled):
    """Sampling options of `zoo generate`."""

    typical_p: float | None = option("Locally typical sampling, up to total probability p.")
    repetition_penalty: float | None = option(
        "Penalty on tokens that are in the prompt or in the text so far; above 1 makes them less likely."
    )
    presence_penalty: float | None = option("Penalty on generated tokens; above 0 makes them less likely.")
    frequency_penalty: float | None = option("Penalty on generated tokens, for each time that they were generated.")
    logit_bias: list[str] | None = option("TOKEN=BIAS adds to the logit of a token. May be given several times.")
    bad_words: list[str] | None = option("Never generate this text. May be given several times.")


@options("Stopping")
class Ending:
    """Options for the end of a text."""

    stop: list[str] | None = option("Stop at this string, and leave it out. May be given several times.")
    stop_id: list[int] | None = option("Stop at this token id. May be given several times.")
    ignore_eos: bool = flag("Ignore the end-of-text token, and continue after it.")
    min_tokens: int | None = option("Minimum number of tokens before an end-of-text token.")


@options("Constrained decoding")
class Grammar:
    """Options for constrained decoding."""

    json_schema: str | None = option("Generate JSON that is valid under this schema: a file, or the schema itself.")
    regex: str | None = option("Generate text that matches this regular expression.")
    grammar: Path | None = option("Generate text that matches this Lark grammar (file).")

    def read(self) -> dict[str, str | None]:
        """Read the named files, and return the texts by option. Raises ConfigError for an unreadable file."""
        schema, grammar = self.json_schema, self.grammar
        if schema is not None and not schema.lstrip().startswith("{"):
            schema = read_text(Path(schema), "json_schema")
        read = None if grammar is None else read_text(grammar, "grammar")
        return {"json_schema": schema, "regex": self.regex, "grammar": read}


@options("Model")
class Serving:
    """Options for running the model."""

    template: str | None = option("Chat template for messages: plain, chatml, or a file. [default: the checkpoint's]")
    ngram: int = option("Prompt-lookup (n-gram) speculative decoding: draft tokens per step; 0: off.", default=0)
    draft: Path | None = option("Speculative decoding by a smaller model with the same tokenizer.")
    draft_tokens: int = option("Number of tokens that --draft proposes at once.", default=4)
    deterministic: bool = flag("Batch-invariant mode: a prompt's output does not depend on the other prompts. Slower.")
    adapter: list[str] | None = option(
        "NAME=DIR: a low-rank adapter (LoRA) that lines of --prompt-file may name. May be given several times."
    )
    graphs: bool | None = option("Replay decoding steps as CUDA graphs. [default: on CUDA]")
    kernel: Kernel = None
    tp: int = option("Number of tensor-parallel processes.", default=1, min=1)
    device: Device = "auto"
    dtype: Dtype = None
    fp8: Fp8 | None = option("Compute matrix products in float8 (CUDA); weight_only: float8 storage only.")
    weights: WeightStorage | None = option(
        "Store linear layers' weights in this format, on a CPU. [default: unchanged]"
    )

    @property
    def lower(self) -> dict[str, str | None]:
        """The options of lower precision."""
        return {"fp8": self.fp8, "weights": self.weights}

    def read_adapters(self, prompts: list[Prompt]) -> dict[str, str]:
        """Return the folders of the adapters by name. Raises ConfigError if no prompt names one, or several processes
        divide the model."""
        from zoo.checkpoint.named_adapters import parse_adapters

        if not self.adapter:
            return {}
        if self.tp > 1:
            raise ConfigError(f"adapter: is for one process, found tp={self.tp} (leave it out)")
        if not any(prompt.options.adapter for prompt in prompts):
            found = "no prompt names one"
            raise ConfigError(f'adapter: {found} ("adapter": "NAME" in a line of JSON; --checkpoint DIR for one alone)')
        return parse_adapters(self.adapter)

    def count_guesses(self) -> int:
        """Return the number of tokens proposed at once by speculative decoding. Raises ConfigError if a number is out
        of range, or if both --ngram and --draft are given."""
        for name, count, least in (("ngram", self.ngram, 0), ("draft_tokens", self.draft_tokens, 1)):
            if not least <= count <= MOST_GUESSES:
                raise ConfigError(f"{name}: is {count}, not a whole number from {least} to {MOST_GUESSES}")
        if self.ngram and self.draft is not None:
            raise ConfigError("ngram: excludes --draft (one of the two)")
        return self.ngram if self.draft is None else self.draft_tokens


def run(
    context: typer.Context,
    texts: Texts,
    batch: BatchOptions,
    drawing: Drawing,
    ending: Ending,
    grammar: Grammar,
    model: Serving,
) -> None:
    """Generate text with the last run, or with a checkpoint, token by token.

    Standard output gets the new text only, without the prompt. Prompts of --prompt-file are batched. Options that
    are not given default to the checkpoint's generation_config.json, if it has one.
    """
    from zoo.cli import batching
    from zoo.generation.engine_sizes import size_engine
    from zoo.run.builder import pick_device
    from zoo.text.follow import count_rows
    from zoo.text.loading import check_precision, check_serving, find_folder, load

    given = read_given(texts, batch, drawing, ending, grammar)
    batch.check(model.template)
    check_precision(model.device, model.fp8, model.weights)
    folder = find_folder(texts.checkpoint)
    reads_input = "-" in (texts.prompt, str(batch.prompt_file))
    world = _find_world(model.tp, folder, context.find_root().obj, reads_input, **model.lower)
    prompts = _read_prompts(texts.prompt, batch, given, read_folder_options(folder, given))
    adapters = model.read_adapters(prompts)
    results = None if batch.out is None else open_results(batch.out, batch, prompts, folder, model, adapters)
    most = size_engine(pick_device(model.device)).rows
    rows, speculate = count_rows((prompt.options for prompt in prompts), most), model.count_guesses()
    check_serving(folder, speculate, model.draft, model.deterministic)
    note = print_note if world.main else lambda line: None
    how = {"device": model.device, "dtype": model.dtype, **model.lower, "rows": rows, "stable": model.deterministic}
    with leaves_at_once_after_errors():
        # adapters' files state a GGUF file as their base, not the folder into which it was unpacked
        base = texts.checkpoint if texts.checkpoint is not None and texts.checkpoint.is_file() else folder
        loaded = load(base, **how, world=world, adapters=adapters, note=note)
        draft = None if model.draft is None else load(model.draft, device=model.device).model
        keep_memory_on(model.device)  # only now, so that the memory of weights dropped by packing has been freed
        serving = {"speculate": speculate, "draft": draft, "deterministic": model.deterministic}
        serving |= {"graphs": model.graphs, "note": note}
        how = {"template": model.template, "kernel": model.kernel, "serving": serving}
        batching.run(loaded, prompts, results, **how, note=note, writes=world.main)


def open_results(
    file: Path, batch: BatchOptions, prompts: list[Prompt], folder: Path, model: Serving, adapters: Mapping[str, str]
) -> Results:
    """Open the file of results for a folder's model. Raises ConfigError if the file exists and is neither to be resumed
    nor replaced, or if another model, precision, template or set of adapters wrote it."""
    from zoo.checkpoint.finding import find
    from zoo.checkpoint.manifest import hash_text, identify
    from zoo.text.results import Results

    added = [(name, identify(find(each))) for name, each in adapters.items()]
    made_by = hash_text(repr((identify(folder), model.dtype, model.lower, model.template, *added)))
    return Results(file, prompts, made_by, force=batch.force, resume=batch.resume)


def read_given(texts: Texts, batch: BatchOptions, drawing: Drawing, ending: Ending, grammar: Grammar) -> dict[str, Any]:
    """Return the options of a request, keyed as in files of prompts. Raises ConfigError for invalid options."""
    from zoo.text.prompts import Options, parse_logit_bias

    given = {**vars(drawing), **vars(ending), **grammar.read(), **vars(texts), "logprobs": batch.logprobs}
    del given["prompt"], given["checkpoint"]
    given["stop_ids"] = given.pop("stop_id")
    given["logit_bias"] = parse_logit_bias(drawing.logit_bias) if drawing.logit_bias else None
    Options.checked(given)
    return given


def _find_world(tp: int, folder: Path, args: list[str], reads_input: bool, **lower: str | None) -> World:
    """Return the tensor-parallel processes; if they are not started, start them and exit with their code. Raises
    ConfigError for options or models that cannot be split over `tp` processes."""
    from zoo.checkpoint import store
    from zoo.costs.rank_model import shard_model
    from zoo.run.rank import find_ranks

    started = read_world().size > 1
    if tp == 1 and not started:
        return ALONE
    faults = [f"{name}: is for one process, found tp={tp} (leave it out)" for name, each in lower.items() if each]
    if reads_input:
        faults.append(f"prompt: is on standard input, which tp={tp} processes would share (--prompt-file FILE)")
    refuse(faults)
    shard_model(store.load_spec(folder), tp)
    if started:
        return find_ranks(tp)
    from zoo.jobs.launch import launch

    raise typer.Exit(launch(tp, args))


def _read_prompts(prompt: str | None, batch: BatchOptions, given: dict[str, Any], complete: Complete) -> list[Prompt]:
    """Read the prompts of the command line, each with its options. Raises ConfigError with all faults."""
    from zoo.text.prompts import Options, Prompt, read_jsonl, read_lines

    file, form = batch.prompt_file, batch.form
    if file is None:
        if form is not None:
            raise ConfigError("prompt_format: needs a file of prompts (--prompt-file FILE)")
        whole = read_text(Path("-"), "prompt") if prompt == "-" else prompt or ""
        return [Prompt(0, "", {"prompt": whole}, Options.checked(complete(given)))]
    if prompt is not None:
        raise ConfigError("prompt: --prompt-file has the prompts (one of the two)")
    text = read_text(file, "prompt_file")
    as_json = form == "jsonl" or (form is None and file.suffix == ".jsonl")
    found = (read_jsonl if as_json else read_lines)(text, str(file), given, complete)
    if not found:
        raise ConfigError(f"prompt_file: {file} has no prompt (a line each)")
    return found
