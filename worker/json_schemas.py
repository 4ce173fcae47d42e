"""The messages' JSON Schemas, for whoever writes to the topics or reads them in any language.

``python -m worker.json_schemas FOLDER`` writes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from worker.embedding_format import EmbeddingMessage
from worker.feedback import Feedback
from worker.schema import DeadLetter, Published, Request, Verdict

MESSAGES: dict[str, type[BaseModel]] = {
    "request": Request,
    "verdict": Verdict,
    "dead-letter": DeadLetter,
    "embedding": EmbeddingMessage,
    "feedback": Feedback,
}


def json_schema(name: str) -> str:
    """The JSON Schema of one of ``MESSAGES``, as the file under ``deploy/schemas`` holds it."""
    model = MESSAGES[name]
    mode: Literal["validation", "serialization"] = (
        "serialization" if issubclass(model, Published) else "validation"
    )
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **model.model_json_schema(mode=mode),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def export_schemas(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in MESSAGES:
        (folder / f"{name}.schema.json").write_text(json_schema(name))


if __name__ == "__main__":
    export_schemas(Path(sys.argv[1]))
