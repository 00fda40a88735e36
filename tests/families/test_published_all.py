"""Every packaged model is held against a released one: none is added without."""

from collections import Counter

import pytest
import test_published
import test_published_rest
import test_rwkv7
from test_published import NAMES, about

REFERENCES = (
    test_published.REFERENCE,
    test_published_rest.REFERENCE,
    test_rwkv7.PUBLISHED,  # by their paper's formula
)


def test_every_packaged_model_has_one_reference_and_none_is_of_no_model() -> None:
    assert Counter(name for each in REFERENCES for name in each) == Counter(NAMES)


@pytest.mark.parametrize("name", [name for each in REFERENCES[1:] for name in each])
def test_what_is_special_fits_on_the_line_that_lists_it(name: str) -> None:
    assert len(about(name).note) <= 70
