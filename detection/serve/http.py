"""The HTTP side of `detect.py --serve`: a fixed table of pages, three calls, and who may call them.

There is no password. So that no page of another site reaches this server through the browser, a foreign
Origin, and what a form could send, are refused; against a foreign name for this address (DNS rebinding) the
Host must be an address, localhost, --host or that of an --origin.
"""
from __future__ import annotations

import ipaddress
import json
import mmap
from contextlib import ExitStack
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

WEB = Path(__file__).resolve().parents[2] / "web"
SCRIPTS = ("app.js", "bench.js", "capture.js", "draw.js", "words.js")
PAGES = {"/": "index.html", "/style.css": "style.css", "/icon.svg": "icon.svg", "/backend.js": "server.js",
         **{f"/{name}": name for name in SCRIPTS}}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MAX_BODY = 32 * 2 ** 20                        # bytes of one image
FREE = 2 ** 20                                 # ... that are read at once; larger ones wait for a place
STALLED = 10.0                                 # seconds without a byte after which a place is taken back
SECURITY = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store"}


class Refusal(Exception):
    """A request that is answered by a sentence and an HTTP status."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection, kept open over many requests."""

    protocol_version, timeout = "HTTP/1.1", 60
    server_version, sys_version = "micro-yolo", ""
    server: Any                                # a detection.serve.app.PageServer

    def parse_request(self) -> bool:
        """Read the request's head; one without a version, whose answer would have no status, is refused."""
        good = super().parse_request()
        if good and self.request_version == "HTTP/0.9":
            self.request_version, good = self.protocol_version, False
            self.send_error(HTTPStatus.BAD_REQUEST)
        return good

    def do_GET(self) -> None:
        """Answer with a page of the table, or the list of networks."""
        self._answer({"/api/models": self._models}, page=True)

    def do_POST(self) -> None:
        """Answer with a network's description, or an image's boxes."""
        self._answer({"/api/open": self._open, "/api/detect": self._detect}, page=False)

    def log_message(self, *_: Any) -> None:
        """Log nothing: a line a frame would bury what matters."""

    def _answer(self, calls: dict[str, Any], page: bool) -> None:
        place, _, query = self.path.partition("?")
        self._query = {name: values[-1] for name, values in parse_qs(query).items()}
        try:
            self._check_sender()
            length = self.headers.get_all("Content-Length", [])
            if "Transfer-Encoding" in self.headers or len(length) > 1 or page and length not in ([], ["0"]):
                raise Refusal(HTTPStatus.BAD_REQUEST, "a request with a body needs one Content-Length and no "
                                                      "Transfer-Encoding, and a GET has no body")
            if page and place in PAGES:
                path = WEB / PAGES[place]
                return self._send(HTTPStatus.OK, path.read_bytes(), TYPES[path.suffix])
            if place not in calls:
                raise Refusal(HTTPStatus.NOT_FOUND, "there is no such page here")
            return self._send_json(HTTPStatus.OK, calls[place]())
        except Refusal as refusal:
            self.close_connection = True       # what was not read of a body is no next request
            return self._send_json(refusal.status, {"error": str(refusal)})
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            code = getattr(error, "exit_code", None)
            known = {2: HTTPStatus.BAD_REQUEST, 3: HTTPStatus.UNSUPPORTED_MEDIA_TYPE}
            if code is None:
                self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR,
                                {"error": "the server made a mistake; its terminal tells more"})
                raise
            return self._send_json(known.get(code, HTTPStatus.UNPROCESSABLE_ENTITY), {"error": str(error)})

    def _check_sender(self) -> None:
        """Raise Refusal for a Host that could be another site's name, and for what other sites caused."""
        given = self.headers.get("Host", "")
        name = ""
        try:
            name = urlsplit(f"//{given}").hostname or ""
            known = name in self.server.names or bool(ipaddress.ip_address(name))
        except ValueError:
            known = False
        if not known:
            raise Refusal(HTTPStatus.FORBIDDEN, f"this server does not answer to the name {name!r}: open it "
                                                "by its address, or start it with --host NAME or, behind a "
                                                "proxy, --origin https://NAME")
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "none")
        foreign = self.command == "POST" and site not in ("none", "same-origin")
        if foreign or origin not in (None, f"http://{given}", f"https://{given}", *self.server.origins):
            raise Refusal(HTTPStatus.FORBIDDEN, "a page of another site may not use this server")

    def _models(self) -> dict[str, Any]:
        networks = self.server.networks
        return {"models": networks.listing(), "chosen": networks.first, **self.server.defaults}

    def _open(self) -> dict[str, Any]:
        with ExitStack() as held:
            self._body(held)
        return self.server.networks.open(self._query.get("model", ""))

    def _detect(self) -> dict[str, Any]:
        conf, iou = self._number("conf"), self._number("iou")
        with ExitStack() as held:
            data = np.frombuffer(self._body(held), np.uint8)
            return self.server.networks.detect(self._query.get("model", ""), data, conf, iou)

    def _number(self, name: str) -> float:
        try:
            value = float(self._query.get(name, self.server.defaults[name]))
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{name}={self._query[name]}: needs a number, 0 to 1")
        return value

    def _body(self, held: ExitStack) -> bytes | mmap.mmap:
        """Return what was sent; a large body takes one of the server's places, which `held` gives back.

        Raises Refusal for what a form could send, and for more than MAX_BODY.
        """
        kind = self.headers.get("Content-Type", "")
        if not kind.startswith("image/") and kind != "application/octet-stream":
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type {kind!r}: needs an image/ type")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 16):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the request needs a Content-Length")
        if int(length) > MAX_BODY:
            left = min(int(length), 8 * MAX_BODY)      # a browser that still sends would not read the answer
            while left > 0 and (part := self.rfile.read(min(left, 2 ** 16))):
                left -= len(part)
            size = f"{int(length) / 2 ** 20:.0f} MiB, above the limit of {MAX_BODY // 2 ** 20}"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the image has {size}: save it smaller")
        data = self.rfile.read(min(int(length), FREE))
        if int(length) > FREE == len(data):
            held.enter_context(self.server.bodies)
            self.connection.settimeout(STALLED)
            # no heap, of which each thread has its own and keeps what was freed
            whole, done = mmap.mmap(-1, int(length)), FREE
            whole[:FREE] = data
            while done < int(length) and (part := self.rfile.readinto(memoryview(whole)[done:])):
                done += part
            data = whole if done == int(length) else b""
            self.connection.settimeout(self.timeout)
        if len(data) < int(length):
            raise ConnectionResetError("the client went away")
        return data

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content, ensure_ascii=False).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)),
                            **SECURITY}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
