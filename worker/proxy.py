"""Everything through one HTTP proxy, where a company must.

Names are still resolved and addresses judged here: the proxy is asked for a tunnel to the literal
address that was judged (RFC 9110, section 9.3.6), for http as for https. So it learns no URL, and
it cannot be talked into connecting to anything else.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

import h11
import httpcore

from worker.connections import SocketStream, dial
from worker.errors import Misconfigured

_WRITTEN = re.compile(
    r"http://(?:(?P<user>[^:@/]*):(?P<password>[^@/]*)@)?"
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+):(?P<port>[0-9]{1,5})/?",
    re.I | re.A,
)
_READ_BYTES = 4096


@dataclass(frozen=True, slots=True)
class EgressProxy:
    """An HTTP proxy that is asked for tunnels. Its ``dial`` is what ``PinnedBackend`` takes."""

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> EgressProxy:
        """From ``http://[user:password@]host:port``, both percent-encoded where they must.

        Raises ``Misconfigured``, with no word of what was written.
        """
        written = _WRITTEN.fullmatch(url)
        if written is None or not 0 < int(written["port"]) < 65536:
            raise Misconfigured(
                "the egress proxy must be written http://host:port, "
                "or http://user:password@host:port with special characters percent-encoded"
            )
        authorization = None
        if written["user"] is not None:
            pair = f"{unquote(written['user'])}:{unquote(written['password'])}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(written["host"].strip("[]"), int(written["port"]), authorization)

    async def dial(self, address: str, port: int) -> SocketStream:
        """A tunnel to a literal address. Raises ``OSError``."""
        try:
            stream = await dial(self.host, self.port)
        except OSError as error:
            raise self._failed(f"cannot be reached: {error.strerror or error}") from None
        try:
            await self._ask_for_tunnel(stream, address, port)
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _ask_for_tunnel(self, stream: SocketStream, address: str, port: int) -> None:
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        headers = [("Host", target)]
        if self.authorization is not None:
            headers.append(("Proxy-Authorization", self.authorization))
        http = h11.Connection(h11.CLIENT)
        request = http.send(h11.Request(method="CONNECT", target=target, headers=headers))
        assert request is not None
        try:
            await stream.write(request)
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await stream.read(_READ_BYTES))
        except (h11.RemoteProtocolError, httpcore.NetworkError):
            event = h11.ConnectionClosed()
        if not isinstance(event, h11.Response):
            raise self._failed("does not answer like an HTTP proxy")
        if not 200 <= event.status_code < 300:
            raise self._failed(f"answered CONNECT with status {event.status_code}")
        # Whoever is asked by HTTP or TLS waits to be spoken to
        if http.trailing_data[0]:
            raise self._failed("sent something before it was asked for anything")

    def _failed(self, what: str) -> OSError:
        return ConnectionError(None, f"the egress proxy at {self.host}:{self.port} {what}")
