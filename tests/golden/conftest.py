from __future__ import annotations

import pytest

from worker.embed import OpenClipEncoder, load_encoder


@pytest.fixture(scope="session")
def pocket() -> OpenClipEncoder:
    """The pocket model; it takes seconds to load."""
    return load_encoder("pocket")
