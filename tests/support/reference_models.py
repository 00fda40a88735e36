"""Build tiny random reference models of published families, and compare them with zoo: the harness of
test_families.py."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

import zoo
from zoo.checkpoint.reference import restore_buffers

# Correct float32 kernels differ by 2e-6 to 2e-5; exact and tanh GELU by 1e-3, which a looser bound would let pass.
CLOSE = {"atol": 5e-5, "rtol": 2e-5}  # a logit of 2 that differs by 5e-5 on one processor differs by 5.3e-5 on another


def near(given: torch.Tensor) -> dict[str, float]:
    """How near to the reference's values ours must be: as CLOSE says, or by its share of the largest of them. Those of
    Qwen3-Next reach 6.3, and change by 8.5e-5 where the reference's weights change by their last bit."""
    return {**CLOSE, "atol": max(CLOSE["atol"], CLOSE["rtol"] * float(given.abs().max()))}


@dataclass(frozen=True, eq=False)
class Case:
    """One reference model: a config class and what is set on it, and the class of the model.

    `layers` is where its layers are, for their hidden states; `beyond` says that its cached generation is not its own
    full forward, so that only logits are compared.
    """

    name: str
    config: str
    model: str
    sizes: Mapping[str, Any]
    layers: str = ""
    tokens: int = 24
    writes: bool = True
    inputs: Callable[[torch.Tensor], dict[str, Any]] = field(default=lambda ids: {})
    unbind: tuple[str, ...] = ()
    attention: str = "eager"  # the reference's kernel: where its plain one is wrong, another
    rows: int = 2  # that it generates at once: RWKV's own state mixes rows
    streams: bool = False  # whether its hidden states are several vectors a token, and end before the final norm
    pads: bool = (
        True  # whether the reference's padded row equals the row alone; where not, ours is compared with itself
    )
    apart: bool = False  # whether rows of a batch change one another in the reference, so that it gets one at a time
    embedded: bool = True  # whether its hidden states begin with the embeddings (Mamba's do not)

    def reference(self) -> Any:
        """Build the reference model in eval mode, every parameter and saved buffer random."""
        sizes = copy.deepcopy(dict(self.sizes))  # a config changes the mappings that it is given
        config = getattr(transformers, self.config)(**sizes)
        config._attn_implementation = self.attention
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith("tid2eid"):  # the experts of each token's id
                    chance = torch.rand(len(tensor), config.n_routed_experts, generator=generator)
                    tensor.copy_(chance.topk(tensor.shape[1])[1])
                if not tensor.is_floating_point() or any(part in name for part in self.unbind):
                    continue
                drawn = torch.randn(tensor.shape, generator=generator) * 0.15
                tensor.copy_(drawn + 1 if tensor.ndim == 1 and name.endswith("weight") else drawn)
        return model

    def load(self, folder: Path) -> Any:
        """Load a folder in transformers. A class may serve several types of config: Llama's, for one, reads EXAONE."""
        config = getattr(transformers, self.config).from_pretrained(folder)
        made = getattr(transformers, self.model)
        model = made.from_pretrained(folder, config=config, attn_implementation=self.attention).eval()
        restore_buffers(model, folder)
        return model


SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
CLASSES = frozenset(dir(transformers))  # which imports none of them
OPTIONS = {each.name for each in dataclasses.fields(Case)} - {"name", "config", "model", "sizes"}


def case(name: str, config: str, model: str = "ForCausalLM", /, base: Mapping[str, Any] = SMALL, **more: Any) -> Case:
    """Make a case of the class that `model` names of this config's family, with the sizes of `base` and more. A class
    may have the config's name without "Text". A model without a head writes nothing."""
    family = config.removesuffix("Config")
    family = family if family + model in CLASSES else family.removesuffix("Text")
    options = {key: value for key, value in more.items() if key in OPTIONS}
    sizes = {key: value for key, value in more.items() if key not in OPTIONS}
    return Case(name, config, family + model, {**base, **sizes}, **{"writes": model != "Model", **options})


@dataclass
class Pair:
    """A reference model, the folder it was saved to, and what zoo made of that."""

    case: Case
    reference: Any
    folder: Path
    ours: Any

    @property
    def decoder(self) -> bool:
        return self.ours.spec.kind == "decoder"

    def ids(self, rows: int = 2, length: int | None = None, seed: int = 0) -> torch.Tensor:
        """Draw token ids, none of them special."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(5, self.ours.spec.vocab_size, (rows, length or self.case.tokens), generator=generator)


@functools.cache
def pair(case: Case) -> Pair:
    """Make the two models of a case, once."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-family-"))
    reference = case.reference()
    reference.save_pretrained(folder)
    return Pair(case, reference, folder, zoo.load(folder))


def _row(given: Mapping[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    return {name: each[row : row + 1] for name, each in given.items()}


def _joined(rows: list[Any]) -> Any:
    """The outputs of single rows as one batch's."""
    for name, first in list(rows[0].items()):
        every = [each[name] for each in rows]
        if isinstance(first, tuple):
            rows[0][name] = tuple(torch.cat(layer) for layer in zip(*every, strict=True))
        else:
            rows[0][name] = torch.cat(every)
    return rows[0]


def both(pair: Pair, ids: torch.Tensor, mask: torch.Tensor | None = None, **more: Any) -> tuple[Any, Any]:
    """Run the two models on the same inputs; hidden states are included."""
    extra = {**pair.case.inputs(ids), **more}
    with torch.no_grad():
        if pair.case.apart:
            assert mask is None
            rows = [
                pair.reference(input_ids=ids[row : row + 1], output_hidden_states=True, **_row(extra, row))
                for row in range(len(ids))
            ]
            theirs = _joined(rows)
        else:
            theirs = pair.reference(input_ids=ids, attention_mask=mask, output_hidden_states=True, **extra)
        ours = pair.ours(ids, mask, **extra)
    if pair.case.streams:
        theirs.hidden_states = tuple(each.movedim(0, 2) for each in theirs.hidden_states)
    return ours, theirs


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor in a folder's safetensors, norms under torch's names (ESM's have others there)."""
    names = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    found = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {re.sub("|".join(names), lambda match: names[match[0]], name): each for name, each in found.items()}
