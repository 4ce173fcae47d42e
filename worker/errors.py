"""What can go wrong with one request, in four kinds, and nothing else.

- ``Malformed``: the record is not a request at all. It goes to the dead letters.
- ``Unexaminable``: a request whose image could not be examined. It gets a verdict whose decision
  is ``undetermined``.
- ``Transient``: the same, but trying again may help. The stage that raises it tries again a few
  times and then turns it into an ``Unexaminable`` that is marked retryable.
- Anything else is a bug, and ends the process: a stage that failed silently would stall the topic.

Codes are closed sets: they are labels of metrics and part of the verdict format, so consumers may
switch on them.
"""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Where on its way a request was; label of metrics and field of verdicts."""

    PARSE = "parse"
    POLICY = "policy"
    FETCH = "fetch"
    DECODE = "decode"
    EMBED = "embed"
    SCORE = "score"
    PUBLISH = "publish"


class MalformedReason(StrEnum):
    """Why a record is not a request."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    UNSUPPORTED_SCHEMA_VERSION = "unsupported_schema_version"
    INVALID = "invalid"
    #: not even a record: its batch is damaged, or compressed in a way that is not known
    UNREADABLE = "unreadable"
    #: a request, but one that no process survived
    POISON = "poison"
    #: a request, but what there is to say of it is larger than the topic takes
    ANSWER_TOO_LARGE = "answer_too_large"


class ErrorCode(StrEnum):
    """Why an image could not be examined."""

    # the request itself
    UNKNOWN_POLICY = "unknown_policy"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    # fetch
    HOST_UNAVAILABLE = "host_unavailable"
    URL_INVALID = "url_invalid"
    ADDRESS_FORBIDDEN = "address_forbidden"
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_FAILED = "tls_failed"
    HTTP_CLIENT_ERROR = "http_client_error"
    HTTP_SERVER_ERROR = "http_server_error"
    FETCH_FAILED = "fetch_failed"
    FETCH_TIMEOUT = "fetch_timeout"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_MANY_BYTES = "too_many_bytes"
    EMPTY_BODY = "empty_body"
    DIGEST_MISMATCH = "digest_mismatch"
    # decode
    NOT_AN_IMAGE = "not_an_image"
    UNDECODABLE = "undecodable"
    TRUNCATED = "truncated"
    TOO_MANY_PIXELS = "too_many_pixels"
    DECODE_TIMEOUT = "decode_timeout"
    DECODE_MEMORY = "decode_memory"
    DECODE_CRASHED = "decode_crashed"
    # embed
    EMBED_FAILED = "embed_failed"
    EMBEDDING_NOT_FINITE = "embedding_not_finite"


class Malformed(Exception):
    """The record is not a request. ``detail`` is for people and quotes no value of it."""

    def __init__(self, reason: MalformedReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Unexaminable(Exception):
    """The image could not be examined, and so is not clean: the verdict is ``undetermined``.

    ``detail`` is for people; it names no query string and no credential. ``retryable`` says
    whether the same request may succeed later; ``attempts`` how often it was tried by now.
    """

    def __init__(
        self,
        code: ErrorCode,
        stage: Stage,
        detail: str,
        *,
        retryable: bool = False,
        attempts: int = 1,
    ) -> None:
        super().__init__(f"{stage}: {code}: {detail}")
        self.code = code
        self.stage = stage
        self.detail = detail
        self.retryable = retryable
        self.attempts = attempts


class Transient(Exception):
    """It failed now and may succeed in a moment."""

    def __init__(self, code: ErrorCode, stage: Stage, detail: str) -> None:
        super().__init__(f"{stage}: {code}: {detail}")
        self.code = code
        self.stage = stage
        self.detail = detail

    def exhausted(self, attempts: int) -> Unexaminable:
        """What it becomes after ``attempts`` tries."""
        return Unexaminable(self.code, self.stage, self.detail, retryable=True, attempts=attempts)


class DeviceOutOfMemory(Exception):
    """The model's device has no memory for a batch of this size; a smaller one may pass."""


class Halted(Exception):
    """Going on would do harm. The message says why, and what to do."""


class Misconfigured(Exception):
    """A setting, policy or model is wrong. The message names it and says what to write instead.

    Raised before anything connects; the command line prints it and exits with 2.
    """
