"""A trtexec that is not there: it takes the options of its version alone, reads graphs as that parser would, and
prints what the real one prints.

Options, and the forms of the banners, are those of samples/common in TensorRT's releases 10.3, 10.16 and 11.0.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

# Of onnx-tensorrt's table of operators for TensorRT 10.1, with those that graphs here have.
READ_BY_TENSORRT_10_3 = {
    *("Abs", "Add", "And", "ArgMax", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Div", "Equal", "Exp"),
    *("Expand", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "InstanceNormalization", "Less"),
    *("LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pad", "QuantizeLinear", "Range"),
    *("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Resize", "Shape", "Sigmoid"),
    *("Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
}


@dataclass(frozen=True)
class Version:
    banner: str
    library: str  # as an identity names it
    typed: bool  # whether strongly typed networks have to be asked for
    opset: int
    operators: frozenset[str] | None = None  # that its parser reads; None: all


VERSIONS = {
    "10.3": Version("TensorRT.trtexec [TensorRT v100300]", "10.3.0", True, 21, frozenset(READ_BY_TENSORRT_10_3)),
    "10.16": Version("TensorRT.trtexec [TensorRT v101600] [b72]", "10.16.0.72", True, 24),
    "11.0": Version("TensorRT.trtexec [TensorRT v110004] [b17]", "11.0.4.17", False, 24),
    "rtx": Version("TensorRT-RTX.tensorrt_rtx [TensorRT-RTX v10701] [b116]", "1.7.1.116", False, 24),
}

PROGRAM = """#!{python}
import os, sys
from pathlib import Path
import onnx

FLAGS = {{"--skipInference", "--noTF32", "--stripWeights", "--refit", *{typed}}}
SHAPES = {{"--minShapes", "--optShapes", "--maxShapes"}}
VALUES = {{"--onnx", "--saveEngine", "--profile", "--memPoolSize", {more!r}, *SHAPES}}

def fail(text):
    print("[E] " + text)
    sys.exit(1)

print("&&&& RUNNING {banner} # " + " ".join(sys.argv))
print("[I] Selected Device: Orin")
print("[I] Compute Capability: 8.6")
options, profiles, index = {{}}, {{}}, 0
for word in sys.argv[1:]:
    name, equals, value = word.partition("=")
    if name not in (VALUES if equals else FLAGS):
        fail("Unknown option: " + word)
    if name == "--profile":
        index = int(value)
    elif name.endswith("Shapes"):
        profiles.setdefault(index, {{}})[name[2:5]] = value
    else:
        options[name] = value
if "--skipInference" not in options:
    fail("there is no GPU to infer on")
if {typed} - set(options):
    fail("the network is weakly typed: its precisions are not those of the graph")
graph = Path(options["--onnx"])
onnx.checker.check_model(graph, full_check=True)  # with what lies outside
model = onnx.load(graph, load_external_data=False)
(opset,) = (one.version for one in model.opset_import)
if opset > {opset}:
    fail(f"opset {{opset}} is newer than {opset}")
operators = {operators}
if operators and (unread := {{node.op_type for node in model.graph.node}} - operators):
    fail(f"no importer registered for op: {{min(unread)}}")
inputs = {{value.name: value.type.tensor_type.shape for value in model.graph.input}}
free = {{name for name, shape in inputs.items() if any(not dim.HasField("dim_value") for dim in shape.dim)}}
if sorted(profiles) != list(range(len(profiles))):
    fail(f"profiles {{sorted(profiles)}} are not numbered from 0 on")
for profile in profiles.values():
    if set(profile) != {{"min", "opt", "max"}} or len(set(profile.values())) != 1:
        fail(f"a profile has {{profile}}")
    shapes = dict(part.split(":") for part in profile["opt"].split(","))
    if set(shapes) != free:
        fail(f"a profile has shapes of {{sorted(shapes)}}, expected {{sorted(free)}}")
    for name, shape in shapes.items():
        for size, dim in zip(shape.split("x"), inputs[name].dim, strict=True):
            if dim.HasField("dim_value") and dim.dim_value != int(size):
                fail(f"{{name}} cannot be {{shape}}")
if free and not profiles:
    fail("shapes are free, and there is no profile")
if os.environ.get("FAILS", "none") in options["--saveEngine"]:
    fail("Error[2]: out of memory")
Path(options["--saveEngine"]).write_bytes(b"engine of " + graph.read_bytes() + os.environ.get("MORE", "").encode())
"""


def write_program(path: Path, version: str, banner: str | None = None) -> Path:
    """An executable like that of one of `VERSIONS`; `banner`: another one."""
    of = VERSIONS[version]
    path.write_text(
        PROGRAM.format(
            python=sys.executable,
            banner=banner or of.banner,
            typed={"--stronglyTyped"} if of.typed else "set()",
            more="--computeCapabilities" if version == "rtx" else "--timingCacheFile",
            opset=of.opset,
            operators=set(of.operators) if of.operators else None,
        )
    )
    path.chmod(0o755)
    return path
