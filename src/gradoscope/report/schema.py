"""The published JSON Schemas: of a diagnosis, of a landscape, of the claims of studies."""

import json
from importlib.resources import files
from typing import Any

from gradoscope.errors import Usage

__all__ = ["SCHEMAS", "load_schema"]

SCHEMAS = {"diagnosis": "diagnose --json", "landscape": "landscape --json", "claims": "study --json"}
"""The documents that have a schema, with the command that prints each."""


def load_schema(name: str = "diagnosis") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that every document of a kind meets.

    Args:
        name: "diagnosis" for `Diagnosis.to_dict()`, "landscape" for `Landscape.to_dict()`, "claims" for what
            `gradoscope study --json` prints and `claims.json` holds.

    Returns:
        The schema as plain data, for any JSON Schema validator.

    Raises:
        Usage: for another name.

    Example:
        >>> load_schema()["properties"]["verdict"]["enum"]
        ['healthy', 'obstructed', 'undetermined']
        >>> sorted(load_schema("claims")["properties"])
        ['claims']
    """
    if name not in SCHEMAS:
        raise Usage(f"there is no schema {name!r}; there are: {', '.join(SCHEMAS)}.")
    schema: dict[str, Any] = json.loads(files("gradoscope.report").joinpath(f"{name}.schema.json").read_text(encoding="utf-8"))
    return schema
