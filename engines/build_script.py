"""A shell script that builds a bundle's engines on a device without Python, and enters them in the bundle there.

What only the device knows (library, GPU, sizes and hashes of the engines) stands in templates as `@NAME@`; the script
has it from what `trtexec` prints and from the files. All else is written here.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arforge.engines.tensorrt import Prepared, describe, device_name
from arforge.engines.tensorrt_between import Between
from arforge.runner.backends.tensorrt_library import RTX, Library
from arforge.runner.bundle import Bundle
from arforge.runner.bundle.files import sha256_of
from arforge.runner.bundle.manifest import MANIFEST
from arforge.runner.bundle.writer import facts_of

SCRIPT = "build.sh"
MANIFEST_TEMPLATE, IDENTITY_TEMPLATE = "manifest.json.in", "identity.json.in"
PARTS = ("engine", "decoder", "loop", "table")  # of an identity, in the order of the commands
NAMES = {"engine": "step", "decoder": "decoder", "loop": "loop", "table": "table"}  # of their files
DEVICE, CAPABILITY, LIBRARY, IDENTITY = "@DEVICE@", "@CAPABILITY@", "@LIBRARY@", "@IDENTITY@"

TEXT = """#!/bin/sh
# Builds the engines of a bundle on this device and enters them in the bundle: sh {script} BUNDLE
# TRTEXEC names the program where it is not on the path, OPTIONS what it is given besides.
set -eu
caller=$PWD
cd "$(dirname "$0")"
fail() {{ echo "{script}: $1" >&2; exit 1; }}
[ $# = 1 ] || fail "name the bundle: sh {script} BUNDLE"
asked=$1
[ -d "$caller/$asked" ] && bundle=$caller/$asked || bundle=$asked
[ -f "$bundle/{manifest}" ] || fail "no bundle at $asked"
for program in "${{TRTEXEC:-}}" {program} /usr/src/tensorrt/bin/{program}; do
  [ -n "$program" ] && command -v "$program" >/dev/null && break
done
command -v "$program" >/dev/null || fail "no {program} on the path: name it with TRTEXEC=/path/to/{program}"
hash_of() {{ sha256sum "$1" | cut -d ' ' -f 1; }}
size_of() {{ wc -c < "$1" | tr -d ' '; }}

present=$(hash_of "$bundle/{manifest}")
[ "$present" = {sha256} ] || [ "$present" = "$(cat built.sha256 2>/dev/null)" ] ||
  fail "the bundle is not the one of the dry run, or has changed since: make the dry run again"

# NAME ARGUMENTS…: one engine, whose log tells the library and the GPU
build() {{
  name=$1
  shift
  echo "building $name.engine"
  rm -f "$name.engine"
  # shellcheck disable=SC2086
  if ! "$program" "$@" ${{OPTIONS:-}} > "$name.log" 2>&1; then
    tail -n 20 "$name.log" >&2
    fail "{program} failed: see $name.log"
  fi
  [ -s "$name.engine" ] || fail "{program} wrote no $name.engine: see $name.log"
}}
{commands}

number=$(sed -n 's/.*\\[{banner} v\\([0-9]*\\)\\].*/\\1/p' {first}.log | head -n 1)
[ -n "$number" ] || fail "{first}.log does not name the library's version"
library={target}\\ $((number / 10000)).$((number / 100 % 100)).$((number % 100))
release=$(sed -n 's/.*\\[{banner} v[0-9]*\\] \\[b\\([0-9]*\\)\\].*/\\1/p' {first}.log | head -n 1)
[ -z "$release" ] || library=$library.$release
{device}
folder=engines/{kind}-$device

set -- -e "s/@LIBRARY@/$library/g" -e "s/@DEVICE@/$device/g" -e "s/@CAPABILITY@/$capability/g"
mkdir -p "$bundle/$folder"
# MARK NAME FILE: where an engine goes, and what the templates say of it
enter() {{
  digest=$(hash_of "$3")
  short=$(echo "$digest" | cut -c 1-12)
  cp "$3" "$bundle/$folder/$2-$short.engine"
  marks="-e s/@$1_SHORT@/$short/g -e s/@$1_SHA256@/$digest/g -e s/\\"@$1_BYTES@\\"/$(size_of "$3")/g"
}}
{entered}
sed "$@" {identity_template} > identity.json
digest=$(hash_of identity.json)
short=$(echo "$digest" | cut -c 1-12)
cp identity.json "$bundle/$folder/engine-$short.json"
set -- "$@" -e "s/@IDENTITY_SHORT@/$short/g" -e "s/@IDENTITY_SHA256@/$digest/g" \\
  -e "s/\\"@IDENTITY_BYTES@\\"/$(size_of identity.json)/g"
{copied}
sed "$@" {manifest_template} > "$bundle/.{manifest}.new"
grep -q '@[A-Z0-9][A-Z0-9_]*@' "$bundle/.{manifest}.new" && fail "a mark was left in {manifest}"
mv "$bundle/.{manifest}.new" "$bundle/{manifest}"
hash_of "$bundle/{manifest}" > built.sha256
echo "entered $library {precision} for $device in $asked"
"""
FROM_LOG = """capability=$(sed -n 's/.*Compute Capability: \\([0-9]*\\.[0-9]*\\).*/\\1/p' {first}.log | head -n 1)
[ -n "$capability" ] || fail "{first}.log does not name the GPU's compute capability"
device=sm$(echo "$capability" | tr -d .)
if grep -q "\\"engines/{kind}-$device/" {manifest_template}; then
  fail "the bundle of the dry run has such an engine for this device: make the dry run of a bundle without"
fi"""


def write_script(
    folder: Path, given: Bundle, ready: Prepared, commands: Sequence[str], between: Sequence[Between]
) -> None:
    """Write the script and its templates beside the graphs that the commands read.

    `given`: the bundle that they are for, `ready.bundle` a copy of a part of it, to which files were added; `commands`:
    of the step, of what stands between two calls, of the decoder where the bundle has one.
    """
    job = ready.job
    root, known = ready.bundle.root, job.target == RTX
    device = device_name(job.compute_capabilities) if known else DEVICE
    kind = f"engines/{job.target}-{job.precision}-{device}"
    kinds = [one.kind for one in between if one.plan]
    built = dict(zip(["engine", *kinds, "decoder"], map(shlex.split, commands), strict=False))
    listed = [f"{one.kind}_{part}" for one in between for part in ("graph", "layers")]
    files: dict[str, Path | None] = dict.fromkeys(("layers", "timing_cache", *listed))
    for part in PARTS:
        files[part] = root / kind / f"{NAMES[part]}-@{NAMES[part].upper()}_SHORT@.engine" if part in built else None
    copies = {path: path for path in (file.relative_to(root).as_posix() for file in ready.files)}
    for name in kinds:
        path = Path(next(word for word in built[name] if word.startswith("--onnx=")).removeprefix("--onnx="))
        copies[path.as_posix()] = f"{kind}/{path.name.replace(f'{name}-tensorrt', name)}"
        files[f"{name}_graph"] = root / copies[path.as_posix()]
    library = Library(job.target, None, "", None)
    reason = None if "decoder" in built else "the bundle has no image tokenizer"
    identity = describe(
        ready, library, list(job.compute_capabilities) if known else [CAPABILITY], files, reason, between
    )
    identity |= {"library": LIBRARY, "device": device}
    (folder / IDENTITY_TEMPLATE).write_text(json.dumps(identity, indent=1) + "\n")
    manifest = manifest_of(given, ready, kind, device, built, {copies[path]: folder / path for path in copies})
    (folder / MANIFEST_TEMPLATE).write_text(json.dumps(manifest, indent=1) + "\n")
    path = folder / SCRIPT
    path.write_text(script_text(given, ready, device, built, copies))
    path.chmod(0o755)


def script_text(
    given: Bundle, ready: Prepared, device: str, built: Mapping[str, Sequence[str]], copies: Mapping[str, str]
) -> str:
    """`copies`: files of the folder, to places in the bundle."""
    job, known = ready.job, device != DEVICE
    engines = {part: output_of(words) for part, words in built.items()}
    first, words = engines["engine"], {"kind": f"{job.target}-{job.precision}", "manifest_template": MANIFEST_TEMPLATE}
    from_log = FROM_LOG.format(first=first, **words)
    return TEXT.format(
        **words,
        script=SCRIPT,
        manifest=MANIFEST,
        identity_template=IDENTITY_TEMPLATE,
        program=next(iter(built.values()))[0],
        banner="TensorRT-RTX" if known else "TensorRT",
        target=job.target,
        precision=job.precision,
        sha256=sha256_of(given.root / MANIFEST),
        first=first,
        commands="\n".join(f"build {shlex.join([engines[part], *given[1:]])}" for part, given in built.items()),
        device=f"device={device}\ncapability=" if known else from_log,
        entered="\n".join(
            f'enter {NAMES[part].upper()} {NAMES[part]} {engines[part]}.engine\nset -- "$@" $marks' for part in built
        ),
        copied="\n".join(map(copying, copies.items())),
    )


def output_of(words: Sequence[str]) -> str:
    """The name of the engine that a command writes, without its ending."""
    given = next(word for word in words if word.startswith("--saveEngine="))
    return given.removeprefix("--saveEngine=").removesuffix(".engine")


def copying(pair: tuple[str, str]) -> str:
    source, target = pair
    place = f'"$bundle/{target.replace(DEVICE, "$device")}"'
    return f'mkdir -p "$(dirname {place})"\ncp {shlex.quote(source)} {place}'


def manifest_of(
    given: Bundle,
    ready: Prepared,
    kind: str,
    device: str,
    built: Mapping[str, Sequence[str]],
    new: Mapping[str, Path],
) -> dict[str, Any]:
    """The bundle's manifest with the engine in it; `new`: files by their place in the bundle."""
    graphs = [graph for graph in ready.bundle.graphs if graph not in given.graphs]
    key = (ready.job.target, ready.job.precision, device)  # of one that is replaced, where the device is known
    others = tuple(engine for engine in given.engines if engine.key != key)
    document = replace(given, graphs=(*given.graphs, *graphs), engines=others).to_json()
    files = {path: facts for path, facts in document["files"].items() if not path.startswith(f"{kind}/")}
    for place, path in new.items():
        facts = facts_of(path)
        files[place] = {"bytes": facts.bytes, "sha256": facts.sha256}
    marks = {NAMES[part].upper(): f"{kind}/{NAMES[part]}-@{NAMES[part].upper()}_SHORT@.engine" for part in built}
    marks["IDENTITY"] = f"{kind}/engine-@IDENTITY_SHORT@.json"
    for mark, place in marks.items():
        files[place] = {"bytes": f"@{mark}_BYTES@", "sha256": f"@{mark}_SHA256@"}
    entry = {"target": ready.job.target, "precision": ready.job.precision, "device": device}
    engines = [*document["engines"], {**entry, "path": marks["IDENTITY"]}]
    return {**document, "files": files, "engines": engines}
