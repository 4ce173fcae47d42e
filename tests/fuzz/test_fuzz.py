"""The targets, on their seeds and on what Hypothesis makes of them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

EXAMPLES = 150


@st.composite
def altered(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with pieces of it replaced, removed, repeated, or taken from another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 16)))
        data[start:end] = draw(
            st.one_of(
                st.binary(max_size=8),
                st.text(max_size=4).map(lambda text: text.encode("utf-8", "surrogatepass")),
                st.sampled_from(seeds).map(lambda seed: seed[:64]),
                st.just(bytes(data[start:end]) * 2),
                st.sampled_from([b"NaN", b"1e999", b"null", b"\\ud800", b"\x00", b"9" * 400]),
            )
        )
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_keeps_the_promise_and_not_all_are_refused(name: str) -> None:
    taken = [TARGETS[name].run(seed) for seed in TARGETS[name].seeds]
    assert any(taken)


@pytest.mark.parametrize("name", TARGETS)
@given(st.data())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_is_made_of_the_seeds_keeps_the_promise(name: str, data: st.DataObject) -> None:
    seeds = tuple(seed for seed in TARGETS[name].seeds if len(seed) < 4096)
    TARGETS[name].run(data.draw(st.one_of(st.binary(max_size=200), altered(seeds))))
