"""Build a model with loud parameters, and take what it gives for each of a few inputs."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from zoo.errors import ConfigError
from zoo.run.builder import build

VOCAB, LENGTH = 67, 40


def loud(spec: Any) -> Any:
    """Build the model with every parameter large and random. Equal names and shapes get equal values in all models."""
    model = build(spec, device="cpu").eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in dict(model.named_buffers()) and tensor.numel() and tensor.abs().max() > 0:
                continue  # a table that is worked out, or a number of the config
            if tensor.is_floating_point():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


def outcome(model: Any, name: str) -> Any:
    """Every tensor that the model gives for an input, or the refusal of it."""
    try:
        torch.manual_seed(0)
        given = INPUTS[name](model)
    except ConfigError as error:
        return str(error)
    finally:
        model.eval()
    tensors = {"hidden": given.hidden, "logits": given.logits, "pooled": given.pooled, **given.losses}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def apart(ours: Any, theirs: Any) -> bool:
    """Tell whether two outcomes differ by more than rounding does."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours != theirs
    if ours.keys() != theirs.keys() or any(ours[key].shape != theirs[key].shape for key in ours):
        return True
    return any(_far(ours[key], theirs[key]) for key in ours)


def _far(a: Any, b: Any) -> bool:
    return bool((a - b).abs().max() > 1e-5 * b.abs().max().clamp(min=1e-30))


def _ids(length: int = LENGTH) -> Any:
    return torch.randint(4, VOCAB, (2, length), generator=torch.Generator().manual_seed(1))


def _plain(model: Any) -> Any:
    ids = _ids()
    ids[:, 5], ids[1, 20:22] = 0, 1  # what a model may take for a padding id
    return _asked(model, ids)


def _padded(model: Any) -> Any:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :7], mask[1, 30:] = 0, 0
    return _asked(model, _ids(), mask)


def _asked(model: Any, ids: Any, mask: Any = None, **more: Any) -> Any:
    ids = ids % min(tower.vocab_size for tower in model.spec.towers().values())
    with torch.no_grad():
        if "encoder" in model.spec.towers():
            after = None if mask is None else mask[:, :30]
            return model(ids, mask, decoder_input_ids=ids[:, :30], decoder_attention_mask=after, **more)
        if model.spec.reads_memory:
            more["memory"] = torch.randn(2, 9, model.d_model, generator=torch.Generator().manual_seed(2))
        return model(ids, mask, **more)


def _packed(model: Any) -> Any:
    if "encoder" in model.spec.towers():
        raise ConfigError("documents: not of an encoder-decoder")
    return _asked(model, _ids(), documents=torch.tensor([0] * 9 + [1] * (LENGTH - 9)).expand(2, -1))


def _typed(model: Any) -> Any:
    return _asked(model, _ids(), token_type_ids=(_ids() % 2)) if "encoder" not in model.spec.towers() else _plain(model)


def _global(model: Any) -> Any:
    if model.spec.kind != "encoder":
        return _plain(model)
    return _asked(model, _ids(), global_attention_mask=(_ids() % 11 == 0).long())


def _prefixed(model: Any) -> Any:
    return _asked(model, _ids(), prefix=torch.tensor([6, 9])) if model.spec.kind == "decoder" else _plain(model)


def _trained(model: Any) -> Any:
    return _asked(model.train(), _ids())


def _started(model: Any) -> Any:
    if "encoder" not in model.spec.towers():
        return _plain(model)
    with torch.no_grad():
        return model(_ids() % model.spec.vocab_size)


INPUTS = {
    "plain": _plain,
    "padded": _padded,
    "packed": _packed,
    "trained": _trained,
    "typed": _typed,
    "global": _global,
    "prefixed": _prefixed,
    "started": _started,
}
