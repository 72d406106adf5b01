"""`arforge schedule`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from arforge.options import PATH, Grid
from arforge.runner.output import check_outputs, write_whole
from arforge.runner.schedules.specification import compile_schedule

STEPS_SHOWN = 6


@click.command()
@click.argument("specification")
@click.option("--grid", type=Grid(), required=True, help="Token grid, such as 24x24.")
@click.option("--row-ends", is_flag=True, help="As for models whose rows end in a token, such as Lumina-mGPT and Emu3.")
@click.option("--json", "json_file", type=PATH, help="Dump the whole schedule as JSON; - for standard output.")
@click.option("--plot", type=PATH, help="PNG heat map of the step in which each cell is decided.")
@click.option("--gif", type=PATH, help="Animated GIF of the cells as they are decided.")
def command(
    specification: str,
    grid: tuple[int, int],
    row_ends: bool,
    json_file: Path | None,
    plot: Path | None,
    gif: Path | None,
) -> None:
    """Show the schedule SPECIFICATION on a grid: its steps, their widths, and the cache it needs.

    \b
    ntp                  next-token; options:
        jacobi=L                       the same tokens, up to L a call on drafts (jacobi:L for short; also for zipar:W)
        jacobi=auto                    L as the engine at hand was found to gain by, batch by batch (jacobi:auto)
    zipar:W              ZipAR with window W, which counts a row's end where there is one; options after commas:
        first-row=published|windowed   when row 1 starts
        seed=published|nearest         which token stands in for a row's undecided last one
        holes=published|masked         whether not yet written cells enlarge the softmax
        cfg-interval=N                 conditional logits alone after that many tokens (also for ntp)
    zipar:adaptive=W     ZipAR whose rows start W cells or more after the one above, when their first token has settled;
                         the options of zipar:W but jacobi
    par:REGIONS          PAR with 4 or 16 regions
    arpg:STEPS           ARPG in that many steps; options:
        ratio=arccos|cosine            how the groups grow
        cfg=linear|constant            guidance along the steps
        order=SEED                     the random order
        groups=published|causal        whether the cells of a group see each other
    """
    from arforge.runner.schedules import plot as schedule_plot

    to_stdout = str(json_file) == "-"
    check_outputs({"--json": None if to_stdout else json_file, "--plot": plot, "--gif": gif})
    schedule = compile_schedule(specification, grid, row_end=0 if row_ends else None)
    if json_file:
        text = json.dumps(schedule.to_json()) + "\n"
        if to_stdout:
            click.echo(text, nl=False)
            return
        write_whole(json_file, lambda file: file.write(text.encode()))
    if plot:
        schedule_plot.save_heat_map(plot, schedule)
    if gif:
        schedule_plot.save_animation(gif, schedule)
    steps, cells = len(schedule.steps), schedule.cells
    click.echo(f"{schedule.specification} on {grid[0]}x{grid[1]}: {steps} steps for {cells} cells")
    if schedule.pace:
        click.echo(schedule.pace)
    click.echo(f"steps saved against next-token: {100 * (1 - steps / cells):.1f} %")
    widths = Counter(step.width for step in schedule.steps)
    click.echo("tokens a step: " + ", ".join(f"{width} ({widths[width]} steps)" for width in sorted(widths)))
    click.echo(f"cache: {schedule.slots} slots, {schedule.zero_slots} of them zero")
    for index, step in enumerate(schedule.steps[:STEPS_SHOWN]):
        fed = ", ".join(f"{given.source.name.lower()} {given.value}" for given in step.inputs)
        click.echo(f"step {index}: feeds {fed}; decides {', '.join(str(target.cell) for target in step.targets)}")
    if steps > STEPS_SHOWN:
        click.echo(f"… and {steps - STEPS_SHOWN} more; --json FILE has them all")
