"""Files that were made to hurt decoders: each ends in pixels or in a named rejection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench.torture import MEMORY_BYTES, PLAN, SPEC, files_in, measured, table
from tests.decoding import kills
from worker.errors import ErrorCode, Stage
from worker.types import Decoded

#: What may become of a file that is no picture to be shown. That a decoder process is lost over one
#: has a code too, but none of these may do that.
REJECTIONS = {
    ErrorCode.NOT_AN_IMAGE,
    ErrorCode.TOO_MANY_PIXELS,
    ErrorCode.TRUNCATED,
    ErrorCode.UNDECODABLE,
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("folder", ["torture", "exif"])
async def test_each_file_ends_in_pixels_or_in_a_named_rejection_within_the_limits(
    data: Path, folder: str
) -> None:
    files = files_in([data / folder])
    if not files:
        pytest.skip(f"no files in {folder} among the data")
    causes = ["timeout", "memory", "crashed", "garbage"]
    before = [kills(cause) for cause in causes]
    results = await measured(files)
    print(table(results))
    assert [result.path for result in results] == files
    for result in results:
        if isinstance(result.outcome, Decoded):
            rows = len(result.outcome.facts.rows)
            assert result.outcome.pixels.shape == (rows, *SPEC.size, 3), result.path
            assert 1 <= rows <= PLAN.max_frames * PLAN.max_tiles, result.path
        else:
            assert result.outcome.stage is Stage.DECODE, result.path
            assert result.outcome.code in REJECTIONS, (result.path, result.outcome)
        assert result.resident_bytes is not None, result.path
        assert result.resident_bytes < MEMORY_BYTES, result.path
    assert [kills(cause) for cause in causes] == before
    assert sum(isinstance(result.outcome, Decoded) for result in results) >= len(files) // 2
