"""C10: the first picture after a start does not wait for the compiler (`--compile`)."""

from bench.gpu.findings import Findings, Row, told
from bench.gpu.subject import Subject
from bench.gpu.zygote import zygote
from bench.load import fill_cache
from bench.statistics import MAX_DRIFT, bootstrap_ratio, judge

WAYS = {"off": "ours, imports done", "on": "ours, compiling, imports done"}
GOAL = 1 + MAX_DRIFT  # no later, as far as a control may drift


def measure(subject: Subject) -> Findings:
    plan, path = subject.plan, subject.path
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with zygote(plan.threads) as standby:
        fill_cache(path)
        for number in range(plan.rounds):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                row = standby.load(WAYS[way], path, subject.setting)
                seconds[way].append([row["process"]])
    ratio = bootstrap_ratio(seconds["on"], seconds["off"])
    control = bootstrap_ratio(seconds["off"][1:], seconds["off"][:-1])
    return Findings(
        rows=[
            Row(
                goal="C10",
                what=f"{subject.what}: from zero to the first picture, with --compile by without",
                figure=f"{ratio} (control {control})",
                target=f"<= {GOAL:g}: eager first",
                verdict=told(plan, judge(ratio, control, at_most=GOAL)),
            )
        ],
        samples=dict(seconds),
    )
