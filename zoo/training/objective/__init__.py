"""Training objectives, by kind: what a model reads, what it is to predict, and the loss of that."""

from zoo.training.objective.auto import Auto
from zoo.training.objective.base import Context, Loss, Objective
from zoo.training.objective.causal import NextToken, PrefixLM
from zoo.training.objective.distil import Distil
from zoo.training.objective.labelled import Classify, Labelled, Regress, Tag
from zoo.training.objective.masked import MLM
from zoo.training.objective.pairs import Seq2Seq
from zoo.training.objective.spans import UL2, Denoising, SpanCorruption

__all__ = [
    "MLM",
    "UL2",
    "Auto",
    "Classify",
    "Context",
    "Denoising",
    "Distil",
    "Labelled",
    "Loss",
    "NextToken",
    "Objective",
    "PrefixLM",
    "Regress",
    "Seq2Seq",
    "SpanCorruption",
    "Tag",
]
