"""`arforge inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from arforge.options import (
    PATH,
    Numbers,
    calls_a_launch,
    copied_caches,
    human,
    measured_jacobi,
    measured_products,
    measured_widths,
    only_read,
)
from arforge.runner.bundle import Bundle, ClassCondition, FeaturesCondition, IdsCondition, ModelFacts, open_bundle
from arforge.runner.command_line import command_line
from arforge.runner.step_graph import guided_rows
from arforge.runner.targets import TARGETS, default_precision

FLOAT_BYTES = 4
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")
UNCONDITIONAL = {"padded": "it padded", "image": "those alone", "negative": "a negative prompt"}
OWN_PACE = ("jacobi=", "adaptive=")  # in the specifications of schedules that leave their table


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
@click.option("--memory", is_flag=True, help="Also what an engine will take of memory, before it is built.")
@click.option("--target", type=click.Choice(TARGETS), default="onnxruntime", show_default=True, help="Its target.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Its precision.  [default: the target's usual one]")
@click.option("--images", type=Numbers(), multiple=True, help="Images that it decodes together.  [default: 1]")
@click.option("--schedule", "schedules", multiple=True, help="What it decodes by; repeatable.  [default: all stored]")
def command(
    bundle: Path,
    as_json: bool,
    memory: bool,
    target: str,
    precision: str | None,
    images: tuple[tuple[int, ...], ...],
    schedules: tuple[str, ...],
) -> None:
    """Show what BUNDLE holds: model, graphs, weights, schedules, engines and where it comes from."""
    opened = open_bundle(bundle)
    facts = facts_of(opened)
    if memory:
        facts["memory"] = memory_of(opened, target, precision, images, schedules)
    elif precision or images or schedules or target != "onnxruntime":
        raise click.UsageError("--target, --precision, --images and --schedule go with --memory")
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    model, sampler = opened.model, opened.sampler
    name = f"{model.family} {model.variant}" if model.variant else model.family
    grid = f"{model.grid[0]}x{model.grid[1]}"
    click.echo(f"{bundle}: {name}, {model.parameters / 1e6:.1f} M parameters, {grid} tokens of {model.vocabulary}")
    click.echo(
        f"  {model.layers} layers, {model.caches} caches of {model.kv_heads} heads of {model.head_size}, "
        f"{condition_of(model)}, {model.order} order, {stored_weights(model)}"
    )
    if not isinstance(model.condition, ClassCondition):
        click.echo(f"  {text_of(opened)}")
    if opened.image_tokenizer:
        height, width = opened.image_tokenizer.image_size
        click.echo(f"  images of {height}x{width}, codebook of {opened.image_tokenizer.codebook_width} channels")
    else:
        click.echo("  no image tokenizer: gives tokens only")
    click.echo(
        f"  requests: guidance {sampler.guidance:g}, temperature {sampler.temperature:g}, "
        f"top-k {sampler.top_k}, top-p {sampler.top_p:g}, unless they say otherwise"
    )
    click.echo("graphs")
    for graph in opened.graphs:
        size = human(opened.files[graph.weights].bytes)
        click.echo(f"  {graph.name:12} {graph.precision}  {graph.path}  (weights {graph.weights}, {size})")
    show_schedules(model, facts)
    click.echo("engines")
    for engine in facts["engines"]:
        show_engine(engine)
    if not facts["engines"]:
        click.echo(f"  none; build one: {command_line('build', bundle, '--target', 'onnxruntime')}")
    if memory:
        show_memory(facts["memory"])
    source = facts["provenance"]
    click.echo(f"made {source.get('created')} by arforge {source.get('arforge')}")
    for part in ("checkpoint", "tokenizer"):
        if source.get(part):
            click.echo(f"  {part} {source[part]['name']}, sha256 {source[part]['sha256']}")


def show_schedules(model: ModelFacts, facts: dict[str, Any]) -> None:
    click.echo("schedules                      steps  saved  tokens a step  slots  cache of a guided image")
    for entry in facts["schedules"]:
        widths = f"{entry['widths'][0]}-{entry['widths'][-1]}" if len(entry["widths"]) > 1 else str(entry["widths"][0])
        click.echo(
            f"  {entry['specification']:28} {entry['steps']:5}  {100 * entry['steps_saved']:4.1f}%  {widths:>13}  "
            f"{entry['slots']:5}  {human(entry['cache_bytes'])}"
        )
        if any(word in entry["specification"] for word in OWN_PACE):
            click.echo("    steps of its table; each image takes calls of its own (Result.passes, profile)")
    if model.caches != model.layers and facts["schedules"]:
        alone, most = facts["decoder_only_cache_bytes"], max(entry["cache_bytes"] for entry in facts["schedules"])
        click.echo(
            f"  a decoder-only model of this size: {model.layers} caches of {model.cells} slots, {human(alone)}; here "
            f"{human(most)}, {100 * (1 - most / alone):.1f}% less"
        )


def show_memory(found: dict[str, Any]) -> None:
    click.echo(
        f"memory of a {found['target']} {found['precision']} engine, up to {found['images']} images, "
        f"{found['slots']} slots: {human(found['total'])}"
    )
    for name in ("weights", "caches", "activations", "decoder", "prompts"):
        if found[name]:
            click.echo(f"  {name:12} {human(found[name])}")
    if found["built"]:
        told = found["built"]
        click.echo(f"  its builder: weights {human(told['weights'])}, activations {human(told['activations'])}")
    click.echo("  beside the process itself, the libraries, and a GPU's context")


def show_engine(engine: dict[str, Any]) -> None:
    widths = ", ".join(map(str, engine["widths"])) if engine["widths"] else "any"
    click.echo(
        f"  {engine['target']} {engine['precision']} for {engine['device']}: {engine['library']}, widths {widths}"
    )
    if "product_milliseconds" in engine:
        click.echo(f"    {measured_products(engine)}")
    if "width_milliseconds" in engine:
        click.echo(f"    {measured_widths(engine)}")
    if "jacobi" in engine:
        click.echo(f"    {measured_jacobi(engine)}")
    if "profiles" in engine:
        attention, passes = engine["attention"], ", ".join(map(str, engine["prefill_widths"]))
        prompts = f"prompts in passes of {passes}, " if passes else ""
        click.echo(
            f"    {len(engine['profiles'])} profiles, {engine['slots']} slots, {prompts}"
            f"{only_read(engine)}attention {attention['lowering']} ({attention['reason']}), "
            f"{'with' if engine['filters'] else 'without'} top-k and top-p, {calls_a_launch(engine)}, "
            f"{copied_caches(engine)}"
        )


def stored_weights(model: ModelFacts) -> str:
    """What the weights are stored as, and what they were of."""
    if model.stored_precision == model.source_precision:
        return f"{model.source_precision} weights"
    return f"weights in {model.stored_precision}, of {model.source_precision} ones"


def condition_of(model: ModelFacts) -> str:
    """What stands where a prompt would."""
    condition = model.condition
    if isinstance(condition, ClassCondition):
        named = "" if model.labels is None else f" ({model.labels[0]} to {model.labels[-1]})"
        return f"{condition.classes} classes{named}"
    return f"prompts of up to {condition.slots} tokens"


def text_of(bundle: Bundle) -> str:
    """What a prompt is to the model, and what makes it of a text."""
    condition = bundle.model.condition
    if isinstance(condition, IdsCondition):
        words = "with its tokenizer" if bundle.text_tokenizer else "without a tokenizer: takes ids only"
        return (
            f"a prompt is ids of {condition.vocabulary}, of which the last {condition.start} begin the image; "
            f"unconditional rows see {UNCONDITIONAL[condition.unconditional]}; {words}"
        )
    if not isinstance(condition, FeaturesCondition):
        return f"a prompt is {condition.kind}"
    captions = "cleaned as in training" if condition.captions == "clean" else "taken as they are"
    stored = [graph.precision for graph in bundle.graphs if graph.name == "text"]
    encoder = f"with its text encoder, in {stored[0]}" if stored else "without a text encoder: takes features only"
    return f"a prompt is features of {condition.width} numbers a token; captions are {captions}; {encoder}"


def memory_of(
    bundle: Bundle, target: str, precision: str | None, images: tuple[tuple[int, ...], ...], schedules: tuple[str, ...]
) -> dict[str, Any]:
    """What an engine will take, as JSON."""
    from arforge.engines.device_memory import estimate

    chosen = precision or default_precision(target, bundle.model.stored_precision)
    batches = [count for group in images for count in group] or [1]
    return estimate(bundle, target, chosen, batches, schedules).to_json()


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """The manifest, with what follows from it: the caches of each schedule, the identity of each engine."""
    model = bundle.model
    cache_slot_bytes = guided_rows(1, guided=True) * 2 * model.kv_heads * model.head_size * FLOAT_BYTES
    schedules = [
        {
            **asdict(entry),
            "steps_saved": 1 - entry.steps / model.cells,
            "cache_bytes": model.caches * entry.slots * cache_slot_bytes,
        }
        for entry in bundle.schedules
    ]
    engines = [bundle.identity(engine) for engine in bundle.engines]
    decoder_only = model.layers * model.cells * cache_slot_bytes
    return {
        **bundle.to_json(),
        "schedules": schedules,
        "decoder_only_cache_bytes": decoder_only,  # next-token, a cache a layer
        "engines": engines,
    }
