"""What the identity of an engine says, in words for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arforge.options import human
from arforge.runner.schedules.jacobi_windows import MeasuredWindow, best_window


def measured_jacobi(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of running ahead on drafts."""
    windows = [MeasuredWindow(**one) for one in identity["jacobi"]]
    if not windows:
        return "jacobi: nothing to measure, this model does not decode in raster order"
    said = []
    for images in sorted({one.images for one in windows}):
        of_batch = [one for one in windows if one.images == images]
        listed = ", ".join(f"{one.inputs}: {one.calls:g} calls, {one.time:g}" for one in of_batch)
        best = best_window(of_batch, images)
        said.append(f"batch {images}: {listed}; {f'jacobi:{best}' if best > 1 else 'ntp'} is the quickest")
    return f"jacobi:L, calls and time of ntp's, {'; '.join(said)}"


OF_KIND = {"table": "steps", "loop": "drafts"}  # what follows one another without the host


def calls_a_launch(identity: Mapping[str, Any]) -> str:
    """Whether a TensorRT engine's calls follow one another without the host, by its identity."""
    made = [name for name in ("table", "loop") if identity.get(name) is not None]
    if not made:
        reasons = [identity.get(f"{name}_reason", "built before there were more") for name in OF_KIND]
        return f"1 call a launch ({'; '.join(dict.fromkeys(filter(None, reasons)))})"
    found = []
    for name in made:
        widths = sorted({profile["width"] for profile in identity[f"{name}_profiles"]})
        found.append(f"{OF_KIND[name]} of width {', '.join(map(str, widths))}")
    return f"several calls a launch: {' and '.join(found)}"


def copied_caches(identity: Mapping[str, Any]) -> str:
    """What a TensorRT engine's steps copy of their caches, by its identity."""
    copied = identity.get("copied_cache_bytes")
    if copied is None:
        return "copied caches: not known"
    pairs = [(profile["width"], count) for profile, count in zip(identity["profiles"], copied, strict=True)]
    alone, wide = ([count for width, count in pairs if (width > 1) == wider] for wider in (False, True))
    parts = [(alone, " at width 1"), (wide, " above")] if alone and wide and set(alone) != set(wide) else [(copied, "")]
    said = []
    for counts, where in parts:
        least, most = human(min(counts)), human(max(counts))
        said.append(f"{least if least == most else f'{least} to {most}'} a step{where}")
    return f"copied caches: {', '.join(said)}"


def only_read(identity: Mapping[str, Any]) -> str:
    """Where a TensorRT engine only reads its caches, that it does and why, before what else is said of it."""
    caches = identity.get("caches", {"lowering": "in-place"})
    return "" if caches["lowering"] == "in-place" else f"caches {caches['lowering']} ({caches['reason']}), "


def measured_caches(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of the 8-bit caches that were tried for it."""
    plain, low = (identity["cache_milliseconds"][kind] for kind in ("fp32", "int8"))
    listed = ", ".join(f"{width}: {plain[width]:g} and {low[width]:g}" for width in sorted(plain, key=int))
    found, width = identity["cache_check"], identity.get("cache_width")
    kept = f", layers {', '.join(map(str, found['kept']))} float32" if found["kept"] else ""
    verdict = (
        f"8 bits in schedules of up to {width} tokens a step" if width else "8 bits are not quicker, float32 stays"
    )
    if "own_graph" in identity:
        verdict += "; always 8 bits where `arforge kernels` are"
    return (
        f"ms a step by width, with float32 and 8-bit caches: {listed}; error at most {found['error']:.2%}, "
        f"{found['clipped']:.4%} clipped{kept}; {verdict}"
    )


def measured_products(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of the quantisations that were tried for it."""
    blocks, rows = (identity["product_milliseconds"][form] for form in ("blocks", "rows"))
    listed = ", ".join(f"{width}: {blocks[width]:g} and {rows[width]:g}" for width in sorted(blocks, key=int))
    return f"ms of a step's products by width, in blocks and by rows: {listed}; built {identity['quantization']}"


def measured_widths(identity: Mapping[str, Any]) -> str:
    """What an engine's identity says of the widths that were measured for it."""
    times = identity["width_milliseconds"]
    listed = ", ".join(f"{width}: {times[width]:g}" for width in sorted(times, key=int))
    kept = identity["widths"]
    verdict = f"the others are padded to {', '.join(map(str, kept))}" if kept else "none is quicker padded"
    return f"ms a step by width: {listed}; {verdict}"


def measured(identity: Mapping[str, Any]) -> list[str]:
    """All that was measured for an engine, a line each."""
    said = {
        "product_milliseconds": measured_products,
        "cache_milliseconds": measured_caches,
        "width_milliseconds": measured_widths,
        "jacobi": measured_jacobi,
    }
    return [say(identity) for name, say in said.items() if name in identity]
