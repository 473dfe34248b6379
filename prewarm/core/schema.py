"""The published JSON schema of the manifest.

Regenerate it with `python -m prewarm.core.schema > docs/manifest.schema.json`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from prewarm.core.manifest import SCHEMA, Manifest


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema of a manifest document, its digest included."""
    schema = msgspec.json.schema(Manifest)
    body = schema["$defs"]["Manifest"]
    body["properties"]["schema"] = {"const": SCHEMA}
    body["properties"]["digest"] = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
    body["required"] = ["schema", "digest", *body["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **schema}


if __name__ == "__main__":
    json.dump(manifest_schema(), sys.stdout, indent=1)
    sys.stdout.write("\n")
