# G rows with a grammar, V vocabulary, W words of 32 tokens' bits
"""Constrain generated text to a JSON schema, a regular expression or a Lark grammar, with llguidance."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from zoo.errors import ConfigError, short
from zoo.lazy import Tensor, torch
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from zoo.data.tokenizer import Tokenizer

Kind = Literal["json_schema", "regex", "grammar"]

LONGEST: dict[Kind, int] = {"json_schema": 65536, "regex": 8192, "grammar": 65536}
"""Maximum characters of a grammar, by kind. Longer ones take seconds to compile, whatever the limits in FUEL."""

TRIED = 16  # tokens generated at random to try a new grammar out

WHITESPACE = r"( |\n[ \t]{0,40})?"
"""Whitespace allowed between JSON tokens: a space, or a new line with indentation. It is bounded, because an uncertain
model could write whitespace for ever."""

FUEL = {"initial_lexer_fuel": 1_000_000, "max_grammar_size": 100_000, "max_lexer_states": 50_000}
"""Limits on compiling: about 20 ms in the lexer, and 100 MB of lexer states. llguidance limits each step itself."""


class GuideCompiler:
    """Compiler of grammars for one tokenizer. Make one per model, because it reads the whole vocabulary.

    `vocab_size` is the width of the logits, which may exceed the tokenizer's. `end_ids` are tokens that may end a text
    once its grammar is complete, in addition to the tokenizer's EOS.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None, end_ids: Collection[int] = ()) -> None:
        engine = _require_llguidance()
        self.vocab_size = vocab_size or tokenizer.vocab_size
        ends = sorted({tokenizer.eos_id, *end_ids})
        try:
            self._tokens = engine.LLTokenizer(tokenizer.backend.to_str(), n_vocab=self.vocab_size, eos_token=ends)
        except Exception as error:
            if not isinstance(error, ValueError | RuntimeError) and type(error) is not Exception:
                raise
            raise ConfigError(f"guide: this tokenizer cannot be constrained, found {short(error)}") from error
        self._limits = engine.LLParserLimits(**FUEL, verbose_errors=False)

    def compile(self, kind: Kind, source: str | dict[str, Any] | bool) -> Guide:
        """Compile a grammar. Raises ConfigError if the grammar is wrong, unsupported or too large. There is no fallback
        to unconstrained text."""
        matcher = _require_llguidance().LLMatcher
        try:
            text = source if isinstance(source, str) else json.dumps(source, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{kind}: is no JSON, found {short(error)}") from error
        if len(text) > LONGEST[kind]:
            raise ConfigError(f"{kind}: {len(text)} characters (at most {LONGEST[kind]} would do)")
        try:
            if kind == "json_schema":
                grammar = matcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE})
            else:
                grammar = matcher.grammar_from_regex(text) if kind == "regex" else matcher.grammar_from_lark(text)
            start = matcher(self._tokens, grammar, log_level=0, limits=self._limits)
        except ValueError as error:
            raise ConfigError(f"{kind}: cannot be compiled, found {shorten(short(error), 200)}") from error
        guide = Guide(start, self.vocab_size)
        if fault := _try_out(guide.start()):
            raise ConfigError(f"{kind}: cannot be compiled, found {fault}")
        return guide


class Guide:
    """A compiled grammar. Requests and samples may share a Guide, because each starts its own matcher."""

    def __init__(self, start: Any, vocab_size: int) -> None:
        self._start = start
        self.vocab_size = vocab_size

    def start(self) -> Matcher:
        """Return a matcher at the beginning of the grammar."""
        return Matcher(self._start.deep_copy(), self.vocab_size)


class Matcher:
    """The position of one sequence in its grammar."""

    def __init__(self, state: Any, vocab_size: int) -> None:
        self.state = state
        self.vocab_size = vocab_size

    @property
    def finished(self) -> bool:
        """Whether only the end of the text may follow."""
        return self.state.is_stopped() and not self.state.is_error()

    @property
    def fault(self) -> str | None:
        """Why the grammar can no longer be followed, or None: a limit was exceeded, or a forbidden token consumed."""
        if not self.state.is_error():
            return None
        return " ".join(self.state.get_error().removesuffix("<non-verbose/>").split())[:200]

    def consume(self, token: int) -> None:
        """Advance by a chosen token. After a token that the grammar forbids, `fault` is set."""
        if not self.finished:
            self.state.consume_token(token)

    def ahead(self, draft: Sequence[int]) -> list[Matcher | Allowed]:
        """Return the token masks here and after each token of a draft, up to the first forbidden token or the end of
        the text. This matcher does not advance."""
        probe = Matcher(self.state.deep_copy(), self.vocab_size)  # a copy: a rollback does not count the end of a text
        after: list[Matcher | Allowed] = [self]
        for token in draft:
            if probe.state.is_stopped() or not probe.state.try_consume_tokens([token]):
                break
            after.append(Allowed(_compute_words([probe])[0]))
        return after


class Allowed:
    """The tokens that a grammar allows after a draft token, as a bit mask `words` [W] of int32."""

    finished = False
    fault = None

    def __init__(self, words: NDArray[np.int32]) -> None:
        self.words = words


def find_banned(matchers: Sequence[Matcher | Allowed], vocab_size: int, device: torch.device) -> Tensor:
    """Return the mask [G, V] of tokens that G rows' grammars forbid. A grammar with a fault forbids every token."""
    import numpy as np

    words = np.invert(_compute_words(matchers))
    if device.type == "cpu":
        bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
        banned = torch.from_numpy(bits).view(torch.bool)
    else:  # one bit per token is copied, and unpacked on the device
        packed = torch.from_numpy(words).to(device)
        banned = (packed[..., None] >> torch.arange(32, device=device) & 1).flatten(1) != 0
    if (lacking := vocab_size - banned.shape[1]) > 0:
        banned = torch.cat([banned, banned.new_ones(len(matchers), lacking)], 1)
    return banned[:, :vocab_size]


def _compute_words(matchers: Sequence[Matcher | Allowed]) -> NDArray[np.int32]:
    """Return bit masks of the allowed tokens, in int32 words [G, W]."""
    import numpy as np

    live = [(row, each) for row, each in enumerate(matchers) if isinstance(each, Matcher)]
    width = (live[0][1].vocab_size + 31) // 32 if live else len(matchers[0].words)  # pyright: ignore
    words = np.zeros((len(matchers), width), np.int32)
    if len(live) == 1:
        row, each = live[0]
        each.state.unsafe_compute_mask_ptr(words[row].ctypes.data, 4 * width)
    elif live:
        states = [(each.state, row) for row, each in live]
        _find_executor().unsafe_compute_mask_ptr(states, words.ctypes.data, 4 * width, len(matchers))
    for row, each in enumerate(matchers):
        if isinstance(each, Allowed):
            words[row] = each.words
        elif each.state.is_error():
            words[row] = 0
    return words


def _try_out(matcher: Matcher) -> str | None:
    """Follow the grammar for a few random tokens, because some faults show only then. Return the fault or None."""
    choice = random.Random(0).choice
    for _ in range(TRIED):
        allowed = (~find_banned([matcher], matcher.vocab_size, torch.device("cpu"))[0]).nonzero()[:, 0].tolist()
        if not allowed:
            return matcher.fault or "nothing that it allows"
        if matcher.finished:
            return None
        matcher.consume(choice(allowed))
    return matcher.fault


@cache
def _find_executor() -> Any:
    return _require_llguidance().LLExecutor(torch.get_num_threads())


def _require_llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError("guide: llguidance is not installed (pip install 'transformer-zoo[guided]')") from None
    return llguidance
