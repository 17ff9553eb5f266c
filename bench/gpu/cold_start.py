"""C1 to C3: file to device, by the slowest link; C5, C6: from zero to the first picture.

Ours is a child of a standby process that loads and draws; plain diffusers is what one does without:
a fresh Python that imports, loads by `from_single_file`, moves to the device and draws the same.
Serve's placing of a replica is not in it: that needs Ray.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.gpu.findings import Findings, Row, met, told
from bench.gpu.links import Links
from bench.gpu.subject import Subject
from bench.gpu.zygote import Zygote, zygote
from bench.statistics import Estimate, bootstrap_ratio, judge

OURS = "ours, imports done"
LINK = 1.3  # C1, C3: times bytes by the slowest link
HOT = 0.40  # C2, seconds
FIRST = {"hot": 3.0, "cold": 4.0}  # C5, seconds
PREPARE: dict[str, Callable[[Path], None]] = {
    "hot": load.fill_cache,
    "cold": load.drop_from_cache,
}
RATIO = {True: 0.35, False: 0.5}  # C6 with and without a GPU


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A state of the page cache, and what was measured in it."""

    name: str
    link: float  # bytes a second of the slowest one
    ours: list[load.Row]
    plain: list[load.Row]

    @property
    def loading(self) -> float:
        """Seconds from the file to the device: without its context, and without warming."""
        return statistics.median(row["load"] - row.get("warm", 0.0) for row in self.ours)

    def totals(self, rows: list[load.Row]) -> list[list[float]]:
        """Seconds from nothing to the first picture, a round a block."""
        return [[row["process"]] for row in rows]


def measure(subject: Subject) -> Findings:
    plan, path = subject.plan, subject.path
    links = Links.of(path, plan.device)
    with zygote(plan.threads) as standby:
        hot = _measured("hot", links.slowest(links.page_cache), plan.rounds, subject, standby)
        cold = _measured("cold", links.slowest(links.storage), plan.cold_rounds, subject, standby)
    return Findings(
        rows=[
            Row(
                what=f"{subject.kind} {path.stat().st_size / 1e9:.2f} GB: links",
                figure=str(links),
            ),
            _loading("C1", hot, subject),
            _seconds(hot, subject),
            _loading("C3", cold, subject),
            *_first("C5", hot, subject),
            *_first("C5", cold, subject),
        ],
        samples={
            cache.name: {"link": cache.link, "ours": cache.ours, "plain": cache.plain}
            for cache in (hot, cold)
        },
    )


def _measured(name: str, link: float, rounds: int, subject: Subject, standby: Zygote) -> Cache:
    path, setting, prepare = subject.path, subject.setting, PREPARE[name]
    ways: dict[str, Callable[[], load.Row]] = {
        "plain": lambda: load.run("plain", path, setting),
        "ours": lambda: standby.load(OURS, path, setting),
    }
    rows: dict[str, list[load.Row]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            prepare(path)
            rows[way].append(ways[way]())
    return Cache(name=name, link=link, ours=rows["ours"], plain=rows["plain"])


def _goal(subject: Subject, name: str) -> str:
    return name if subject.kind == "sdxl" else ""


def _loading(goal: str, cache: Cache, subject: Subject) -> Row:
    limit = subject.path.stat().st_size / cache.link
    return Row(
        goal=_goal(subject, goal),
        what=f"{subject.kind}, {cache.name} page cache: file to device",
        figure=f"{cache.loading:.2f} s, {cache.loading / limit:.2f} x the slowest link "
        f"({cache.link / 1e9:.2f} GB/s)",
        target=f"<= {LINK} x",
        verdict=told(subject.plan, met(is_met=cache.loading <= LINK * limit)),
    )


def _seconds(cache: Cache, subject: Subject) -> Row:
    is_goal = subject.kind == "sdxl"
    return Row(
        goal=_goal(subject, "C2"),
        what=f"{subject.kind}, {cache.name} page cache: file to device, in seconds",
        figure=f"{cache.loading:.2f} s",
        target=f"<= {HOT:.2f} s" if is_goal else "",
        verdict=told(subject.plan, met(is_met=cache.loading <= HOT)) if is_goal else "",
    )


def _first(goal: str, cache: Cache, subject: Subject) -> list[Row]:
    ours, plain = cache.totals(cache.ours), cache.totals(cache.plain)
    ratio = bootstrap_ratio(ours, plain)
    seconds = bootstrap_ratio(ours, [[1.0]] * len(ours))
    control = _control(plain)
    parts = ", ".join(
        f"{name} {statistics.median(row[name] for row in cache.ours):.2f}"
        for name in ("context", "load", "first image")
        if name in cache.ours[0]
    )
    most, share = FIRST[cache.name], RATIO[subject.plan.is_gpu]
    return [
        Row(
            goal=_goal(subject, goal),
            what=f"{subject.kind}, {cache.name} page cache: from zero to the first picture of "
            f"{subject.plan.steps} steps, without Serve's placing",
            figure=f"{seconds} s ({parts}), {len(ours)} rounds",
            target=f"<= {most:g} s",
            verdict=told(subject.plan, judge(seconds, control, at_most=most)),
        ),
        Row(
            goal=_goal(subject, "C6"),
            what=f"{subject.kind}, {cache.name} page cache: the same, without Serve's "
            "placing, by a fresh plain diffusers",
            figure=f"{ratio} ({statistics.median(s for (s,) in plain):.2f} s; control {control})",
            target=f"<= {share} x",
            verdict=told(subject.plan, judge(ratio, control, at_most=share)),
        ),
    ]


def _control(plain: list[list[float]]) -> Estimate:
    """Each start of plain diffusers by the one before it; of a single one there is no drift."""
    return bootstrap_ratio(plain[1:] or plain, plain[:-1] or plain)
