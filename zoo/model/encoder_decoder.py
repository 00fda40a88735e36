# B batch, T target tokens, S source tokens, D model width
"""Models of two towers: an encoder, and a decoder that reads its output by cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import NonNegativeInt

from zoo.errors import ConfigError
from zoo.lazy import Tensor, torch
from zoo.model.channels import Fault
from zoo.model.decoder import Decoder
from zoo.model.init import Init
from zoo.model.step import Output
from zoo.model.tower import Encoder, Topology, Tower
from zoo.model.whole import find_misfits_between
from zoo.spec import Sized


class EncoderDecoder(Topology, kind="encoder_decoder"):
    """A decoder that reads an encoder's output by cross-attention (Vaswani et al., 2017; T5, BART).

    A decoder whose head classifies or scores texts reads the source again, shifted right.
    """

    encoder: Tower
    """Tower that reads the source."""
    decoder: Tower
    """Tower that predicts the target, with cross-attention to the encoder's output."""
    start_id: NonNegativeInt = 0
    """Id of the token that starts a decoder's input."""
    wraps: bool = False
    """Which token comes first if the decoder reads a text again: the text's last token, which in mBART is its language
    (mBART; Liu et al., 2020), or else `start_id`."""

    def __post_init__(self) -> None:
        for name, kind in (("encoder", Encoder), ("decoder", Decoder)):
            found = getattr(self, name)
            if not isinstance(found, kind):
                raise ValueError(f"its {name} is of kind '{found.kind}' (kind: {name} would do)")
        if not self.decoder.reads_memory:
            raise ValueError("its decoder has no cross-attention (cross: mha would give it one)")

    def misfits(self) -> Iterator[Fault]:
        yield from find_misfits_between(self.encoder, self.decoder)
        if self.wraps and not self.decoder.head.reads_text:
            found = f"the decoder's head of kind '{self.decoder.head.kind}' has it read another text"
            yield ("wraps",), f"is of a decoder that reads the encoder's text again, {found} (leave it out)"

    def towers(self) -> dict[str, Tower]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    @property
    def d_model(self) -> int:
        return self.decoder.d_model

    @property
    def vocab_size(self) -> int:
        return self.decoder.vocab_size

    @property
    def output_vocab_size(self) -> int:
        return self.decoder.output_vocab_size

    @property
    def max_seq_len(self) -> int:
        return self.decoder.max_seq_len

    @property
    def n_layers(self) -> int:
        return self.decoder.n_layers

    @property
    def init(self) -> Init:
        return self.decoder.init

    @property
    def cacheable_until(self) -> int | None:
        return self.decoder.cacheable_until

    def parts(self, d_model: int) -> dict[str, Any]:
        return {name: Sized(tower, tower.d_model) for name, tower in self.towers().items()}

    def forward(
        self,
        m: Any,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        documents: Tensor | None = None,
        decoder_documents: Tensor | None = None,
        row_numbers: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Output:
        """Compute logits for `decoder_input_ids` [B, T] after the encoder read `input_ids` [B, S]. Without
        `decoder_input_ids` the decoder reads only the start token or, if its head is for a task, the source shifted
        right (Lewis et al., 2019, BART, §3.1). `documents` [B, S] and `decoder_documents` [B, T] number the documents
        packed into each tower's rows: a target reads only its own source. Raises ConfigError if only one of the two is
        given. `row_numbers` [B] are for both towers, `global_attention_mask` [B, S] for the encoder, and all `others`
        for the decoder."""
        if decoder_input_ids is None and self.decoder.head.reads_text:
            decoder_input_ids = shift_right(input_ids, attention_mask, None if self.wraps else self.start_id)
            decoder_attention_mask = attention_mask
        elif decoder_input_ids is None:
            decoder_input_ids = torch.full_like(input_ids[:, :1], self.start_id)
        if (documents is None) != (decoder_documents is None):
            raise ConfigError("documents: number the rows of one tower (documents and decoder_documents, or neither)")
        source: dict[str, Any] = {"documents": documents, "row_numbers": row_numbers}
        read = m.encoder(input_ids, attention_mask, global_attention_mask=global_attention_mask, **source)
        about = {"memory": read.hidden, "memory_mask": attention_mask, "memory_documents": documents}
        about["row_numbers"] = row_numbers
        out = m.decoder(decoder_input_ids, decoder_attention_mask, documents=decoder_documents, **about, **others)
        out.memory = read.hidden
        out.losses = {name: _sum(name, read.losses, out.losses) for name in {**read.losses, **out.losses}}
        out.loads = [*read.loads, *out.loads]
        return out


def shift_right(ids: Tensor, mask: Tensor | None, start_id: int | None) -> Tensor:
    """Shift the tokens of rows [B, T] right by one, behind the start token or, if `start_id` is None, behind the row's
    last token. `mask` [B, T] is 0 for padding.

    Example, with _ for padding: with the start token s, (_, a, b, c) becomes (_, s, a, b); without one (_, c, a, b).
    The ids at padding are arbitrary.
    """
    real = torch.ones_like(ids) if mask is None else mask.long()
    counted = real.cumsum(1)
    first = real.bool() & (counted == 1)
    start = (
        ids.gather(1, counted.argmax(1, keepdim=True)) if start_id is None else torch.full_like(ids[:, :1], start_id)
    )
    return torch.where(first, start, ids.roll(1, 1))


def _sum(name: str, *losses: dict[str, Tensor]) -> Tensor:
    first, *others = (each[name] for each in losses if name in each)
    return first + others[0] if others else first
