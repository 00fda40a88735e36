"""Write a complete, commented model file in the plain dialect (docs/yaml.md): a packaged model with changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from zoo import grammar
from zoo.analysis.grammar_names import key_sentence
from zoo.analysis.solve.shape import ShapeBudget, solve_shapes
from zoo.compose.targets import compose_model, spec_of_composed
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError, did_you_mean
from zoo.grammar.dialect import is_choice, list_files
from zoo.grammar.interpolation import Scope, list_sizes
from zoo.grammar.towers import split_towers
from zoo.grammar.vocabulary import write_value
from zoo.spec.fields import YEAR

HEADER = """\
# A model for Zoo. docs/yaml.md says how it is written; `zoo stats {name}` prices it, `zoo train {name}` trains it.
"""


@dataclasses.dataclass(frozen=True)
class Stop:
    """A model of the tour (`zoo new --tour`): its file's name, what it shows, and how it is made."""

    name: str
    shows: str
    like: str
    overrides: tuple[str, ...] = ()


TOUR = (
    Stop("01-llama", "a decoder as most are: rotary positions, RMS norm, SwiGLU, grouped queries", "llama-tiny"),
    Stop("02-gpt", "learned positions, LayerNorm, GELU, a head of keys for each of queries", "gpt-tiny"),
    Stop(
        "03-mqa-alibi",
        "one head of keys, and positions as a bias of scores",
        "llama-tiny",
        ("attention=mqa", "position=alibi"),
    ),
    Stop(
        "04-qk-norm",
        "queries and keys normalised, norms after sub-layers (OLMo 2)",
        "llama-tiny",
        ("attention.qk_norm=true", "block=post_inside"),
    ),
    Stop(
        "05-local-global",
        "three layers that see 64 tokens, then one that sees all (Gemma)",
        "llama-tiny",
        ("+layers={near: {attention: {window: 64}}}", "+pattern=[near*3,layer]", "block=sandwich"),
    ),
    Stop("06-mla", "keys and values of all heads made of one latent, and experts (DeepSeek)", "deepseek-tiny"),
    Stop("07-experts", "2 of 8 experts a token (Mixtral)", "mixtral-tiny"),
    Stop(
        "08-shared-expert",
        "an expert that all tokens pass, beside those that they choose",
        "mixtral-tiny",
        ("ffn.shared=gated",),
    ),
    Stop(
        "09-state-space",
        "no attention: a state of fixed size (Mamba-2)",
        "llama-tiny",
        ("attention=mamba2", "position=none", "ssm_heads=6", "ssm_head_dim=32"),
    ),
    Stop(
        "10-hybrid",
        "three layers of the gated delta rule to one of full attention, with experts",
        "mixtral-tiny",
        (
            "+layers={linear: {attention: gated_delta}}",
            "+pattern=[linear*3,layer]",
            "attention.qk_norm=true",
            "ffn.shared=gated",
        ),
    ),
    Stop("11-encoder", "an encoder that fills masks (BERT)", "bert-tiny"),
    Stop("12-encoder-decoder", "an encoder and a decoder that reads it (T5)", "t5-tiny"),
)


def write_model(
    name: str,
    like: str = "llama-tiny",
    overrides: Iterable[str] = (),
    parts: Sequence[str] = (),
    params: float | None = None,
    about: str = "",
) -> str:
    """Return the text of a model file: the model `like`, changed by `overrides` and by the choices `parts`, and scaled
    to about `params` parameters (None: not scaled). The dimensions that the model reads are stated, no others.

    `name` is the file's name, for its first line; `about` is its title. Raises ConfigError for an unknown choice, a
    faulty model, or if no shape has about `params` parameters.
    """
    overrides = [*overrides, *_choose(parts)]
    if params is not None:
        overrides = solve_shapes(like, overrides, ShapeBudget(params=params), nearest=True, count=1)[0]["overrides"]
    composed = compose_model(like, overrides)
    counted = count_parameters(spec_of_composed(composed))
    body: Any = OmegaConf.to_container(composed.cfg, resolve=False)
    plain = grammar.contract(body)
    root = grammar.expand(plain)
    read = set().union(*(tower.read([], set())[1] for tower in split_towers(Scope(root), [])))
    plain = {key: value for key, value in plain.items() if key != "about" and key not in grammar.DIMS - read}
    plain |= {key: size for key, size in list_sizes(root).items() if key in read and key not in plain}
    lines = [HEADER.format(name=name), f"about: {write_value({'title': about or name.removesuffix('.yaml')})}"]
    lines[1] += f"  # {counted['total']:,} parameters when this file was written{_describe_share(counted)}"
    lines += [_write_key(key, plain[key]) for key in _sort_keys(plain)]
    return "\n".join(lines) + "\n"


def _describe_share(counted: Mapping[str, Any]) -> str:
    """Describe the share of embedding tables and head in the parameters; "" if it is at most half."""
    share = counted["embedding"] / counted["total"]
    return f", {100 * share:.0f} % of them the table of tokens" if share > 0.5 else ""


def _sort_keys(plain: Mapping[str, Any]) -> list[str]:
    """Sort keys: dimensions first, then choices, then kinds of layer."""
    late = (*grammar.AXES, "cross", "embedding", "head", "encoder", "decoder", "layers", "pattern")
    return [*(key for key in plain if key not in late), *dict.fromkeys(key for key in late if key in plain)]


def _write_key(key: str, value: object) -> str:
    """Write a key, with the sentence of `zoo explain` as a comment."""
    text = f"{key}: {write_value(value)}"
    comment = YEAR.sub("", key_sentence(key)).removesuffix(".").rstrip()
    return f"{text:<44}  # {comment}" if comment else text


def _choose(parts: Sequence[str]) -> list[str]:
    """List the overrides that give a model these choices, each on its own axis."""
    found: list[str] = []
    for part in parts:
        axes = [axis for axis in grammar.AXES if axis != "cross" and is_choice(axis, part)]
        if not axes:
            known = {word for axis in grammar.AXES for word in list_files(axis)}
            hint = did_you_mean(part, known) or " (zoo list --axis AXIS)"
            raise ConfigError(f"with: no axis has a choice {part!r}{hint}")
        found.append(f"{axes[0]}={part}")
    return found
