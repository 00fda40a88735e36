"""Make jobs from prompts: the request to the engine, and the settings for decoding its answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from zoo.data.chat.template import ChatTemplate
from zoo.errors import ConfigError, refuse
from zoo.generation.prompt_towers import find_writer
from zoo.generation.request import Request
from zoo.sampling.guide import Guide, GuideCompiler, Kind
from zoo.sampling.options import Sampling
from zoo.text.prompts import Options, Prompt
from zoo.untrusted.printable import check_text, quote

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer
    from zoo.run.layer import Model


@dataclass(frozen=True)
class TextJob:
    """A request, and the settings for decoding its answer. `before` are the tokens that the text continues."""

    request: Request
    where: str
    stop: tuple[str, ...] = ()
    before: Sequence[int] = ()
    prompt: Prompt | None = None


class JobMaker:
    """Makes jobs of prompts, for one model and its tokenizer.

    `ends` are end-of-text tokens in addition to the tokenizer's. `template` is the chat template.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, ends: Sequence[int] = (), template: ChatTemplate | None = None
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.ends = {tokenizer.eos_id, *ends}
        self.continues = find_writer(model.spec) is model.spec  # false for encoder-decoders
        self._vocab_size: int = find_writer(model.spec).output_vocab_size
        self._compilers: dict[frozenset[int], GuideCompiler] = {}
        self._guides: dict[tuple[str, str, frozenset[int]], Guide] = {}
        self._special = {each.content: id for id, each in tokenizer.backend.get_added_tokens_decoder().items()}

    def make_job(self, given: Mapping[str, Any], options: Options, where: str, prompt: Prompt | None = None) -> TextJob:
        """Make a job of a prompt, token ids or messages. Raises ConfigError for messages if there is no chat template
        or the template refuses them, and for token ids beyond the vocabulary in the options."""
        ids = encode_prompt(given, self.tokenizer, self.template)
        stop, ends = list(options.stop), {*options.stop_ids}
        if not options.ignore_eos:
            ends |= self.ends
            if "messages" in given:
                found, words = self._answer_end
                stop, ends = [*stop, *words], ends | {*found}
        # Special tokens are not decoded, so a stop string that spells one is made a stop token.
        ends |= {self._special[word] for word in stop if word in self._special}
        request = Request(
            ids=ids,
            max_new_tokens=options.max_new_tokens,
            sampling=self._settle_sampling(options),
            guide=None if options.guide is None else self._compile(*options.guide, frozenset(ends)),
            stop_ids=frozenset(ends),
            n=options.n,
            n_beams=options.n_beams,
            length_penalty=options.length_penalty,
            logprobs=options.logprobs,
            prompt_logprobs=options.prompt_logprobs,
            adapter=options.adapter,
        )
        return TextJob(request, where, tuple(stop), ids if self.continues else (), prompt)

    def _settle_sampling(self, options: Options) -> Sampling:
        """Return the sampling parameters, with `bad_words` encoded. Raises ConfigError for unknown tokens."""
        sampling = options.sampling
        if options.bad_words:
            words = encode_words(self.tokenizer, options.bad_words)
            sampling = replace(sampling, bad_words=(*sampling.bad_words, *words))
        sampling.check_vocabulary(self._vocab_size)
        if options.stop_ids and (largest := max(options.stop_ids)) >= self._vocab_size:
            last = self._vocab_size - 1
            raise ConfigError(f"stop_ids: names token {quote(largest)}, the model's vocabulary is 0 to {last}")
        return sampling

    def _compile(self, kind: Kind, source: Any, ends: frozenset[int]) -> Guide:
        """Compile a grammar, once for all requests that use it."""
        if ends not in self._compilers:
            self._compilers[ends] = GuideCompiler(self.tokenizer, self._vocab_size, ends)
        key = (kind, json.dumps(source), ends)
        if key not in self._guides:
            self._guides[key] = self._compilers[ends].compile(kind, source)
        return self._guides[key]

    @cached_property
    def _answer_end(self) -> tuple[list[int], list[str]]:
        return ([], []) if self.template is None else self.template.find_end(self.tokenizer)

    def make_jobs(self, prompts: Sequence[Prompt]) -> list[TextJob]:
        """Make a job of each prompt. Raises ConfigError with the faults of all of them."""
        jobs: list[TextJob] = []
        faults: list[str] = []
        for prompt in prompts:
            try:
                jobs.append(self.make_job(prompt.given, prompt.options, prompt.where, prompt))
            except ConfigError as error:
                faults += [f"{prompt.where}: {fault}" if prompt.where else fault for fault in error.faults]
        refuse(faults)
        return jobs


def encode_prompt(given: Mapping[str, Any], tokenizer: Tokenizer, template: ChatTemplate | None) -> list[int]:
    """Encode the input of a request: token ids, a prompt, or messages by the chat template. Raises ConfigError for
    messages that cannot be rendered."""
    if "ids" in given:
        return list(given["ids"])
    if "prompt" in given:
        check_text(given["prompt"], "prompt")
        return tokenizer.encode(given["prompt"]) or [tokenizer.eos_id]
    if template is None:
        raise ConfigError("messages: the model has no chat template (--template FILE, or a prompt)")
    return template.encode(tokenizer, given["messages"], tools=given.get("tools"))


def spell_prompt(given: Mapping[str, Any], template: ChatTemplate | None) -> str:
    """Return the text of a prompt, or of messages as the chat template writes them."""
    return given["prompt"] if template is None or "prompt" in given else template.render(given["messages"])


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Encode each word to two token sequences: at the start of a text, and after a space.

    Other tokens may spell a word too, but `bad_words` bars only the tokenizer's own encodings. Raises ConfigError for
    an empty word.
    """
    if "" in words:
        raise ConfigError("bad_words: an empty word bars nothing (leave it out)")
    spelled = [tuple(tokenizer.encode(prefix + word, bare=True)) for word in words for prefix in ("", " ")]
    return tuple(dict.fromkeys(ids for ids in spelled if ids))
