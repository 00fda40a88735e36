"""Hold a conversation with a model: keep its messages, and stream each answer."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from zoo.errors import ConfigError
from zoo.generation.engine import Engine
from zoo.text.follow import write
from zoo.text.jobs import JobMaker
from zoo.text.prompts import Options
from zoo.untrusted.printable import check_text


class Conversation:
    """Messages of a user and a model in turn, after a system message if there is one.

    Each request contains the whole conversation; the engine's prefix cache spares computing its beginning again.
    """

    def __init__(self, encoder: JobMaker, engine: Engine, options: Options, limit: int) -> None:
        self.encoder, self.engine, self.options, self.limit = encoder, engine, options, limit
        self.messages: list[dict[str, Any]] = []
        self.interrupted = False

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        others = self.messages if self.system is None else self.messages[1:]
        self.messages = [*([{"role": "system", "content": text}] if text else []), *others]

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = [] if self.system is None else self.messages[:1]

    def answer(self, text: str) -> Iterator[str]:
        """Add a user message and stream the answer. Setting `interrupted` ends the answer; the text written so far is
        kept.

        Raises ConfigError, at the call, if the template refuses the conversation or the model has no room left for an
        answer; the conversation is then unchanged.
        """
        self.interrupted = False
        check_text(text, "chat")
        asked = [*self.messages, {"role": "user", "content": text}]
        job = self.encoder.make_job({"messages": asked}, self.options, "")
        room = self.limit - len(job.before or [0])
        if room < 1:
            found = f"the conversation has {len(job.request.ids)} tokens, the model is made for {self.limit}"
            raise ConfigError(f"chat: {found} (/reset begins anew)")
        job = replace(job, request=replace(job.request, max_new_tokens=min(room, self.options.max_new_tokens)))
        return self._keep(asked, write(self.engine, job, self.encoder.tokenizer))

    def _keep(self, asked: list[dict[str, Any]], pieces: Generator[str]) -> Iterator[str]:
        written = ""
        with closing(pieces):
            for piece in pieces:
                written += piece
                yield piece
                if self.interrupted:
                    break
        self.messages = [*asked, {"role": "assistant", "content": written}]
