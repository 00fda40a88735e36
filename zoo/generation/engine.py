# B batch, P prompt, T tokens, V vocabulary
"""Prefill, then one token at a time with a cache: ids in, ids out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any

from zoo.errors import ConfigError, ZooError
from zoo.generation.cache import Cache
from zoo.generation.sample import Sampling, draw_points, sample
from zoo.lazy import torch
from zoo.model.position.base import Position
from zoo.spec import components

if TYPE_CHECKING:
    from torch import Tensor


def generate(
    model: Any,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    stop_ids: Sequence[int] = (),
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    attention_mask: Tensor | None = None,
    kernel: str | None = None,
) -> Tensor:
    """Continue the prompts: prompts and new tokens [B, length], on the model's device. Of an encoder-decoder: what the
    decoder writes after reading the prompts, its start token first.

    Ends after `max_new_tokens`, or as soon as every row has met one of `stop_ids`; a row that met it before the others
    repeats it up to the end. Prompts of unequal length are padded on the left (those of an encoder-decoder anywhere),
    with zeros in `attention_mask` [B, P] for the padding: each row then gets what it would get alone, drawn tokens too.
    The other options are those of `Sampling`.

    Raises ConfigError for options that will not do and for a length that the model has no positions for, ZooError when
    the logits of a step are NaN.
    """
    options = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    sampling = Sampling.checked(temperature=temperature, seed=seed, **options)
    tokens = stream(model, ids, max_new_tokens, sampling, stop_ids, attention_mask=attention_mask, kernel=kernel)
    added = [token[:, None] for token in tokens]
    first = begin(model.spec, ids.to(_device(model)))
    return torch.cat([first, *added], 1)


def stream(
    model: Any,
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop_ids: Sequence[int] = (),
    *,
    attention_mask: Tensor | None = None,
    kernel: str | None = None,
) -> Iterator[Tensor]:
    """Yields the tokens that `generate` adds, one step [B] at a time. Stops and options as there.

    While the iterator is at work the model is in eval mode and uses `kernel`; once it ends or is closed the model is as
    it was before. Raises ConfigError as `generate` does, at the call rather than at the first step, and ZooError at a
    step whose logits are NaN.
    """
    device = _device(model)
    ids, mask = _prompt(model, ids.to(device), attention_mask)
    if max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens: is {max_new_tokens}, not 0 or more")
    first = begin(model.spec, ids)
    check_length(writer(model.spec), first.shape[1], max_new_tokens)
    return _steps(model, ids, mask, max_new_tokens, sampling or Sampling(), list(stop_ids), kernel)


def writer(spec: Any) -> Any:
    """The tower that generates: the model itself, or its decoder. Raises ConfigError for a model that has none."""
    towers = [tower for tower in spec.towers().values() if tower.causal]
    if not towers:
        raise ConfigError(f"generate: an {spec.kind} writes no text (a decoder or an encoder_decoder does)")
    if towers[0].head.kind == "none":
        raise ConfigError("generate: the model has no head, so there is nothing to choose a token from (head: lm)")
    return towers[0]


def reader(spec: Any) -> Any:
    """The tower that reads the prompts: the model itself, or its encoder."""
    return next(iter(spec.towers().values()))


def begin(spec: Any, ids: Tensor) -> Tensor:
    """The tokens that generation continues [B, P]: the prompts, or an encoder-decoder's start token."""
    return ids if writer(spec) is spec else torch.full_like(ids[:, :1], spec.start_id)


def _ask(model: Any, ids: Tensor, mask: Tensor | None) -> Callable[..., Any]:
    """The function from tokens to logits. Of an encoder-decoder it is the decoder, once the encoder has run."""
    spec = writer(model.spec)
    if spec is not model.spec:
        memory = model.get_submodule("encoder")(ids, mask).hidden
        return partial(model.get_submodule("decoder"), memory=memory, memory_mask=mask)
    if spec.prefix_lm:
        return partial(model, prefix=torch.full_like(ids[:, 0], ids.shape[1]))
    return model


def check_length(spec: Any, prompt: int, new: int) -> None:
    """Raises ConfigError when a position scheme ends before `prompt + new` tokens: a learned table. Others go on."""
    limit = _limit(spec)
    if limit is not None and prompt + new > limit:
        would = f"at most {limit - prompt}" if limit > prompt else "a shorter prompt"
        found = f"{new} more after a prompt of {prompt} tokens, the model's learned positions end at {limit}"
        raise ConfigError(f"max_new_tokens: {found} ({would} would do)")


def _limit(spec: Any) -> int | None:
    """The longest row that every position scheme of a tower has positions for; None for any."""
    limits = [part.limit for _, part, _ in components(spec, spec.d_model) if isinstance(part, Position)]
    return min((limit for limit in limits if limit is not None), default=None)


def _device(model: Any) -> Any:
    return next(model.parameters()).device


def _prompt(model: Any, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Check the prompts; give them and their mask, or None for it when nothing is padded."""
    if ids.ndim != 2 or not ids.numel():
        raise ConfigError(f"ids: shape {list(ids.shape)}, not [batch, length] with a token at least (start from BOS)")
    reads = reader(model.spec)
    apart, limit = reads is not writer(model.spec), _limit(reads)
    if not 0 <= int(ids.min()) <= int(ids.max()) < reads.vocab_size:
        found = f"tokens from {int(ids.min())} to {int(ids.max())}"
        raise ConfigError(f"ids: {found}, the model's vocabulary is 0 to {reads.vocab_size - 1}")
    if apart and limit is not None and ids.shape[1] > limit:
        raise ConfigError(f"ids: {ids.shape[1]} tokens, the encoder's positions end at {limit} (shorter prompts)")
    if mask is None:
        return ids, None
    real = mask.to(ids.device) != 0
    if real.shape != ids.shape:
        raise ConfigError(f"attention_mask: shape {list(mask.shape)}, not that of ids, {list(ids.shape)}")
    if apart and not bool(real.any(1).all()):
        raise ConfigError("attention_mask: a row has no token (a one at least in every row)")
    if not apart and (not bool(real[:, -1].all()) or bool((real[:, :-1] & ~real[:, 1:]).any())):
        raise ConfigError("attention_mask: a zero stands after a one (pad on the left: zeros, then ones, in every row)")
    return ids, None if bool(real.all()) else real


@contextmanager
def _serving(model: Any, kernel: str | None) -> Iterator[None]:
    """Put the model in eval mode and set its kernel; restore both afterwards, module by module."""
    training = [module for module in model.modules() if module.training]
    before = model.kernel
    model.eval()
    if kernel is not None:
        model.kernel = kernel
    try:
        yield
    finally:
        model.kernel = before
        for module in training:
            module.training = True


def _steps(
    model: Any,
    ids: Tensor,
    mask: Tensor | None,
    budget: int,
    sampling: Sampling,
    stop_ids: list[int],
    kernel: str | None,
) -> Iterator[Tensor]:
    """Inference mode is entered for each step anew: held across a yield, it would be the caller's mode too.

    What a step needs of the host (stop ids, the numbers that decide draws) goes to the device before the first one.
    """
    first = begin(model.spec, ids)
    padding = mask if first is ids else None
    (batch, prompt), known = first.shape, first.shape[1]
    whole = ids.new_empty(batch, prompt + budget)
    # Padding is masked, whatever stands there: a token that the row has anyway, so that a penalty counts nothing more.
    whole[:, :prompt] = first if padding is None else torch.where(padding, first, first[:, -1:])
    if padding is not None:
        padding = torch.cat([padding, padding.new_ones(batch, budget)], 1)
    points = None if sampling.temperature == 0 else draw_points(sampling, _rows(ids, mask), budget).to(ids.device)
    stop, ended = ids.new_tensor(stop_ids), torch.zeros_like(ids[:, 0], dtype=torch.bool)
    with _serving(model, kernel):
        with torch.inference_mode():
            ask = _ask(model, ids, mask)
        cache = _cache(model, batch, prompt, prompt + budget)
        for step in range(budget):
            with torch.inference_mode():
                logits = _next_logits(ask, whole[:, :known], padding, cache)
                token = sample(logits, sampling, None if points is None else points[step], whole[:, :known])
                if stop_ids:
                    token = torch.where(ended, whole[:, known - 1], token)
                    ended = torch.isin(token, stop)
                whole[:, known] = token
            chosen = token.tolist()  # the one wait for the device in a step: whether to go on depends on the tokens
            _check_chosen(chosen, step, logits.dtype)
            yield whole[:, known].clone()
            if stop_ids and all(each in stop_ids for each in chosen):
                return
            known += 1


def _rows(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    """The tokens of each prompt, its padding left out."""
    rows = ids.tolist()
    kept = [[True] * ids.shape[1]] * len(rows) if mask is None else mask.tolist()
    return [list(compress(row, real)) for row, real in zip(rows, kept, strict=True)]


def _check_chosen(chosen: list[int], step: int, dtype: torch.dtype) -> None:
    """Raises ZooError where a row has no token: `sample` gives −1."""
    if min(chosen) >= 0:
        return
    found = f"row {chosen.index(-1)} has logits that are NaN or all -inf, in {str(dtype).removeprefix('torch.')}"
    raise ZooError(f"generate: step {step + 1}: {found} (sound weights, or dtype=fp32 if the model overflows)")


def _cache(model: Any, batch: int, prompt: int, length: int) -> Cache | None:
    """A cache for as many tokens as can be cached, or None when not even the prompt can be."""
    until = model.spec.cacheable_until
    if until is not None and prompt > until:
        return None
    with torch.inference_mode():
        return Cache.allocate(model, batch, length if until is None else min(length, until))


def _next_logits(ask: Callable[..., Any], held: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
    """Logits [B, V] after the tokens `held` [B, T]. Past the length that can be cached (dynamic RoPE) the whole row is
    computed anew."""
    known = held.shape[1]
    padding = None if mask is None else mask[:, :known]
    if cache is None or known > cache.capacity:
        return ask(held, padding, logits_to_keep=1).logits[:, -1]
    return ask(held[:, cache.length :], padding, cache=cache, logits_to_keep=1).logits[:, -1]
