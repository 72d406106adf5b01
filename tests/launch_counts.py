"""What an image costs beside its kernels: launches, waits and bytes, as `docs/engines.md` has them."""

from __future__ import annotations

BUNDLES = {"ntp": "bundle", "zipar:4": "bundle", "jacobi:6": "bundle", "par:4": "par_bundle", "arpg:5": "arpg_bundle"}
COUNTS = {
    "ntp": [(64, 64, 114688, 16384), (8, 8, 3072, 7424), (1, 1, 3072, 2048)],
    "zipar:4": [(40, 40, 71680, 10240), (5, 5, 3072, 5120), (1, 1, 3072, 2048)],
    "jacobi:6": [(58, 58, 89088, 14848), (8, 9, 8708, 6656), (8, 9, 8708, 6656)],
    "par:4": [(19, 19, 34048, 4864), (3, 3, 3072, 3584), (1, 1, 3072, 2048)],
    "arpg:5": [(5, 5, 10240, 1280), (1, 1, 2304, 1280), (1, 1, 2304, 1280)],
}
"""Of each schedule, with a look at every call, at every eighth and at the end: launches, waits, bytes to the device and
back. Jacobi has as many calls as its drafts need, so that there is no end to be known."""
