"""What the tests of training share: a corpus."""

import pytest

from support.tiny_runs import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))
