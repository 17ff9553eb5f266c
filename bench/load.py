"""How long a checkpoint takes to load, beside plain diffusers and beside the disk's own speed.

    python -m bench.load --folder /tmp/bench-load [--kinds sd1 sdxl] [--rounds 2]

Every figure is from a fresh Python process that loads a full-size file with random weights and
draws one picture (256 px, one step, unless told): plain diffusers (`import`, `from_single_file`,
first image), ours as a replica starts (reading beside importing), and ours with the imports done
before the clock starts, which is the load phase alone; the last also in bfloat16. Interleaved
within a round, each with a cold and a warm page cache. Prints Markdown.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from tools.make_checkpoint import make_checkpoint

WAYS = ("plain", "ours", "ours, imports done", "ours, bfloat16, imports done")
TOUCH = "touch"
PIECE = 4 << 20  # numbers in one of the tensors that touch memory
CHUNK = 4 << 20
Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all ways of one comparison share."""

    device: str = "cpu"
    precision: str = "float32"  # but of the way that has its own
    threads: int = 1
    side: int = 256  # pixels of the first image
    steps: int = 1  # of the first image
    guidance: float = 1.0  # of the first image: 1 is none, one row


def measure(way: str, path: Path, setting: Setting) -> Row:
    """Load and draw in this process, and tell the seconds of each part."""
    if way == TOUCH:
        return _touch(path, setting.threads)
    begin = time.perf_counter()
    row = _plain(path, setting) if way == "plain" else _ours(path, setting, way)
    begin += row.get("imports before", 0.0)
    row["total"] = time.perf_counter() - begin
    row["peak RSS MB"] = _peak_rss()
    return row


def _plain(path: Path, setting: Setting) -> Row:
    clock = _Clock()
    import torch

    from tools.plain_pipeline import load_plainly

    torch.set_num_threads(setting.threads)
    row: Row = {"imports": clock.lap()}
    pipeline = load_plainly(path, getattr(torch, setting.precision)).to(setting.device)
    row["load"] = row["build"] = clock.lap()
    pipeline(
        prompt="a red circle",
        num_inference_steps=setting.steps,
        guidance_scale=setting.guidance,
        width=setting.side,
        height=setting.side,
    )
    row["first image"] = clock.lap()
    return row


def _ours(path: Path, setting: Setting, way: str) -> Row:
    from sdserve.apps import Precision
    from sdserve.checkpoints import inspect_checkpoint
    from workers.loading import load_engine

    row: Row = {}
    clock = _Clock()
    if "imports done" in way:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as load_engine sets it before the import
        import_module("workers.assembly")
        row["imports before"] = clock.lap()
    checkpoint, defaults = inspect_checkpoint(path)
    row["header"] = clock.lap()
    if "imports done" in way and setting.device != "cpu":
        _touch_device(setting.device)
        row["context"] = clock.lap()
    phases: list[tuple[str, float]] = []
    engine = load_engine(
        checkpoint,
        device=setting.device,
        threads=setting.threads,
        precision=Precision("bfloat16" if "bfloat16" in way else setting.precision),
        compiles="compiling" in way,
        on_phase=lambda phase: phases.append((phase, time.perf_counter())),
    )
    built = time.perf_counter()
    row["load"] = clock.lap()
    start, names = built - row["load"], [phase for phase, _ in phases]
    read = phases[names.index("reading file 100%")][1]
    imported = read
    if "importing libraries" in names:  # what of them is left when the file is in the page cache
        imported = phases[names.index("importing libraries") + 1][1]
    row |= {"read": read - start, "imports": imported - read, "build": built - imported}
    if names[-1] == "warming":
        row["warm"] = built - phases[-1][1]
    from bench.drawing import draw, request

    asked = request(defaults, setting.side, 0, steps=setting.steps)
    draw(engine, replace(asked, guidance_scale=setting.guidance))
    row["first image"] = clock.lap()
    return row


def _touch_device(device: str) -> None:
    """Have the driver set up what a process needs, so that loading is not billed for it."""
    import torch

    torch.zeros(1, device=device)
    torch.cuda.synchronize(device)


def _touch(path: Path, threads: int) -> Row:
    """Write as many float32 numbers as the file holds into new memory: no loader can do less."""
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
    import torch

    torch.set_num_threads(threads)
    count = path.stat().st_size // 2
    clock = _Clock()
    pieces = [torch.zeros(min(PIECE, count - at)) for at in range(0, count, PIECE)]
    return {"total": clock.lap(), "bytes": float(sum(piece.nbytes for piece in pieces))}


class _Clock:
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        self._last, seconds = now, now - self._last
        return seconds


def _peak_rss() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


def run(way: str, path: Path, setting: Setting) -> Row:
    """`measure` in a fresh process, which also counts the start of Python."""
    command = [sys.executable, "-m", "bench.load", "--measure", way, str(path)]
    begin = time.perf_counter()
    done = subprocess.run(  # noqa: S603 (ourselves)
        [*command, *(f"--{name}={value}" for name, value in asdict(setting).items())],
        stdout=subprocess.PIPE,  # its errors are for whoever reads ours
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(setting.threads)},
    )
    row: Row = json.loads(done.stdout.splitlines()[-1])
    row["process"] = time.perf_counter() - begin
    return row


def drop_from_cache(path: Path) -> None:
    """Ask the kernel to forget the pages of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_speed(path: Path, readers: int = 4) -> float:
    """Bytes per second of parallel reads: what storage, or the page cache, gives at best."""
    file = os.open(path, os.O_RDONLY)
    size = path.stat().st_size

    def pull(reader: int) -> None:
        scratch = bytearray(CHUNK)
        for offset in range(reader * CHUNK, size, readers * CHUNK):
            os.preadv(file, [scratch], offset)

    begin = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(pull, range(readers)))
    os.close(file)
    return size / (time.perf_counter() - begin)


def compare(path: Path, rounds: int, setting: Setting, say: Callable[[str], None]) -> None:
    """The table of one file."""
    size = path.stat().st_size
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    speeds: dict[str, list[float]] = defaultdict(list)
    touched: list[float] = []
    for number in range(rounds):
        for cache in ("cold", "warm"):
            prepare = drop_from_cache if cache == "cold" else fill_cache
            prepare(path)
            speeds[cache].append(read_speed(path))
            touched.append(run(TOUCH, path, setting)["total"])
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                prepare(path)
                rows[cache, way].append(run(way, path, setting))
    say(f"\n### {path.stem}: {size / 1e9:.2f} GB, {rounds} rounds, medians\n")
    columns = ("read", "imports", "build", "load", "first image", "total", "peak RSS MB")
    say(f"| cache | way | {' | '.join(columns)} | load x limit | total x plain |")
    say("| --- " * (len(columns) + 4) + "|")
    for cache in ("cold", "warm"):
        reading, touching = size / statistics.median(speeds[cache]), statistics.median(touched)
        limit = max(reading, touching)  # they can overlap
        plain = _median(rows[cache, "plain"], "total")
        for way in WAYS:
            cells = [_cell(_median(rows[cache, way], name)) for name in columns]
            load, total = (_median(rows[cache, way], name) or 0.0 for name in ("load", "total"))
            ratios = f"{load / limit:.2f} | {total / (plain or 1):.2f}"
            say(f"| {cache} | {way} | {' | '.join(cells)} | {ratios} |")
        limits = f"reading {reading:.2f} s, touching the memory {touching:.2f} s"
        say(f"| {cache} | *limit: {limits}* |" + " |" * (len(columns) + 2))


def fill_cache(path: Path) -> None:
    read_speed(path)


def _median(rows: list[Row], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return statistics.median(values) if values else None


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, help="where the files are, or are made")
    parser.add_argument("--kinds", nargs="+", default=["sd1", "sdxl"])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--dtype", default="f16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    for name in ("device", "precision", "side", "steps", "guidance"):
        default = getattr(Setting, name)
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options: Any = parser.parse_args()
    setting = Setting(**{one.name: getattr(options, one.name) for one in fields(Setting)})
    if options.measure:
        way, path = options.measure
        print(json.dumps(measure(way, Path(path), setting)))
        return 0
    if options.folder is None:
        parser.error("--folder is needed: full-size files take 2 to 7 GB each")
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"`python -m bench.load` on {os.cpu_count()} cores, {options.threads} threads, seconds")
    for kind in options.kinds:
        path = options.folder / f"{kind}-{options.size}-{options.dtype}.safetensors"
        if not path.exists():
            make_checkpoint(path, kind, size=options.size, dtype=options.dtype)
        compare(path, options.rounds, setting, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
