"""Batches of records that kafka-python cannot read, byte by byte."""

from __future__ import annotations

import gzip
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBase, DefaultRecordBatchBuilder
from kafka.record.util import calc_crc32c
from kafka.structs import TopicPartition

from worker.unreadable import MAX_BATCH_BYTES, UNREADABLE_HEADER, ReadableRecords

COUNT = 4
HEADER_BYTES = DefaultRecordBase.HEADER_STRUCT.size
LAST_OF_ATTRIBUTES = DefaultRecordBase.ATTRIBUTES_OFFSET + 1

GZIP, UNKNOWN = 1, 5


def batch(compression: int = 0) -> bytearray:
    builder = DefaultRecordBatchBuilder(2, compression, False, -1, -1, -1, 1 << 20)
    for offset in range(COUNT):
        builder.append(offset, 1, b"key", f"value {offset}".encode(), [("name", b"header")])
    return bytearray(builder.build())


def with_checksum(data: bytearray) -> bytearray:
    checksum = calc_crc32c(memoryview(data)[DefaultRecordBase.ATTRIBUTES_OFFSET :])
    struct.pack_into(">I", data, DefaultRecordBase.CRC_OFFSET, checksum)
    return data


def fetched(data: bytes, offset: int) -> Any:
    return ReadableRecords(offset, TopicPartition("topic", 0), MemoryRecords(data))


def read_all(data: bytes) -> list[ConsumerRecord]:
    """As a consumer does: what is left of a batch is fetched anew, from the next offset on."""
    records: list[ConsumerRecord] = []
    offset = 0
    while offset < COUNT:
        part = fetched(data, offset)
        while part:  # until it is drained
            records += part.take(1)
        assert part.next_fetch_offset > offset
        offset = part.next_fetch_offset
    return records


def test_a_sound_batch_reads_as_it_was_written() -> None:
    records = read_all(bytes(batch(GZIP)))
    assert [record.value for record in records] == [b"value 0", b"value 1", b"value 2", b"value 3"]
    assert [record.headers for record in records] == [[("name", b"header")]] * COUNT


@pytest.mark.parametrize(
    ("codec", "told"), [(UNKNOWN, b"UnsupportedCodecError"), (GZIP, b"incorrect header check")]
)
def test_a_batch_that_does_not_decompress_is_told_of_at_each_of_its_offsets(
    codec: int, told: bytes
) -> None:
    data = batch()
    data[LAST_OF_ATTRIBUTES] |= codec
    records = fetched(bytes(with_checksum(data)), 0).take(100)  # without fetching it again
    assert [record.offset for record in records] == list(range(COUNT))
    for record in records:
        assert (record.key, record.value) == (None, None)
        [(name, why)] = record.headers
        assert name == UNREADABLE_HEADER
        assert told in why


def test_a_batch_whose_checksum_is_wrong_is_told_of_one_record_at_a_time() -> None:
    data = batch()
    data[-1] ^= 1
    [record] = fetched(bytes(data), 2).take(100)
    assert record.offset == 2
    assert [record.offset for record in read_all(bytes(data))] == list(range(COUNT))


def test_a_batch_that_swells_beyond_all_bounds_is_not_unpacked() -> None:
    data = batch(GZIP)[:HEADER_BYTES] + gzip.compress(bytes(MAX_BATCH_BYTES + 1))
    struct.pack_into(">i", data, DefaultRecordBase.AFTER_LEN_OFFSET - 4, len(data) - 12)
    records = read_all(bytes(with_checksum(data)))
    assert [record.offset for record in records] == list(range(COUNT))
    assert all(str(MAX_BATCH_BYTES).encode() in record.headers[0][1] for record in records)


def test_a_compressed_batch_that_was_cut_off_is_told_of() -> None:
    data = batch(GZIP)[:-9]
    struct.pack_into(">i", data, DefaultRecordBase.AFTER_LEN_OFFSET - 4, len(data) - 12)
    records = read_all(bytes(with_checksum(data)))
    assert [record.offset for record in records] == list(range(COUNT))
    assert all(b"ends before" in record.headers[0][1] for record in records)


def test_a_record_that_says_it_lies_far_ahead_takes_nobody_there() -> None:
    data = batch()
    [first] = [i for i in range(HEADER_BYTES, HEADER_BYTES + 5) if data[i : i + 2] == b"\x00\x06"]
    data[first] = 100  # of the first record, the distance to the beginning of the batch, doubled
    offsets = [record.offset for record in read_all(bytes(with_checksum(data)))]
    assert offsets == list(range(COUNT))


@given(
    st.dictionaries(st.integers(HEADER_BYTES, len(batch()) - 1), st.integers(0, 255), max_size=8)
)
def test_whatever_the_records_are_each_offset_is_read_once_and_in_order(
    changes: dict[int, int],
) -> None:
    data = batch()
    for position, byte in changes.items():
        data[position] = byte
    offsets = [record.offset for record in read_all(bytes(with_checksum(data)))]
    assert sorted(set(offsets)) == offsets
