"""`detect.py --serve`: its port, bound first (one in use costs no loading), and its life until Ctrl-C."""
from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import sys
import threading
from collections.abc import Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from detection.detector import NetworkConfig
from detection.serve.http import Handler
from utils.errors import EnvironmentFault, UsageError

BODIES = 8                                     # images above 1 MiB in memory at a time, still coded


def serve(config: NetworkConfig, host: str, port: int, origins: Sequence[str]) -> None:
    """Show the page, also as `origins` (scheme://host[:port]) of proxies, until a signal ends the process.

    Raises UsageError for a wrong origin, EnvironmentFault for a taken port, and as loading a network does.
    """
    from utils.runs import Interrupt, tune_cpu
    for origin in origins:
        if not re.fullmatch(r"https?://[^/?#@\s]+", origin):
            raise UsageError(f"--origin {origin}: needs the form https://name or https://name:port, and "
                             "no path")
    server = listen(host, port, origins)
    from detection.serve.networks import ROOT, Networks, found_weights
    try:
        tune_cpu()
        networks = Networks(config, lambda: found_weights(ROOT, Path.cwd()))
        networks.open(networks.first)
        interrupt = Interrupt()
        server.begin(networks, {"conf": config.conf_thres, "iou": config.iou_thres})
        print(f"page: {server.address}   Ctrl-C ends", flush=True)
        while not interrupt.poll():
            server.handle_request()
    finally:
        server.server_close()
    print(f"stopped by a signal after {networks.images} images")
    raise SystemExit(interrupt.code)


class PageServer(ThreadingHTTPServer):
    """The page's server: bound when made; it answers once `begin` gave it its networks."""

    daemon_threads, block_on_close, timeout = True, False, 0.3
    request_queue_size = 128                   # clients that may come at once
    allow_reuse_address = os.name != "nt"      # there it would let two servers share a port

    def __init__(self, host: str, origins: Sequence[str], address: tuple,
                 family: socket.AddressFamily) -> None:
        self.address_family, self.host, self.origins = family, host, tuple(map(str.lower, origins))
        self.names = ("localhost", host.lower(), *(urlsplit(origin).hostname for origin in self.origins))
        self.bodies = threading.BoundedSemaphore(BODIES)
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without the look-up of a full name that http.server makes, which can take seconds."""
        super(ThreadingHTTPServer.__base__, self).server_bind()
        self.server_name, self.server_port = self.host, self.server_address[1]

    def begin(self, networks: Any, defaults: dict[str, float]) -> None:
        """Take the networks (detection.serve.networks), and the thresholds that the page starts with."""
        self.networks, self.defaults = networks, defaults

    @property
    def address(self) -> str:
        """Where a browser on this computer finds the page."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.server_address[0], self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; a fault of the program is shown as usual."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def listen(host: str, port: int, origins: Sequence[str] = ()) -> PageServer:
    """Return a server bound to the address. Raises EnvironmentFault that says what to do instead."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EnvironmentFault(f"--host {host}: no such address ({error.strerror}); give 127.0.0.1, or an "
                               "address of this computer") from None
    try:
        server = PageServer(host, origins, address, family)
    except OSError as error:
        raise EnvironmentFault(_bind_fault(error, host, port, address, family)) from None
    if not ipaddress.ip_address(server.server_address[0].partition("%")[0]).is_loopback:
        print(f"warning: --host {host}: everyone who reaches this computer can use the page, without a "
              "password; browsers on other devices give it images and videos, but no camera without https",
              file=sys.stderr)
    return server


def _bind_fault(error: OSError, host: str, port: int, address: tuple, family: socket.AddressFamily) -> str:
    """Say why the port could not be had, with a port that is free."""
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: this computer does not have that address; give 127.0.0.1 or one of its own"
    known = {errno.EADDRINUSE: "is in use by another program", errno.EACCES: "needs more rights"}
    why = known.get(error.errno, error.strerror)
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.bind((address[0], 0, *address[2:]))
        return f"--port {port}: {why}; --port {trial.getsockname()[1]} is free"
