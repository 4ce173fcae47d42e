"""What people say of images that were judged: the messages on the feedback topic."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field

from worker.schema import Action, Identifier, Received, parse_strictly

#: A message has a dozen short fields; what is larger is something else.
_MAX_BYTES = 64 * 1024


class Feedback(Received):
    """Whether a person saw one category in one image.

    The key of its record should be ``item_id``, so that what is said of an item stays in order. Of
    one item and category the latest counts, so an error is mended by saying it anew.
    """

    schema_version: Literal[1]
    item_id: Identifier = Field(description="That of the verdict it answers.")
    category: Identifier = Field(description="Id of the category that it is about.")
    shows: bool = Field(description="Whether the image shows it, by the person who looked.")
    decision: Action | None = Field(
        default=None, description="What the person did with the item, for whoever keeps account."
    )
    reviewer: Identifier | None = Field(
        default=None, description="Opaque, and better no name: the topic is kept."
    )
    decided_at: AwareDatetime | None = Field(
        default=None, description="When the person decided; null: the record's own time."
    )
    verdict_id: UUID | None = Field(
        default=None, description="The verdict it answers; null: the last one before `decided_at`."
    )
    request_id: Identifier | None = Field(
        default=None, description="The request whose last verdict it answers, of an item with many."
    )
    policy: Identifier | None = Field(
        default=None, description="The policy whose verdict it answers, of an item with many."
    )
    sampled: Annotated[float, Field(ge=1e-9, le=1)] = Field(
        default=1.0,
        description="Of the images with such a verdict, the share that is put before people: .01 "
        "where one allowed image in a hundred is looked at. It then stands for a hundred.",
    )


def parse_feedback(value: bytes | None) -> Feedback:
    """Raises ``Malformed``, whose detail names fields but quotes no values."""
    return parse_strictly(Feedback, value, max_bytes=_MAX_BYTES)
