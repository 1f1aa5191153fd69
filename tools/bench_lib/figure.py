"""The figure of the README: tokens per second of both, for each shape, as SVG by gnuplot."""
import subprocess

from bench_lib.training import best
from bench_lib.turns import BenchError

SERIES = (("Dropcycle, fp32 master weights", "#1b6ca8"), ("PyTorch, best with autocast", "#e3a23c"),
          ("PyTorch, best in pure bf16", "#b8b8b8"))
SCRIPT = """
set terminal svg size 860,380 font "Helvetica,12" background "white"
set output "{file}"
set title "{title}" noenhanced
set style data histograms
set style histogram clustered gap 1
set style fill solid border -1
set boxwidth 0.9
set logscale y
set yrange [{low}:*]
set ylabel "tokens per second"
set xtics noenhanced
set grid ytics
set key top right noenhanced
plot {plots}
"""


def data(rows):
    """Lines of a name and three rates, the peer's missing ones as '?'."""
    for row in rows:
        peers = [best(row, prefix) for prefix in ("autocast", "bf16")]
        rates = [row["tokens_per_second"]] + [found[1]["tokens_per_second"] if found else None for found in peers]
        yield [f"\"{row['shape']} {row['kind']}\""] + [f"{rate:.6g}" if rate else "?" for rate in rates]


def draw(file, rows, processor):
    lines = list(data(rows))
    lowest = min(float(rate) for line in lines for rate in line[1:] if rate != "?")
    block = "$rates << EOD\n" + "\n".join(" ".join(line) for line in lines) + "\nEOD\nset datafile missing \"?\"\n"
    plots = ", ".join(f"$rates using {column + 2}{':xtic(1)' if column == 0 else ''} title \"{name}\" lc rgb \"{colour}\""
                      for column, (name, colour) in enumerate(SERIES))
    script = block + SCRIPT.format(file=file, title=processor.replace('"', ""), plots=plots, low=10 ** int_log(lowest))
    try:
        subprocess.run(["gnuplot"], input=script, text=True, check=True, capture_output=True)
    except FileNotFoundError:
        raise BenchError("gnuplot isn't installed: install gnuplot-nox (tools/setup does)") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"gnuplot failed: {error.stderr.strip()[-500:]}") from None


def int_log(value):
    """The largest n with 10**n <= value, for value >= 1; 0 below."""
    return len(str(int(value))) - 1 if value >= 1 else 0
