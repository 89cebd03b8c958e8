"""Serves files, and can cut them, change them, lie and be slow."""

import http.server
import time

import numpy as np

DATA = np.random.default_rng(0).bytes(300_000)


class Handler(http.server.BaseHTTPRequestHandler):
    """Does what its server's fields say."""

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, self.headers["Range"]))
        if self.path in server.moved:
            self.send_response(302)
            self.send_header("Location", server.moved[self.path])
            return self.end_headers()
        status = server.statuses.pop(0) if server.statuses else 200
        if status != 200 or self.path not in server.files:
            return self.send_error(404 if status == 200 else status)
        whole, start = server.files[self.path], 0
        asked = self.headers["Range"]
        same = server.ignores_if_range or self.headers["If-Range"] == server.etag
        if asked and server.has_ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(whole):
                return self.send_error(416)
            start += server.range_error
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.says_length:
            self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        time.sleep(server.delay)
        self.wfile.write(whole[start:][: server.cuts.pop(0) if server.cuts else None])

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/a/w.npz": DATA}
        self.etag, self.has_ranges, self.ignores_if_range, self.range_error = '"one"', True, False, 0
        self.says_length = True
        self.cuts, self.statuses = [], []  # for the next answers: length before the cut, status
        self.moved = {}  # path -> address
        self.delay = 0
        self.seen = []
        self.url = f"http://127.0.0.1:{self.server_port}/a/w.npz"

    @property
    def ranges(self):
        return [asked for _, asked in self.seen]
