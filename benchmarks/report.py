"""Tables and curves of whatever cells of the grid were measured; nothing else enters."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.masks import MASKS
from common.errors import ConfigError
from common.files import write_atomically

Line = dict[str, Any]

GOAL: Final = 5.0
"""A distance that is good enough to compare what it takes to get there."""


@dataclass(frozen=True)
class Measurement:
    """One finished cell.

    Attributes:
        facts: the header of its file: method, seed, features, hardware, command.
        lines: one per evaluation, in order.
    """

    facts: Line
    lines: tuple[Line, ...]

    @property
    def distance_name(self) -> str:
        """Such as "FD (lenet)"."""
        return next(key for key in self.lines[0] if key.startswith(("FD ", "FID ")))

    @property
    def work(self) -> tuple[str, str]:
        """What was run and how it was judged, but for the seed."""
        config: str = self.facts["config"].replace(f"seed = {self.facts['seed']}\n", "", 1)
        return config, self.facts["command"]


Group = dict[str, list[Measurement]]
"""Measurements of one table by method, each with seeds ascending."""


def write_report(paths: Iterable[Path], docs: Path, is_whole: Callable[[Path], bool]) -> list[Path]:
    """Write one page per size, and one figure per table; returns what was written.

    Raises:
        ConfigError: files of one row differ in more than the seed, or do not differ in it.
    """
    groups = _read(path for path in paths if is_whole(path))
    pages: dict[str, list[str]] = defaultdict(list)
    written = []
    docs.mkdir(parents=True, exist_ok=True)
    for (name, changes, rounds, features), methods in sorted(groups.items()):
        size, data, partition = name.split("/")
        stem = f"{size}-{data}-{partition}-{rounds}-{features}"
        title = f"## {data}, {partition}, {rounds} rounds"
        if changes:
            stem += f"-{hashlib.sha256(changes.encode()).hexdigest()[:8]}"
            title += f" ({changes})"
        figure = docs / f"{stem}.png"
        plot(methods, figure)
        written.append(figure)
        pages[size] += [
            title,
            table(methods),
            f"![quality against bytes and rounds]({figure.name})",
            provenance(methods),
        ]
    for size, parts in pages.items():
        page = docs / f"{size}.md"
        text = "\n\n".join([f"# Measured at size {size}", *parts]) + "\n"
        write_atomically(page, text.encode())
        written.append(page)
    return written


def _read(paths: Iterable[Path]) -> dict[tuple[str, str, int, str], Group]:
    groups: dict[tuple[str, str, int, str], Group] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        facts, *lines = (json.loads(line) for line in path.read_text("utf-8").splitlines())
        changes = ", ".join(facts["changes"])
        key = (facts["group"], changes, facts["total_rounds"], facts["features"])
        measurement, row = Measurement(facts, tuple(lines)), groups[key][facts["method"]]
        _check_fits(path, measurement, row)
        row.append(measurement)
    for methods in groups.values():
        for measurements in methods.values():
            measurements.sort(key=lambda m: m.facts["seed"])
    return groups


def _check_fits(path: Path, measurement: Measurement, row: Iterable[Measurement]) -> None:
    """Files of one row are measurements of one thing with seeds of their own."""
    for other in row:
        if measurement.facts["seed"] == other.facts["seed"]:
            raise ConfigError(f"{path} has the row and the seed of another file: move one away")
        if measurement.work != other.work:
            raise ConfigError(f"{path} was run or judged in another way than its row: move it away")


def table(methods: Group) -> str:
    """Markdown: each method after its last round, mean and standard deviation over seeds.

    Beside the last distance stands the mean of those in the last third of the rounds, because
    one evaluation wanders. Columns are there for the measures that some method has; where
    another lacks one, it has a dash.
    """
    name = next(iter(methods.values()))[0].distance_name
    columns = _columns(methods, name)
    bytes_ = ["up a client-round", "down a client-round"]
    shown = [column.replace("_", " ") for column in columns]
    until = f"all bytes until {name} {GOAL:g}"
    head = ["method", "seeds", name, "its last third", *shown, *bytes_, until, "s a round"]
    rows = [_row(head), _row(["---"] * len(head))]
    for method, measurements in methods.items():
        last = [m.lines[-1] for m in measurements]
        share = [m.facts["clients"] * m.facts["total_rounds"] for m in measurements]
        cells = [_spread([line[name] for line in last])]
        cells.append(_spread([_last_third(m, name) for m in measurements]))
        for column in columns:
            has = all(column in line for line in last)
            cells.append(_spread([line[column] for line in last]) if has else "-")
        for key in ("up_bytes", "down_bytes"):
            sizes = [line[key] / n for line, n in zip(last, share, strict=True)]
            cells.append(_size(mean(sizes)))
        cells.append(_goal_bytes(measurements, name))
        seconds = [m.lines[-1]["seconds"] / m.facts["total_rounds"] for m in measurements]
        rows.append(_row([method, str(len(last)), *cells, f"{mean(seconds):.3g}"]))
    return "\n".join(rows)


def _columns(methods: Group, name: str) -> list[str]:
    """Measures of last lines beside the distance; older files have fewer of them."""
    present = {key for row in methods.values() for m in row for key in m.lines[-1]}
    features = name[name.index("(") :]
    columns = [f"KID {features}", "precision", "recall", "density", "coverage"]
    columns += ["read_as_intended", "accuracy_score", f"{name} by client, worst"]
    columns += [f"{name} of {MASKS} exported masks, {what}" for what in ("mean", "spread")]
    return [column for column in columns if column in present]


def bytes_until(measurement: Measurement, name: str, goal: float) -> int | None:
    """Payload bytes of all clients, both ways, until the distance is at most `goal` and stays so.

    Measured at evaluations; None if the last of them is still above.
    """
    reached = None
    for line in measurement.lines:
        if line[name] > goal:
            reached = None
        elif reached is None:
            reached = int(line["up_bytes"] + line["down_bytes"])
    return reached


def _goal_bytes(measurements: Sequence[Measurement], name: str) -> str:
    sizes = [bytes_until(m, name, GOAL) for m in measurements]
    there = [size for size in sizes if size is not None]
    if not there:
        return "never"
    few = f" ({len(there)} of {len(sizes)} seeds)" if len(there) < len(sizes) else ""
    return _size(mean(there)) + few


def _last_third(measurement: Measurement, name: str) -> float:
    rounds = measurement.facts["total_rounds"]
    late = [line[name] for line in measurement.lines if 3 * line["rounds"] >= 2 * rounds]
    return float(mean(late))


def provenance(methods: Group) -> str:
    """Markdown: the command, seeds and hardware behind each row."""
    rows = []
    for method, measurements in methods.items():
        facts = measurements[0].facts
        numbers = [m.facts["seed"] for m in measurements]
        command = f"{facts['command']} --seeds {max(numbers)}"
        seeds = ", ".join(map(str, numbers))
        places = " and ".join(sorted({m.facts["hardware"] for m in measurements}))
        rows.append(f"- {method}: `{command}`, seed {seeds}; {places}")
    return "\n".join(rows)


def plot(methods: Group, path: Path) -> None:
    """Quality against bytes, quality against rounds, Hamming distance against rounds.

    A thin line stands where a run has reached GOAL for good.
    """
    figure = Figure(figsize=(14, 4), layout="constrained")
    by_bytes, by_rounds, hamming = figure.subplots(1, 3)
    name = next(iter(methods.values()))[0].distance_name
    for index, (method, measurements) in enumerate(methods.items()):
        for which, measurement in enumerate(measurements):
            style = {"color": f"C{index}", "label": method if which == 0 else None}
            lines = measurement.lines
            rounds = [line["rounds"] for line in lines]
            distances = [line[name] for line in lines]
            clients = measurement.facts["clients"]
            moved = [(line["up_bytes"] + line["down_bytes"]) / clients / 1e6 for line in lines]
            by_bytes.plot(moved, distances, marker=".", **style)
            if goal := bytes_until(measurement, name, GOAL):
                by_bytes.axvline(goal / clients / 1e6, color=f"C{index}", linewidth=0.7)
            by_rounds.plot(rounds, distances, marker=".", **style)
            apart = [(line["rounds"], line.get("hamming")) for line in lines]
            pairs = [(at, value) for at, value in apart if value is not None]
            if pairs:
                hamming.plot(*zip(*pairs, strict=True), marker=".", **style)
    _label(by_bytes, "MB that a client sent and received", name, logarithmic="both")
    _label(by_rounds, "rounds", name, logarithmic="y")
    _label(hamming, "rounds", "Hamming distance of masks, round to round")
    by_rounds.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def _label(axes: Axes, x: str, y: str, logarithmic: str = "") -> None:
    axes.set(xlabel=x, ylabel=y)
    if logarithmic:
        axes.set_yscale("log")
    if logarithmic == "both":
        axes.set_xscale("log")
    axes.grid(alpha=0.3)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    text = f"{mean(values):.3g}"
    return f"{text} ± {stdev(values):.2g}" if len(values) > 1 else text


def _size(count: float) -> str:
    for unit in ("B", "kB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} MB"
