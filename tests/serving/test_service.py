"""What a service says of itself, who may ask, and how it opens and ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from http_service import Running, counted

from arforge.runner import RequestError
from arforge.serving.limits import Limits
from arforge.serving.served import Opening, opened


def test_models_and_their_facts(service: Running) -> None:
    listed = service.get("/v1/models").json()
    assert [one["id"] for one in listed["data"]] == ["raster", "arpg"]
    facts = service.get("/v1/models/raster").json()["arforge"]
    assert facts["labels"][7] == "name 7"
    assert (facts["takes"], facts["classes"], facts["size"], facts["edits"]) == ("class", 10, "16x16", False)
    assert facts["schedules"] == ["ntp", "zipar:4", "zipar:2"]
    assert service.get("/v1/models/arpg").json()["arforge"]["edits"] is True
    assert service.get("/v1/models/..%2Fraster").status_code == 404


def test_health_metrics_and_the_page(service: Running) -> None:
    assert service.get("/health/live").text == "live"
    assert service.get("/health/ready").text == "ready"
    before = counted(service, 'arforge_images_total{model="raster"}')
    requests = 'arforge_requests_total{endpoint="image_generation",model="raster",status="400"}'
    refused = counted(service, requests)
    service.post(json={"model": "raster", "prompt": "1", "n": 2})
    service.post(json={"model": "raster", "prompt": "99"})
    assert counted(service, 'arforge_images_total{model="raster"}') == before + 2
    assert counted(service, requests) == refused + 1
    assert counted(service, "arforge_requests_running") == 0
    page = service.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "http" not in page.text.replace("http-equiv", "")  # it loads nothing from elsewhere


def test_a_model_that_a_stranger_names_is_no_metric(service: Running) -> None:
    service.post(json={"model": "made up", "prompt": "1"})
    assert "made up" not in service.get("/metrics").text


def test_what_is_not_there(service: Running) -> None:
    assert service.get("/docs").status_code == 404
    assert service.get("/v1/images/generations").status_code == 405
    assert service.get("/../../etc/passwd").status_code == 404


def test_a_key_opens_v1_alone(class_bundle: Path, serve: Callable[..., Running]) -> None:
    own = serve([class_bundle], Limits(), key="s3cret")
    asked = {"prompt": "1", "schedule": "zipar:2"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer é"}):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = own.post(json=asked, headers=encoded)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert own.get("/v1/models", headers=encoded).status_code == 401
    assert own.post(json=asked, headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert [own.get(path).status_code for path in ("/health/ready", "/metrics", "/")] == [200] * 3


def test_bundles_that_cannot_be_served(class_bundle: Path, par_bundle: Path) -> None:
    for bundles, message in (
        ([class_bundle, class_bundle], "two bundles are called raster: rename one of them"),
        ([par_bundle], "has no image tokenizer to answer with"),
    ):
        with pytest.raises(RequestError, match=message), opened(bundles, Opening(threads=1), Limits()):
            pass
