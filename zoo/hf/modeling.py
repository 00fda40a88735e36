# B rows, T tokens, S columns so far, D model width, V vocabulary
"""Hold a model of Zoo as a transformers PreTrainedModel: its weights, its passes and its vocabulary."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from zoo.checkpoint.store import write_architecture
from zoo.distributed.sharded_tensors import ALL
from zoo.errors import CheckpointError, ConfigError
from zoo.grammar import to_dict
from zoo.hf.attention_interface import KERNEL_OF, OWN, InterfaceLayers
from zoo.hf.config import ZooConfig
from zoo.hf.embedded_input import read_input
from zoo.hf.generation_cache import ZooCache, can_crop
from zoo.hf.offloaded import load_by_component, make_wrappable
from zoo.lazy import Tensor
from zoo.model.init import initialise
from zoo.run.layer import Layer, LinearModule, Model, lend_weights
from zoo.run.recompute import set_recompute
from zoo.spec import Linear, tensors

if TYPE_CHECKING:
    from zoo.model.tower import Topology, Tower


NO_MATTER = {"return_dict", "use_cache", "cache_position", "num_items_in_batch", "output_router_logits"}
"""Arguments that transformers passes to models, and that change no output here or are read elsewhere."""

PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
"""Arguments that describe packed documents, which positions describe already."""

HEAD = r"^(decoder\.)?head\."
"""Matches the names of a head's tensors."""

HUB = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}
"""Arguments for finding files, which both a config and a model take."""

DTYPES = {"dtype", "torch_dtype"}


class ZooPreTrainedModel(PreTrainedModel):
    """Base of Zoo's transformers models. The modules, and so the names of the tensors, are those of `zoo.build`.

    `attn_implementation` names one of zoo's attention kernels, by default chosen as in zoo, or a function of
    transformers' attention interface. Attention probabilities are not returned. In training a router's losses are added
    to the loss, with the weights that its Spec states.
    """

    config_class = ZooConfig
    config: ZooConfig
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Layer"]  # type: ignore[assignment]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [HEAD]  # type: ignore[assignment]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    interface: InterfaceLayers | None

    # what a Spec's forward reads of the outermost Layer, where one process has all of a model
    kernel, recompute, dropping = Model.kernel, Layer.recompute, Layer.dropping
    seam, context = Layer.seam, Layer.context

    def __init__(self, config: ZooConfig) -> None:
        if config.model is None:
            raise ConfigError("model: the config describes no model (ZooConfig.of(NAME) does)")
        spec = self.fit(config.spec, config)
        if spec != config.spec:
            config = copy.deepcopy(config)
            config.model = to_dict(spec)
        super().__init__(config)
        self.gradient_checkpointing = False
        self.take(Model(spec))
        self.post_init()

    def take(self, model: Model) -> None:
        """Move the modules of a built model into this one."""
        self.spec: Topology = model.spec
        for name, module in model.named_children():
            self.add_module(name, module)
        parts = tensors(self.spec, self.spec.d_model)
        self._bare = [name.rpartition(".")[0] for name, part, _ in parts if isinstance(part, Linear) and part.bare]
        self._is_stateful = not can_crop(self.config.writer)  # generated tokens cannot be taken back: no assistant
        self._choose_attention(model.kernel)

    @classmethod
    def fit(cls, spec: Topology, config: ZooConfig) -> Topology:
        """Return the Spec with the head that this class needs. Raises ConfigError if no such head fits."""
        return spec

    def towers(self) -> list[tuple[str, Tower]]:
        """List the stacks of layers: each one's module path and Spec."""
        return list(self.spec.towers().items())

    @property
    def _tower(self) -> Any:
        """The module of the tower with the head."""
        path = self.towers()[-1][0]
        return self.get_submodule(path) if path else self

    # ------------------------------------------------------------ weights

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise tensors that the checkpoint lacked as `zoo.build` does, by their place in the Spec."""
        held = self.state_dict(keep_vars=True).items()
        fresh = {name: each for name, each in held if not (each.is_meta or getattr(each, "_is_hf_initialized", False))}
        self._draw(fresh)
        for each in fresh.values():
            each._is_hf_initialized = True  # type: ignore[attr-defined] - transformers calls this again later

    def _draw(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors, by name, with initial values that follow from torch's seed and their names."""
        if tensors:
            drawn = {name: each.detach() for name, each in tensors.items()}
            initialise(SimpleNamespace(state_dict=lambda: drawn, whole=self.spec, shares=ALL), torch.initial_seed())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, *given: Any, config: Any = None, **options: Any
    ) -> Any:
        """Load a model. If the class needs another head than the files have, a new one is initialised. Raises
        CheckpointError if any other tensor has another shape than the config says."""
        path = pretrained_model_name_or_path
        if config is None:
            left: Any
            kept = {name: each for name, each in options.items() if name in HUB | DTYPES}
            asked = {name: each for name, each in options.items() if name not in DTYPES}
            config, left = ZooConfig.from_pretrained(path, return_unused_kwargs=True, **asked)
            options = {**left, **kept}
        asked, fits = options.pop("output_loading_info", False), cls.fit(config.spec, config) == config.spec
        options |= {} if fits else {"ignore_mismatched_sizes": True}
        found: Any = super().from_pretrained(path, *given, config=config, output_loading_info=True, **options)
        model, info = found
        load_by_component(model)
        if not fits:
            model._replace_head(path, info)
        return (model, info) if asked else model

    def _replace_head(self, path: Any, info: Any) -> None:
        """Initialise a head in place of the files' own. Raises CheckpointError if another tensor has another shape, and
        ConfigError for an offloaded head."""
        head = {name: each for name, each in self.state_dict().items() if re.match(HEAD, name)}
        if odd := [name for name, *_ in info["mismatched_keys"] if name not in head]:
            raise CheckpointError(f"{path}: {odd[0]} has another shape than its config says (the files of one model)")
        if away := [name for name, each in head.items() if each.is_meta]:
            raise ConfigError(f"device_map: offloads {away[0]}, which no file has (the head on the device)")
        with torch.no_grad():
            self._draw(head)
        info |= {"missing_keys": {*info["missing_keys"], *head}, "mismatched_keys": set()}

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        """Write the model as transformers does, and a zoo.yaml, so that zoo's verbs read the folder too."""
        super().save_pretrained(save_directory, **options)
        if options.get("is_main_process", True) and not getattr(self, "_hf_peft_config_loaded", False):
            write_architecture(self.spec, Path(save_directory))

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, files: Any, load_config: Any, **how: Any) -> Any:  # type: ignore[override]
        """Read the weights. Raises ConfigError for a device_map, chosen or given, that computes on several devices."""
        make_wrappable(model, load_config.device_map)
        return PreTrainedModel._load_pretrained_model(model, state_dict, files, load_config, **how)

    # ------------------------------------------------------------ embeddings

    def get_input_embeddings(self) -> nn.Module:
        first = self.towers()[0][0]
        return self.get_submodule(f"{first}.embedding.tokens" if first else "embedding.tokens")

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the head predicts."""
        return self.config.vocab_size or 0

    def set_input_embeddings(self, value: nn.Module) -> None:
        first = self.towers()[0][0]
        self.set_submodule(f"{first}.embedding.tokens" if first else "embedding.tokens", value)
        lend_weights(self)

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output matrix of a head that predicts tokens; None if the head also has an offset or spare rows,
        which libraries that compute logits themselves do not know."""
        head = self.config.writer.head
        more = getattr(head, "offset", False) or getattr(head, "spare_rows", 0)
        return self._tower.head.out if head.predicts_tokens and not more else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self._tower.head.out = new_embeddings

    @torch.no_grad()
    def resize_token_embeddings(  # type: ignore[override]
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Change the number of tokens, in the table, the head and the config; return the table.

        New rows are the mean of the old ones (Hewitt, 2021), or initial values without `mean_resizing`. Raises
        ConfigError if another part depends on the vocabulary (a hash router, n-grams).
        """
        table: Any = self.get_input_embeddings()
        if pad_to_multiple_of is not None and not isinstance(pad_to_multiple_of, int):
            return self._get_resized_embeddings(table, new_num_tokens, pad_to_multiple_of)  # which refuses it
        count = len(table.weight) if new_num_tokens is None else new_num_tokens
        count += -count % (pad_to_multiple_of or 1)
        if count == self.spec.vocab_size == self.config.vocab_size:
            return table
        self.config.vocab_size = count
        self.spec = self.config.spec
        with torch.device("meta"):
            wanted = Model(self.spec)
        old = {name: each for name, each in self.state_dict(keep_vars=True).items()}
        for name, module in wanted.named_modules():
            for field in ("spec", "num_embeddings", "out_features"):
                if name and hasattr(module, field):
                    setattr(self.get_submodule(name), field, getattr(module, field))
        for name, form in wanted.state_dict().items():
            if form.shape != old[name].shape:
                self._resize(name, old[name], form.shape, mean_resizing)
        return table

    def _resize(self, name: str, held: Tensor, shape: torch.Size, mean_resizing: bool) -> None:
        """Change the number of rows of a tensor."""
        kept = min(len(held), shape[0])
        rows = held.new_empty(shape)
        if mean_resizing:
            rows[kept:] = held.float().mean(0).to(held.dtype)
        else:
            self._draw({name: rows})
        rows[:kept] = held[:kept]
        held.data, held.grad = rows, None

    # ------------------------------------------------------------ attention

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Check the name of an attention implementation. Without a name, zoo chooses."""
        if requested_attention in (None, OWN):
            return OWN
        return super().get_correct_attn_implementation(requested_attention, is_init_check)

    def set_attn_implementation(self, attn_implementation: Any, *given: Any, **options: Any) -> None:  # type: ignore[override]
        """Switch to another attention implementation. Raises ConfigError if it cannot compute this model."""
        super().set_attn_implementation(attn_implementation, *given, **options)
        self._choose_attention()

    def _choose_attention(self, usual: str = "auto") -> None:
        """Choose the kernel that the config names, by default `usual`, or a function of the attention interface."""
        name: Any = self.config._attn_implementation
        self.interface = None if name in KERNEL_OF else InterfaceLayers(self.spec, self.config)
        self.kernel = usual if name == OWN else KERNEL_OF.get(name, "auto")  # type: ignore[assignment]

    # ------------------------------------------------------------ passes

    def train(self, mode: bool = True) -> Any:
        """Set training mode. Raises ConfigError for an adapter on a linear layer whose weight other code also reads
        directly: such reads would bypass the adapter."""
        if mode:
            for path in self._bare:
                if not isinstance(self.get_submodule(path), LinearModule):
                    raise ConfigError(
                        f"{path}: is also read as a plain weight, which would bypass its adapter (another product)"
                    )
        return super().train(mode)

    def _set_gradient_checkpointing(self, enable: bool = True, every_n_layers: int = 1, **_: Any) -> None:  # type: ignore[override]
        """Recompute each layer, or every n-th, in the backward pass. This is always torch's non-reentrant
        checkpointing, with the same gradients as the reentrant."""
        set_recompute(self, f"every_{every_n_layers}" if enable else "none")  # type: ignore[arg-type]
        self.gradient_checkpointing = enable

    def read(
        self,
        ids: Tensor | None,
        mask: Tensor | None,
        others: Mapping[str, Any],
        *,
        embeds: Tensor | None = None,
        keep: int | None = None,
        picks: Tensor | None = None,
        cache: ZooCache | None = None,
        records: bool | None = None,
        types: Tensor | None = None,
        positions: Tensor | None = None,
        decoder: Any = None,
        memory: Mapping[str, Tensor | None] | None = None,
        **given: Any,
    ) -> Computed:
        """Run token ids [B, T], or vectors `embeds` [B, T, E] in their place, through the model or its `decoder` alone,
        with arguments as transformers has them.

        With a cache the ids continue the cached ones, and `mask` is [B, S + T]. Logits are computed for the last `keep`
        columns, or for the columns with the indices `picks`. With `records`, the input of each layer is returned too.
        Raises TypeError if `others` have an effect, ValueError or ConfigError for arguments that do not fit.
        """
        check_arguments(mask, others, NO_MATTER if positions is None else NO_MATTER | PACKED)
        if types is not None and (self.towers()[0][1].takes_types or bool(types.any())):
            given["token_type_ids"] = types  # tokenizers give zeros unasked
            if cache is not None:
                raise ValueError("token_type_ids: rows of a cache have none (use_cache=False)")
        forward = decoder or partial(self.spec.forward, self)  # type: ignore[attr-defined]
        if self.interface is not None:
            if cache is not None:
                raise ConfigError(f"use_cache: {self.config._attn_implementation} keeps keys itself (use_cache=False)")
            forward, positions = partial(self.interface.run, self, positions), None
        if positions is not None and cache is None and (found := number_documents(positions, mask)) is not None:
            given["documents"], mask = found, None
        records, losses = bool(self.config.output_hidden_states if records is None else records), []

        def run(ids: Tensor, **how: Any) -> dict[str, Tensor]:
            with recording(self._tower, records) as states:
                out = forward(ids, **given, **how)
            losses.extend(out.losses.values())
            named = {"hidden": out.hidden, "logits": out.logits, "pooled": out.pooled}
            named |= {f"layer {number}": each for number, each in enumerate(states)}
            return {name: each for name, each in named.items() if each is not None}

        with read_input(decoder or self.get_submodule(self.towers()[0][0]), ids, embeds) as ids:
            if cache is None:
                done = run(ids, attention_mask=mask, logits_to_keep=keep, **(memory or {}))
            else:
                done = cache.run(run, ids, mask, keep, **(memory or {}))
        if picks is not None:
            done["logits"] = done["logits"][:, picks]
        states = (*(each for name, each in done.items() if name.startswith("layer ")), done["hidden"])
        return Computed(done, states if records else None, losses)

    def measure(self, done: Computed, labels: Tensor | None, others: Mapping[str, Any]) -> Tensor | None:
        """Compute transformers' loss for this class. In training the routers' losses are added."""
        if labels is None:
            return None
        logits = done.found["logits"]
        how: dict[str, Any] = {"logits": logits, "pooled_logits": logits, "labels": labels, "config": self.config}
        if (count := others.get("num_items_in_batch")) is not None:
            how["num_items_in_batch"] = count  # targets of all microbatches of a step
        loss = self.loss_function(**how, vocab_size=logits.shape[-1])
        return loss + sum(done.losses) if self.training and done.losses else loss


class Computed(NamedTuple):
    """The results of a pass: tensors by name, the layers' inputs and the last hidden states if requested, and the
    routers' losses."""

    found: Mapping[str, Tensor]
    states: tuple[Tensor, ...] | None
    losses: list[Tensor]


def check_arguments(mask: Tensor | None, others: Mapping[str, Any], known: set[str]) -> None:
    """Raise TypeError for an unknown argument in `others` that would have an effect, such as head_mask, and ValueError
    for a mask without exactly two dimensions."""
    asked = (name for name, each in others.items() if each is not None and each is not False)
    if name := next((name for name in asked if name not in known), None):
        raise TypeError(f"{name}: no model of zoo takes this argument (leave it out)")
    if mask is not None and mask.ndim != 2:
        raise ValueError(f"attention_mask: has {mask.ndim} dimensions (one number for each token, [B, T])")


@contextmanager
def recording(tower: nn.Module, records: bool) -> Iterator[list[Tensor]]:
    """List the inputs of a tower's layers during this block, in the order of the passes."""
    states: list[Tensor] = []
    with ExitStack() as stack:
        for layer in tower.blocks if records else ():  # type: ignore[union-attr]
            handle = layer.register_forward_pre_hook(lambda _, given: states.append(given[0]))
            stack.callback(handle.remove)
        yield states


def number_documents(position_ids: Tensor, mask: Tensor | None) -> Tensor | None:
    """Number the documents of packed rows [B, T] from positions that begin at 0 in each; None for one document.

    Example: (0, 1, 2, 0, 1) gives the documents (0, 0, 0, 1, 1). Raises ValueError for other positions: in a document,
    and in a padded row, they must be 0, 1, 2 and so on.
    """
    if mask is not None and not bool(mask.all()):
        counted = mask.long().cumsum(1) - 1
        places = torch.arange(mask.shape[1], device=mask.device)
        if not any(bool(((position_ids == each) | (mask == 0)).all()) for each in (counted, places)):
            raise ValueError("position_ids: a padded row's are 0, 1, 2 … (leave them out)")
        return None
    first = torch.ones_like(position_ids, dtype=torch.bool)
    first[:, 1:] = position_ids.diff(dim=1) != 1
    if not bool((position_ids[first] == 0).all()):
        raise ValueError("position_ids: each document's are 0, 1, 2 … (leave them out)")
    return None if int(first.sum()) == len(first) else first.long().cumsum(1) - 1
