"""What a broker says before it hangs up is heard, and what no codec compresses is refused."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from kafka import codec
from kafka.consumer.fetcher import ConsumerRecord

from worker.broker import _LastWords, producer_settings, record_of
from worker.errors import Misconfigured


def test_an_end_is_not_told_in_one_breath_with_what_came_before() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(b"wrong password")
        theirs.close()
        listening = _LastWords(ours)
        assert listening.recv(5) + listening.recv(100) == b"wrong password"
        with pytest.raises(BlockingIOError):
            listening.recv(100)
        assert listening.recv(100) == b""
        assert listening.recv(100) == b""


def producer(compression: str, max_message_bytes: int = 2**20) -> dict[str, Any]:
    return producer_settings(
        bootstrap="localhost:9092",
        client_id="tests",
        max_message_bytes=max_message_bytes,
        compression=compression,
        delivery_timeout_seconds=1.0,
    )


@pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
def test_messages_are_compressed_as_asked(compression: str) -> None:
    assert producer(compression)["compression_type"] == compression


def test_messages_need_not_be_compressed() -> None:
    assert producer("none")["compression_type"] is None


def test_a_compression_whose_library_is_missing_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec, "zstd", None)
    with pytest.raises(Misconfigured, match=r"pip install 'kafka-python\[zstd\]'"):
        producer("zstd")


def test_no_batch_is_larger_than_a_message_may_be() -> None:
    assert producer("gzip", max_message_bytes=5000)["batch_size"] == 5000


def test_a_record_of_the_format_without_timestamps_is_one_that_was_given_none() -> None:
    fields = dict.fromkeys(ConsumerRecord._fields) | {"topic": "requests", "headers": []}
    assert record_of(ConsumerRecord(**fields)).timestamp_ms == 0
