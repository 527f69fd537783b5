"""An S3 server on loopback, and a proxy before it that counts requests and inflicts faults on them."""

import http.client
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from moto.server import ThreadedMotoServer

BUCKET = "bucket"
HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server with one empty bucket; it ends with the block."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        port = server.get_host_and_port()[1]
        request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield port
    finally:
        server.stop()


def environment(endpoint: str) -> dict[str, str]:
    """What obstore takes its endpoint and credentials from."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


@dataclass(frozen=True)
class Request:
    """What a client asked: `key` is the path in the bucket."""

    method: str
    key: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """What happens to a request: `delay` seconds first; then an answer of its own, or the server's, whole or not."""

    delay: float = 0.0
    status: int | None = None
    """Answer with this status; the server does not see the request."""
    code: str = "InternalError"
    forward: bool = True
    """Whether the server sees it before the connection drops."""
    body_share: float | None = None
    """Drop the connection after this share of the body; 0 drops it before any answer."""
    without: frozenset[str] = frozenset()
    """Headers, in lower case, that the server is not shown."""


@dataclass
class Proxy:
    """`fault(request)` decides what happens to each; `requests` are those that came."""

    url: str
    fault: Callable[[Request], Fault | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)

    def count(self, method: str, part: str = "") -> int:
        return sum(request.method == method and part in request.key for request in self.requests)

    def times(self, count: int, fault: Fault, method: str, part: str = "") -> None:
        """Inflict a fault on the next so many requests of a kind."""
        left = [count]

        def inflict(request: Request) -> Fault | None:
            if left[0] and request.method == method and part in request.key:
                left[0] -= 1
                return fault
            return None

        self.fault = inflict


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: Proxy
    server_port: int

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path.partition("?")[0].removeprefix(f"/{BUCKET}/"), headers)
        self.proxy.requests.append(request)
        fault = self.proxy.fault(request) or Fault()
        time.sleep(fault.delay)
        if fault.status is not None:
            said = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
            self._answer(fault.status, {"content-type": "application/xml"}, said)
            return
        if not fault.forward:
            self.close_connection = True
            return
        shown = {name: value for name, value in headers.items() if name not in fault.without}
        upstream = http.client.HTTPConnection("127.0.0.1", self.server_port, timeout=30)
        upstream.request(self.command, self.path, body=body, headers=shown)
        answer = upstream.getresponse()
        content = answer.read()
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS}
        length = answer.getheader("content-length")
        upstream.close()
        self._answer(answer.status, kept, content, fault.body_share, length)

    def _answer(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        share: float | None = None,
        length: str | None = None,
    ) -> None:
        self.close_connection = share is not None
        if share == 0:
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", length if self.command == "HEAD" and length else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if share is None else body[: int(len(body) * share)])

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what half of the faults are about."""


@contextmanager
def proxy_before(server_port: int) -> Iterator[Proxy]:
    """A proxy on a free port of loopback; it ends with the block."""
    proxy = Proxy("")
    handler = type("Handler", (_Handler,), {"proxy": proxy, "server_port": server_port})
    with _Server(("127.0.0.1", 0), handler) as server:
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
