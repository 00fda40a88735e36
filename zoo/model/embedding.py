"""Token embeddings: from token ids to the first layer's input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from zoo.kernels.packed import count_in_run
from zoo.lazy import F, Tensor, torch
from zoo.model.layer_input import PerLayerEmbedding
from zoo.model.norm import WholeNorm
from zoo.spec import TOKENS, Embedding, Linear, Sized, Spec, Tied

if TYPE_CHECKING:
    from zoo.model.step import Weights


class TokenEmbedding(Spec, axis="embedding", default="tokens"):
    """Embed token ids: the start of the residual stream."""

    vocab_size: PositiveInt
    """Number of tokens of the vocabulary."""

    def shard(self, ranks: int) -> TokenEmbedding:
        """Return the embedding of one rank's part of the vocabulary, padded to the same size on every rank. Raises
        ConfigError if there is a per-layer embedding and more than one rank."""
        per_layer: PerLayerEmbedding | None = getattr(self, "per_layer", None)
        if per_layer is not None:
            per_layer.shard(ranks)
        return replace(self, vocab_size=-(-self.vocab_size // ranks))

    def position_width(self, d_model: int) -> int:
        """Width of the vectors to which position vectors are added."""
        raise NotImplementedError

    def weigh(self, ids: Tensor, real: Tensor | None, documents: Tensor | None) -> Tensor | None:
        """Compute a factor for each token's vector [B, T] from the ids of whole rows [B, T]; None if all factors are
        1."""
        return None

    def list_beside(self, ids: Tensor, real: Tensor | None, documents: Tensor | None) -> Tensor | None:
        """List the ids of each token's neighbours in whole rows [B, T]: [B, T, 2], the next token and the previous one,
        -1 for none. None if the embedding reads no neighbours."""
        return None

    def lookup(
        self,
        m: Weights,
        ids: Tensor,
        types: Tensor | None = None,
        factors: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Look up token ids [B, T], before positions are added: [B, T, E], where E is `position_width`. `factors` come
        from `weigh`, `beside` from `list_beside`."""
        raise NotImplementedError

    def finish(self, m: Weights, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Normalise, mask and project x [B, T, E], to which positions were added: [B, T, D]. `real` [B, T] is False for
        padding."""
        raise NotImplementedError

    def layer_inputs(self, m: Weights, ids: Tensor, x: Tensor) -> tuple[Tensor, ...] | None:
        """Compute per-layer embeddings, one tensor [B, T, P] for each layer, of token ids [B, T] and the embedded x [B,
        T, D]; None without per-layer embeddings. `m` are the tower's weights."""
        return None


ROOT = "sqrt_d_model"


def _number_or_root(scale: object) -> Any:
    number = isinstance(scale, int | float) and not isinstance(scale, bool) and math.isfinite(scale)
    if scale is not None and scale != ROOT and not number:
        raise ValueError(f"must be a finite number or {ROOT}, found {scale!r} (null would do)")
    return scale


class TableEmbedding(TokenEmbedding, kind="tokens"):
    """A vector for each token (Bengio et al., 2003), to which vectors of types, tasks and positions are added. A norm
    may follow (BERT, BLOOM).

    A table of another `width` is projected to d_model (Lan et al., 2019, ALBERT): after the norm, or before positions
    are added.
    """

    scale: Annotated[float | str | None, BeforeValidator(_number_or_root)] = None
    """Factor of the tokens' vectors: a number, or sqrt_d_model for the root of their width (the first transformer,
    Gemma)."""
    norm: WholeNorm | None = None
    """Norm after positions are added (BERT, BLOOM); null for none."""
    norm_first: bool = False
    """Whether the norm comes before positions are added (Blenderbot small's decoder)."""
    n_types: PositiveInt | None = None
    """Number of types of token, whose vectors are added (BERT's segments). A token without a type is of type 0."""
    optional_types: bool = False
    """Whether a token without a given type gets no type vector (XLM's languages), rather than the vector of type 0."""
    n_tasks: PositiveInt | None = None
    """Number of tasks with a learned vector (Sun et al., 2020, ERNIE 2.0). Every token gets the first task's vector;
    the others belong to tasks of a published model's pre-training."""
    width: PositiveInt | None = None
    """Width of the table, in channels; its vectors are projected to d_model (Lan et al., 2019, ALBERT). null for
    d_model without a projection."""
    project_bias: bool = False
    """Whether the projection has a bias."""
    project_first: bool = False
    """Whether the projection comes before positions are added (OPT-350m), rather than after the norm."""
    masked: bool = False
    """Whether the vectors of padding are made 0 (DeBERTa)."""
    tied: str | None = None
    """Path of another tower's table to read instead of a table of its own: a decoder can read its encoder's."""
    per_layer: PerLayerEmbedding | None = None
    """Per-layer embedding: a further vector of each token for every layer (Gemma 3n, 2025)."""
    mask_id: NonNegativeInt | None = None
    """Id of the mask token, if its vector is to be 0, as in dropout of tokens (ESM-2; Lin et al., 2023). The other
    vectors of a row or document are multiplied by (1 − mask_share) / (1 − the share of masked tokens there)."""
    mask_share: Annotated[float, Field(ge=0, lt=1)] = 0.12
    """Share of tokens that training masks; given only with `mask_id` (ESM-2: 0.8 of the 0.15 that are chosen)."""
    trigram: bool = False
    """Whether the projection reads three vectors: of the next token, of the token and of the previous one, in this
    order (Sun et al., 2020, MobileBERT). Padding (unlike in transformers) and other packed documents count as zeros."""
    apart_id: NonNegativeInt | None = None
    """Id of a token with a separate vector, which `scale` does not multiply (T5Gemma 2's end of an image, 2025). The
    token also has a row in the table, for a head that is tied to the table."""

    def __post_init__(self) -> None:
        if self.mask_id is None and self.mask_share != 0.12:
            raise ValueError(f"mask_share={self.mask_share} is of masked tokens, and none is named (give `mask_id`)")
        if self.optional_types and not self.n_types:
            raise ValueError("optional_types is of types, and there are none (give `n_types`, or leave it out)")
        if self.norm_first and self.norm is None:
            raise ValueError("norm_first places the norm, and there is none (give `norm`, or leave it out)")
        idle = [name for name in ("project_bias", "project_first") if getattr(self, name) and self.width is None]
        if idle:
            found = f"{idle[0]} is of the projection, and a table as wide as the model has none"
            raise ValueError(f"{found} (give `width`, or leave it out)")
        if self.trigram and not self.project_first:
            raise ValueError("trigram is of a projection before positions (give `width` and `project_first: true`)")
        if self.trigram and self.mask_id is not None:
            raise ValueError(
                f"mask_id={self.mask_id} weighs vectors of single tokens, trigram reads three (one of them)"
            )

    @property
    def causal(self) -> bool | None:  # type: ignore[override]
        return False if self.trigram else None

    def position_width(self, d_model: int) -> int:
        return d_model if self.width is None or self.project_first else self.width

    def parts(self, d_model: int) -> dict[str, Any]:
        width = self.width or d_model
        tokens = Embedding(self.vocab_size, width, role=TOKENS)
        return {
            "tokens": Tied(self.tied, tokens, role=TOKENS) if self.tied else tokens,
            **self._apart(width),
            **({"types": Embedding(self.n_types, self.position_width(d_model))} if self.n_types else {}),
            **({"tasks": Embedding(self.n_tasks, self.position_width(d_model))} if self.n_tasks else {}),
            **({"norm": Sized(self.norm, self.position_width(d_model))} if self.norm else {}),
            **(
                {"project": Linear(self.width * (3 if self.trigram else 1), d_model, self.project_bias)}
                if self.width
                else {}
            ),
            **({"per_layer": Sized(self.per_layer, d_model)} if self.per_layer else {}),
        }

    def _apart(self, width: int) -> dict[str, Any]:
        if self.apart_id is None:
            return {}
        vector = Embedding(1, width)
        return {"apart": Tied(f"{self.tied.rpartition('.')[0]}.apart", vector) if self.tied else vector}

    def weigh(self, ids: Tensor, real: Tensor | None, documents: Tensor | None) -> Tensor | None:
        if self.mask_id is None:
            return None
        masked = ids == self.mask_id
        if documents is not None:
            total, hidden = (count_in_run(documents, each) for each in (torch.ones_like(masked), masked))
        else:
            real = torch.ones_like(masked) if real is None else real
            total, hidden = (each.sum(1, keepdim=True) for each in (real, masked & real))
        factors = (1 - self.mask_share) * total.float() / (total - hidden).clamp(min=1).float()
        return factors.masked_fill(masked, 0.0)  # B T

    def list_beside(self, ids: Tensor, real: Tensor | None, documents: Tensor | None) -> Tensor | None:
        if not self.trigram:
            return None
        seen = ids if real is None else ids.masked_fill(~real, -1)
        after, before = seen[:, 1:], seen[:, :-1]
        if documents is not None:
            apart = documents[:, 1:] != documents[:, :-1]
            after, before = after.masked_fill(apart, -1), before.masked_fill(apart, -1)
        return torch.stack((F.pad(after, (0, 1), value=-1), F.pad(before, (1, 0), value=-1)), -1)  # B T 2

    def lookup(
        self,
        m: Weights,
        ids: Tensor,
        types: Tensor | None = None,
        factors: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        x = m.seam.look_up(m.tokens, ids)
        if beside is not None:
            after, before = (_look_up_some(m, each) for each in beside.unbind(-1))
            x = torch.cat((after, x, before), -1)  # B T 3E
        if self.scale is not None:
            scale = x.shape[-1] ** 0.5 if self.scale == ROOT else float(self.scale)
            # In the weight's dtype, as the published models were trained; filled on the device, not copied there.
            x = x * torch.full((), scale, dtype=x.dtype, device=x.device)
        if self.apart_id is not None:
            here = m.seam.own(ids == self.apart_id)
            assert here is not None
            x = torch.where(here[..., None], m.apart.weight[0], x)
        if factors is not None:
            x = x * factors[..., None].to(x.dtype)
        if self.width and self.project_first:
            x = m.project(x)
        if self.n_types and not (types is None and self.optional_types):
            x = x + (m.types.weight[0] if types is None else m.types(types))
        if self.n_tasks:
            x = x + m.tasks.weight[0]
        return m.norm(x) if self.norm and self.norm_first else x

    def finish(self, m: Weights, x: Tensor, real: Tensor | None = None) -> Tensor:
        x = m.norm(x) if self.norm and not self.norm_first else x
        if self.masked and real is not None:
            x = x * real[..., None].to(x.dtype)
        return m.project(x) if self.width and not self.project_first else x

    def layer_inputs(self, m: Weights, ids: Tensor, x: Tensor) -> tuple[Tensor, ...] | None:
        if self.per_layer is None:
            return None
        return self.per_layer.embed(m.embedding.per_layer, m.seam.own(m.context.own(ids)), x).unbind(2)


def _look_up_some(m: Weights, ids: Tensor) -> Tensor:
    """Look up token ids [B, T]: [B, T, E]. An id of -1 is no token, and its vector is 0."""
    found = m.seam.look_up(m.tokens, ids.clamp(min=0))
    absent = m.seam.own(ids < 0)
    assert absent is not None
    return found.masked_fill(absent[..., None], 0)
