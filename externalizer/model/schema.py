"""The JSON schema of plan.json, made from the types: `python -m externalizer.model.schema` prints it.

docs/plan.schema.json is this output; a test compares them byte for byte.
"""

from __future__ import annotations

import json
import sys

import msgspec

from externalizer.model.plan import SCHEMA, Plan

_DIALECT = "https://json-schema.org/draft/2020-12/schema"  # msgspec.json.schema()'s


def plan_schema() -> str:
    """Return the schema as text that ends in a newline, keys sorted, so that a diff shows what changed."""
    schema = {"$schema": _DIALECT, "title": SCHEMA, **msgspec.json.schema(Plan)}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(plan_schema())
