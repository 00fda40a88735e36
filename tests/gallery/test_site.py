"""The gallery's pages: whole, linked, self-contained, and with the figures of `zoo stats`."""

import pytest

from zoo.compose.catalogue import read_models
from zoo.gallery.site import write_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole site, written once."""
    folder = tmp_path_factory.mktemp("gallery") / "site"
    write_site(folder)
    return folder


def test_each_packaged_model_has_a_page(site):
    named = {each["name"] for each in read_models() if not each["note"].startswith("another name")}
    assert {page.stem for page in (site / "models").glob("*.html")} == named
