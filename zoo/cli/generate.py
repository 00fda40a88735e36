"""`zoo generate`: write text with the last run, or with a checkpoint; one text, or one for each line of a file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import TEMPERATURE, Fp8, Weights, keep_memory_on, print_note, read_folder_options
from zoo.cli.files import read_text

if TYPE_CHECKING:
    from zoo.ranks.world import World
    from zoo.text.prompts import Complete, Prompt


class Form(StrEnum):
    """Format of a file of prompts: a prompt a line, or a JSON object a line."""

    lines = "lines"
    jsonl = "jsonl"


MANY, DRAW, END, FORM = "Many prompts", "How tokens are drawn", "Where a text ends", "Which form it has"
MODEL = "The model"
"""Panels of the help."""

MOST_GUESSES = 64


def run(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Option(help="The text to continue; - reads standard input.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint, run folder or GGUF file. [default: the last run]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The most tokens to write. [default: the checkpoint's, else 256]")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Texts for each prompt.")] = 1,
    n_beams: Annotated[
        int | None, typer.Option(help="Search for the likeliest text with so many beams. [default: 1]")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Above 1 makes a beam search prefer longer texts, below 1 shorter ones.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="A file with a prompt a line; - reads standard input.", rich_help_panel=MANY)
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--prompt-format",
            help='lines; or jsonl: {"prompt"|"ids"|"messages": …} and any option a line. [default: by the suffix]',
            rich_help_panel=MANY,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write a line of JSON for each text as it is done.", rich_help_panel=MANY)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what --out has; do what is missing.", rich_help_panel=MANY)
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what --out has.", rich_help_panel=MANY)] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(help="Give --out log-probabilities: each token's, and of the K likeliest.", rich_help_panel=MANY),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help=f"0 always takes the likeliest token. [default: the checkpoint's, else {TEMPERATURE}]",
            rich_help_panel=DRAW,
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.", rich_help_panel=DRAW)] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the likeliest tokens that together have this probability.", rich_help_panel=DRAW),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Draw from tokens at least this likely, relative to the likeliest.", rich_help_panel=DRAW),
    ] = None,
    typical_p: Annotated[
        float | None,
        typer.Option(
            help="Draw from the tokens of typical surprisal that have this probability.", rich_help_panel=DRAW
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1 makes tokens that are already in the text less likely.", rich_help_panel=DRAW),
    ] = None,
    presence_penalty: Annotated[
        float | None,
        typer.Option(help="Above 0 makes tokens that were written already less likely.", rich_help_panel=DRAW),
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="The same, once for each time that they were written.", rich_help_panel=DRAW)
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(help="TOKEN=BIAS adds to the logit of a token. May be given several times.", rich_help_panel=DRAW),
    ] = None,
    bad_words: Annotated[
        list[str] | None,
        typer.Option(help="Never write this text. May be given several times.", rich_help_panel=DRAW),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.", rich_help_panel=DRAW)] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Stop before this string. May be given several times.", rich_help_panel=END),
    ] = None,
    stop_id: Annotated[
        list[int] | None, typer.Option(help="Stop at this token. May be given several times.", rich_help_panel=END)
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the end-of-text token.", rich_help_panel=END)
    ] = False,
    min_tokens: Annotated[
        int | None, typer.Option(help="The fewest tokens before one that ends the text.", rich_help_panel=END)
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(help="Write JSON that this schema admits: a file, or the schema itself.", rich_help_panel=FORM),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Write text that this regular expression matches.", rich_help_panel=FORM)
    ] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="Write text of this Lark grammar: a file.", rich_help_panel=FORM)
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="A chat template for messages: chatml, or a file.", rich_help_panel=MODEL),
    ] = None,
    ngram: Annotated[
        int,
        typer.Option(
            help="Speculate up to so many tokens at once, by n-grams of the text so far.", rich_help_panel=MODEL
        ),
    ] = 0,
    draft: Annotated[
        Path | None,
        typer.Option(help="A smaller model of the same tokenizer that speculates tokens.", rich_help_panel=MODEL),
    ] = None,
    draft_tokens: Annotated[
        int, typer.Option(help="Tokens that --draft speculates at once.", rich_help_panel=MODEL)
    ] = 4,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Make each text independent of the others in its batch, bit for bit. Slower.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    graphs: Annotated[
        bool | None,
        typer.Option(
            "--graphs/--no-graphs",
            help="Replay decoding steps as CUDA graphs. [default: where there is CUDA]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            help="The attention kernel (`zoo doctor`). [default: the first that can run]", rich_help_panel=MODEL
        ),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel processes.", rich_help_panel=MODEL)] = 1,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.", rich_help_panel=MODEL)] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(help="fp32, bf16 or fp16. [default: as in the checkpoint]", rich_help_panel=MODEL),
    ] = None,
    fp8: Annotated[
        Fp8 | None,
        typer.Option(
            help="Compute matrix products in float8 (CUDA); weight_only only saves memory.", rich_help_panel=MODEL
        ),
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(
            help="Store the weights of linear layers in fewer bits, on a CPU. [default: as they are]",
            rich_help_panel=MODEL,
        ),
    ] = None,
) -> None:
    """Write text with the last run, or with a checkpoint, token by token.

    Standard output gets the new text alone, without the prompt. With --prompt-file, prompts are served together.
    Options that are not given are those of the checkpoint's generation_config.json, if it has one.
    """
    from zoo.cli import batching
    from zoo.text.follow import count_rows
    from zoo.text.loading import check_precision, check_serving, find_folder, load
    from zoo.text.prompts import Options, parse_logit_bias

    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": parse_logit_bias(logit_bias) if logit_bias else None,
        "bad_words": bad_words,
        "min_tokens": min_tokens,
        "json_schema": json_schema if json_schema is None else _read_schema(json_schema),
        "regex": regex,
        "grammar": grammar if grammar is None else read_text(grammar, "grammar"),
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "n": n,
        "n_beams": n_beams,
        "length_penalty": length_penalty,
        "logprobs": logprobs,
        "stop": stop,
        "stop_ids": stop_id,
        "ignore_eos": ignore_eos,
    }
    Options.checked(given)
    _check_use(prompt_file, out, resume=resume, force=force, logprobs=logprobs, template=template)
    check_precision(device, fp8, weights)
    folder = find_folder(checkpoint)
    reads_input = "-" in (prompt, str(prompt_file))
    world = _find_world(tp, folder, context.find_root().obj, reads_input, fp8=fp8, weights=weights)
    prompts = _read_prompts(prompt, prompt_file, form, given, read_folder_options(folder, given))
    results = _plan_results(out, prompts, force=force, resume=resume)
    rows = count_rows(prompt.options for prompt in prompts)
    speculate = _count_guesses(ngram, draft, draft_tokens)
    check_serving(folder, speculate, draft, deterministic)
    note = print_note if world.main else lambda line: None
    how = {"device": device, "dtype": dtype, "fp8": fp8, "weights": weights, "rows": rows, "stable": deterministic}
    loaded = load(folder, **how, world=world, note=note)
    guessing = None if draft is None else load(draft, device=device).model
    keep_memory_on(device)  # from here on: the weights that packing dropped were given back
    serving = {"speculate": speculate, "draft": guessing, "deterministic": deterministic}
    serving |= {"graphs": graphs if world.size == 1 else False, "note": note}
    options = {"template": template, "kernel": kernel, "serving": serving}
    batching.run(loaded, prompts, results, **options, note=note, writes=world.main)


def _find_world(tp: int, folder: Path, args: list[str], reads_input: bool, **lower: Any) -> World:
    """The processes that compute a part of the model each; where none are started yet, start them, and exit with their
    code. Raises ConfigError."""
    from zoo.checkpoint import store
    from zoo.errors import ConfigError
    from zoo.ranks.world import ALONE, read_world
    from zoo.run.rank import check_parts, find_ranks

    started = read_world().size > 1
    if tp == 1 and not started:
        return ALONE
    faults = [f"{name}: is for one process, found tp={tp} (leave it out)" for name, each in lower.items() if each]
    if reads_input:
        faults.append(f"prompt: is on standard input, which tp={tp} processes would share (--prompt-file FILE)")
    if faults:
        raise ConfigError(*faults)
    check_parts(store.load_spec(folder), tp)
    if started:
        return find_ranks(tp)
    from zoo.jobs.launch import launch

    raise typer.Exit(launch(tp, args))


def _count_guesses(ngram: int, draft: Path | None, tokens: int) -> int:
    """How many tokens are guessed at once. Raises ConfigError."""
    from zoo.errors import ConfigError

    for name, count, least in (("ngram", ngram, 0), ("draft_tokens", tokens, 1)):
        if not least <= count <= MOST_GUESSES:
            raise ConfigError(f"{name}: is {count}, not a whole number from {least} to {MOST_GUESSES}")
    if ngram and draft is not None:
        raise ConfigError("ngram: --draft guesses (one of the two)")
    return ngram if draft is None else tokens


def _read_prompts(
    prompt: str | None, file: Path | None, form: Form | None, given: dict[str, Any], complete: Complete
) -> list[Prompt]:
    """The prompts that the command line names, each with its options. Raises ConfigError for all faults together."""
    from zoo.errors import ConfigError
    from zoo.text.prompts import Options, Prompt, read_jsonl, read_lines

    if file is None:
        if form is not None:
            raise ConfigError("prompt_format: says what a file holds, and there is none (--prompt-file FILE)")
        whole = read_text(Path("-"), "prompt") if prompt == "-" else prompt or ""
        return [Prompt(0, "", {"prompt": whole}, Options.checked(complete(given)))]
    if prompt is not None:
        raise ConfigError("prompt: --prompt-file has the prompts (one of the two)")
    text = read_text(file, "prompt_file")
    as_json = form is Form.jsonl or (form is None and file.suffix == ".jsonl")
    found = (read_jsonl if as_json else read_lines)(text, str(file), given, complete)
    if not found:
        raise ConfigError(f"prompt_file: {file} has no prompt (a line each)")
    return found


def _read_schema(given: str) -> str:
    """A schema as it stands on the command line, or in the file that it names."""
    return given if given.lstrip().startswith("{") else read_text(Path(given), "json_schema")


def _check_use(file: Path | None, out: Path | None, **options: Any) -> None:
    """Raises ConfigError for options without that on which they act."""
    from zoo.errors import ConfigError

    without = [name for name in ("resume", "force") if options[name] and out is None]
    faults = [f"{name}: there is no file that it could be about (--out FILE)" for name in without]
    if options["resume"] and options["force"]:
        faults.append("resume: --force would replace what it keeps (one of the two)")
    if options["logprobs"] is not None and out is None:
        faults.append("logprobs: are written with the texts (--out FILE)")
    if options["template"] is not None and file is None:
        faults.append("template: is for messages (--prompt-file FILE.jsonl, or zoo chat)")
    if faults:
        raise ConfigError(*faults)


def _plan_results(out: Path | None, prompts: list[Prompt], *, force: bool, resume: bool) -> Any:
    from zoo.text.results import Results

    return None if out is None else Results(out, prompts, force=force, resume=resume)
