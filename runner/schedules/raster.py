"""Schedules for raster-order decoders such as LlamaGen: next-token and ZipAR (arXiv 2412.04062)."""

from __future__ import annotations

from dataclasses import replace

from arforge.runner.errors import ScheduleError
from arforge.runner.schedules.schedule import CLASS_TOKEN, Input, RowRules, Schedule, Source, Step, Target


def next_token(specification: str, grid: tuple[int, int], cfg_interval: int = -1, jacobi: int = 0) -> Schedule:
    """One cell a step, in raster order. Cells after `cfg_interval` + 1 (if not -1) use conditional logits alone.

    `jacobi`: inputs that a call runs ahead on drafts, with the same tokens.
    """
    check_interval(cfg_interval)
    check_jacobi(jacobi, grid)
    cells = grid[0] * grid[1]
    steps = [
        Step(
            inputs=(CLASS_TOKEN if cell == 0 else _input(cell - 1),),
            targets=(Target(0, cell),),
            commit=1,
            guidance=weight(cell - 1, cfg_interval),
        )
        for cell in range(cells)
    ]
    return Schedule(specification, grid, tuple(steps), jacobi=jacobi)


def zipar(
    specification: str,
    grid: tuple[int, int],
    window: int,
    first_row: str = "published",
    seed: str = "published",
    holes: str = "published",
    cfg_interval: int = -1,
    jacobi: int = 0,
) -> Schedule:
    """ZipAR: a row starts once the row above it has `window` cells; every started row gains one cell a step.

    The published behaviour is the default:
    - `first_row`: row 1 waits for the whole of row 0 ("published"), or starts like the others ("windowed").
    - `seed`: the input that starts row r + 1 stands in for the undecided last token of row r. It is a copy of the
      latest token of row r - 1 ("published"; of row 0 for row 1), or of the decided cell nearest to the last cell
      of row r ("nearest"). When row r is complete its true last token is fed and the stand-in is retired.
    - `holes`: an input also sees the not yet written cells before it as zero slots ("published"), or not ("masked").

    `jacobi`: as in `next_token`; inputs of all rows count.

    Raises ScheduleError if the window is not within 1..width. A window of the full width decodes in next-token
    order (the authors' code fails there).
    """
    check_jacobi(jacobi, grid)
    rules = RowRules(window, first_row, seed, holes, cfg_interval)
    return replace(table(specification, grid, rules), jacobi=jacobi)


def adaptive_zipar(
    specification: str,
    grid: tuple[int, int],
    window: int,
    first_row: str = "published",
    seed: str = "published",
    holes: str = "published",
    cfg_interval: int = -1,
) -> Schedule:
    """ZipAR whose rows start once the row above has `window` cells and the first token of the row has settled.

    That is when the token, sampled again with one more cell above it under the same random number, comes out the same;
    where the row above is complete, its row starts in any case. Each image has rows of its own (`AdaptiveDecoding`).
    The paper (v3 of it) accepts by the ratio of the token's probabilities, samples what is rejected from their
    difference, and says nothing of batches, of guidance, or of a stand-in that is fed again: here that is at each try
    what `zipar` would feed there, so that an image is decoded by the table of its own starts. Not next-token's tokens.

    The other options are those of `zipar`, as are their defaults, and the table, which bounds widths and cache.
    """
    rules = RowRules(window, first_row, seed, holes, cfg_interval)
    return replace(table(specification, grid, rules), rows=rules)


def table(specification: str, grid: tuple[int, int], rules: RowRules) -> Schedule:
    """The schedule in which every row starts as soon as it may. Raises ScheduleError for rules that do not fit."""
    height, width = grid
    if not 1 <= rules.window <= width:
        raise ScheduleError(
            f"window {rules.window} does not fit a grid of {height}x{width}: use zipar:1 to zipar:{width}"
        )
    check_interval(rules.cfg_interval)
    rows = ZipARRows(grid, rules)
    steps = []
    while not rows.complete:
        steps.append(rows.next())
    zero_slots = max(given.holes for step in steps for given in step.inputs)
    shifted = tuple(replace(step, retire=tuple(slot + zero_slots for slot in step.retire)) for step in steps)
    return Schedule(specification, grid, shifted, zero_slots=zero_slots)


def _input(cell: int, token_of: int | None = None) -> Input:
    """The token of `cell`, or of cell `token_of` standing in for it."""
    return Input(Source.CELL, cell if token_of is None else token_of, position=1 + cell, rank=1 + cell)


def check_interval(cfg_interval: int) -> None:
    if cfg_interval < -1:
        raise ScheduleError(f"cfg-interval {cfg_interval} is out of range: use -1 (guidance throughout) or more")


def check_jacobi(jacobi: int, grid: tuple[int, int]) -> None:
    cells = grid[0] * grid[1]
    if jacobi and not 2 <= jacobi <= cells:
        raise ScheduleError(f"jacobi {jacobi} is out of range on {cells} cells: use 2 to {cells}, or leave it out")


def weight(decoded: int, cfg_interval: int) -> float:
    return 0.0 if -1 < cfg_interval < decoded else 1.0


class ZipARRows:
    """The decoding of one image: how far each row is, and what the cache holds (`rows.Rows`)."""

    def __init__(self, grid: tuple[int, int], rules: RowRules, slot: int = 0) -> None:
        self.height, self.width = grid
        self.rules, self.slot = rules, slot
        self.decoded = [0] * self.height
        self.trial: int | None = None
        self.stand_ins: dict[int, int] = {}  # row whose last token is stood in for -> its cache slot
        self.written: list[set[int]] = [set() for _ in range(self.height)]  # columns of each row in the cache

    @property
    def complete(self) -> bool:
        return self.decoded[-1] == self.width

    def next(self) -> Step:
        inputs: list[Input] = []
        retire = []
        for row in [row for row in self.stand_ins if self.decoded[row] == self.width]:
            retire.append(self.stand_ins.pop(row))
            inputs.append(_input(self._cell(row, self.width - 1)))
        rows = [row for row in range(self.height) if self.decoded[row] < self.width and self._may_run(row)]
        for row in rows:
            inputs.append(self._row_input(row, self.slot + len(inputs)))
        self.trial = rows[-1] if rows[-1] - 1 in self.stand_ins and not self.decoded[rows[-1]] else None
        return self._step(inputs, rows, retire)

    def withdraw(self) -> None:
        assert self.trial is not None
        del self.stand_ins[self.trial - 1]
        self.written[self.trial - 1].remove(self.width - 1)
        self.decoded[self.trial] = 0
        self.slot -= 1

    def _step(self, inputs: list[Input], rows: list[int], retire: list[int]) -> Step:
        weight = self._guidance()
        for given in inputs:
            if given.source is Source.CELL:
                row, column = divmod(given.rank - 1, self.width)
                self.written[row].add(column)
        if self.rules.holes == "published":
            inputs = [given._replace(holes=self._holes(given)) for given in inputs]
        first = len(inputs) - len(rows)  # a completed row's last token comes first and has no output
        targets = tuple(Target(first + i, self._cell(row, self.decoded[row])) for i, row in enumerate(rows))
        for row in rows:
            self.decoded[row] += 1
        self.slot += len(inputs)
        return Step(tuple(inputs), targets, len(inputs), tuple(retire), weight)

    def _may_run(self, row: int) -> bool:
        if row == 0:
            return True
        wait = self.width if row == 1 and self.rules.first_row == "published" else self.rules.window
        return self.decoded[row - 1] >= wait

    def _row_input(self, row: int, slot: int) -> Input:
        cell = self._cell(row, self.decoded[row])
        if cell == 0:
            return CLASS_TOKEN
        if self.decoded[row] > 0 or self.decoded[row - 1] == self.width:
            return _input(cell - 1)
        self.stand_ins[row - 1] = slot
        return _input(cell - 1, token_of=self._stand_in(row - 1))

    def _stand_in(self, row: int) -> int:
        """The cell whose token stands in for the last of `row`."""
        if self.rules.seed == "published":
            source = max(row - 1, 0)
            return self._cell(source, self.decoded[source] - 1)
        latest = [(r, count - 1) for r, count in enumerate(self.decoded[: row + 1]) if count]
        _, source, column = min(((row - r) ** 2 + (self.width - 1 - c) ** 2, -r, c) for r, c in latest)
        return self._cell(-source, column)

    def _holes(self, given: Input) -> int:
        """Raster positions up to the input's own that nothing has been written to."""
        if given.source is Source.CONDITION:
            return 0
        row, column = divmod(given.rank - 1, self.width)
        above = sum(len(columns) for columns in self.written[:row])
        beside = sum(other <= column for other in self.written[row])
        return given.rank - above - beside

    def _guidance(self) -> float:
        # The authors count the cells of row 0, then start again for the cells of the other rows.
        later = sum(self.decoded[1:])
        restarted = self.rules.first_row == "published" and self.decoded[0] == self.width
        return weight(later if restarted else sum(self.decoded) - 1, self.rules.cfg_interval)

    def _cell(self, row: int, column: int) -> int:
        return row * self.width + column
