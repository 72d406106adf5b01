from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arforge.engines import onnxruntime
from arforge.runner import ArforgeError, BundleError, EngineError, Runner, ScheduleError, compile_schedule, open_bundle
from arforge.runner.bundle import ClassCondition, files
from arforge.runner.bundle import bundle as bundle_module
from arforge.runner.errors import (
    FileSizeError,
    FormatVersionError,
    HashError,
    ManifestError,
    MissingFileError,
    PathError,
)
from arforge.runner.schedules.file import dump

Manifest = dict[str, Any]
STEP = "graphs/fp32/step.onnx"


def edit(root: Path, change: Callable[[Manifest], object]) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_bundle_opens_with_its_facts(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.root == bundle
    assert (opened.model.family, opened.model.variant, opened.model.grid) == ("llamagen", None, (8, 8))
    assert (opened.model.vocabulary, opened.model.condition) == (32, ClassCondition(10, 32, 42))
    assert opened.image_tokenizer is not None
    assert opened.image_tokenizer.image_size == (16, 16)
    assert opened.sampler.guidance == 2.0
    assert opened.graph("step", "fp32") == bundle / STEP


def test_a_bundle_without_tokenizer_says_how_to_get_one(grouped_bundle: Path) -> None:
    opened = open_bundle(str(grouped_bundle))
    assert opened.image_tokenizer is None
    with pytest.raises(BundleError, match="no fp32 graph 'decoder': export it with --tokenizer FILE"):
        opened.graph("decoder", "fp32")
    with pytest.raises(BundleError, match="no int8 graph 'step': export it again"):
        opened.graph("step", "int8")


def test_no_bundle_there_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at .*arforge export"):
        open_bundle(tmp_path / "nothing.bundle")


def test_a_directory_without_manifest_is_no_bundle(bundle_copy: Path) -> None:
    (bundle_copy / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="is not a bundle: it has no manifest.json"):
        open_bundle(bundle_copy)


def test_a_manifest_that_is_a_link_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "manifest.json").rename(tmp_path / "elsewhere.json")
    (bundle_copy / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ManifestError, match="is not a bundle"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[" * 100000, b'{"format": NaN}', b"9" * 5000],
    ids=["empty", "cut", "not UTF-8", "deep", "NaN", "huge number"],
)
def test_a_manifest_that_is_not_json_is_refused(bundle_copy: Path, text: bytes) -> None:
    (bundle_copy / "manifest.json").write_bytes(text)
    with pytest.raises(ManifestError, match="is not valid JSON"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"format": "safetensors"}'])
def test_json_that_is_no_manifest_is_refused(bundle_copy: Path, text: str) -> None:
    (bundle_copy / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match="is not the manifest of an arforge bundle"):
        open_bundle(bundle_copy)


def test_a_manifest_too_large_is_not_parsed(bundle_copy: Path) -> None:
    with (bundle_copy / "manifest.json").open("ab") as file:
        file.truncate(1 << 25)
    with pytest.raises(ManifestError, match="33554432 bytes, more than"):
        open_bundle(bundle_copy)


def test_a_newer_format_asks_for_an_update(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda manifest: manifest.update(version=3, new_part={}))
    with pytest.raises(FormatVersionError, match="bundle format 3, this arforge reads format 2: update arforge"):
        open_bundle(bundle_copy)


def test_the_format_of_before_asks_for_another_export(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda manifest: manifest.update(version=1))
    with pytest.raises(FormatVersionError, match="format 1, which this arforge no longer reads: export it again"):
        open_bundle(bundle_copy)


CLASSES = {"kind": "class", "classes": 10, "first_class": 32, "null_class": 42}
FEATURES = {"kind": "features", "slots": 120, "width": 2048, "captions": "clean"}
IDS = {
    "kind": "ids",
    "slots": 64,
    "vocabulary": 65536,
    "prefix": [0],
    "before": "",
    "after": "",
    "stripped": False,
    "suffix": [8710, 8197, 8828, 8828],
    "start": 3,
    "padding": 1,
    "reserved": [[4, 8803]],
    "negative": [],
    "unconditional": "image",
}


def test_a_sampler_that_the_graphs_do_not_have_is_refused(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda manifest: manifest["sampler"].update(kind="noise"))
    with pytest.raises(EngineError, match="input noise is missing, expected float32"):
        Runner.open(bundle_copy)


def test_a_manifest_is_written_as_it_was_read(bundle: Path) -> None:
    assert open_bundle(bundle).to_json() == json.loads((bundle / "manifest.json").read_text())


def test_a_missing_file_is_named(bundle_copy: Path) -> None:
    (bundle_copy / STEP).unlink()
    with pytest.raises(MissingFileError, match=f"lacks {STEP}: export the bundle again, or copy it whole"):
        open_bundle(bundle_copy)


def test_a_directory_in_place_of_a_file_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / STEP).unlink()
    (bundle_copy / STEP).mkdir()
    with pytest.raises(MissingFileError, match="step.onnx is not a file"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_named(bundle_copy: Path, change: int) -> None:
    size = (bundle_copy / STEP).stat().st_size
    os.truncate(bundle_copy / STEP, size + change)
    message = rf"step.onnx has {size + change} bytes, the manifest says {size}: the copy is incomplete"
    with pytest.raises(FileSizeError, match=message):
        open_bundle(bundle_copy)


def test_hashes_find_a_flipped_bit_that_sizes_do_not(bundle_copy: Path) -> None:
    weights = bundle_copy / "graphs/fp32/weights/model.weights"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(data)
    opened = open_bundle(bundle_copy)
    with pytest.raises(HashError, match=r"model.weights is damaged: sha256 [0-9a-f]{64}, the manifest says"):
        opened.check_hashes()


def test_hashes_of_a_whole_bundle_pass_and_report_each_file(bundle: Path) -> None:
    opened, seen = open_bundle(bundle), []
    opened.check_hashes(seen.append)
    assert seen == list(opened.files)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "graphs/../../x", "graphs/..", "a\\b", "c:/x", "a\0b", "./a", "a//b", "a/", "."],
)
def test_paths_that_are_not_plain_and_inside_are_refused(bundle_copy: Path, path: str) -> None:
    edit(bundle_copy, lambda manifest: manifest["files"].update({path: {"bytes": 0, "sha256": "0" * 64}}))
    with pytest.raises(PathError, match="in the manifest"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("path", [f"{STEP}/x", "a" * 300, "\ud800"], ids=["below a file", "long", "surrogate"])
def test_paths_that_no_file_can_have_are_refused(bundle_copy: Path, path: str) -> None:
    edit(bundle_copy, lambda manifest: manifest["files"].update({path: {"bytes": 0, "sha256": "0" * 64}}))
    with pytest.raises((MissingFileError, PathError)):
        open_bundle(bundle_copy)


def test_a_file_that_is_a_link_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / STEP).rename(tmp_path / "step.onnx")
    (bundle_copy / STEP).symlink_to(tmp_path / "step.onnx")
    with pytest.raises(PathError, match="step.onnx is a link; a bundle holds plain files only"):
        open_bundle(bundle_copy)


def test_a_directory_that_is_a_link_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "graphs").rename(tmp_path / "graphs")
    (bundle_copy / "graphs").symlink_to(tmp_path / "graphs", target_is_directory=True)
    with pytest.raises(PathError, match="graphs is a link"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("part", ["graphs", "schedules", "engines"])
def test_a_file_that_is_used_but_not_listed_is_refused(bundle_copy: Path, part: str) -> None:
    (bundle_copy / "extra").write_bytes(b"x")
    edit(bundle_copy, lambda manifest: manifest[part][0].update(path="extra"))
    with pytest.raises(ManifestError, match="extra is used but not listed"):
        open_bundle(bundle_copy)


def test_weights_that_are_used_but_not_listed_are_refused(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda manifest: manifest["graphs"][0].update(weights="../outside"))
    with pytest.raises(ManifestError, match="outside is used but not listed"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("image_tokenizer", {"codebook_size": 64}, "image tokenizer has 64 codes, the model 32 tokens"),
        ("image_tokenizer", {"image_size": [16, 32]}, r"image size \(16, 32\), the grid makes \(16, 16\)"),
        ("image_tokenizer", {"downsampling": 4}, r"the grid makes \(32, 32\)"),
        ("model", {"position_rows": 64}, "64 positions for 65 places"),
        ("model", {"condition": IDS, "positions": "sequence", "position_rows": 127}, "127 positions for 128 places"),
        ("model", {"condition": {**IDS, "vocabulary": 8828}}, "prompts have the id 8828 of a vocabulary of 8828"),
        ("model", {"condition": {**IDS, "padding": 65536}}, "prompts have the id 65536 of a vocabulary of 65536"),
        ("model", {"condition": {**IDS, "start": 5}}, "an image begins with 5 of the 4 ids behind a prompt"),
        ("model", {"condition": {**IDS, "slots": 4}}, "prompts of 4 ids have no room for their own template"),
        ("model", {"condition": {**IDS, "negative": [1] * 65}}, "no room for their own template, or for the negative"),
        ("model", {"condition": {**IDS, "unconditional": "padded", "padding": None}}, "and there is no padding"),
        ("model", {"condition": {**CLASSES, "first_class": 31}}, "class ids overlap"),
        ("model", {"condition": {**CLASSES, "null_class": 41}}, "class ids overlap"),
        ("model", {"condition": {**CLASSES, "classes": 11}}, "class ids overlap"),
        ("model", {"labels": ["one", "two"]}, "2 labels for 10 classes"),
        ("model", {"labels": ["one"], "condition": FEATURES}, "labels, and no classes"),
        ("model", {"specials": [42]}, "special tokens overlap"),
        ("model", {"specials": [43, 43]}, "special tokens overlap"),
        ("model", {"row_end": 0, "position_rows": 100}, "row_end 0 of 0 special tokens"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(
    bundle_copy: Path, part: str, change: dict[str, Any], message: str
) -> None:
    edit(bundle_copy, lambda manifest: manifest[part].update(change))
    with pytest.raises(ManifestError, match=message):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("key", ["steps", "slots"])
def test_a_stored_schedule_that_the_manifest_contradicts_is_refused(bundle_copy: Path, key: str) -> None:
    edit(bundle_copy, lambda manifest: manifest["schedules"][0].update({key: 63}))
    with pytest.raises(ScheduleError, match=r"ntp.schedule holds .*the manifest says .*export again"):
        open_bundle(bundle_copy).schedule("ntp")


def test_a_stored_schedule_of_another_grid_is_refused(bundle_copy: Path) -> None:
    other = dump(compile_schedule("ntp", (4, 16)))
    (bundle_copy / "schedules/ntp.schedule").write_bytes(other)
    edit(bundle_copy, lambda manifest: manifest["files"]["schedules/ntp.schedule"].update(bytes=len(other)))
    with pytest.raises(ScheduleError, match=r"\(4, 16\).*the manifest says.*\(8, 8\)"):
        open_bundle(bundle_copy).schedule("ntp")


def test_a_damaged_stored_schedule_is_named(bundle_copy: Path) -> None:
    path = bundle_copy / "schedules/zipar-4.schedule"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(ScheduleError, match="zipar-4.schedule is not a schedule"):
        open_bundle(bundle_copy).schedule("zipar:4")


@pytest.mark.parametrize("text", ["ntp", "zipar:4", "zipar:4,holes=published", "zipar:5,seed=nearest"])
def test_stored_and_compiled_schedules_are_alike(bundle: Path, text: str) -> None:
    assert open_bundle(bundle).schedule(text) == compile_schedule(text, (8, 8))


@pytest.mark.parametrize(("target", "precision"), [("tensorrt", "fp32"), ("onnxruntime", "int8")])
def test_an_engine_that_is_not_built_names_the_command(bundle: Path, target: str, precision: str) -> None:
    message = rf"built: onnxruntime fp32\). Build it: arforge build .* --target {target} --precision {precision}"
    with pytest.raises(EngineError, match=message):
        open_bundle(bundle).engine(target, precision)


@pytest.mark.parametrize("text", ["[]", "3", "{", "\ud800"])
def test_a_damaged_engine_identity_raises_an_error_of_arforge(bundle_copy: Path, text: str) -> None:
    path = bundle_copy / open_bundle(bundle_copy).engines[0].path
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    name = path.relative_to(bundle_copy).as_posix()
    edit(bundle_copy, lambda manifest: manifest["files"][name].update(bytes=len(data)))
    with pytest.raises(ArforgeError, match=r"engine-\w+.json is not"):
        open_bundle(bundle_copy).engine("onnxruntime", "fp32")


def test_links_say_what_to_do(bundle_copy: Path) -> None:
    (bundle_copy / STEP).rename(bundle_copy / "moved")
    (bundle_copy / STEP).symlink_to(bundle_copy / "moved")
    copy = f"copy it with `cp -rL {bundle_copy} COPY`, or download it with --local-dir"
    with pytest.raises(PathError, match=f"is a link; a bundle holds plain files only: {copy}"):
        open_bundle(bundle_copy)
    (bundle_copy / "manifest.json").rename(bundle_copy / "elsewhere")
    (bundle_copy / "manifest.json").symlink_to("elsewhere")
    with pytest.raises(ManifestError, match=f"it has no manifest.json but a link of that name: {copy}"):
        open_bundle(bundle_copy)


def test_a_bundle_is_found_through_a_link_and_with_hard_links(bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(bundle_copy, target_is_directory=True)
    os.link(bundle_copy / STEP, tmp_path / "shared")
    opened = open_bundle(tmp_path / "latest")
    opened.check_hashes()
    assert opened.graph("step", "fp32") == tmp_path / "latest" / STEP


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("path", ["", "graphs", "manifest.json", STEP])
def test_permission_denied_is_neither_missing_nor_damaged(bundle_copy: Path, tmp_path: Path, path: str) -> None:
    open_bundle(bundle_copy)  # reads what is installed, which another user may not either
    (bundle_copy / path).chmod(0)
    caught = as_nobody(lambda: open_bundle(bundle_copy), tmp_path)
    (bundle_copy / path).chmod(0o755)
    assert re.fullmatch(r"BundleError: cannot read .*: Permission denied", caught)


def as_nobody(work: Callable[[], object], folder: Path) -> str:
    """The error of `work` without root's permissions, in a process of its own."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        message = "another error"
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            work()
            message = "no error"
        except (ArforgeError, OSError) as error:
            message = f"{type(error).__name__}: {error}"
        finally:  # nothing of the parent's may run on in the child
            os.write(writer, message.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(process, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_a_path_that_no_runtime_can_open_is_named(bundle_copy: Path) -> None:
    root = bundle_copy.rename(bundle_copy.with_name(os.fsdecode(b"\xff.bundle")))
    with pytest.raises(BundleError, match=r"the path '.*\\udcff.bundle' is not UTF-8, which runtimes need: rename it"):
        open_bundle(root)


def test_a_bundle_that_changes_while_it_is_opened_is_read_again(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A builder replaces the manifest and removes what it no longer lists: between two looks of a reader."""
    kept = bundle_copy.with_name("kept.json")
    shutil.copy(bundle_copy / "manifest.json", kept)
    edit(bundle_copy, lambda manifest: manifest["files"].update({"gone": {"bytes": 1, "sha256": "0" * 64}}))
    really, turns = files.check_file, 0

    def check(root: Path, path: str, size: int) -> None:
        nonlocal turns
        if path == "gone" and not turns:
            turns += 1
            kept.replace(root / "manifest.json")
        really(root, path, size)

    monkeypatch.setattr(bundle_module, "check_file", check)
    assert "gone" not in open_bundle(bundle_copy).files
    assert turns == 1


def test_an_engine_that_is_built_again_meanwhile_is_found(bundle_copy: Path) -> None:
    opened = open_bundle(bundle_copy)
    onnxruntime.build(bundle_copy, widths=[1, 3])
    assert not opened.path(opened.engines[0].path).exists()
    assert opened.engine("onnxruntime", "fp32")["widths"] == [1, 3]
