"""Rows of the small parts: what was measured, what it is compared with, and the target for their ratio."""
import statistics


def row(what, unit, ours, against, other, ratio, target, command, **more):
    """One result. `target`: (">=" or "<=", bound), or None; the ratio is the one that it speaks of."""
    return {"what": what, "unit": unit, "ours": ours, "against": against, "other": other, "ratio": ratio,
            "target": target, "command": command, **more}


def verdict(result):
    if result["target"] is None:
        return "-"
    sign, bound = result["target"]
    met = result["ratio"] >= bound if sign == ">=" else result["ratio"] <= bound
    return f"{sign} {bound:g} {'met' if met else 'missed'}"


def short(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def memory(result):
    return f"{result['peak_bytes'] / (1 << 20):.0f} MiB" if "peak_bytes" in result else ""


def table(results):
    lines = [f"{'what':<58} {'measured':>10} {'other':>10} {'unit':<9} {'ratio':>6} {'target':<14} compared with"]
    for result in results:
        lines.append(f"{result['what']:<58} {short(result['ours']):>10} {short(result['other']):>10} {result['unit']:<9} "
                     f"{result['ratio']:>6.2f} {verdict(result):<14} {result['against']}"
                     + (f"; peak memory {memory(result)}" if memory(result) else ""))
    return "\n".join(lines)


def markdown(results):
    for result in results:
        peak = f", peak memory {memory(result)}" if memory(result) else ""
        yield (f"| {result['what']} | {short(result['ours'])} {result['unit']}{peak}; {result['against']}: "
               f"{short(result['other'])}; ratio {result['ratio']:.2f} | `{result['command']}` |")


def medians(pairs):
    """Medians of (ours, theirs) that took turns."""
    return tuple(statistics.median(column) for column in zip(*pairs))
