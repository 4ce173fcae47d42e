"""Records that kafka-python cannot read, so that none of them blocks its partition.

By itself it raises out of every poll, for a header's name that is no UTF-8 as for a batch that
rotted on disk, and never comes to what lies behind.

- A header's name that is no UTF-8 is read with question marks for what is not ASCII.
- Of what cannot be read at all, or swells beyond all bounds, each offset reads as a record without
  key and value, whose header ``UNREADABLE_HEADER`` says why. The bytes stay where they are.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import Any

import structlog
from kafka.consumer.fetcher import ConsumerRecord, Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

log = structlog.get_logger(__name__)

UNREADABLE_HEADER = "imagewarden-unreadable"

#: Unpacked. Brokers cap a batch as it is sent, and a megabyte of gzip can hold a gigabyte.
MAX_BATCH_BYTES = 64 * 2**20


class ReadableRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What a fetch brought of one partition; stands in for the fetcher's own class."""

    next_fetch_offset: int

    def _unpack_records(
        self, partition: Any, fetched: Any, *deserializers: Any
    ) -> Iterator[ConsumerRecord]:
        batches = _Batches(fetched)
        try:
            yield from super()._unpack_records(partition, batches, *deserializers)
        except Exception as error:  # noqa: BLE001 - each codec raises what it likes
            why = f"{type(error).__name__}: {error}"
            first = max(self.fetch_offset, self.next_fetch_offset, batches.base_offset)
            last = max(first, batches.last_offset)
            log.error(
                "records_unreadable",
                topic=partition.topic,
                partition=partition.partition,
                first_offset=first,
                last_offset=last,
                error=why,
            )
            for offset in range(first, last + 1):
                self.next_fetch_offset = offset + 1
                yield _stand_in(partition, offset, why)
            self.drain()  # the rest is fetched anew, from the next offset on


def _stand_in(partition: Any, offset: int, why: str) -> ConsumerRecord:
    return ConsumerRecord(
        *partition,
        leader_epoch=-1,
        offset=offset,
        timestamp=int(time.time() * 1000),
        timestamp_type=0,
        key=None,
        value=None,
        headers=[(UNREADABLE_HEADER, why.encode())],
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1,
        serialized_header_size=-1,
    )


class _Batches:
    """kafka-python's ``MemoryRecords``, as far as it is used above. The offsets are those of the
    last batch, the last one only where a checksum vouches for it: else it may be what rotted, and
    is found out one record at a time."""

    base_offset = -1

    def __init__(self, fetched: Any) -> None:
        self._fetched = fetched
        self._batch: _Batch | None = None

    @property
    def last_offset(self) -> int:
        if self._batch is None or not self._batch.sound:
            return -1
        return int(self._batch.last_offset)

    def next_batch(self) -> Any:
        self._batch = None
        batch = self._fetched.next_batch()
        if batch is None:
            return None
        self.base_offset = batch.base_offset
        if batch.magic != 2:
            return batch
        self._batch = _Batch(batch._buffer)
        return self._batch


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    _buffer: bytearray
    _pos: int
    _decompressed: bool

    def __init__(self, buffer: Any) -> None:
        super().__init__(buffer)
        self.sound = False
        self._previous = self.base_offset - 1

    def validate_crc(self) -> bool:
        self.sound = super().validate_crc()
        return self.sound

    def _maybe_uncompress(self) -> None:
        if self._decompressed or self.compression_type != self.CODEC_GZIP:
            super()._maybe_uncompress()
            return
        inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        records = inflate.decompress(memoryview(self._buffer)[self._pos :], MAX_BATCH_BYTES)
        if inflate.unconsumed_tail:
            raise CorruptRecordError(f"the batch holds over {MAX_BATCH_BYTES} bytes, unpacked")
        if not inflate.eof:
            raise CorruptRecordError("the batch ends before its compressed data does")
        self._buffer, self._pos, self._decompressed = bytearray(records), 0, True

    def _read_msg(self) -> Any:
        try:
            record = super()._read_msg()
        except UnicodeDecodeError:  # which only the names of headers can raise
            self._make_names_readable()
            record = super()._read_msg()
        # A producer writes the offsets inside its batch, and not every broker checks them. One
        # that points far ahead would have us commit what was never read.
        if not self._previous < record.offset <= self.last_offset:
            raise CorruptRecordError("a record's offset is not where it lies in its batch")
        self._previous = record.offset
        return record

    def _make_names_readable(self) -> None:
        """In place and at the same length, in the record that begins at the current position.

        The format is that of https://kafka.apache.org/documentation/#record.
        """
        buffer, position = self._buffer, self._pos
        for _ in ("length", "attributes", "timestamp delta", "offset delta"):
            _, position = decode_varint(buffer, position)
        for _ in ("key", "value"):
            length, position = decode_varint(buffer, position)
            position += max(0, length)
        count, position = decode_varint(buffer, position)
        for _ in range(count):
            length, position = decode_varint(buffer, position)
            name = slice(position, position + length)
            buffer[name] = bytes(byte if byte < 0x80 else ord("?") for byte in buffer[name])
            length, position = decode_varint(buffer, name.stop)
            position += max(0, length)
