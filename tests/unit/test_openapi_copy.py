"""docs/openapi/: the committed descriptions are those that the code serves, and hold together."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tools.openapi import FOLDER, stale

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"
NAMES = ("app.json", "gateway.json")


def description(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text())


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def faults(document: dict[str, Any], schema: str, value: Any) -> list[str]:
    """What is wrong with `value` as this schema of the description."""
    rules = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
    return [error.message for error in Draft202012Validator(rules).iter_errors(value)]


def test_the_committed_copies_are_what_the_code_serves() -> None:
    assert stale() == [], "run: python -m tools.openapi"


@pytest.mark.parametrize("name", NAMES)
def test_every_operation_reads_well(name: str) -> None:
    document = description(name)
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for where, operation in operations(document):
        assert re.fullmatch(r"[a-z][a-z_]*", operation["operationId"]), where
        assert 10 <= len(operation["summary"]) <= 100, where
        (tag,) = operation["tags"]
        assert tag in [known["name"] for known in document["tags"]], where


@pytest.mark.parametrize("name", NAMES)
def test_only_health_needs_no_key(name: str) -> None:
    for where, operation in operations(description(name)):
        assert bool(operation.get("security")) == ("/health" not in where), where


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_problems_and_those_to_wait_for_say_how_long(name: str) -> None:
    document = description(name)
    for title, answer in document["components"]["responses"].items():
        assert list(answer["content"]) == ["application/problem+json"], title
        for example in answer["content"]["application/problem+json"]["examples"].values():
            assert faults(document, "Problem", example["value"]) == []
    for where, operation in operations(document):
        assert "HTTPValidationError" not in json.dumps(operation), where
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                shared = answer["$ref"].rpartition("/")[2]
                has_pause = "Retry-After" in document["components"]["responses"][shared].get(
                    "headers", {}
                )
                assert has_pause == (status in ("429", "503")), where


@pytest.mark.parametrize("name", NAMES)
def test_examples_fit_their_schemas(name: str) -> None:
    document = description(name)
    shown = 0
    for schema, rules in document["components"]["schemas"].items():
        for example in rules.get("examples", []):
            shown += 1
            assert faults(document, schema, example) == [], schema
    assert shown >= 3


def test_the_bodies_of_the_api_page_fit_the_schemas() -> None:
    page = PAGE.read_text()
    document, gateway = description("app.json"), description("gateway.json")
    sent = [json.loads(body) for body in re.findall(r"-d '(\{[^']*\})'", page)]
    assert len(sent) >= 3
    for body in sent:
        assert faults(document, "GenerateRequest", body) == [], body
    # Those that show a whole answer; "..." stands for what is left out.
    shown = {
        found: json.loads(text)
        for found, text in (
            (_schema_of(text), text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL)
        )
        if found
    }
    assert {"GenerateResponse", "JobResponse", "ModelList", "HealthResponse", "Problem"} <= set(
        shown
    )
    for schema, answer in shown.items():
        wrong = [
            fault
            for fault in faults(gateway if schema == "UsageList" else document, schema, answer)
            if "required property" not in fault
        ]
        assert wrong == [], schema


def _schema_of(text: str) -> str | None:
    """Which answer an example of the page shows."""
    marks = {
        '"status": "success"': "GenerateResponse",
        '"progress"': "JobResponse",
        '"from"': "UsageList",
        '"object": "list"': "ModelList",
        '"replicas"': "HealthResponse",
        '"urn:sdserve:problem': "Problem",
    }
    return next((schema for mark, schema in marks.items() if mark in text), None)
