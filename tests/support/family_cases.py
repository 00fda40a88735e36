"""The tiny reference models of all families."""

from __future__ import annotations

from support.cases import (
    blocks_2026,
    convolved_2026,
    decoders_2025,
    decoders_2026,
    depth_2026,
    encoders,
    encoders_2026,
    experts,
    experts_2026,
    gemma,
    gpt,
    hybrid_2026,
    linear,
    llama,
    loops,
    readers,
    recurrent,
    seq2seq,
    shared_2026,
    sparse,
    streams,
    text_towers,
    towers,
)
from support.reference_models import Case

CASES: list[Case] = [
    *gpt.CASES,
    *llama.CASES,
    *experts.CASES,
    *recurrent.CASES,
    *encoders.CASES,
    *seq2seq.CASES,
    *towers.CASES,
    *text_towers.CASES,
    *readers.CASES,
    *decoders_2025.CASES,
    *linear.CASES,
    *decoders_2026.CASES,
    *sparse.CASES,
    *gemma.CASES,
    *encoders_2026.CASES,
    *hybrid_2026.CASES,
    *experts_2026.CASES,
    *blocks_2026.CASES,
    *shared_2026.CASES,
    *streams.CASES,
    *convolved_2026.CASES,
    *depth_2026.CASES,
    *loops.CASES,
]


ONE_EACH = list({case.name.split("-")[0]: case for case in reversed(CASES)}.values())  # the first of each family
