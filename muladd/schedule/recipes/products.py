"""Matrix products with their epilogues: a tile of results in registers, operands in panels.

The nest of out[i, j] += left[i, k] * right[k, j] with both sides packed, i.2 and j.2 written out
and j.3 in vectors:

    grid batch j.0 i.0                 chunks, for the threads
      c0[j.1, k, j.2, j.3] = right     some panels of columns, for all rows of the chunk
      for i.1                          the chunk's tiles downwards
        c1[k, i.2] = left              a panel of rows, if they lie so or have to be converted
        for j.1                        each panel of columns
          for k
            i.2 j.2 j.3                the tile of results in registers
        for i.2 j.1                    bias, activation: over the rows just finished
          j.2 j.3

c0 stays in the second cache, c1 and one panel of c0 in the first. Rows and columns are both shared
axes; chains of products are in `bands`, long sums over operands that do not lie along the results
in `deep`.
"""
from __future__ import annotations

from functools import partial

from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.ir import ops
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule.analysis import Product, extent, operations, product, size, work
from muladd.schedule.primitives import loop_named, step
from muladd.schedule.recipes.bands import bands
from muladd.schedule.recipes.channels import channels, placed
from muladd.schedule.recipes.deep import deep, terms_of
from muladd.schedule.recipes.few_rows import few_rows
from muladd.schedule.recipes.images import is_masked, merged, taps_first, windows
from muladd.schedule.recipes.operands import (
    AHEAD,
    MANY_ROWS,
    MOST_TILE_ROWS,
    Sides,
    Tile,
    is_crowded,
    is_turned,
    merge_reduced,
    moves,
    own_names,
    pack,
    reduced_names,
    rows_at_once,
    sides_of,
    tile,
    tiled,
    turned_copy,
)
from muladd.schedule.recipes.packed_bytes import packed_bytes
from muladd.schedule.recipes.rows import along, stream
from muladd.schedule.recipes.weights import weights

_LEAST_COLUMNS = 4  # results in fewer columns are no work for vectors
_SOME_ROWS = 4  # rows from which packing pays, if the columns do not lie side by side
_ROWS_OF_A_COPY, _COLUMNS_OF_A_COPY = 8, 32  # results from which copying panels of rows pays
_LEAST_PANELS = 4  # panels of columns that a copied panel of rows must serve
_MOST_PANELS = 16  # panels of columns that are copied together
_PASS_PRICE = 4.0  # what reading the rows once more costs, in columns of the product
_LEAST_TILES = 4  # tiles downwards in a chunk
_OF_A_TURN = 3  # instructions of a loop besides; four start in a cycle, two of them multiply-adds
_ROWS_OF_A_PACK = 12  # rows, for each lane of a vector, that each copy of the columns must serve
_LIGHT = 96  # operations of an epilogue, of all vectors that are computed side by side


def products(plan: Plan, machine: Machine, found: list[Product]) -> Plan | None:
    """A plan for a kernel with matrix products, or None if no recipe here fits."""
    kernel = plan.kernel
    if any(p.stage.lanes > 1 for p in found):
        return None
    main = max(found, key=lambda p: work(p.stage))
    try:
        if all(a in kernel.shared for a in (*main.rows, *main.columns)):
            return block(plan, machine, main) if main.rows and main.columns else None
        return bands(plan, machine, found)
    except ScheduleError:
        return None


def block(plan: Plan, machine: Machine, p: Product) -> Plan | None:
    """The nest above, or that of `deep` for a sum which is long for the caches."""
    by_bytes = packed_bytes(plan, machine, p)
    if by_bytes is not None:
        return by_bytes
    by_channels = channels(plan, machine, p)
    if by_channels is not None:
        plan, of, copies = by_channels
        plan = _finished(plan, p.stage.name, of, copies)
        plan = placed(plan, [p.stage.name, *copies], of)
        return step(plan, f"vector c0 {of.column.arg.name}.3")
    by_weights = weights(plan, machine, p)
    if by_weights is not None:
        return by_weights
    plan, p = merged(plan, machine, p)
    kernel = plan.kernel
    sides = sides_of(kernel, p)
    if sides is None or extent(sides.column) < _LEAST_COLUMNS:
        return None
    rows, columns = extent(sides.row), extent(sides.column)
    if rows < MANY_ROWS:
        made = few_rows(plan, machine, p, sides, tile(machine, p.stage, rows, columns))
        if made is not None:
            return made
    dear = moves(kernel, sides.vector, sides.column) != 1 or is_masked(sides.vector)
    packed = rows >= MANY_ROWS or (dear and rows >= _SOME_ROWS)
    along_rows = _lies_along_rows(kernel, p, sides)
    packed_rows = rows >= _ROWS_OF_A_COPY and columns >= _COLUMNS_OF_A_COPY and (
        along_rows or sides.broadcast.op is ops.CAST)  # converted once, not for each tile
    most = MOST_TILE_ROWS if packed_rows else rows_at_once(machine, kernel, sides)
    pick = partial(
        tile, machine, p.stage, rows, columns, whole_vectors=along_rows and packed_rows,
        most_rows=most, panel=size(p.stage.reduced) * sides.vector.dtype.itemsize,
    )  # fmt: skip
    if packed:
        plan, packed = pack(plan, p.stage, sides.vector, "c0")
    if packed and not packed_rows:
        over = windows(plan, machine, p, sides, pick(turn=0.0))  # some turns are written out
        if over is not None:
            return stream(_finished(over, p.stage.name, sides, ["c0"]), machine)
    if packed_rows:
        plan, packed_rows = pack(plan, p.stage, sides.broadcast, "c1")
    plan = merge_reduced(plan, p.stage.name)
    depths = [a for a in plan.kernel.stage(p.stage.name).reduced if extent(a) > 1]
    if packed and len(depths) == 1:
        square = tile(machine, p.stage, rows, columns)
        if packed_rows and along_rows:
            if size(p.stage.reduced) >= 2 * terms_of(machine, square, p):
                return deep(plan, machine, p, sides, ["c0", "c1"])
        elif not packed_rows:
            panel = size(p.stage.reduced) * square.columns * sides.vector.dtype.itemsize
            if panel > machine.l2 // 2:
                return deep(plan, machine, p, sides, ["c0"])
    return _panels(plan, machine, p, sides, pick(), along_rows)


def _lies_along_rows(kernel: Kernel, p: Product, sides: Sides) -> bool:
    """Whether rows, and not terms, of the broadcast side lie side by side."""
    along_depth = any(moves(kernel, sides.broadcast, r) == 1 for r in p.stage.reduced)
    return moves(kernel, sides.broadcast, sides.row) == 1 and not along_depth


def _panels(
    plan: Plan, machine: Machine, p: Product, sides: Sides, t: Tile, along_rows: bool
) -> Plan:
    """The nest above, with the copies c0 and c1 where the plan has them."""
    s, copies = p.stage.name, [x.name for x in plan.kernel.stages if x.name in ("c0", "c1")]
    I, J = sides.row.arg.name, sides.column.arg.name
    batch = [a for a in plan.kernel.shared if a is not sides.row and a is not sides.column]
    turned = "c0" in copies and is_turned(machine, plan.kernel, p, sides, t)
    terms = size(p.stage.reduced) * sides.vector.dtype.itemsize
    ahead = turned and terms * t.columns > machine.l1  # less is copied beside others
    ahead = ahead and terms * (extent(sides.row) + 2 * t.columns) <= machine.l2
    known = all(isinstance(a.arg.extent, int) for a in (*batch, sides.column))
    panels, tiles = _counts(machine, p, sides, t, size(batch), copies, ahead, known)
    plan = step(plan, f"split {I} {tiles} {t.rows}")
    plan = step(plan, f"split {J} {panels} {t.vectors} {t.lanes}")
    names = [a.arg.name for a in batch]
    plan = step(plan, " ".join(["outer", *names, f"{J}.0", f"{I}.0", f"{I}.1"]))
    plan = step(plan, f"parallel {len(names) + 2}")
    plan = tiled(plan, s, I, J)
    if "c0" in copies:
        plan = step(plan, f"at c0 {len(names) + 2}")
        if turned:
            own = own_names(plan, "c0")
            plan = turned_copy(step(plan, f"split {own} {t.lanes}"), J, f"{own}.0", f"{own}.1")
        else:
            plan = _packed(plan, J)
    if "c1" in copies and not along_rows:
        plan = along(plan, machine, plan.kernel.stage("c1"))
    elif "c1" in copies:
        plan = step(plan, f"layout c1 {own_names(plan, 'c1')} {I}.2")
        plan = step(plan, f"nest c1 {own_names(plan, 'c1')} {I}.2")
        plan = step(plan, f"vector c1 {I}.2")
    plan = _finished(plan, s, sides, copies)
    if "c0" in copies and not turned:
        plan = step(plan, f"vector c0 {J}.3")
    if ahead:
        plan = step(plan, f"prefetch {s} c0 {J}.0")
    if "c0" not in copies or not is_crowded(plan.kernel, sides):
        plan = _claimed(_fetched(plan, machine, p, sides, t, copies), machine, p.stage)
    return stream(plan, machine)


def _fetched(
    plan: Plan, machine: Machine, p: Product, sides: Sides, t: Tile, copies: list[str]
) -> Plan:
    """What does not stay in a cache is asked for: columns some terms before, rows a tile before;
    not where the multipliers would wait for the requests to start, as with 6 x 2 results."""
    s, depths = p.stage.name, reduced_names(plan, p.stage.name).split()
    if len(depths) != 1:
        return plan
    terms = size(p.stage.reduced) * sides.vector.dtype.itemsize
    if "c0" in copies:
        columns, cache, results = t.columns, machine.l1, t.rows * t.vectors
        lines = -(-t.columns * sides.vector.dtype.itemsize // machine.line)
        if results - t.rows - t.vectors - _OF_A_TURN < lines + 1:  # as many could start besides
            return plan
    else:
        columns, cache = extent(sides.column), machine.l2
    if columns * terms > cache:
        plan = step(plan, f"ahead {s} {depths[0]} {AHEAD}")
    if extent(sides.row) * terms > machine.l2 // 2:
        reader = "c1" if "c1" in copies else s
        plan = step(plan, f"prefetch {s} {reader} {sides.row.arg.name}.1")
    return plan


def _claimed(plan: Plan, machine: Machine, s: Stage) -> Plan:
    """Lines for results that are more than a cache holds are asked for before a tile is summed."""
    for x in plan.kernel.stages:
        large = size(x.axes) * x.dtype.itemsize > machine.l2
        if x.argument is not None and large and set(x.axes) == set(s.axes):
            plan = step(plan, f"claim {s.name} {x.name}")
    return plan


def _finished(plan: Plan, product_stage: str, sides: Sides, copies: list[str]) -> Plan:
    """The other stages over the results of a tile of rows, and all by vectors of columns."""
    I, J = sides.row.arg.name, sides.column.arg.name
    for other in plan.kernel.stages:
        if other.name in (product_stage, *copies):
            continue
        if product(plan.kernel, other) is not None:
            plan = tiled(plan, other.name, I, J)
        else:
            own = [x.arg.name for x in plan.nests[other.name]
                   if x.arg.name not in (f"{J}.1", f"{J}.2", f"{J}.3", f"{I}.2")]  # fmt: skip
            plan = step(plan, f"nest {other.name} {I}.2 {J}.1 {' '.join(own)} {J}.2 {J}.3")
            if operations(other) * extent(loop_named(plan, f"{J}.2")) <= _LIGHT:  # in registers
                plan = step(plan, f"unroll {other.name} {J}.2")
    for other in plan.kernel.stages:
        if other.name not in copies:
            plan = step(plan, f"vector {other.name} {J}.3")
    return plan


def _packed(plan: Plan, J: str) -> Plan:
    """Panels of columns, row by row."""
    order = " ".join(x for x in (f"{J}.1", own_names(plan, "c0"), f"{J}.2 {J}.3") if x)
    plan = step(plan, f"layout c0 {order}")
    plan = step(plan, f"nest c0 {J}.1 {taps_first(plan, 'c0')} {J}.2 {J}.3")
    own = own_names(plan, "c0").split()
    if len(own) == 1:  # a piece of each row, which the machine does not foresee
        plan = step(plan, f"ahead c0 {own[0]} {AHEAD}")
    return step(plan, f"unroll c0 {J}.2")


def _counts(
    machine: Machine, p: Product, sides: Sides, t: Tile, batch: int, copies: list[str],
    ahead: bool, known: bool,
) -> tuple[int, int]:
    """Panels of columns and tiles downwards in a chunk.

    The panels fill half of the second cache, or less where the threads then have equal shares; the
    chunks are enough for all threads, yet few, since each packs its columns anew. known: whether
    the batch is a number, and not the most that it may be.
    """
    rows, columns = extent(sides.row), extent(sides.column)
    panel = size(p.stage.reduced) * t.columns * sides.vector.dtype.itemsize
    fitting = machine.l2 // 2 // max(panel, 1)
    if ahead:  # the next ones are on their way, and the rows stay
        fitting = 1
    if "c1" in copies:
        fitting = max(fitting, _LEAST_PANELS)
    in_all, cores = -(-columns // t.columns), machine.cores
    most_panels = max(1, min(in_all, fitting, _MOST_PANELS))
    most = max(cores, rows // (_ROWS_OF_A_PACK * t.lanes)) if "c0" in copies else rows
    most = min(most, -(-rows // (t.rows * _LEAST_TILES)))
    best: tuple[float, int, int] | None = None
    least_panels = min(most_panels // 2 + 1, max(1, in_all * batch // cores))
    for panels in range(most_panels, least_panels - 1, -1):
        groups = -(-in_all // panels) * batch
        if "c0" in copies and groups < cores <= in_all * batch:  # none need copy what others do
            panels = -(-in_all // -(-cores // batch))
            groups = -(-in_all // panels) * batch
            if known and groups == cores and in_all * batch % groups == 0:
                return panels, -(-rows // t.rows)
        parts = max(1, min(machine.chunks // max(groups, 1), most))
        turns = -(-groups * parts // cores)  # chunks that the busiest thread has
        score = turns * cores * panels / (in_all * batch * parts)
        score *= 1 + _PASS_PRICE / (panels * t.columns)
        if best is None or score < best[0] - 1e-9:
            best = (score, panels, parts)
    assert best is not None
    _, panels, parts = best
    return panels, -(-rows // (t.rows * parts))
