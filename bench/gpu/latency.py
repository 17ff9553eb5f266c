"""G1, G2, G5: seconds of one picture, warm, beside plain diffusers."""

from bench.drawing import draw
from bench.gpu.findings import Findings, Row, told
from bench.gpu.subject import Subject
from bench.gpu.taking_turns import absolute, drift, take_turns
from bench.gpu.work import WORK, rate
from bench.statistics import bootstrap_ratio, judge

GOALS = {"sd1": ("G5", 0.20), "sdxl": ("G1", 0.65)}  # seconds
RATIO = 0.65  # G2


def measure(subject: Subject) -> Findings:
    plan = subject.plan
    seconds = take_turns(
        subject,
        {
            "plain": lambda number: subject.plain.draw(subject.request(number)),
            "ours": lambda number: draw(subject.engine, subject.request(number)),
        },
    )
    ours, theirs = absolute(seconds["ours"]), absolute(seconds["plain"])
    ratio, control = bootstrap_ratio(seconds["ours"], seconds["plain"]), drift(seconds["plain"])
    name, target = GOALS[subject.kind]
    speed = rate(WORK[subject.kind].picture(plan.steps), ours.value)
    return Findings(
        rows=[
            Row(
                goal=name,
                what=f"{subject.what}: a picture, warm, engine alone",
                figure=f"{ours} s (plain {theirs} s)" + (f", {speed}" if plan.is_measured else ""),
                target=f"<= {target} s",
                verdict=told(plan, judge(ours, control, at_most=target)),
            ),
            Row(
                goal="G2" if subject.kind == "sdxl" else "",
                what=f"{subject.what}: the same, ratio to plain diffusers",
                figure=f"{ratio} (control {control})",
                target=f"<= {RATIO}",
                verdict=told(plan, judge(ratio, control, at_most=RATIO)),
            ),
        ],
        samples=dict(seconds),
    )
