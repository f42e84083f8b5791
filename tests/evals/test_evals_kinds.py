"""Every kind of evaluation has its files, is dispatched to, and is listed."""

import inspect
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import limbeck.evals.run as running
import limbeck.spec.evals
from limbeck.cli.main import app
from limbeck.spec.base import spec_classes
from limbeck.spec.evals import Eval

NEEDED = {"gsm": {"path": "problems.jsonl"}, "harness": {"tasks": ("hellaswag",)}}
"""Keys without a default."""


def test_every_kind_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)["kinds"]["eval"]
    classes = dict(zip(listed, spec_classes(Eval), strict=True))
    folder = Path(limbeck.spec.evals.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "decoding"}  # what those that generate share
    assert set(classes) == files
    for kind, spec_class in classes.items():
        assert spec_class.__module__ == f"limbeck.spec.evals.{kind}"
        measure = import_module(f"limbeck.evals.{kind}").measure
        assert list(inspect.signature(measure).parameters)[:2] == ["model", "spec"]
        called = []

        def spied(model, spec, called=called, **_):
            called.append((model, spec))
            return {}, {}

        monkeypatch.setattr(import_module(f"limbeck.evals.{kind}"), "measure", spied)
        model, spec = SimpleNamespace(), spec_class(**NEEDED.get(kind, {}))
        assert spec.kind == kind
        assert running.measure(model, spec) == ({}, {})
        assert called == [(model, spec)]
