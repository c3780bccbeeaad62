"""An OpenAPI document's operations, as tools."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
import yaml

from cra_middleware import Atlas
from cra_middleware.openapi_tools import openapi_tools
from cra_middleware.sketch import ToolSketch, atlas_text
from tests.conftest import CONFORMANCE

PETS: dict[str, Any] = {
    "openapi": "3.0.3",
    "paths": {
        "/pets/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            "get": {"operationId": "getPet", "summary": "One pet"},
            "put": {
                "operationId": "putPet",
                "description": "Change a pet",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                },
            },
        },
        "/pets": {
            "post": {
                "requestBody": {"content": {"application/json": {"schema": {"type": "array", "items": {}}}}},
                "parameters": [{"$ref": "#/components/parameters/limit"}, {"name": "sid", "in": "cookie"}],
            }
        },
        "/broken": {"$ref": "#/paths/~1broken"},
    },
    "components": {
        "parameters": {
            "limit": {
                "name": "limit",
                "in": "query",
                "schema": {"type": "number", "minimum": 0, "exclusiveMinimum": True, "example": 3},
            }
        },
        "schemas": {
            "Pet": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "nullable": True},
                    "mother": {"$ref": "#/components/schemas/Pet"},
                    "elsewhere": {"$ref": "other.yaml#/Pet"},
                    "x-note": {"type": "string"},
                },
            }
        },
    },
}


def test_operations_become_tools() -> None:
    """Parameters and the body's properties in one object, references brought along."""
    tools = {name: (text, schema) for name, text, schema in openapi_tools(PETS)}
    assert list(tools) == ["getPet", "putPet", "post_pets"]
    assert tools["getPet"] == (
        "One pet",
        {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
    )
    text, schema = tools["putPet"]
    assert text == "Change a pet"
    assert schema is not None
    assert schema["required"] == ["id", "name"]
    assert schema["properties"]["mother"] == {"$ref": "#/$defs/Pet"}
    assert schema["properties"]["elsewhere"] == {}
    assert schema["$defs"]["Pet"]["properties"]["name"] == {"type": ["string", "null"]}
    _, posted = tools["post_pets"]
    assert posted == {
        "type": "object",
        "properties": {
            "limit": {"type": "number", "exclusiveMinimum": 0},
            "body": {"type": "array", "items": {}},
        },
    }


def test_the_schemas_decide() -> None:
    """They are JSON Schema: a validator reads them."""
    for _, _, schema in openapi_tools(PETS):
        jsonschema_rs.validator_for(schema)
    _, _, schema = openapi_tools(PETS)[1]
    validator = jsonschema_rs.validator_for(schema)
    assert validator.is_valid({"id": 7, "name": None, "mother": {"name": "Ada"}})
    assert not validator.is_valid({"id": 7, "name": "Bo", "mother": {}})


@pytest.mark.parametrize("document", [None, [], {}, {"swagger": "2.0", "paths": {}}, {"openapi": "3.1.0"}])
def test_what_is_no_openapi_document_is_refused(document: Any) -> None:
    """With a sentence that says why."""
    with pytest.raises(ValueError, match="no OpenAPI 3 document"):
        openapi_tools(document)


def test_a_real_document_makes_an_atlas(conformance: Any) -> None:
    """The published document of this protocol: an Atlas that loads."""
    document = yaml.safe_load((CONFORMANCE / "reference" / "openapi.yaml").read_text())
    tools = openapi_tools(document)
    assert len(tools) > 5
    text = atlas_text([ToolSketch(name, text, schema) for name, text, schema in tools], "A runtime")
    atlas = Atlas.from_dict(yaml.safe_load(text))
    assert len(atlas.manifest.actions) == len(tools)
