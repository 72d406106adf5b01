"""What the containers' files name is there: they are not built by the tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from arforge.cli import COMMANDS
from arforge.serve_command import command
from arforge.serving.app import make_app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/serving"
DOCKERFILES = sorted(FOLDER.glob("Dockerfile*"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_has_what_it_copies_and_starts(path: Path) -> None:
    lines = path.read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("FROM ")]
    assert re.fullmatch(r"FROM [\w./]+:[\w.-]*\d+\.\d+[\w.-]*", base)  # a version
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])
    users = [line for line in lines if line.startswith("USER ")]
    assert users
    assert users[-1] not in ("USER root", "USER 0")
    extras = re.search(r"'\.\[(.*)\]'", path.read_text())
    assert extras
    project = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in project for extra in extras[1].split(","))
    (health,) = [line for line in lines if line.startswith("HEALTHCHECK ")]
    starts = [json.loads(line.partition(" ")[2]) for line in lines if line.startswith("ENTRYPOINT ")]
    for words in starts:
        assert words[:2] == ["arforge", "serve"]
        assert "serve" in COMMANDS
        options = {name for one in command.params for name in one.opts}
        assert {word for word in words if word.startswith("--")} <= options
        assert words[words.index("--port") + 1] == "8000"
        assert "'http://127.0.0.1:8000/health/live'" in health
    assert "EXPOSE 8000" in path.read_text()


def test_probes_ask_what_the_service_answers() -> None:
    documents = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
    deployment, service = documents
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    app: Any = make_app(lambda _: None)  # type: ignore[arg-type, return-value]
    routes = {route.path for route in app.routes}
    probes = [container[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [probe["path"] for probe in probes] == ["/health/ready", "/health/live", "/health/ready"]
    assert {probe["path"] for probe in probes} <= routes
    assert container["ports"] == [{"name": "http", "containerPort": 8000}]
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
