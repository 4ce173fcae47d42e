"""What each image host may take of us: a share of the places, and a breaker when it is down.

A host that answers nobody would otherwise hold every download until its deadline, and all the
others would wait behind it. A host is a name and a port, as requests write them.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx
import structlog

from worker import telemetry
from worker.errors import ErrorCode, Stage, Unexaminable

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Hosts that nobody asks for and that failed lately: names are a stranger's to invent.
_REMEMBERED = 1024
# A failure counts together with another one if no longer than this lies between: so many times
# the breaker's own time, and never less, or an open breaker could be forgotten.
_REMEMBERED_FOR = 6
# Silence is listened to in so many parts, so that an event loop that was stuck, and heard nobody in
# that time, takes it for one part at most.
_LISTENS = 4


class Hosts:
    """Admits downloads, host by host.

    At most ``share`` (0..1, rounded up to a whole place) of ``slots`` places are held by downloads
    of one host; further ones wait. Its breaker opens after ``failures`` retryable failures in a
    row, or when it is *silent*: all its places are downloading, others wait, and for
    ``silence_seconds`` not one of the downloads has ended. Then all who wait, and all who come
    within ``breaker_seconds``, are refused at once. After that a single one is let through, as
    soon as no earlier download is left: failing opens the breaker again. Any download that is
    answered closes it, however late.

    ``async with hosts.place(url) as place:`` waits for admission, and ``with place.attempt():``
    goes around the download itself, so that what is waited for in between counts as nobody's
    silence. The place is free again when the attempt ends. All from one event loop.
    """

    def __init__(
        self,
        *,
        slots: int,
        share: float,
        failures: int = 5,
        silence_seconds: float = 3.0,
        breaker_seconds: float = 10.0,
    ) -> None:
        self._rules = _Rules(math.ceil(slots * share), failures, silence_seconds, breaker_seconds)
        self._asked: dict[str, _Host] = {}
        # Nobody asks for these now, but they have failed; since when (loop time), oldest first
        self._failed: OrderedDict[str, tuple[_Host, float]] = OrderedDict()

    @property
    def downloading(self) -> int:
        """Downloads under way, from all hosts; from any thread."""
        return sum(host.downloading for host in list(self._asked.values()))

    @property
    def waiting(self) -> int:
        """Askers that wait for a place of their host's; from any thread."""
        return sum(host.waiting for host in list(self._asked.values()))

    @asynccontextmanager
    async def place(self, url: str) -> AsyncIterator[Place]:
        """Wait for a place of the host that ``url`` names.

        Raises ``Unexaminable`` with ``host_unavailable``, retryable, while its breaker is open.
        """
        host = self._of(_name(url))
        host.askers += 1
        try:
            await host.admit()
            place = Place(host)
            try:
                yield place
            finally:
                place.give_back()
        finally:
            host.askers -= 1
            self._let_go(host)

    def _of(self, name: str) -> _Host:
        self._forget()
        if name not in self._asked:
            failed = self._failed.pop(name, None)
            self._asked[name] = failed[0] if failed else _Host(name, self._rules)
        return self._asked[name]

    def _let_go(self, host: _Host) -> None:
        if host.askers == 0:
            del self._asked[host.name]
            if host.failures or host.refused_until is not None:
                self._failed[host.name] = host, asyncio.get_running_loop().time()
        self._forget()

    def _forget(self) -> None:
        """Drop hosts whose failures are too old, or too many to remember."""
        long_ago = asyncio.get_running_loop().time()
        long_ago -= _REMEMBERED_FOR * self._rules.breaker_seconds
        while self._failed:
            host, since = next(iter(self._failed.values()))
            if since > long_ago and len(self._failed) <= _REMEMBERED:
                return
            del self._failed[host.name]
            host.close()


class Place:
    """Leave for one download from a host."""

    def __init__(self, host: _Host) -> None:
        self._host = host
        self._held = True

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around the download, once: how it ends is how the host is judged."""
        answered: bool | None = None  # cancelled: says nothing of the host
        self._host.started()
        try:
            yield
            answered = True
        except Unexaminable as failure:
            answered = not failure.retryable  # a 404 is an answer
            telemetry.FETCHES.labels(failure.code.value).inc()
            raise
        finally:
            self._host.ended(answered)
            self.give_back()

    def worth_retrying(self) -> bool:
        """No longer once the host is left alone: it would only hold the place."""
        return self._host.refused_until is None

    def give_back(self) -> None:
        if self._held:
            self._held = False
            self._host.give_back()


@dataclass(frozen=True, slots=True)
class _Rules:
    places: int
    failures: int
    silence_seconds: float
    breaker_seconds: float


class _Host:
    """One host. Someone waits only while all places are held and the breaker is closed."""

    def __init__(self, name: str, rules: _Rules) -> None:
        self.name = name
        self._rules = rules
        self.askers = 0  # inside ``Hosts.place``: waiting, holding a place, or done with it
        self.failures = 0  # in a row
        self.refused_until: float | None = None  # loop time; None while the breaker is closed
        self._held = 0
        self._downloading = 0
        self._silence: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[bool]] = deque()  # True: here is a place

    @property
    def downloading(self) -> int:
        return self._downloading

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def admit(self) -> None:
        # Past its time, one is let through to see, as soon as nobody is left from before
        now = asyncio.get_running_loop().time()
        if self.refused_until is not None and (now < self.refused_until or self._held):
            raise self._unavailable()
        if self._held < self._rules.places:
            self._held += 1
        elif not await self._wait():
            raise self._unavailable()

    async def _wait(self) -> bool:
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled() and turn.result():  # handed over to one who has left
                self.give_back()
            raise

    def give_back(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)  # handed over: still held
                return
        self._held -= 1

    def started(self) -> None:
        self._downloading += 1
        if self._downloading == self._rules.places:
            self._listen()

    def ended(self, answered: bool | None) -> None:
        self._downloading -= 1
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if answered:
            self.failures = 0
            self.close()
        elif answered is False:
            self.failures += 1
            if self.refused_until is not None or self.failures >= self._rules.failures:
                self._open(f"{self.failures} failures in a row")

    def _listen(self, heard: int = 0) -> None:
        """All places are downloading: look again when one of them should have ended."""
        self._silence = asyncio.get_running_loop().call_later(
            self._rules.silence_seconds / _LISTENS, self._after_silence, heard + 1
        )

    def _after_silence(self, heard: int) -> None:
        self._listen(heard)
        if heard >= _LISTENS and self._waiting:
            seconds = self._rules.silence_seconds
            self._open(f"{self._downloading} downloads, and none ended for {seconds:g} s")

    def _open(self, reason: str) -> None:
        if self.refused_until is None:
            telemetry.HOST_BREAKER_OPENED.inc()
            telemetry.HOST_BREAKERS_OPEN.inc()
            _log.warning("host_breaker_opened", host=self.name, reason=reason)
        self.refused_until = asyncio.get_running_loop().time() + self._rules.breaker_seconds
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(False)

    def close(self) -> None:
        if self.refused_until is not None:
            self.refused_until = None
            telemetry.HOST_BREAKERS_OPEN.dec()
            _log.info("host_breaker_closed", host=self.name)

    def _unavailable(self) -> Unexaminable:
        telemetry.FETCHES.labels(ErrorCode.HOST_UNAVAILABLE.value).inc()
        return Unexaminable(
            ErrorCode.HOST_UNAVAILABLE,
            Stage.FETCH,
            f"{self.name} does not answer at the moment, so nothing more is asked of it for now",
            retryable=True,
            attempts=0,
        )


def _name(url: str) -> str:
    """Host and port in lower case. What cannot be parsed, and will be refused, counts as one."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "(unreadable URL)"
    port = parsed.port or {"http": 80}.get(parsed.scheme, 443)
    return f"{parsed.raw_host.decode('ascii')}:{port}"
