"""Make a tiny random reference model of a `model_type` of transformers, and record its outputs layer by layer."""

from __future__ import annotations

import copy
import functools
import json
import re
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from zoo.checkpoint.verify_folder import require_transformers
from zoo.errors import ConfigError, did_you_mean, short
from zoo.families.described import read_float

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

SIZES = {
    **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 4, "head_dim": 12},
    **{"num_attention_heads": 4, "max_position_embeddings": 64, "sliding_window": 6},
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts"), 6
    ),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size"), 20),
    **{"shared_expert_intermediate_size": 28, "moe_shared_expert_intermediate_size": 28, "ffn_hidden_size": 56},
    **{"q_lora_rank": 22, "kv_lora_rank": 16, "qk_nope_head_dim": 10, "qk_rope_head_dim": 8, "v_head_dim": 14},
    **{"qk_head_dim": 18, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "moe_first_k_dense": 1},
    **{"type_vocab_size": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 10, "attention_chunk_size": 6},
}
"""Sizes of a tiny model by transformers' names. Different sizes that meet in one matrix are never equal numbers, so
that a transposed weight is noticed by its shape.
"""

AUTO = ("AutoModelForCausalLM", "AutoModelForMaskedLM")
"""transformers' mappings from a config class to a model class; the first that has the type decides its class."""

NO_FIELDS = frozenset(
    {
        *("architectures", "model_type", "transformers_version", "auto_map", "dtype", "torch_dtype", "torchscript"),
        *("quantization_config", "use_return_dict", "base_config_key", "sub_configs", "attribute_map"),
    }
)
"""Entries of a config.json that are not fields of the model, such as the name of its class."""


class Illegal(Exception):
    """The reference itself refuses a config, or fails to run the model that it describes."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A tiny random model of transformers, with its config.json, and its tensors by their names in files."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: Any

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])

    @property
    def topology(self) -> str:
        return "encoder" if "Masked" in self.architecture else "decoder"

    @property
    def prefix(self) -> str:
        """The prefix of the base model's tensors in a file of the class with a head."""
        stated = f"{self.model.base_model_prefix}."
        if any(name.startswith(stated) for name in self.tensors):
            return stated
        firsts = Counter(name.partition(".")[0] for name in self.tensors if not re.match(r"\w+\.\d+\.", name))
        first, count = firsts.most_common(1)[0]
        return f"{first}." if count > len(self.tensors) / 2 else ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def draw_ids(self, rows: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
        """Draw token ids [rows, length] from 5 up, to avoid special tokens."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(5, self.model.config.vocab_size, (rows, length), generator=generator)

    @functools.cached_property
    def stages(self) -> dict[str, torch.Tensor]:
        """Outputs of the reference on `draw_ids()`, by stage: embedding, each layer's attention, feed-forward and
        output, final norm, logits. Raises Illegal as `run_in_stages` does."""
        return run_in_stages(self.model, self.draw_ids())


@dataclass
class Maker:
    """Makes reference models of a `model_type`. Tensors of equal name and shape have equal values in all of them."""

    model_type: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import transformers

        names = {kind: cls for kind, cls in transformers.CONFIG_MAPPING.items() if isinstance(kind, str)}
        if self.model_type not in names:
            hint = did_you_mean(self.model_type, names) or " (the model_type of a config.json)"
            raise ConfigError(f"{self.model_type}: transformers {transformers.__version__} has no such type{hint}")
        self.config_class = names[self.model_type]
        mappings = (getattr(transformers, auto)._model_mapping for auto in AUTO)
        found = next((each[self.config_class] for each in mappings if self.config_class in each), None)
        if found is None:
            raise ConfigError(
                f"{self.model_type}: has no model for causal or masked language modelling to compare with"
            )
        self.model_class = found[0] if isinstance(found, tuple) else found

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The class's config with no field set."""
        return _to_json(self.config_class())

    @functools.cached_property
    def left_out(self) -> dict[str, Any]:
        """The class's declared default of each field: null if the class derives the value from other fields."""
        return {
            **self.defaults,
            **{name: None for name in self.defaults if getattr(self.config_class, name, 0) is None},
        }

    @functools.cached_property
    def sizes(self) -> dict[str, Any]:
        """The fields of the tiny config: sizes and the user's changes. Raises ConfigError for an unknown field."""
        strange = [name for name in self.changes if name not in {**self.defaults, **self.config_class.attribute_map}]
        if strange:
            lines = (
                f"{name}: no field of {self.config_class.__name__}{did_you_mean(name, self.defaults)}"
                for name in strange
            )
            raise ConfigError(*lines)
        usual = {own: name for name, own in self.config_class.attribute_map.items()} | {name: name for name in SIZES}
        small = {
            name: SIZES[usual[name]]
            for name, value in self.defaults.items()
            if usual.get(name) in SIZES and _is_size(name, value)
        }
        heads = self.defaults.get("num_key_value_heads")
        if isinstance(heads, int):  # keep the class's form: multi-head, multi-query or grouped-query
            same = heads == self.defaults.get("num_attention_heads") or "kv_lora_rank" in self.defaults
            small["num_key_value_heads"] = 4 if same else min(heads, 2)
        special = {name: 0 for name, value in self.defaults.items() if name.endswith("_token_id") and value}
        return {**special, **small, **self.changes}

    def make_config(self) -> dict[str, Any]:
        """Make the config.json of the tiny model, with every field. Raises ConfigError if the config class refuses
        it."""
        try:
            made = _to_json(self.config_class(**copy.deepcopy(self.sizes)))
        except Exception as error:  # transformers' code may raise anything
            raise ConfigError(
                f"{self.model_type}: refuses the tiny config, {short(error)} (NAME=VALUE changes it)"
            ) from error
        return {**made, "model_type": self.model_type, "architectures": [self.model_class.__name__]}

    def make(self, config: Mapping[str, Any]) -> Reference:
        """Build the reference that a config.json describes. Raises Illegal if transformers refuses it."""
        try:
            with warnings.catch_warnings(), tempfile.TemporaryDirectory() as place:
                warnings.simplefilter("ignore")
                read = self.config_class.from_dict(copy.deepcopy(dict(config)))
                read._attn_implementation = "eager"
                torch.manual_seed(0)
                model = self.model_class(read).eval()
                _draw_values(model)
                model.save_pretrained(place)
                tensors = _read_tensors(Path(place))
        except Exception as error:  # transformers' code may raise anything
            raise Illegal(short(error)) from error
        return Reference(dict(config), tensors, model)

    def make_first(self) -> Reference:
        """Make the reference of the tiny config. Raises ConfigError if it cannot be built or run."""
        try:
            made = self.make(self.make_config())
            made.stages  # noqa: B018  (runs it)
        except Illegal as error:
            raise ConfigError(
                f"{self.model_type}: its tiny model fails, {error} (NAME=VALUE changes its config)"
            ) from error
        return made


@contextmanager
def quieten_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings of tiny configs. Raises ConfigError without transformers."""
    require_transformers()
    from transformers.utils import logging

    level, shows = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # CRITICAL of Python's logging
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows:
            logging.enable_progress_bar()


def _is_size(name: str, value: object) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (value is None and name == "head_dim")


def _to_json(config: PreTrainedConfig) -> dict[str, Any]:
    node = json.loads(config.to_json_string(use_diff=False), object_hook=read_float)
    return {name: value for name, value in node.items() if name not in NO_FIELDS and not name.startswith("_")}


def _draw_values(model: torch.nn.Module) -> None:
    """Draw every weight from a generator seeded by its name, with a scale large enough to reveal a wrong weight."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                drawn = torch.randn(tensor.shape, generator=generator) * 0.15
                tensor.copy_(drawn + 1 if tensor.ndim == 1 and name.endswith("weight") else drawn)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: each.clone() for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}


# ---------------------------------------------------------------- stages

ATTENTION = re.compile(r"attn|attention|mixer|temporal|conv")
FEED_FORWARD = re.compile(r"mlp|feed_forward|ffn|moe|experts|intermediate")
NO_PART = re.compile(r"norm|ln|layernorm|dropout|gate$")


def run_in_stages(model: PreTrainedModel, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Run a reference and record each stage's output, in the order of the forward pass. Raises Illegal if the pass
    fails or gives logits that are not finite."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(functools.partial(_note, found, stage)) for stage, module in _list_parts(model)
    ]
    try:
        with torch.no_grad():
            out = model(input_ids=ids, output_hidden_states=True, return_dict=True, use_cache=False)
        states = out.hidden_states
        logits = out.get("prediction_logits", out.get("logits"))
        assert logits is not None
    except Exception as error:  # transformers' code may raise anything
        raise Illegal(short(error)) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not logits.isfinite().all():
        raise Illegal("gives numbers that are not finite")
    return dict(_in_order(found, states, logits))


def _note(found: dict[str, torch.Tensor], stage: str, module: torch.nn.Module, args: object, out: object) -> None:
    first = out[0] if isinstance(out, tuple) else out
    if isinstance(first, torch.Tensor):
        found[stage] = first


def _list_parts(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield each layer's attention and feed-forward modules, recognised by name, with the names of their stages."""
    count = model.config.num_hidden_layers
    lists = (each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == count)
    for index, layer in enumerate(next(lists, ())):
        for stage, pattern in (("attention", ATTENTION), ("feed-forward", FEED_FORWARD)):
            named = [
                child for name, child in layer.named_children() if pattern.search(name) and not NO_PART.search(name)
            ]
            if len(named) == 1:
                yield f"layer {index} {stage}", named[0]


def _in_order(
    found: Mapping[str, torch.Tensor], states: Any, logits: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    states = list(states or ())
    if states:
        yield "embedding", states[0]
    for index, after in enumerate(states[1:]):
        named = (f"layer {index} attention", f"layer {index} feed-forward")
        yield from ((name, found[name]) for name in named if name in found)
        yield ("norm" if index == len(states) - 2 else f"layer {index}"), after
    yield "logits", logits
