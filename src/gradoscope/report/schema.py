"""The published JSON Schema of a diagnosis."""

import json
from importlib.resources import files
from typing import Any

__all__ = ["load_schema"]


def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every `Diagnosis.to_dict()` meets.

    Returns:
        The schema as plain data, for any JSON Schema validator.

    Example:
        >>> load_schema()["properties"]["verdict"]["enum"]
        ['healthy', 'obstructed', 'undetermined']
    """
    schema: dict[str, Any] = json.loads(files("gradoscope.report").joinpath("diagnosis.schema.json").read_text(encoding="utf-8"))
    return schema
