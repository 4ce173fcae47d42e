"""Fixtures that more than one kind of test needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of labelled photos and decoder torture files, which is not in the repository."""
    folder = Path(os.environ.get("LABELLED_PHOTOS", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no labelled photos at {folder}; set LABELLED_PHOTOS to their folder")
    return folder


@pytest.fixture(autouse=True)
def kafka_python_speaks() -> None:
    """Commands that a test ran in this process have told it to be silent."""
    logging.getLogger("kafka").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def structlog_is_as_it_comes() -> Iterator[None]:
    """Commands that a test runs in this process set the log up for good."""
    yield
    structlog.reset_defaults()
