"""Which URLs and addresses may be reached."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.egress import (
    MAX_URL_CHARACTERS,
    EgressPolicy,
    PinnedBackend,
    judge_url,
    public_url,
)
from worker.errors import ErrorCode, Misconfigured, Stage, Transient, Unexaminable
from worker.resolver import SystemResolver

PUBLIC = "93.184.215.14"
PUBLIC_IPV6 = "2606:4700::6810:84e5"
POLICY = EgressPolicy()

FORBIDDEN = {
    "loopback": "127.0.0.1",
    "loopback, not the usual one": "127.8.9.10",
    "unspecified": "0.0.0.0",
    "this network": "0.1.2.3",
    "private, 10": "10.1.2.3",
    "private, 172": "172.31.255.254",
    "private, 192": "192.168.0.1",
    "carrier-grade NAT": "100.64.0.1",
    "link-local": "169.254.1.1",
    "metadata of most clouds": "169.254.169.254",
    "metadata of Alibaba": "100.100.100.200",
    "metadata of Azure": "168.63.129.16",
    "metadata of Oracle": "192.0.0.192",
    "documentation": "203.0.113.9",
    "benchmarking": "198.18.0.1",
    "6to4 relay": "192.88.99.1",
    "multicast": "224.0.1.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 loopback": "::1",
    "IPv6 unspecified": "::",
    "IPv6 link-local": "fe80::1",
    "IPv6 site-local": "fec0::1",
    "IPv6 unique local": "fd00::1",
    "IPv6 metadata of AWS": "fd00:ec2::254",
    "IPv6 multicast": "ff0e::1",
    "IPv6 documentation": "2001:db8::1",
    "IPv6 documentation, the new one": "3fff::1",
    "IPv6 discard": "100::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "6to4 of a public address": "2002:5db8:d70e::1",
    "NAT64 of a private address": "64:ff9b::a00:1",
    "NAT64 of a public address": "64:ff9b::5db8:d70e",
    "local NAT64": "64:ff9b:1::1",
    "v4-mapped loopback": "::ffff:127.0.0.1",
    "v4-mapped public": "::ffff:93.184.215.14",
    "v4-compatible": "::127.0.0.1",
    "v4-translated": "::ffff:0:127.0.0.1",
    "segment routing": "5f00::1",
}


def refusal(text: str, policy: EgressPolicy = POLICY) -> ErrorCode:
    with pytest.raises(Unexaminable) as caught:
        judge_url(text, policy)
    assert caught.value.stage is Stage.FETCH
    assert not caught.value.retryable
    return caught.value.code


def in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://example.com/a.jpg", "example.com", 80),
        ("https://example.com/a.jpg?sig=1#top", "example.com", 443),
        ("HTTPS://EXAMPLE.com", "example.com", 443),
        ("http://example.com:443/", "example.com", 443),
        ("https://example.com:0443/", "example.com", 443),
        ("https://example.com:/", "example.com", 443),
        ("https://example.com./", "example.com", 443),
        ("http://example.com?x=user@evil.com", "example.com", 80),
        ("http://bücher.example/bild ü.jpg".replace(" ", "%20"), "xn--bcher-kva.example", 80),
        ("http://a_b.s3.example.com/", "a_b.s3.example.com", 80),
        ("http://r3---sn-x.example.com/", "r3---sn-x.example.com", 80),
        (f"http://{PUBLIC}/", PUBLIC, 80),
        (f"http://[{PUBLIC_IPV6}]/", PUBLIC_IPV6, 80),
    ],
)
def test_a_public_url_is_let_through(text: str, host: str, port: int) -> None:
    target = judge_url(text, POLICY)
    assert (target.host, target.port) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/a.jpg",
        "//example.com/a.jpg",
        "/a.jpg",
        "http:",
        "http:/example.com/",
        "http:example.com",
        "http:///a.jpg",
        "http://",
        "http://:80/",
        "http://?",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "data:image/png;base64,AAAA",
        "httpſ://example.com/",  # a long s, which folds to an s
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://@example.com/",
        "http://:@example.com/",
        "http://example.com@10.0.0.1/",
        "http://user%40example.com@10.0.0.1/",
        "http://example.com\\@10.0.0.1/",
        "http://10.0.0.1\\.example.com/",
        "http:\\\\example.com/",
        " http://example.com/",
        "http://example.com/ ",
        "http://exa mple.com/",
        "http://example.com/a b",
        "http://example.com/\r\nHost: evil",
        "http://example.com\t/",
        "http://example.com/\x00",
        "http://example.com/\x7f",
        "http://example.com/\u00a0",
        "http://example.com/\u2028",
        "http://exam\u200bple.com/",
        "http://exam\u00adple.com/",
        "http://example.com/\u202egpj.a",
        "http://example.com/\ud800",
        "http://example.com:+80/",
        "http://example.com:-80/",
        "http://example.com:8_0/",
        "http://example.com:８０/",
        "http://example.com:80:80/",
        "http://example.com:http/",
        "http://example.com%00.evil.com/",
        "http://%31%32%37.0.0.1/",
        "http://127.0.0.1%2f@example.com/",
        "http://example.com;evil.com/",
        "http://exa*mple.com/",
        "http://example.com../",
        "http://./",
        "http://example..com/",
        "http://.example.com/",
        "http://-example.com/",
        f"http://{'a' * 64}.com/",
        f"http://{'a.' * 127}com/",
        "http://１２７.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://[::1/",
        "http://::1/",
        "http://[::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[127.0.0.1]/",
        "http://[v1.fe80]/",
        "http://[::1].example.com/",
        "http://[::1]@example.com/",
        # what inet_aton reads as 127.0.0.1, or 10.0.0.1
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0X7F000001/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0x7f.0.0.1/",
        "http://0x7f.1/",
        "http://127.0.0.0x1/",
        "http://127.0.0.01/",
        "http://127.1./",
        "http://10.1/",
        "http://0/",
        "http://0x/",
        "http://127.0.0.256/",
        "http://1.2.3.4.5/",
        "http://example.1/",
        "http://example.0x1/",
        "http://" + "a" * MAX_URL_CHARACTERS,
    ],
)
def test_an_odd_url_is_refused_as_invalid(text: str) -> None:
    assert refusal(text) is ErrorCode.URL_INVALID


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_a_url_with_a_special_purpose_address_is_refused(address: str) -> None:
    assert refusal(f"http://{in_url(address)}/a.jpg") is ErrorCode.ADDRESS_FORBIDDEN


@pytest.mark.parametrize(
    "text", ["http://127。0。0。1/", "http://127.0.0.1./", "http://[0:0:0:0:0:0:0:1]/"]
)
def test_another_spelling_of_an_address_is_judged_as_that_address(text: str) -> None:
    assert refusal(text) is ErrorCode.ADDRESS_FORBIDDEN


@pytest.mark.parametrize("port", [0, 22, 6379, 8080, 65535, 65536, 99999])
def test_a_port_that_is_not_listed_is_refused(port: int) -> None:
    assert refusal(f"http://example.com:{port}/") is ErrorCode.ADDRESS_FORBIDDEN
    assert refusal(f"http://{PUBLIC}:{port}/") is ErrorCode.ADDRESS_FORBIDDEN


def test_listed_ports_replace_the_usual_ones() -> None:
    policy = EgressPolicy(ports=[8443])
    assert judge_url("https://example.com:8443/", policy).port == 8443
    assert refusal("https://example.com/", policy) is ErrorCode.ADDRESS_FORBIDDEN


def test_a_redirect_is_relative_to_where_it_came_from() -> None:
    base = judge_url("https://example.com/a/b.jpg?sig=1", POLICY)
    assert str(judge_url("../c.jpg", POLICY, base=base)) == "https://example.com/c.jpg"
    assert str(judge_url("//cdn.example/x", POLICY, base=base)) == "https://cdn.example/x"


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("http://10.0.0.1/", ErrorCode.ADDRESS_FORBIDDEN),
        ("//[::1]/", ErrorCode.ADDRESS_FORBIDDEN),
        ("//example.com:22/", ErrorCode.ADDRESS_FORBIDDEN),
        ("file:///etc/passwd", ErrorCode.URL_INVALID),
        ("http:///x", ErrorCode.URL_INVALID),
        ("//user@example.com/", ErrorCode.URL_INVALID),
        ("//2130706433/", ErrorCode.URL_INVALID),
        ("/\\10.0.0.1/", ErrorCode.URL_INVALID),
        ("\\\\10.0.0.1/", ErrorCode.URL_INVALID),
        ("https://[oops", ErrorCode.URL_INVALID),
    ],
)
def test_a_redirect_is_judged_like_any_url(location: str, code: ErrorCode) -> None:
    base = judge_url("https://example.com/a/b.jpg", POLICY)
    with pytest.raises(Unexaminable) as caught:
        judge_url(location, POLICY, base=base)
    assert caught.value.code is code


@given(
    st.text(max_size=40)
    | st.from_regex(r"https?://[0-9a-fxX.:@%\[\]\\/-]{1,24}(:[0-9_+]{1,3})?/?", fullmatch=True)
)
@example("http://example.com/")
def test_whatever_is_let_through_has_a_plain_host_and_an_allowed_port(text: str) -> None:
    try:
        target = judge_url(text, POLICY)
    except Unexaminable as refused:
        assert refused.code in (ErrorCode.URL_INVALID, ErrorCode.ADDRESS_FORBIDDEN)
        return
    assert target.url.scheme in ("http", "https")
    assert not target.url.userinfo
    assert target.url.raw_host.decode() == target.host
    assert target.port in (80, 443)
    try:
        address = ip_address(target.host)
    except ValueError:
        with pytest.raises(OSError):  # not even the laxest reader takes the name for an address
            socket.inet_aton(target.host)
    else:
        assert address.is_global


# ---------------------------------------------------------------- addresses


@given(st.ip_addresses())
@example(ip_address("192.0.0.192"))
@example(ip_address("2001:2::1"))
def test_every_address_that_is_not_global_is_refused(address: IPv4Address | IPv6Address) -> None:
    if address.is_global and not address.is_multicast:
        return
    with pytest.raises(Unexaminable):
        POLICY.judge_address(address, 443)


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_that_carries_an_ipv4_address_is_refused(address: IPv6Address) -> None:
    if address.ipv4_mapped is None and address.sixtofour is None and address.teredo is None:
        address = IPv6Address(int(IPv6Address("::ffff:0:0")) | int(address) & 0xFFFFFFFF)
    with pytest.raises(Unexaminable):
        POLICY.judge_address(address, 80)


def test_a_zone_id_makes_a_global_address_forbidden() -> None:
    with pytest.raises(Unexaminable):
        POLICY.judge_address(IPv6Address(f"{PUBLIC_IPV6}%eth0"), 80)


# ---------------------------------------------------------------- exceptions


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("127.0.0.1:8123", "http://127.0.0.1:8123/"),
        ("[::1]:8123", "https://[::1]:8123/"),
        (f"{PUBLIC}:8123", f"http://{PUBLIC}:8123/"),
    ],
)
def test_an_exception_lets_its_address_and_port_through(written: str, url: str) -> None:
    assert judge_url(url, EgressPolicy(allow=[written])).port == 8123


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:8124/",
        "http://127.0.0.2:8123/",
        "http://[::1]:8123/",
        "http://[::ffff:127.0.0.1]:8123/",
        f"http://{PUBLIC}:8123/",
    ],
)
def test_an_exception_lets_nothing_else_through(url: str) -> None:
    policy = EgressPolicy(allow=["127.0.0.1:8123"])
    assert refusal(url, policy) is ErrorCode.ADDRESS_FORBIDDEN


@pytest.mark.parametrize(
    "written",
    ["", "localhost:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:80",
     "10.0.0.0/8:80", "127.1:80", "[127.0.0.1]:80", "127.0.0.1:http"],
)  # fmt: skip
def test_an_exception_that_is_not_an_address_and_a_port_is_misconfigured(written: str) -> None:
    with pytest.raises(Misconfigured, match=r"write it like 127\.0\.0\.1:8123"):
        EgressPolicy(allow=[written])


# ---------------------------------------------------------------- connecting


class Network:
    """Answers of a name server, one after the other (the last for ever), and what was dialled."""

    def __init__(self, *answers: Sequence[str] | Exception, dead: Sequence[str] = ()) -> None:
        self.answers = list(answers)
        self.dead = dead
        self.asked: list[str] = []
        self.dialled: list[tuple[str, int]] = []

    async def resolve(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def dial(self, address: str, port: int) -> str:
        self.dialled.append((address, port))
        if address in self.dead:
            raise ConnectionRefusedError(111, "refused")
        return address

    def backend(self, policy: EgressPolicy = POLICY) -> PinnedBackend:
        return PinnedBackend(policy, dial=self.dial, resolver=self.resolve)


async def test_a_name_is_looked_up_once_and_its_checked_address_is_dialled() -> None:
    network = Network([PUBLIC])
    assert await network.backend().connect_tcp("example.com", 443, timeout=5) == PUBLIC
    assert network.asked == ["example.com"]
    assert network.dialled == [(PUBLIC, 443)]


async def test_a_literal_address_is_not_looked_up() -> None:
    network = Network([])
    await network.backend().connect_tcp(PUBLIC_IPV6, 80, timeout=5)
    assert network.asked == []
    assert network.dialled == [(PUBLIC_IPV6, 80)]


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN.keys())
@pytest.mark.parametrize("others", [[], [PUBLIC]], ids=["alone", "after a good one"])
async def test_a_name_is_refused_if_any_of_its_addresses_is(
    address: str, others: list[str]
) -> None:
    network = Network([*others, address])
    with pytest.raises(Unexaminable) as caught:
        await network.backend().connect_tcp("example.com", 80, timeout=5)
    assert caught.value.code is ErrorCode.ADDRESS_FORBIDDEN
    assert network.dialled == []


async def test_a_bad_address_is_found_behind_any_number_of_good_ones() -> None:
    network = Network([*[f"93.184.215.{n}" for n in range(50)], "10.0.0.1"])
    with pytest.raises(Unexaminable):
        await network.backend().connect_tcp("example.com", 80, timeout=5)
    assert network.dialled == []


async def test_a_name_that_answers_differently_the_second_time_is_judged_again() -> None:
    network = Network([PUBLIC], ["127.0.0.1"])
    backend = network.backend()
    await backend.connect_tcp("rebinding.example", 80, timeout=5)
    with pytest.raises(Unexaminable):
        await backend.connect_tcp("rebinding.example", 80, timeout=5)
    assert network.dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%lo", "2130706433", "0x7f.1"])
async def test_the_backend_judges_literals_by_itself(host: str) -> None:
    network = Network([PUBLIC])
    with pytest.raises(Unexaminable):
        await network.backend().connect_tcp(host, 80, timeout=5)
    assert network.dialled == []


async def test_the_port_of_an_exception_is_open_to_no_other_address() -> None:
    network = Network(["127.0.0.1"], [PUBLIC])
    backend = network.backend(EgressPolicy(allow=["127.0.0.1:8123"]))
    await backend.connect_tcp("demo.example", 8123, timeout=5)
    with pytest.raises(Unexaminable):
        await backend.connect_tcp("demo.example", 8123, timeout=5)
    assert network.dialled == [("127.0.0.1", 8123)]


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    network = Network([PUBLIC_IPV6, PUBLIC], dead=[PUBLIC_IPV6])
    assert await network.backend().connect_tcp("example.com", 80, timeout=5) == PUBLIC


async def test_no_answer_from_any_address_is_transient() -> None:
    network = Network([PUBLIC], dead=[PUBLIC])
    with pytest.raises(Transient) as caught:
        await network.backend().connect_tcp("example.com", 80, timeout=5)
    assert caught.value.code is ErrorCode.CONNECT_FAILED


async def test_a_name_without_addresses_is_transient() -> None:
    with pytest.raises(Transient) as caught:
        await Network([]).backend().connect_tcp("example.com", 80, timeout=5)
    assert caught.value.code is ErrorCode.CONNECT_FAILED


async def test_a_name_server_that_does_not_answer_is_given_up() -> None:
    async def resolve(name: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    backend = PinnedBackend(POLICY, dial=Network([]).dial, resolver=resolve)
    with pytest.raises(Transient) as caught:
        await backend.connect_tcp("example.com", 80, timeout=0.01)
    assert caught.value.code is ErrorCode.CONNECT_FAILED


async def test_a_name_that_does_not_exist_is_not_tried_again() -> None:
    network = Network(socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    with pytest.raises(Unexaminable) as caught:
        await network.backend().connect_tcp("nowhere.example", 80, timeout=5)
    assert (caught.value.code, caught.value.retryable) == (ErrorCode.DNS_FAILED, False)


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"),
        OSError(24, "Too many open files"),
    ],
)
async def test_a_look_up_that_fails_for_now_is_transient(error: OSError) -> None:
    network = Network(error)
    with pytest.raises(Transient) as caught:
        await network.backend().connect_tcp("example.com", 80, timeout=5)
    assert caught.value.code is ErrorCode.DNS_FAILED


async def test_the_systems_resolver_gives_addresses_that_are_judged() -> None:
    network = Network()
    backend = PinnedBackend(POLICY, dial=network.dial, resolver=SystemResolver())
    with pytest.raises(Unexaminable) as caught:
        await backend.connect_tcp("localhost", 80, timeout=5)
    assert caught.value.code is ErrorCode.ADDRESS_FORBIDDEN


# ---------------------------------------------------------------- what people see


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.com/a.jpg?token=s3cret#s3cret", "https://example.com/a.jpg"),
        ("https://s3cret:s3cret@example.com:8443/", "https://example.com:8443/"),
        ("https://[2606:4700::1]/x", "https://[2606:4700::1]/x"),
        ("https://example.com/a%0ab", "https://example.com/a%0ab"),
        ("http:s3cret@example.com/", "(unreadable URL)"),
        ("http://[s3cret]/", "(unreadable URL)"),
        ("http://example.com/\ud800s3cret", "(unreadable URL)"),
    ],
)
def test_a_url_is_shown_without_query_and_credentials(url: str, shown: str) -> None:
    assert public_url(url) == shown


def test_a_long_path_is_shown_shortened() -> None:
    assert len(public_url("https://example.com/" + "a" * 5000)) < 250


@given(st.text(max_size=60))
def test_any_text_can_be_shown_and_is_printable(text: str) -> None:
    assert public_url(text).isprintable()


@pytest.mark.parametrize(
    "text", ["http://10.0.0.1/?s3cret", "http://[s3cret]/", "ftp://h/?s3cret", "http://h:9/?s3cret"]
)
def test_a_refusal_does_not_quote_the_query(text: str) -> None:
    with pytest.raises(Unexaminable) as caught:
        judge_url(text, POLICY)
    assert "s3cret" not in str(caught.value)


def test_the_judged_url_is_the_one_to_request() -> None:
    target = judge_url("http://Bücher.example/a?b=ü#c", POLICY)
    assert target.url == httpx.URL("http://xn--bcher-kva.example/a?b=%C3%BC#c")
