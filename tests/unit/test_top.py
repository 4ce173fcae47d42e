"""`imagewarden top`: from two looks at metrics to numbers, and from those to 80 columns."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from worker.cli import cli
from worker.commands.top import Endpoint, default_endpoint
from worker.commands.top_numbers import STAGES, Numbers, StageNumbers, numbers_of
from worker.commands.top_view import WIDTH, frame
from worker.endpoints import Health, open_endpoints
from worker.errors import Misconfigured
from worker.scrapes import Change, Pair, parse_scrape
from worker.settings_load import load_settings

PATIENCE_SECONDS = 60.0


def change(before: str, after: str, seconds: float = 2.0) -> Change:
    return Change([Pair(parse_scrape(before, 10.0), parse_scrape(after, 10.0 + seconds))])


def verdicts(count: float, action: str = "allow", process: str = "0") -> str:
    labels = f'policy="p",decision="{action}",action="{action}",process="{process}"'
    return f"imagewarden_verdicts_total{{{labels}}} {count}\n"


# ---------------------------------------------------------------------------- two looks


def test_a_rate_is_what_was_counted_in_between_a_second() -> None:
    numbers = numbers_of(change(verdicts(10), verdicts(30)))
    assert numbers.verdicts == 10.0


def test_rates_add_up_over_labels_processes_and_endpoints() -> None:
    before = verdicts(0) + verdicts(0, "block")
    after = verdicts(20) + verdicts(10, "block")
    other = Pair(parse_scrape(verdicts(5, process="1"), 0.0), parse_scrape(verdicts(9), 1.0))
    pair = Pair(parse_scrape(before, 0.0), parse_scrape(after, 2.0))
    numbers = numbers_of(Change([pair, other]))
    assert numbers.verdicts == 10.0 + 5.0 + 9.0  # of the other one a process is new
    assert numbers.actions == {"allow": 19.0, "block": 5.0}


def test_a_counter_that_began_anew_counts_from_0() -> None:
    assert numbers_of(change(verdicts(1000), verdicts(6))).verdicts == 3.0


def test_absent_series_are_not_told_rather_than_0() -> None:
    numbers = numbers_of(change("", ""))
    assert numbers.verdicts is None
    assert numbers.cached is None
    assert numbers.p99_seconds is None
    assert numbers.lag == {}
    assert numbers.slowest is None
    assert numbers.warnings == ()


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), max_size=5))
def test_no_rate_is_negative(counts: list[tuple[float, float]]) -> None:
    before = "".join(verdicts(was, process=str(n)) for n, (was, _) in enumerate(counts))
    after = "".join(verdicts(now, process=str(n)) for n, (_, now) in enumerate(counts))
    assert (numbers_of(change(before, after)).verdicts or 0.0) >= 0.0


def test_lag_is_told_by_topic_and_with_how_it_changes() -> None:
    def lag(*counts: int) -> str:
        name = "imagewarden_consumer_lag_records"
        return "".join(
            f'{name}{{topic="{topic}",partition="{n}"}} {count}\n'
            for n, (topic, count) in enumerate(
                zip(("live", "live", "retries"), counts, strict=True)
            )
        )

    numbers = numbers_of(change(lag(50, 50, 7), lag(30, 30, 7)))
    assert numbers.lag == {"live": 60.0, "retries": 7.0}
    assert numbers.lag_growth == -20.0


def test_the_cached_share_is_of_images_that_were_not_embedded() -> None:
    def looked_up(memory: int, redis: int, missed: int) -> str:
        return "".join(
            f'imagewarden_cache_answers_total{{kind="{kind}",tier="{tier}"}} {count}\n'
            for kind in ("embedding", "url")
            for tier, count in (("memory", memory), ("redis", redis), ("none", missed))
            if kind == "embedding" or count > 1000
        )

    assert numbers_of(change(looked_up(10, 10, 10), looked_up(15, 25, 30))).cached == 0.5


def bucketed(name: str, counts: dict[str, int]) -> str:
    return "".join(f'{name}_bucket{{le="{le}"}} {count}\n' for le, count in counts.items())


def test_quantiles_are_of_what_was_observed_in_between() -> None:
    name = "imagewarden_request_duration_seconds"
    before = bucketed(name, {"0.1": 100, "1.0": 100, "+Inf": 100})
    after = bucketed(name, {"0.1": 150, "1.0": 200, "+Inf": 200})
    numbers = numbers_of(change(before, after))
    assert numbers.median_seconds == pytest.approx(0.1)
    assert numbers.p99_seconds == pytest.approx(0.1 + 0.9 * 0.98)


def test_a_quantile_beyond_the_last_bound_is_that_bound() -> None:
    name = "imagewarden_request_duration_seconds"
    after = bucketed(name, {"0.1": 0, "60.0": 0, "+Inf": 5})
    assert numbers_of(change(bucketed(name, {"0.1": 0}), after)).p99_seconds == 60.0


def staged(**work: tuple[float, int]) -> str:
    """Seconds at work and images, of each stage; each has two places."""
    name = "imagewarden_stage"
    return "".join(
        f'{name}_duration_seconds_sum{{stage="{stage}"}} {seconds}\n'
        f'{name}_duration_seconds_count{{stage="{stage}"}} {count}\n'
        f'{name}_places{{stage="{stage}"}} 2\n'
        for stage, (seconds, count) in work.items()
    )


def test_the_slowest_stage_is_where_an_image_spends_most_of_its_time() -> None:
    before = staged(fetch=(0.0, 0), decode=(0.0, 0))
    numbers = numbers_of(change(before, staged(fetch=(1.0, 10), decode=(3.9, 100))))
    assert numbers.slowest is not None
    assert (numbers.slowest.stage, numbers.slowest.seconds) == ("fetch", 0.1)


def test_the_fullest_stage_is_the_one_with_the_fewest_places_left() -> None:
    before = staged(fetch=(0.0, 0), decode=(0.0, 0))
    numbers = numbers_of(change(before, staged(fetch=(1.0, 10), decode=(3.8, 100))))
    assert numbers.fullest is not None
    assert (numbers.fullest.stage, numbers.fullest.busy) == ("decode", 0.95)


def test_the_model_of_several_processes_is_as_busy_as_they_are_on_average() -> None:
    name = "imagewarden_model_busy_seconds_total"
    before = f'{name}{{process="0"}} 1\n{name}{{process="1"}} 1\n'
    after = f'{name}{{process="0"}} 3\n{name}{{process="1"}} 2\n'
    embed = next(each for each in numbers_of(change(before, after)).stages if each.stage == "embed")
    assert embed.busy == 0.75


def test_retries_that_wait_for_their_delay_are_not_the_oldest_in_work() -> None:
    name = "imagewarden_oldest_in_flight_seconds"
    after = f'{name}{{lane="live"}} 2\n{name}{{lane="retries"}} 55\n'
    assert numbers_of(change("", after)).oldest_seconds == 2


def test_a_host_that_several_workers_leave_alone_is_one() -> None:
    name = "imagewarden_host_breakers_open"
    after = f'{name}{{process="0"}} 1\n{name}{{process="1"}} 1\n'
    assert numbers_of(change("", after)).warnings == ("image hosts left alone: 1",)


def test_those_that_are_not_ready_are_counted() -> None:
    after = 'imagewarden_ready{process="0"} 1\nimagewarden_ready{process="1"} 0\n'
    assert numbers_of(change("", after)).warnings == ("1 of 2 ready (/readyz says why)",)


def test_what_an_alert_would_be_about_is_named() -> None:
    after = (
        'imagewarden_ready 0\nimagewarden_cache_up{tier="redis"} 0\n'
        'imagewarden_cache_up{tier="memory"} 1\nimagewarden_policy_stale{policy="p"} 1\n'
    )
    assert numbers_of(change("", after)).warnings == (
        "0 of 1 ready (/readyz says why)",
        "redis does not answer",
        "an edited policy is refused",
    )


# ---------------------------------------------------------------------------- one frame


def rendered(told: dict[str, Numbers | str], fleet: Numbers | None, width: int = WIDTH) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(frame(told, fleet, "imagewarden top"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


amounts = st.none() | st.floats(0, 1e9)
times = st.none() | st.floats(0, 1e7)
names = st.text("abcdefghijklmnopqrstuvwxyz._-", min_size=1, max_size=60)
stages = st.builds(
    lambda *given: tuple(
        StageNumbers(stage, *each) for stage, each in zip(STAGES, given, strict=True)
    ),
    *[st.tuples(st.none() | st.floats(0, 1), amounts, times, times)] * len(STAGES),
)
some_numbers = st.builds(
    Numbers,
    verdicts=amounts,
    actions=st.dictionaries(st.sampled_from(["allow", "review", "block"]), st.floats(0, 1e9)),
    lag=st.dictionaries(names, st.floats(0, 1e8), max_size=4),
    lag_growth=st.none() | st.floats(-1e9, 1e9),
    oldest_seconds=times,
    cached=st.none() | st.floats(0, 1),
    median_seconds=times,
    p99_seconds=times,
    stages=stages,
    errors=st.dictionaries(names, st.floats(0, 1e9), max_size=6),
    dead_letters=amounts,
    warnings=st.lists(names, max_size=5).map(tuple),
)


@given(st.dictionaries(names, some_numbers | names, min_size=1, max_size=4), some_numbers)
def test_a_frame_fits_into_80_columns(told: dict[str, Numbers | str], fleet: Numbers) -> None:
    lines = rendered(told, fleet, width=200).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= WIDTH


@given(some_numbers)
def test_no_number_is_cut_off_in_80_columns(numbers: Numbers) -> None:
    heading, _ = rendered({"host": numbers}, numbers).splitlines()[1:3]
    columns = ["worker", "verdicts/s", "lag", "oldest", "cached", "median", "p99", "slowest"]
    assert heading.split() == columns


def test_an_endpoint_that_does_not_answer_is_a_line() -> None:
    numbers = numbers_of(change(verdicts(0), verdicts(2)))
    text = rendered({"one:9464": numbers, "two:9464": "does not answer"}, numbers)
    assert "two:9464  does not answer" in text
    assert "one:9464" in text


def test_the_slowest_stage_is_named() -> None:
    before = staged(fetch=(0.0, 0), decode=(0.0, 0))
    numbers = numbers_of(change(before, staged(fetch=(1.0, 10), decode=(3.8, 100))))
    assert "slowest stage  fetch, 100 ms an image; fullest: decode, 95 % busy" in rendered(
        {"one:9464": numbers}, numbers
    )


# ---------------------------------------------------------------------------- endpoints


@contextmanager
def serving() -> Iterator[str]:
    """The metrics of this process, as a worker serves them."""
    well = Health(True, "well")
    endpoints = open_endpoints("127.0.0.1", 0, live=lambda: well, ready=lambda: well)
    try:
        yield endpoints.address
    finally:
        endpoints.close()


@pytest.mark.parametrize("written", ["{}", "http://{}", "http://{}/", "http://{}/metrics"])
def test_an_endpoint_is_written_in_several_ways(written: str) -> None:
    with serving() as address:
        endpoint = Endpoint(written.format(address))
        assert endpoint.name == address
        assert not isinstance(endpoint.look(), str)


@pytest.mark.parametrize("written", ["", "http://", "ftp://host", "http://host:port", "http://[::"])
def test_what_is_no_endpoint_is_refused(written: str) -> None:
    with pytest.raises(Misconfigured, match="an endpoint is written"):
        Endpoint(written)


def test_a_password_of_an_endpoint_is_not_in_its_name() -> None:
    assert Endpoint("http://user:hunter2@host:1").name == "host:1"


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("0.0.0.0", "127.0.0.1:9464"),
        ("10.1.2.3", "10.1.2.3:9464"),
        ("unix:/a.sock", "unix:/a.sock"),
    ],
)
def test_by_itself_the_worker_of_these_settings_is_watched(host: str, endpoint: str) -> None:
    assert default_endpoint(load_settings({"http": {"host": host}})) == endpoint


# ---------------------------------------------------------------------------- the command


def test_one_frame_is_json_in_a_pipe_and_an_absent_endpoint_exit_code_3() -> None:
    with serving() as address:
        given = ["top", "--once", "--interval", "0.1", address, "127.0.0.1:1"]
        done = CliRunner().invoke(cli, given)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["worker"], line["failed"]) for line in lines] == [
        (address, None),
        ("127.0.0.1:1", "does not answer"),
        (None, None),
    ]
    assert done.exit_code == 3


def test_one_frame_is_a_table_where_it_is_asked_for() -> None:
    with serving() as address:
        done = CliRunner().invoke(cli, ["top", "--interval", "0.1", "--format", "table", address])
    assert done.exit_code == 0
    assert "imagewarden top · 1 of 1 answer" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_terminal_is_left_as_it_was(number: signal.Signals, code: int) -> None:
    with serving() as address:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "top", "--interval", "0.1", address, "127.0.0.1:1"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
            start_new_session=True,
        )
        try:
            os.close(theirs)
            shown = read_until(ours, "does not answer")
            process.send_signal(number)
            shown += read_until(ours, None)
            assert process.wait(PATIENCE_SECONDS) == code
        finally:
            process.kill()
            process.wait()
            os.close(ours)
    assert "imagewarden top" in shown
    assert "Traceback" not in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"
    assert shown.rindex("\x1b[?1049l") > shown.rindex("\x1b[?1049h"), "the screen stays ours"


def read_until(descriptor: int, text: str | None) -> str:
    """What a terminal shows until it shows ``text``, or until nobody is left that writes to it."""
    shown = b""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while text is None or text.encode() not in shown:
        assert time.monotonic() < deadline, f"{text!r} was never shown: {shown!r}"
        if not select.select([descriptor], [], [], 0.1)[0]:
            continue
        try:
            data = os.read(descriptor, 65536)
        except OSError:  # Linux says so at the end of a terminal
            break
        if not data:
            break
        shown += data
    return shown.decode(errors="replace")
