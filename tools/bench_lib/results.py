"""The file of results: {"processor", "versions", "steps": rows of training.py, part: rows of rows.py}."""
import json

from bench_lib import rows, training
from bench_lib.turns import BenchError


def read(path, head=None):
    """What the file holds, {} where there is none. With `head`: refused unless measured on the same processor."""
    if head and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: {error}") from None
    if "processor" not in found:
        raise BenchError(f"{path}: no results of tools/bench: give another file")
    for key in head or {}:
        if found.get(key, head[key]) != head[key]:
            raise BenchError(f"{path}: measured with {found[key]}, this is {head[key]}: give another file")
    return found


def add(path, head, part, new):
    """Rows take the place of older ones of the same shape and kind, but for a floor they lack, or that say the same."""
    found = read(path, head) | head
    if part == "steps":
        old = {(row["shape"], row["kind"]): row for row in found.get(part, [])}
        for row in new:
            replaced = old.pop((row["shape"], row["kind"]), {})
            if "floor_seconds" in replaced:
                row.setdefault("floor_seconds", replaced["floor_seconds"])
        new = [*old.values(), *new]
        new.sort(key=lambda row: (training.SHAPES.index(row["shape"]), list(training.EXPERTS).index(row["kind"])))
    else:
        again = {row["what"] for row in new}
        new = [row for row in found.get(part, []) if row["what"] not in again] + new
    found[part] = new
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def markdown(found):
    yield found["processor"] + (f"; {found['versions']}" if "versions" in found else "")
    yield ""
    if "steps" in found:
        yield from training.markdown(found["steps"])
        yield ""
    small = [row for part, part_rows in found.items() if part not in ("processor", "versions", "steps")
             for row in part_rows]
    if small:
        yield "| what | measured | command |"
        yield "|---|---|---|"
        yield from rows.markdown(small)
