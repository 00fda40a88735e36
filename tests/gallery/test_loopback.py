"""`zoo gallery --serve` gives a folder's files to this machine alone, with the types that browsers insist on."""

import http.client
import threading

import pytest

from zoo.errors import ConfigError
from zoo.gallery.loopback import open_server


@pytest.fixture
def fetch(tmp_path):
    """A function that asks a running server for a path and returns the answer's status, type and body."""
    site = tmp_path / "site"
    (site / "inner").mkdir(parents=True)
    for name in ("index.html", "inner/worker.mjs", "inner/part.wasm", "inner/data.json"):
        (site / name).write_text(name)
    (tmp_path / "secret.html").write_text("secret")
    (site / "link.html").symlink_to(tmp_path / "secret.html")
    server = open_server(site, 0)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def fetch(path):
        connection = http.client.HTTPConnection(*server.server_address)
        connection.request("GET", path)
        answer = connection.getresponse()
        found = answer.status, answer.getheader("Content-Type"), answer.read().decode()
        connection.close()
        return found

    yield fetch
    server.shutdown()
    server.server_close()


def test_files_have_the_types_that_modules_and_webassembly_need(fetch):
    assert fetch("/") == (200, "text/html", "index.html")
    assert fetch("/inner/worker.mjs") == (200, "text/javascript", "inner/worker.mjs")
    assert fetch("/inner/part.wasm") == (200, "application/wasm", "inner/part.wasm")
    assert fetch("/inner/data.json?x=1") == (200, "application/json", "inner/data.json")


@pytest.mark.parametrize("path", ["/../secret.html", "/%2e%2e/secret.html", "/inner/../../secret.html", "/link.html"])
def test_nothing_outside_of_the_folder_is_found(fetch, path):
    status, _, body = fetch(path)
    assert status == 404
    assert "secret" not in body


def test_a_folder_is_not_listed(fetch):
    assert fetch("/inner/")[0] == 404


def test_only_this_machine_is_served(tmp_path):
    (tmp_path / "index.html").write_text("")
    with open_server(tmp_path, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(ConfigError, match=r"port \d+ cannot be opened.*--port"):
            open_server(tmp_path, server.server_address[1])


def test_a_folder_without_a_front_page_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no index\.html"):
        open_server(tmp_path)
