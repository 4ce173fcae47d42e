"""``imagewarden top``: what workers do now, from their metrics."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from urllib.parse import urlsplit

import httpx
import typer
from rich.console import Console
from rich.live import Live

from worker.commands.render import Exit, Format
from worker.commands.top_numbers import Numbers, numbers_of
from worker.commands.top_view import WIDTH, frame
from worker.errors import Misconfigured
from worker.scrapes import Change, Pair, Scrape, parse_scrape
from worker.settings import Settings

_ANSWER_SECONDS = 3.0
_UNIX = "unix:"


class Endpoint:
    """Where metrics are served: ``host:port``, a URL, or ``unix:`` and a path."""

    def __init__(self, written: str) -> None:
        """Raises ``Misconfigured``."""
        path, transport = "/metrics", None
        if written.startswith(_UNIX):
            transport = httpx.HTTPTransport(uds=written.removeprefix(_UNIX))
            self.name, self._url = written, f"http://localhost{path}"
        else:
            try:
                url = urlsplit(written if "://" in written else f"http://{written}")
                self.name = f"{url.hostname}:{url.port or 80}"
            except ValueError:
                url = urlsplit("")
            if url.scheme not in ("http", "https") or not url.hostname:
                raise Misconfigured(
                    "an endpoint is written host:port, http://host:port/metrics or unix:PATH"
                )
            self._url = url._replace(path=url.path.rstrip("/") or path).geturl()
            self.name += url.path.rstrip("/").removesuffix(path)
        self._client = httpx.Client(transport=transport, timeout=_ANSWER_SECONDS, trust_env=False)

    def look(self) -> Scrape | str:
        """What it says, or why it does not."""
        try:
            answer = self._client.get(self._url)
            answer.raise_for_status()
            return parse_scrape(answer.text, time.monotonic())
        except httpx.HTTPStatusError as error:
            return f"answers {error.response.status_code}"
        except httpx.TimeoutException:
            return f"no answer within {_ANSWER_SECONDS:g} s"
        except (httpx.HTTPError, OSError):
            return "does not answer"
        except ValueError:
            return "serves no metrics"


def default_endpoint(settings: Settings) -> str:
    """Of the worker with these settings, on this machine."""
    host, port = settings.http.host, settings.http.port
    if host.startswith(_UNIX):
        return host
    return f"{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"


class Fleet:
    """Endpoints, and what they said last."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = endpoints
        self._last: dict[str, Scrape] = {}
        self._threads = ThreadPoolExecutor(len(endpoints), thread_name_prefix="top")

    def look(self) -> tuple[Mapping[str, Numbers | str], Numbers | None]:
        """The numbers of each since the last look, and of all; a first one tells no rates."""
        pairs: dict[str, Pair] = {}
        told: dict[str, Numbers | str] = {}
        looks = self._threads.map(Endpoint.look, self._endpoints)
        for endpoint, scrape in zip(self._endpoints, looks, strict=True):
            if isinstance(scrape, str):
                self._last.pop(endpoint.name, None)
                told[endpoint.name] = scrape
                continue
            pair = Pair(self._last.get(endpoint.name, scrape), scrape)
            self._last[endpoint.name] = scrape
            pairs[endpoint.name] = pair
            told[endpoint.name] = numbers_of(Change([pair]))
        return told, numbers_of(Change(list(pairs.values()))) if pairs else None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def watch(urls: Sequence[str], interval_seconds: float) -> None:
    """Shows them until Ctrl-C or SIGTERM, which leave the terminal as it was."""
    fleet = Fleet([Endpoint(url) for url in dict.fromkeys(urls)])
    signal.signal(signal.SIGTERM, _terminated)
    try:
        with Live(console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                began = time.monotonic()
                endpoints, all_of_them = fleet.look()
                title = _title(endpoints, interval_seconds)
                live.update(frame(endpoints, all_of_them, title), refresh=True)
                time.sleep(max(0.0, began + interval_seconds - time.monotonic()))
    except KeyboardInterrupt:
        return  # as one leaves it
    finally:
        fleet.close()


def show_once(urls: Sequence[str], interval_seconds: float, format: Format) -> Exit:
    """Prints what became of them within ``interval_seconds``."""
    fleet = Fleet([Endpoint(url) for url in dict.fromkeys(urls)])
    try:
        fleet.look()
        time.sleep(interval_seconds)
        endpoints, all_of_them = fleet.look()
    finally:
        fleet.close()
    if format is Format.JSONL:
        for name, numbers in endpoints.items():
            typer.echo(json.dumps({"worker": name, **_json(numbers)}))
        if all_of_them is not None:
            typer.echo(json.dumps({"worker": None, **_json(all_of_them)}))
    else:
        width = None if sys.stdout.isatty() else WIDTH
        Console(width=width).print(frame(endpoints, all_of_them, _title(endpoints)))
    silent = any(isinstance(numbers, str) for numbers in endpoints.values())
    return Exit.NOT_EXAMINED if silent else Exit.ALL_ALLOWED


def _json(numbers: Numbers | str) -> dict[str, object]:
    if isinstance(numbers, str):
        return {"failed": numbers}
    slowest, fullest = numbers.slowest, numbers.fullest
    return {
        "failed": None,
        **dataclasses.asdict(numbers),
        "slowest": slowest.stage if slowest else None,
        "fullest": fullest.stage if fullest else None,
    }


def _title(endpoints: Mapping[str, Numbers | str], interval_seconds: float | None = None) -> str:
    answered = sum(not isinstance(numbers, str) for numbers in endpoints.values())
    every = f" · every {interval_seconds:g} s" if interval_seconds else ""
    return f"imagewarden top · {answered} of {len(endpoints)} answer{every} · {time.strftime('%T')}"


def _terminated(number: int, stack: FrameType | None) -> None:
    raise SystemExit(128 + number)
