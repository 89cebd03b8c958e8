"""Checks downloads from a server that cuts, changes, lies and is slow."""

import contextlib
import hashlib
import os
import pathlib
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from file_server import DATA, Server

from big_distill.errors import RunError
from big_distill.weights.pretrained import fetch as fetching
from big_distill.weights.pretrained.fetch import fetch

SHA256 = hashlib.sha256(DATA).hexdigest()


def left(cache):
    """Lists the names in the cache, without the hash that every name starts with."""
    return sorted(path.name[13:] for path in cache.iterdir())


def test_the_cache_keeps_what_was_fetched(server, cache):
    path = fetch(server.url)
    assert path.read_bytes() == DATA and path.parent == cache and path.name.endswith("-w.npz")
    assert fetch(server.url) == fetch(server.url, sha256=SHA256) == path
    assert server.ranges == [None]
    assert left(cache) == ["w.npz", "w.npz.lock", "w.npz.sha256"]
    assert path.with_name(path.name + ".sha256").read_text() == SHA256


def test_the_cache_is_in_the_home_by_default(server, monkeypatch, tmp_path):
    monkeypatch.delenv("BIG_DISTILL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(server.url).parent == tmp_path / ".cache" / "big_distill"
    assert fetch(server.url, cache_dir=tmp_path / "mine").parent == tmp_path / "mine"


def test_a_read_only_cache_serves_what_it_has(server, cache, monkeypatch):
    path = fetch(server.url)
    monkeypatch.setattr(fetching, "_locked", lambda _: pytest.fail("took the lock"))
    assert fetch(server.url) == path


def test_same_file_names_do_not_collide(server):
    server.files |= {"/b/w.npz": b"other", "/a/w.npz?v=2": b"third", "/%20": b"space"}
    urls = [server.url, server.url.replace("/a/", "/b/"), f"{server.url}?v=2", server.url.replace("a/w.npz", " ")]
    paths = [fetch(url) for url in urls]
    assert [path.read_bytes() for path in paths] == [DATA, b"other", b"third", b"space"]


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA[:-1] + b"?"])
def test_a_damaged_copy_is_fetched_again(server, caplog, damage):
    path = fetch(server.url)
    path.write_bytes(damage)
    assert fetch(server.url).read_bytes() == DATA
    assert f"{path} is damaged or not what is wanted: downloading it again" in caplog.text
    assert server.ranges == [None, None]


def test_a_copy_without_its_checksum_is_fetched_again(server):
    path = fetch(server.url)
    path.with_name(path.name + ".sha256").unlink()
    fetch(server.url)
    assert server.ranges == [None, None]


def test_damaged_notes_are_no_obstacle(server):
    path = fetch(server.url)
    for suffix, damage in ((".sha256", b"\xff"), (".part", DATA[:9]), (".part.etag", b'"\xff\r\nHost: b"')):
        path.with_name(path.name + suffix).write_bytes(damage)
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [None, None]


def test_a_cut_connection_is_taken_up_where_it_broke(server, cache):
    server.cuts = [100_000, 50_000]
    assert fetch(server.url, sha256=SHA256).read_bytes() == DATA
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-"]
    assert left(cache) == ["w.npz", "w.npz.lock", "w.npz.sha256"]


def test_another_run_takes_up_what_one_left(server, cache):
    server.cuts = [1000, 1000, 1000]
    with pytest.raises(RunError, match=r"w.npz cannot be fetched: .*3000 of 300000 bytes"):
        fetch(server.url)
    assert left(cache) == ["w.npz.lock", "w.npz.part", "w.npz.part.etag"]
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges[-1] == "bytes=3000-"


@pytest.mark.parametrize("change", ["etag", "etag ignored", "no ranges", "other range"])
def test_a_start_that_does_not_fit_is_dropped(server, cache, change):
    server.files["/a/w.npz"] = b"?" * len(DATA)
    server.cuts = [1000, 0, 0]
    with pytest.raises(RunError):
        fetch(server.url)
    server.files["/a/w.npz"] = DATA
    if change.startswith("etag"):
        server.etag, server.ignores_if_range = '"two"', change == "etag ignored"
    elif change == "no ranges":
        server.has_ranges = False
    else:
        server.range_error = 1
    assert fetch(server.url).read_bytes() == DATA
    assert "bytes=1000-" in server.ranges


@pytest.mark.parametrize("etag", [None, 'W/"one"'])
def test_without_a_strong_etag_it_starts_anew(server, etag):
    server.etag, server.cuts = etag, [100_000]
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [None, None]


def test_a_start_as_long_as_the_source_is_dropped(server, cache):
    """A process killed between the last byte and the new name leaves such a file; here it has one wrong byte."""
    path = fetch(server.url)
    for file in cache.iterdir():
        file.unlink()
    path.with_name(path.name + ".part").write_bytes(DATA[:-1] + b"?")
    path.with_name(path.name + ".part.etag").write_text(server.etag)
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [None, "bytes=300000-", None]


def test_no_length_is_no_reason_to_refuse(server):
    server.says_length = False
    assert fetch(server.url, sha256=SHA256).read_bytes() == DATA


def test_a_cut_that_no_length_tells_is_told_by_the_checksum(server, cache):
    server.says_length, server.cuts = False, [1000]
    with pytest.raises(RunError, match=f"w.npz has the SHA-256 .*, expected {SHA256}$"):
        fetch(server.url, sha256=SHA256)
    assert left(cache) == ["w.npz.lock"]
    assert fetch(server.url, sha256=SHA256).read_bytes() == DATA


@pytest.mark.parametrize("target", ["file:///etc/passwd", "data:text/plain,x", "/a/w.npz"])
def test_no_server_leads_away_from_the_web(server, cache, target):
    server.moved["/a/moved"] = target
    if target.startswith("/"):
        assert fetch(server.url.replace("w.npz", "moved")).read_bytes() == DATA
    else:
        with pytest.raises(RunError, match=r"/a/moved cannot be fetched: \w"):
            fetch(server.url.replace("w.npz", "moved"))
        assert left(cache) == ["moved.lock"]


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e%2f..%2fescaped", "..\\escaped", "a%00b", "x" * 300 + ".npz"])
def test_no_address_leads_out_of_the_cache(server, cache, name, tmp_path):
    server.files = {f"/{name}": DATA, f"/a/{name}": DATA, f"/a/{name.replace(chr(92), '%5C')}": DATA}
    path = fetch(server.url.replace("w.npz", name))
    assert path.resolve().parent == cache and path.read_bytes() == DATA
    assert [child.name for child in tmp_path.iterdir()] == ["cache"]


def test_a_busy_server_is_asked_again(server):
    server.statuses = [503, 429]
    assert fetch(server.url).read_bytes() == DATA


def test_a_missing_file_is_not_asked_for_again(server, cache):
    with pytest.raises(RunError, match=r"^http://127.*/nothing cannot be fetched: HTTP 404 Not Found$"):
        fetch(server.url.replace("w.npz", "nothing"))
    assert len(server.seen) == 1 and left(cache) == ["nothing.lock"]


def test_another_checksum_names_both(server, cache):
    with pytest.raises(RunError, match=f"w.npz has the SHA-256 {SHA256}, expected {'0' * 64}$"):
        fetch(server.url, sha256="0" * 64)
    assert left(cache) == ["w.npz.lock"]
    assert fetch(server.url).read_bytes() == DATA
    with pytest.raises(RunError, match="SHA-256"):
        fetch(server.url, sha256="0" * 64)
    assert fetch(server.url).read_bytes() == DATA  # a good copy outlives a wrong expectation


def test_no_server_is_one_line(cache):
    with Server() as server:
        pass
    with pytest.raises(RunError, match=r"^http://127\S* cannot be fetched: Connection refused$"):
        fetch(server.url)


def test_a_silent_server_is_given_up(server, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT_SECONDS", 0.05)
    server.delay = 0.3
    with pytest.raises(RunError, match="cannot be fetched: timed out"):
        fetch(server.url)


def test_a_full_disk_leaves_nothing_under_the_name(server, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(RunError, match=r"w.npz cannot be kept in \S*cache: File too large$"):
            fetch(server.url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "w.npz" not in left(cache)
    assert fetch(server.url).read_bytes() == DATA


def test_a_cache_that_cannot_be_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be kept in \S*file/cache: Not a directory$"):
        fetch(server.url, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://host/a", "gs://bucket", "https://", "https:///a", "http://h:x/a", "http://[/a", "a"],
)
def test_only_urls_are_fetched(url, cache):
    with pytest.raises(RunError, match=r"is not a URL to fetch: expected https://HOST/NAME"):
        fetch(url)
    assert not cache.exists()


@pytest.mark.full
@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_two_at_once_download_once(server, kind):
    server.delay = 1.0 if kind == "processes" else 0.1
    if kind == "threads":
        with ThreadPoolExecutor(4) as pool:
            paths = list(pool.map(fetch, [server.url] * 4))
    else:
        program = f"from big_distill.weights.pretrained.fetch import fetch; print(fetch({server.url!r}))"
        command = [sys.executable, "-c", program]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        paths = [pathlib.Path(process.communicate(timeout=240)[0].strip()) for process in processes]
    assert all(path.read_bytes() == DATA for path in paths)
    assert server.ranges == [None]


def test_a_killed_process_blocks_nobody(server, cache):
    server.cuts, server.delay = [100_000], 0
    program = (
        "import os, time; from big_distill.weights.pretrained import fetch as f\n"
        f"f.RETRY_SECONDS = (60,); f.fetch({server.url!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.kill)
        deadline = time.monotonic() + 240
        while not (cache.is_dir() and sum(p.stat().st_size for p in cache.glob("*.part")) == 100_000):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert fetch(server.url, sha256=SHA256).read_bytes() == DATA
    assert server.ranges == [None, "bytes=100000-"]


def test_a_bar_on_a_terminal_only(server, capsys, monkeypatch):
    fetch(server.url)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch(f"{server.url}", cache_dir=pathlib.Path(os.environ["BIG_DISTILL_CACHE"]) / "2")
    assert "293k/293k" in capsys.readouterr().err
