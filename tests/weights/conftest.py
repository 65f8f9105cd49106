"""A server in a thread that stands for Google Drive and Hugging Face, and an empty cache."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from mmitpn.weights import download

# On one line, as Drive sends it.
CONFIRM = (
    '<html><form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="confirm" value="t"></form></html>'
)


@dataclass
class Server:
    """What is served, what goes wrong, and what was asked for.

    Attributes:
        address: Of the server.
        files: Content by Drive id, or by path.
        page: HTML that Drive answers with in place of a confirmation page.
        cut: The next answers end after these numbers of bytes.
        resumes: Whether a part of a file can be asked for.
        asked: Path and ``Range`` of each request for a file.
    """

    address: str = ''
    files: dict[str, bytes] = field(default_factory=dict)
    page: str | None = None
    cut: list[int] = field(default_factory=list)
    resumes: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server; gdown's requests to Google go to it."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            drive_id = next(iter(re.findall(r'(?:^|&)id=([\w-]+)', url.query)), None)
            if url.path == '/uc':
                self.send_page(state.page or CONFIRM.format(id=drive_id))
            else:
                self.send_file(drive_id or url.path)

        def send_page(self, text: str) -> None:
            self.send_response(200)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.end_headers()
            self.wfile.write(text.encode())

        def send_file(self, name: str) -> None:
            wanted = self.headers.get('Range')
            state.asked.append((name, wanted))
            if name not in state.files:
                self.send_error(404)
                return
            content, start = state.files[name], 0
            if wanted and state.resumes:
                start = int(re.fullmatch(r'bytes=(\d+)-', wanted)[1])
            self.send_response(206 if start else 200)
            self.send_header('Content-Type', 'application/octet-stream')
            self.send_header('Content-Disposition', 'attachment; filename="released.pt"')
            self.send_header('Content-Length', str(len(content) - start))
            if start:
                self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
            self.end_headers()
            self.wfile.write(content[start:][: state.cut.pop(0) if state.cut else None])

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        state.address = f'http://127.0.0.1:{http.server_port}'
        send = requests.adapters.HTTPAdapter.send

        def send_here(self: object, request: requests.PreparedRequest, **options: object) -> requests.Response:
            request.url = re.sub(r'^https://[\w.]*google\.com', state.address, request.url)
            return send(self, request, **options)

        monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send_here)
        monkeypatch.setenv('HF_ENDPOINT', state.address)
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network at all."""

    def send(*_: object, **__: object) -> None:
        raise requests.ConnectionError('no route')

    monkeypatch.setattr(requests.adapters.HTTPAdapter, 'send', send)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the files, which does not exist yet; no second attempts."""
    monkeypatch.setenv('MMITPN_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(download, 'RETRIES', 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'home' / 'weights'
