"""Which URLs and addresses may be reached.

A producer names the URL and a stranger's DNS names the address, so both are hostile. The rule is:
``judge_url`` parses a URL once, and the parsed form it returns is the one that is requested;
``PinnedBackend`` resolves a name once, refuses it if *any* of its addresses is forbidden, and
connects to the addresses it judged, as literals. No second parser and no second look-up can come
to another answer, while Host, SNI and certificate checks still see the name.
"""

# ruff: noqa: ASYNC109 (httpcore hands its timeouts over as parameters)

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, NoReturn

import httpx

from worker import telemetry
from worker.errors import ErrorCode, Misconfigured, Stage, Transient, Unexaminable

IPAddress = IPv4Address | IPv6Address

#: A name to the literal addresses it has now. Raises ``OSError`` when it has none.
Resolver = Callable[[str], Awaitable[Sequence[str]]]
#: Connects to a literal address and port. Raises ``OSError``.
Dial = Callable[[str, int], Awaitable[Any]]

MAX_URL_CHARACTERS = 8192
_MAX_NAME_CHARACTERS = 253  # RFC 1035, without the root's dot
# A name's addresses share the connect timeout, so a long list would leave none of them any time.
_ADDRESSES_TRIED = 3

# What a resolver says when asking again will not help: no such name, or none with an address.
_NO_SUCH_NAME = {
    number
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if (number := getattr(socket, name, None)) is not None  # not all systems have them all
}

# The only spellings taken further. What other parsers read in several ways (user names, zone ids,
# ports like "+80" or "8_0", an empty host) matches nowhere here.
_SPELLING = re.compile(
    r"https?://(\[[0-9a-f:.]+\]|[^\[\]:/?#@]+)(:[0-9]{0,5})?([/?#]|$)", re.A | re.I
)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# "Ends in a number", https://url.spec.whatwg.org/#ends-in-a-number-checker: resolvers read such a
# host as an IPv4 address, in decimal, octal, hexadecimal, and with parts left out.
_ENDS_IN_A_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")

# Everything of the IANA special-purpose registries that no public image can live at:
# https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry.
# An own table, as the answers of ipaddress.is_global differ between versions of Python.
_FORBIDDEN_IPV4 = {
    ip_network(network): kind
    for network, kind in {
        "0.0.0.0/8": "this network",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared (carrier-grade NAT)",
        "127.0.0.0/8": "loopback",
        "168.63.129.16/32": "cloud metadata",
        "169.254.0.0/16": "link-local (cloud metadata)",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "protocol assignments",
        "192.0.2.0/24": "documentation",
        "192.31.196.0/24": "AS112",
        "192.52.193.0/24": "AMT relay",
        "192.88.99.0/24": "6to4 relay",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "AS112",
        "198.18.0.0/15": "benchmarking",
        "198.51.100.0/24": "documentation",
        "203.0.113.0/24": "documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
    }.items()
}
# Only 2000::/3 is global unicast. That alone refuses loopback, link-local, unique local, multicast,
# and the forms that carry an IPv4 address: v4-mapped, v4-compatible, NAT64.
_GLOBAL_IPV6 = ip_network("2000::/3")
_FORBIDDEN_IPV6 = {
    ip_network(network): kind
    for network, kind in {
        "2001::/23": "protocol assignments (Teredo among them)",
        "2001:db8::/32": "documentation",
        "2002::/16": "6to4",
        "2620:4f:8000::/48": "AS112",
        "3fff::/20": "documentation",
    }.items()
}


class EgressPolicy:
    """What may be reached: every global address at one of ``ports``, and besides that exactly the
    address and port pairs of ``allow``, written ``127.0.0.1:8123`` or ``[::1]:8123``.

    Raises ``Misconfigured`` for anything else in ``allow``, names among it: a name is whatever its
    DNS says at the moment.
    """

    def __init__(self, *, ports: Iterable[int] = (80, 443), allow: Iterable[str] = ()) -> None:
        self._ports = frozenset(ports)
        self._exceptions = frozenset(_endpoint(written) for written in allow)
        self._exceptional_ports = frozenset(port for _, port in self._exceptions)

    def judge_port(self, port: int) -> None:
        """Whether any address may be reached at ``port``. Raises ``Unexaminable``."""
        if port not in self._ports and port not in self._exceptional_ports:
            _forbidden("port", f"port {port} may not be reached")

    def judge_address(self, address: IPAddress, port: int) -> None:
        """Whether this address may be reached at ``port``. Raises ``Unexaminable``."""
        if (address, port) in self._exceptions:
            return
        if (kind := _special_purpose(address)) is not None:
            _forbidden(kind, f"{address} may not be reached: {kind}")
        if port not in self._ports:
            _forbidden("port", f"port {port} may not be reached")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was judged; request ``url`` and nothing else. ``host`` is in ASCII, without
    brackets."""

    url: httpx.URL
    host: str
    port: int

    def __str__(self) -> str:
        return public_url(self.url)


def judge_url(text: str, policy: EgressPolicy, *, base: Target | None = None) -> Target:
    """The target that ``text`` names; with ``base``, ``text`` is a redirect's Location.

    No I/O: a name's addresses are judged when they are known, by ``PinnedBackend``. Raises
    ``Unexaminable`` with ``url_invalid`` or ``address_forbidden``.
    """
    if len(text) > MAX_URL_CHARACTERS:
        _invalid(f"the URL is longer than {MAX_URL_CHARACTERS} characters")
    if not text.isprintable() or " " in text or "\\" in text:
        _invalid("the URL contains a space, a backslash, or a control or invisible character")
    try:
        url = base.url.join(text) if base else httpx.URL(text)
        if url.raw_host.endswith(b"."):  # a name from the DNS's root on; certificates have no dot
            url = url.copy_with(host=url.raw_host[:-1].decode("ascii"))
    except (httpx.InvalidURL, ValueError):  # their messages quote the URL, with its query
        _invalid("the URL cannot be parsed")
    if not _SPELLING.match(str(url) if base else text):
        _invalid("the URL must read http(s)://host[:port]/path, without user name or password")

    host = url.raw_host.decode("ascii")
    port = {"http": 80, "https": 443}[url.scheme] if url.port is None else url.port
    address = _literal(host)
    if address is not None:
        policy.judge_address(address, port)
    elif len(host) > _MAX_NAME_CHARACTERS or not _NAME.fullmatch(host):
        _invalid("the URL's host is not a valid name")
    else:
        policy.judge_port(port)
    return Target(url, host, port)


def public_url(url: httpx.URL | str) -> str:
    """A URL for people and logs: scheme, host, port and path. No query, fragment or user name."""
    try:
        url = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "(unreadable URL)"
    if not url.raw_host:  # what looks like a path may hold a user name and password
        return "(unreadable URL)"
    path = url.raw_path.partition(b"?")[0].decode("ascii")
    if len(path) > 200:
        path = path[:199] + "…"
    return f"{url.scheme}://{url.netloc.decode('ascii')}{path}"


class PinnedBackend:
    """An ``httpcore.AsyncNetworkBackend`` that connects to no address it has not judged."""

    def __init__(self, policy: EgressPolicy, *, dial: Dial, resolver: Resolver) -> None:
        self._policy = policy
        self._dial = dial
        self._resolve = resolver

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: object = None,
    ) -> Any:
        """A stream to ``host``, within ``timeout`` seconds, look-up included.

        Raises ``Unexaminable`` for what may not be reached or does not exist, ``Transient`` for
        what did not answer.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._addresses(host, port)
                return await self._connect_to_first(addresses, host, port, timeout)
        except TimeoutError:
            raise _unreachable(host, port, f"nothing answered within {timeout:g} s") from None

    async def _addresses(self, host: str, port: int) -> list[IPAddress]:
        if (literal := _literal(host)) is not None:
            addresses = [literal]
        else:
            try:
                addresses = [ip_address(address) for address in await self._resolve(host)]
            except OSError as error:
                detail = f"{host} cannot be resolved: {error.strerror}"
                if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
                    raise Unexaminable(ErrorCode.DNS_FAILED, Stage.FETCH, detail) from None
                raise Transient(ErrorCode.DNS_FAILED, Stage.FETCH, detail) from None
        for address in addresses:
            self._policy.judge_address(address, port)
        return addresses[:_ADDRESSES_TRIED]

    async def _connect_to_first(
        self, addresses: list[IPAddress], host: str, port: int, timeout: float | None
    ) -> Any:
        share = timeout and timeout / max(len(addresses), 1)
        reason = "it has no address"
        for address in addresses:
            try:
                async with asyncio.timeout(share):
                    return await self._dial(str(address), port)
            except OSError as error:  # TimeoutError is one
                reason = error.strerror or f"nothing answered within {share:g} s"
        raise _unreachable(host, port, reason)


def _special_purpose(address: IPAddress) -> str | None:
    """What a forbidden address is for; None for a global one."""
    if isinstance(address, IPv4Address):
        table = _FORBIDDEN_IPV4
    elif address in _GLOBAL_IPV6 and address.scope_id is None:
        table = _FORBIDDEN_IPV6
    else:
        return "not global unicast"
    return next((kind for network, kind in table.items() if address in network), None)


def _literal(host: str) -> IPAddress | None:
    """The address that ``host`` spells, None for a name. Only one spelling of IPv4 is taken."""
    try:
        if ":" in host:
            return IPv6Address(host)
        return IPv4Address(host) if _ENDS_IN_A_NUMBER.fullmatch(host) else None
    except ValueError:
        _invalid("the URL's host is an oddly written IP address; write it as a.b.c.d or [a:b::c]")


def _endpoint(written: str) -> tuple[IPAddress, int]:
    address, _, port = written.rpartition(":")
    try:
        if not 0 < int(port) < 65536:
            raise ValueError(port)
        if address.startswith("[") and address.endswith("]"):
            return IPv6Address(address[1:-1]), int(port)
        return IPv4Address(address), int(port)
    except ValueError:
        raise Misconfigured(
            f"the egress exception {written!r} is not an IP address and a port; "
            "write it like 127.0.0.1:8123 or [::1]:8123"
        ) from None


def _unreachable(host: str, port: int, reason: str) -> Transient:
    detail = f"no connection to {host} at port {port}: {reason}"
    return Transient(ErrorCode.CONNECT_FAILED, Stage.FETCH, detail)


def _invalid(detail: str) -> NoReturn:
    raise Unexaminable(ErrorCode.URL_INVALID, Stage.FETCH, detail)


def _forbidden(kind: str, detail: str) -> NoReturn:
    """``kind`` is "port" or one of the tables' above."""
    reason = kind.partition(" (")[0].replace(" ", "_").replace("-", "_").lower()
    telemetry.ADDRESSES_REFUSED.labels(reason).inc()
    raise Unexaminable(ErrorCode.ADDRESS_FORBIDDEN, Stage.FETCH, detail)
