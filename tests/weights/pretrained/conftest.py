"""Reads files of PyTorch, right and wrong, and makes a cache with a server that fills it."""

import threading

import pytest
from file_server import Server

from big_distill.errors import RunError
from big_distill.weights.pretrained import fetch as fetching
from big_distill.weights.pretrained import formats


@pytest.fixture(params=["legacy", "zip"])
def format_(request):
    return request.param


@pytest.fixture
def read(tmp_path):
    """Returns a function that reads bytes as a file."""

    def read_bytes(data):
        path = tmp_path / "w.pth"
        path.write_bytes(data)
        return formats.read(path).arrays

    return read_bytes


@pytest.fixture
def refuse(read, tmp_path):
    """Returns a function that reads bytes as a file, checks that this fails in one line, and returns that line."""

    def refuse_bytes(data):
        with pytest.raises(RunError) as error:
            read(data)
        assert str(error.value).startswith(str(tmp_path / "w.pth")) and "\n" not in str(error.value)
        return str(error.value)

    return refuse_bytes


@pytest.fixture
def server(cache):
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BIG_DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "RETRY_SECONDS", (0.0, 0.0))
    return tmp_path / "cache"
