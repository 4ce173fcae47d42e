"""What each image host may take of us."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.egress import EgressPolicy
from worker.errors import ErrorCode, Stage, Unexaminable
from worker.fetch import HttpFetcher
from worker.hosts import Hosts, Place
from worker.telemetry import REGISTRY

URL = "http://images.example/a.jpg"
BREAKER_SECONDS = 10.0
SILENCE_SECONDS = 3.0


class _Leaping(selectors.DefaultSelector):
    """Does not wait for a timer but makes it be that time."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and for nothing that will ever happen"
        self.now += timeout
        return super().select(0)


class _LeapingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._leaping = _Leaping()
        super().__init__(self._leaping)

    def time(self) -> float:
        return self._leaping.now

    def be_stuck(self, seconds: float) -> None:
        self._leaping.now += seconds


def in_no_time(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Plays a scene whose sleeps and timers take no time."""
    with asyncio.Runner(loop_factory=_LeapingLoop) as runner:
        runner.run(scene())


def hosts_of(places: int, *, failures: int = 5) -> Hosts:
    return Hosts(
        slots=places * 2,
        share=0.5,
        failures=failures,
        silence_seconds=SILENCE_SECONDS,
        breaker_seconds=BREAKER_SECONDS,
    )


def fails(retryable: bool = True) -> Unexaminable:
    code = ErrorCode.HTTP_SERVER_ERROR if retryable else ErrorCode.HTTP_CLIENT_ERROR
    return Unexaminable(code, Stage.FETCH, "it said so", retryable=retryable)


async def download(
    hosts: Hosts, url: str = URL, *, seconds: float = 0.0, failure: Unexaminable | None = None
) -> None:
    async with hosts.place(url) as place:
        with place.attempt():
            await asyncio.sleep(seconds)
            if failure:
                raise failure


async def outcome_of(download: Coroutine[Any, Any, None]) -> str:
    """``ok``, or the code of its failure."""
    try:
        await download
    except Unexaminable as failure:
        return str(failure.code)
    return "ok"


async def fail(hosts: Hosts, times: int, url: str = URL) -> None:
    for _ in range(times):
        assert await outcome_of(download(hosts, url, failure=fails())) == "http_server_error"


async def settle() -> None:
    """Until nothing moves without a timer."""
    await asyncio.sleep(1e-6)


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(f"imagewarden_{name}") or 0.0


# ---------------------------------------------------------------- the share


@pytest.mark.parametrize(
    ("slots", "share", "places"), [(48, 0.25, 12), (10, 0.25, 3), (1, 0.25, 1), (4, 1.0, 4)]
)
def test_a_host_gets_its_share_of_the_places_rounded_up(
    slots: int, share: float, places: int
) -> None:
    async def scene() -> None:
        hosts = Hosts(slots=slots, share=share)
        async with asyncio.TaskGroup() as group, AsyncExitStack() as held:
            for _ in range(places):
                await held.enter_async_context(hosts.place(URL))
            further = group.create_task(download(hosts))
            await settle()
            assert not further.done()
            await held.aclose()
            await further

    in_no_time(scene)


def test_another_host_does_not_wait_for_the_first_ones_share() -> None:
    async def scene() -> None:
        hosts = hosts_of(1)
        async with hosts.place(URL):
            for other in ("http://other.example/", "http://images.example:8080/a.jpg"):
                await download(hosts, other)

    in_no_time(scene)


@pytest.mark.parametrize(
    "url", ["HTTP://IMAGES.example:80/b?c", "http://images.example", "http://a:b@images.example/"]
)
def test_a_host_is_known_by_name_and_port_however_it_is_written(url: str) -> None:
    async def scene() -> None:
        hosts = hosts_of(1)
        async with asyncio.TaskGroup() as group, hosts.place(URL):
            other = group.create_task(download(hosts, url))
            await settle()
            assert not other.done()

    in_no_time(scene)


@pytest.mark.parametrize("url", ["", "http://[", "nothing", "http://\ud800/", "http://x:99999999/"])
def test_what_is_no_url_is_admitted_for_the_fetcher_to_refuse(url: str) -> None:
    async def scene() -> None:
        assert await outcome_of(download(hosts_of(1), url)) == "ok"

    in_no_time(scene)


def test_a_place_is_free_again_when_its_download_has_ended() -> None:
    async def scene() -> None:
        hosts = hosts_of(1)
        async with hosts.place(URL) as place:
            with place.attempt():
                pass
            await download(hosts)  # while the first one's image is decoded

    in_no_time(scene)


def test_those_who_wait_get_their_places_in_turn() -> None:
    async def scene() -> None:
        hosts = hosts_of(1)
        order = []

        async def ask(number: int) -> None:
            async with hosts.place(URL):
                order.append(number)
                await asyncio.sleep(1)

        await asyncio.gather(*(ask(number) for number in range(5)))
        assert order == list(range(5))

    in_no_time(scene)


def test_a_place_handed_to_one_who_is_cancelled_in_that_moment_goes_to_the_next() -> None:
    async def scene() -> None:
        hosts = hosts_of(1)
        async with hosts.place(URL):
            first = asyncio.create_task(download(hosts))
            second = asyncio.create_task(download(hosts))
            await settle()
        first.cancel()  # it was handed the place, and has not run since
        await second
        assert first.cancelled()

    in_no_time(scene)


def test_who_is_refused_and_cancelled_in_the_same_moment_takes_no_place_along() -> None:
    async def scene() -> None:
        hosts = hosts_of(1, failures=1)
        async with hosts.place(URL) as place:
            waiting = asyncio.create_task(download(hosts))
            await settle()
            with suppress(Unexaminable), place.attempt():
                raise fails()
            waiting.cancel()
        await asyncio.sleep(BREAKER_SECONDS)
        await download(hosts)

    in_no_time(scene)


# ---------------------------------------------------------------- the breaker


def test_failures_in_a_row_open_the_breaker() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=3)
        await fail(hosts, 3)
        with pytest.raises(Unexaminable) as caught:
            await download(hosts, URL + "?s3cret")
        refused = caught.value
        assert (refused.code, refused.stage) == (ErrorCode.HOST_UNAVAILABLE, Stage.FETCH)
        assert (refused.retryable, refused.attempts) == (True, 0)
        assert "images.example:80" in refused.detail
        assert "s3cret" not in str(refused)
        assert await outcome_of(download(hosts, "http://other.example/")) == "ok"

    in_no_time(scene)


@pytest.mark.parametrize("failure", [None, fails(retryable=False)], ids=["a body", "a 404"])
def test_an_answer_between_failures_keeps_the_breaker_closed(failure: Unexaminable | None) -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=3)
        for _ in range(3):
            await fail(hosts, 2)
            await outcome_of(download(hosts, failure=failure))

    in_no_time(scene)


def test_cancelled_downloads_say_nothing_of_the_host() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=2)
        await fail(hosts, 1)
        for _ in range(5):
            task = asyncio.create_task(download(hosts, seconds=1))
            await settle()
            task.cancel()
            await asyncio.wait([task])
        await fail(hosts, 1)
        assert await outcome_of(download(hosts)) == "host_unavailable"

    in_no_time(scene)


def test_all_who_wait_are_refused_when_the_breaker_opens() -> None:
    async def scene() -> None:
        hosts = hosts_of(1, failures=1)
        first = download(hosts, seconds=1, failure=fails())
        others = (download(hosts) for _ in range(5))
        outcomes = await asyncio.gather(*map(outcome_of, (first, *others)))
        assert outcomes == ["http_server_error", *["host_unavailable"] * 5]

    in_no_time(scene)


def test_after_its_time_one_is_let_through_and_its_answer_closes_the_breaker() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=1)
        await fail(hosts, 1)
        await asyncio.sleep(BREAKER_SECONDS)
        askers = (download(hosts, seconds=1) for _ in range(3))
        outcomes = await asyncio.gather(*map(outcome_of, askers))
        assert outcomes == ["ok", "host_unavailable", "host_unavailable"]
        assert await outcome_of(download(hosts)) == "ok"

    in_no_time(scene)


def test_after_its_time_one_is_let_through_and_its_failure_opens_the_breaker_again() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=3)
        await fail(hosts, 3)
        for _ in range(3):
            await asyncio.sleep(BREAKER_SECONDS)
            await fail(hosts, 1)
            await asyncio.sleep(BREAKER_SECONDS / 2)
            assert await outcome_of(download(hosts)) == "host_unavailable"

    in_no_time(scene)


def test_when_the_one_let_through_is_cancelled_the_next_is_let_through() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=1)
        await fail(hosts, 1)
        await asyncio.sleep(BREAKER_SECONDS)
        probe = asyncio.create_task(download(hosts, seconds=1))
        await settle()
        probe.cancel()
        await asyncio.wait([probe])
        assert await outcome_of(download(hosts)) == "ok"

    in_no_time(scene)


def test_a_late_answer_to_an_earlier_download_closes_the_breaker() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=1)
        early = asyncio.create_task(download(hosts, seconds=1))
        await settle()
        await fail(hosts, 1)
        assert await outcome_of(download(hosts)) == "host_unavailable"
        await early
        assert await outcome_of(download(hosts)) == "ok"

    in_no_time(scene)


def test_failures_are_forgotten_after_a_while() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=2)
        for _ in range(4):
            await fail(hosts, 1)
            await asyncio.sleep(BREAKER_SECONDS * 10)
        await fail(hosts, 2)
        assert await outcome_of(download(hosts)) == "host_unavailable"

    in_no_time(scene)


def test_a_flood_of_failing_names_is_not_remembered_whole() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=2)
        await fail(hosts, 1)
        for number in range(1500):
            await fail(hosts, 1, f"http://{number}.example/")
        remembered = len(hosts._asked) + len(hosts._failed)
        assert remembered <= 1024
        await fail(hosts, 1)
        assert await outcome_of(download(hosts)) == "ok"

    in_no_time(scene)


def test_a_host_that_answers_is_not_remembered_at_all() -> None:
    async def scene() -> None:
        hosts = hosts_of(2)
        await asyncio.gather(*(download(hosts, seconds=1) for _ in range(8)))
        await fail(hosts, 1)
        await download(hosts)
        assert not hosts._asked and not hosts._failed

    in_no_time(scene)


def test_breakers_are_counted_and_no_longer_once_they_are_closed_or_forgotten() -> None:
    async def scene() -> None:
        hosts = hosts_of(4, failures=1)
        opened, open_now = metric("host_breaker_opened_total"), metric("host_breakers_open")
        for url in (URL, "http://other.example/"):
            await fail(hosts, 1, url)
        assert metric("host_breaker_opened_total") == opened + 2
        assert metric("host_breakers_open") == open_now + 2
        await asyncio.sleep(BREAKER_SECONDS)
        await download(hosts)
        assert metric("host_breakers_open") == open_now + 1
        await asyncio.sleep(BREAKER_SECONDS * 10)
        await download(hosts)
        assert metric("host_breakers_open") == open_now
        assert metric("host_breaker_opened_total") == opened + 2

    in_no_time(scene)


def test_an_attempt_is_worth_retrying_until_the_breaker_opens_and_again_once_it_closes() -> None:
    async def scene() -> None:
        hosts = hosts_of(3)
        async with hosts.place(URL) as place:
            with place.attempt():
                assert place.worth_retrying()
                await fail(hosts, 5)
                assert not place.worth_retrying()
            assert place.worth_retrying()

    in_no_time(scene)


# ---------------------------------------------------------------- silence


@asynccontextmanager
async def hanging(hosts: Hosts, downloads: int) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks = [asyncio.create_task(download(hosts, seconds=1e9)) for _ in range(downloads)]
    await settle()
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def test_who_waits_for_a_silent_host_is_refused() -> None:
    async def scene() -> None:
        hosts = hosts_of(3)
        async with hanging(hosts, 3):
            waiting = (outcome_of(download(hosts)) for _ in range(4))
            assert await asyncio.gather(*waiting) == ["host_unavailable"] * 4
            assert asyncio.get_running_loop().time() == pytest.approx(SILENCE_SECONDS, abs=0.01)

    in_no_time(scene)


def test_a_host_is_not_silent_while_nobody_waits_for_it() -> None:
    async def scene() -> None:
        hosts = hosts_of(3)
        async with hanging(hosts, 3) as downloads:
            gone = asyncio.create_task(download(hosts))
            await settle()
            gone.cancel()
            await asyncio.sleep(SILENCE_SECONDS * 3.5)
            waiting = asyncio.create_task(outcome_of(download(hosts)))
            await settle()
            assert not waiting.done()
            downloads[0].cancel()
            assert await waiting == "ok"

    in_no_time(scene)


def test_who_comes_late_to_a_silent_host_is_refused_too() -> None:
    async def scene() -> None:
        hosts = hosts_of(3)
        async with hanging(hosts, 3):
            await asyncio.sleep(SILENCE_SECONDS * 3.5)
            assert await outcome_of(download(hosts)) == "host_unavailable"

    in_no_time(scene)


def test_a_host_is_not_silent_while_its_downloads_end_now_and_then() -> None:
    async def scene() -> None:
        hosts = hosts_of(2)
        # Each takes longer than the silence, but after the first, one ends every half of that
        seconds = [SILENCE_SECONDS * 0.6, *[SILENCE_SECONDS * 1.2] * 7]
        slow = (outcome_of(download(hosts, seconds=each)) for each in seconds)
        assert await asyncio.gather(*slow) == ["ok"] * 8

    in_no_time(scene)


def test_waiting_for_something_of_ours_is_not_the_hosts_silence() -> None:
    async def scene() -> None:
        hosts, slot = hosts_of(2), asyncio.Semaphore(1)

        async def examine() -> None:
            async with hosts.place(URL) as place, slot:
                with place.attempt():
                    await asyncio.sleep(SILENCE_SECONDS * 0.9)
                await asyncio.sleep(SILENCE_SECONDS * 2)  # the model is slow

        outcomes = await asyncio.gather(*(outcome_of(examine()) for _ in range(6)))
        assert outcomes == ["ok"] * 6

    in_no_time(scene)


def test_an_event_loop_that_was_stuck_is_not_the_hosts_silence() -> None:
    async def scene() -> None:
        hosts = hosts_of(2)
        outcomes = [
            asyncio.create_task(outcome_of(download(hosts, seconds=SILENCE_SECONDS * 0.9)))
            for _ in range(4)
        ]
        await settle()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _LeapingLoop)
        loop.call_later(1, loop.be_stuck, SILENCE_SECONDS * 1.5)
        assert await asyncio.gather(*outcomes) == ["ok"] * 4

    in_no_time(scene)


def test_a_silent_host_is_probed_when_its_earlier_downloads_are_gone() -> None:
    async def scene() -> None:
        hosts = hosts_of(2)
        async with hanging(hosts, 2):
            assert await outcome_of(download(hosts)) == "host_unavailable"
            await asyncio.sleep(BREAKER_SECONDS)
            assert await outcome_of(download(hosts)) == "host_unavailable"
        assert await outcome_of(download(hosts)) == "ok"

    in_no_time(scene)


def test_a_silent_host_whose_probe_fails_is_left_alone_again() -> None:
    async def scene() -> None:
        hosts = hosts_of(2)
        async with hanging(hosts, 2):
            assert await outcome_of(download(hosts)) == "host_unavailable"
        await asyncio.sleep(BREAKER_SECONDS)
        await fail(hosts, 1)
        assert await outcome_of(download(hosts)) == "host_unavailable"

    in_no_time(scene)


# ---------------------------------------------------------------- whatever happens


_asker = st.tuples(
    st.sampled_from(["a", "b"]),  # host
    st.integers(0, 12),  # asks at
    st.integers(0, 3),  # something of ours takes
    st.integers(0, 9),  # its download takes
    st.sampled_from(["ok", "fails", "404"]),
    st.none() | st.integers(0, 14),  # cancelled at
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_asker, max_size=24), st.integers(1, 3), st.integers(1, 4))
def test_no_host_exceeds_its_share_all_are_answered_and_no_place_is_lost(
    askers: list[tuple[str, int, int, int, str, int | None]], places: int, failures: int
) -> None:
    async def scene() -> None:
        hosts = hosts_of(places, failures=failures)
        inside: dict[str, int] = {"a": 0, "b": 0}
        open_now = metric("host_breakers_open")

        async def ask(host: str, at: int, ours: int, theirs: int, how: str) -> None:
            await asyncio.sleep(at)
            async with hosts.place(f"http://{host}.example/") as place:
                inside[host] += 1
                assert inside[host] <= places
                try:
                    await asyncio.sleep(ours)
                    await attempt(place, theirs, how)
                finally:
                    inside[host] -= 1
                await asyncio.sleep(ours)

        async def attempt(place: Place, theirs: int, how: str) -> None:
            with place.attempt():
                await asyncio.sleep(theirs)
                if how != "ok":
                    raise fails(retryable=how == "fails")

        async def asked(
            host: str, at: int, ours: int, theirs: int, how: str, leaves: int | None
        ) -> str:
            task = asyncio.ensure_future(outcome_of(ask(host, at, ours, theirs, how)))
            if leaves is not None:
                asyncio.get_running_loop().call_later(leaves, task.cancel)
            with suppress(asyncio.CancelledError):
                return await task
            return "cancelled"

        outcomes = await asyncio.gather(*(asked(*asker) for asker in askers))
        expected = {"ok": "ok", "fails": "http_server_error", "404": "http_client_error"}
        for (*_, how, leaves), outcome in zip(askers, outcomes, strict=True):
            assert outcome in (expected[how], "host_unavailable") or leaves is not None
        # Once the breakers' time is over, every place can be held again, and that is all of them
        await asyncio.sleep(BREAKER_SECONDS)
        for host in inside:
            url = f"http://{host}.example/"
            await download(hosts, url)
            async with AsyncExitStack() as held:
                for _ in range(places):
                    await held.enter_async_context(hosts.place(url))
                assert not await _admitted_at_once(hosts, url)
        assert metric("host_breakers_open") == open_now
        assert not hosts._asked and not hosts._failed

    in_no_time(scene)


async def _admitted_at_once(hosts: Hosts, url: str) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.001), hosts.place(url):
            return True
    return False


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.floats(0.05, 1.0), st.integers(1, 60))
def test_the_share_is_never_rounded_to_nothing(slots: int, share: float, askers: int) -> None:
    async def scene() -> None:
        hosts, inside, most = Hosts(slots=slots, share=share), 0, 0

        async def ask() -> None:
            nonlocal inside, most
            async with hosts.place(URL):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(1)
                inside -= 1

        await asyncio.gather(*(ask() for _ in range(askers)))
        assert most == min(askers, math.ceil(slots * share))

    in_no_time(scene)


# ---------------------------------------------------------------- with real downloads


async def test_a_host_that_never_answers_leaves_the_others_their_places() -> None:
    body = b"an image"

    async def live(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async def dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)  # and says nothing
        writer.close()

    async with AsyncExitStack() as stack:
        urls = []
        for serve in (live, dead):
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            stack.callback(server.close)
            urls.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        fetcher = HttpFetcher(
            egress=EgressPolicy(allow=urls),
            total_timeout_seconds=3600,
            read_timeout_seconds=2,
            attempts=1000,
        )
        stack.push_async_callback(fetcher.close)
        hosts = Hosts(slots=8, share=0.5, silence_seconds=1, breaker_seconds=3600)
        slots = asyncio.Semaphore(8)

        async def examine(url: str) -> None:
            async with hosts.place(url) as place, slots:
                with place.attempt():
                    await fetcher.fetch(url, worth_retrying=place.worth_retrying)

        asked = [asyncio.create_task(outcome_of(examine(f"http://{urls[n % 2]}/{n}")))
                 for n in range(200)]  # fmt: skip
        stack.callback(lambda: [task.cancel() for task in asked])
        alive, unanswered = asked[0::2], asked[1::2]
        assert await asyncio.gather(*alive) == ["ok"] * 100
        assert await asyncio.gather(*unanswered[4:]) == ["host_unavailable"] * 96
        # These found out that nobody answers, and know better than to ask a thousand times
        assert await asyncio.gather(*unanswered[:4]) == ["fetch_timeout"] * 4
