# B batch, P prompt
"""Generate for a batch of prompts: `generate` returns all tokens at the end, `stream` yields them step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, ZooError
from zoo.generation.engine import Engine, serving
from zoo.generation.prompt_towers import check_length, check_prompt, find_reader, find_writer
from zoo.generation.request import Request
from zoo.lazy import Tensor, torch
from zoo.sampling.options import Sampling

if TYPE_CHECKING:
    from zoo.model.tower import Topology
    from zoo.run.layer import Model


def generate(
    model: Model,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    stop_ids: Sequence[int] = (),
    *,
    attention_mask: Tensor | None = None,
    kernel: str | None = None,
    adapter: str | None = None,
    **options: Any,
) -> Tensor:
    """Generate up to `max_new_tokens` for each prompt in ids [B, P]. Returns prompts and new tokens [B, length] on the
    model's device; for an encoder-decoder the decoder's tokens, its start token first.

    Generation ends after `max_new_tokens`, or when every row has met one of `stop_ids`; a row that stops earlier
    repeats its stop id to the end. Prompts of unequal length are padded on the left (for an encoder-decoder anywhere),
    with zeros in `attention_mask` [B, P] at the padding. Each row gets the same tokens as alone, also when sampled; but
    equal prompts in a batch draw different tokens. `kernel` names the attention kernel (default: the model's),
    `adapter` one of the adapters that the model was loaded with. The remaining `options` are fields of `Sampling`.

    Raises ConfigError for invalid options and for a length beyond the model's positions, ZooError if a row has no next
    token, for example because its logits are NaN.
    """
    sampling = Sampling.checked(temperature=temperature, **options)
    how: dict[str, Any] = {"attention_mask": attention_mask, "kernel": kernel, "adapter": adapter}
    tokens = stream(model, ids, max_new_tokens, sampling, stop_ids, **how)
    added = [token[:, None] for token in tokens]
    return torch.cat([begin(model.spec, ids.to(next(model.parameters()).device)), *added], 1)


def begin(spec: Topology, ids: Tensor) -> Tensor:
    """Return the tokens before the first new one: the prompts [B, P], or an encoder-decoder's start tokens [B, 1]."""
    return ids if find_writer(spec) is spec else torch.full_like(ids[:, :1], spec.start_id)  # type: ignore[attr-defined]


def stream(
    model: Model,
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    *,
    attention_mask: Tensor | None = None,
    kernel: str | None = None,
    adapter: str | None = None,
) -> Iterator[Tensor]:
    """Yield the new tokens of `generate`, one step [B] at a time. `sampling` replaces its sampling options; the other
    arguments are those of `generate`.

    While the iterator runs, the model is in eval mode and uses `kernel`; both are restored when it ends or is closed.
    Raises ConfigError as `generate` does, before the first step, and ZooError at a step in which a row has no next
    token, for example because its logits are NaN.
    """
    if not torch.is_tensor(ids):
        raise ConfigError(f"ids: are a {type(ids).__name__}, not a tensor [B, P] (torch.tensor([ids]))")
    prompts = _read_prompts(find_reader(model.spec) is not find_writer(model.spec), ids, attention_mask)
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens: is {max_new_tokens}, not 0 or more")
    chosen, stops = (sampling or Sampling()).seeded(), frozenset(stop_ids)
    copies: Counter[tuple[int, ...]] = Counter()
    requests = []
    for prompt in map(tuple, prompts):
        copy, copies[prompt] = copies[prompt], copies[prompt] + 1
        how: dict[str, Any] = {"sampling": chosen, "stop_ids": stops, "copy": copy, "adapter": adapter}
        requests.append(Request(ids=prompt, max_new_tokens=max_new_tokens, **how))
    if not max_new_tokens:
        _check(model.spec, prompts)
        return iter(())
    longest = max(map(len, prompts))
    own = find_writer(model.spec) is model.spec
    tokens = (longest if own else 1) + max_new_tokens
    rows = len(requests)
    # Prompts come in whole and rows keep in step, so that a step of this engine is one token of each row.
    engine = Engine(
        model, rows=rows, tokens=tokens, source=longest, budget=rows * (longest + 1), reuse=False, kernel=kernel
    )
    for request in requests:
        engine.add(request)
    return _steps(engine, rows)


def _check(spec: Topology, prompts: Sequence[Sequence[int]]) -> None:
    """Check prompts when no tokens are generated. Raises ConfigError for a prompt that `Engine.add` would refuse."""
    reader, writer = find_reader(spec), find_writer(spec)
    for prompt in prompts:
        check_prompt(reader, prompt, reader is not writer)
        check_length(writer, len(prompt) if reader is writer else 1, 0)


def _steps(engine: Engine, rows: int) -> Iterator[Tensor]:
    """Yield the tokens of each step [B]. A row that has ended repeats its last token."""
    tokens, step = [0] * rows, 0
    with serving(engine.model, engine.kernel):
        while engine.busy:
            events = engine.step()
            if not events:  # the first tokens that a device chooses come a step late
                continue
            step += 1
            for event in events:
                if event.token is None:
                    raise ZooError(f"generate: step {step}: row {event.request} {event.fault}")
                tokens[event.request] = event.token
            yield torch.tensor(tokens, device=engine.device)


def _read_prompts(apart: bool, ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """Return the tokens of each prompt without padding. `apart` says that an encoder reads the prompts. Raises
    ConfigError for ids or a mask of the wrong shape, and for padding in a place that is not allowed."""
    if ids.ndim != 2 or not ids.numel():
        raise ConfigError(f"ids: shape {list(ids.shape)}, not [batch, length] with a token at least (start from BOS)")
    rows = ids.tolist()
    if mask is None:
        return rows
    real = mask != 0
    if real.shape != ids.shape:
        raise ConfigError(f"attention_mask: shape {list(mask.shape)}, not that of ids, {list(ids.shape)}")
    if apart and not bool(real.any(1).all()):
        raise ConfigError("attention_mask: a row has no token (a one at least in every row)")
    if not apart and (not bool(real[:, -1].all()) or bool((real[:, :-1] & ~real[:, 1:]).any())):
        raise ConfigError("attention_mask: a zero follows a one (pad on the left: zeros, then ones, in every row)")
    return [list(compress(row, kept)) for row, kept in zip(rows, real.tolist(), strict=True)]
