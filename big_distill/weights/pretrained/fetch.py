"""Downloads files to a cache: resumes where a download stopped, and checks a file again on every use.

A file in the cache is complete, or not there at all. For each URL the cache holds the file HASH-NAME, its checksum
HASH-NAME.sha256, and HASH-NAME.lock. An incomplete download is HASH-NAME.part, with its source's ETag in
HASH-NAME.part.etag. HASH is that of the URL.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from absl import logging
from tqdm import tqdm

from big_distill.errors import RunError
from big_distill.files import checksums

GOOGLE_STORAGE = "https://storage.googleapis.com"
TIMEOUT_SECONDS = 30.0  # to connect, and for each read
RETRY_SECONDS = (1.0, 2.0, 4.0)  # the waits between tries
_CHUNK_BYTES = 1 << 20
_STRONG_ETAG = re.compile(r'"[!#-~]*"')  # a weak one (W/"...") does not promise the same bytes
_INTERRUPTED = (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError)
_TEMPORARY = {408, 416, 429, 500, 502, 503, 504}  # statuses that another try may mend; after 416 `_open` starts anew


def fetch(url: str, *, cache_dir: pathlib.Path | None = None, sha256: str | None = None) -> pathlib.Path:
    """Downloads a file, unless the cache has it. Several processes may ask for the same file at once.

    Args:
      url: `https://...`, `http://...`, or `gs://BUCKET/NAME` of a public object.
      cache_dir: None for $BIG_DISTILL_CACHE, or for ~/.cache/big_distill if that is not set.
      sha256: the SHA-256 that the file must have, in lower-case hexadecimal.

    Returns:
      The path in the cache; it ends in the file name of the URL.

    Raises:
      RunError: not such a URL, no connection, no such file, another checksum, or the cache cannot be written.
    """
    source = _source(url)
    root = cache_dir or pathlib.Path(os.environ.get("BIG_DISTILL_CACHE") or "~/.cache/big_distill")
    target = root.expanduser() / f"{hashlib.sha256(source.encode()).hexdigest()[:12]}-{_file_name(source)}"
    try:
        if _is_cached(target, sha256):  # before the lock, as a cache may be read-only
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_beside(target, ".lock")):
            if not _is_cached(target, sha256):
                if target.is_file():
                    logging.warning("%s is damaged or not what is wanted: downloading it again", target)
                _download(url, source, _beside(target, ".part"))
                _accept(url, target, sha256)
    except OSError as error:
        raise RunError(f"{url} cannot be kept in {target.parent}: {error.strerror or error}") from error
    return target


def _source(url: str) -> str:
    """Returns the quoted http(s):// address of a URL; raises RunError if it cannot be fetched."""
    scheme, _, rest = url.partition("://")
    if scheme == "gs":
        source = f"{GOOGLE_STORAGE}/{urllib.parse.quote(rest)}"
    else:
        source = urllib.parse.quote(url, safe="%/:?#[]@!$&'()*+,;=")  # quotes what no URL may contain, like a space
    with contextlib.suppress(ValueError):  # raised for a malformed host or port
        parts = urllib.parse.urlsplit(source)
        if scheme in ("gs", "http", "https") and parts.hostname and parts.port != 0 and rest.partition("/")[2]:
            return source
    raise RunError(f"{url} is not a URL to fetch: expected https://HOST/NAME, http://HOST/NAME or gs://BUCKET/NAME")


def _file_name(source: str) -> str:
    """Returns the name after the last slash of the path, short enough for a file system."""
    return re.sub(r"[^\w.-]", "_", urllib.parse.urlsplit(source).path.rpartition("/")[2])[-100:]


def _beside(path: pathlib.Path, suffix: str) -> pathlib.Path:
    return path.with_name(path.name + suffix)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however that ends; the file stays, as others may be waiting for it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.warning("Waiting for the process that holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_cached(target: pathlib.Path, sha256: str | None) -> bool:
    """Returns True if the file is there, has the bytes that were downloaded, and has the wanted SHA-256."""
    recorded = _beside(target, ".sha256")
    if not target.is_file() or not recorded.is_file():
        return False
    digest = checksums.sha256(target)
    return digest == recorded.read_text(errors="replace") and sha256 in (None, digest)


def _accept(url: str, target: pathlib.Path, sha256: str | None) -> None:
    """Checks a complete download, and renames it to its name in the cache."""
    part = _beside(target, ".part")
    digest = checksums.sha256(part)
    _beside(part, ".etag").unlink(missing_ok=True)
    if sha256 not in (None, digest):
        part.unlink()
        raise RunError(f"{url} has the SHA-256 {digest}, expected {sha256}")
    _beside(target, ".sha256").write_text(digest)
    part.replace(target)


def _download(url: str, source: str, part: pathlib.Path) -> None:
    """Completes `part`, in several tries if connections break."""
    for wait in (*RETRY_SECONDS, None):
        try:
            return _transfer(source, part)
        except _INTERRUPTED as error:
            temporary = not isinstance(error, urllib.error.HTTPError) or error.code in _TEMPORARY
            if wait is None or not temporary:
                raise RunError(f"{url} cannot be fetched: {_cause(error)}") from error
            logging.warning("%s: %s; trying again in %g s", url, _cause(error), wait)
            time.sleep(wait)


def _transfer(source: str, part: pathlib.Path) -> None:
    """Tries once to complete `part`: goes on where it ends, or starts it anew if the server sends the whole."""
    with _open(source, part) as response:
        start, total = _range(response, part)
        units = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        bar = tqdm(desc=part.stem, initial=start, total=total, disable=None, **units)  # None: shown on a terminal alone
        with bar, part.open("ab" if start else "wb") as file:
            if not start:  # the file is empty by now: a new ETag is never beside old bytes
                _beside(part, ".etag").write_text(response.headers.get("ETag", ""))
            while chunk := response.read1(_CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if total not in (None, size):
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")


def _resume_point(part: pathlib.Path) -> tuple[int, str]:
    """Returns how many bytes are there, and their ETag; (0, "") if none can be used."""
    etag = _beside(part, ".etag")
    if part.is_file() and etag.is_file() and _STRONG_ETAG.fullmatch(text := etag.read_text(errors="replace")):
        return part.stat().st_size, text
    return 0, ""


def _open(source: str, part: pathlib.Path) -> http.client.HTTPResponse:
    """Asks for the rest of `part` if the source has not changed, else for the whole file."""
    headers = {"User-Agent": "big_distill", "Accept-Encoding": "identity"}
    size, etag = _resume_point(part)
    if size:
        headers |= {"Range": f"bytes={size}-", "If-Range": etag}
    try:
        return urllib.request.urlopen(urllib.request.Request(source, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # `part` is as long as its source, or longer
            part.unlink(missing_ok=True)
        raise


def _range(response: http.client.HTTPResponse, part: pathlib.Path) -> tuple[int, int | None]:
    """Returns the byte that the answer starts at, and how many bytes the whole has (None: the server does not say)."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0, response.length
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if match and (int(match[1]), response.headers.get("ETag")) == _resume_point(part):
        return int(match[1]), int(match[2])
    part.unlink(missing_ok=True)
    raise ConnectionError("the server sent another part than it was asked for")


def _cause(error: Exception) -> str:
    """Describes an error in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return text.partition("\n")[0]
