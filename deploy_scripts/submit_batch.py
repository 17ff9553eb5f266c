"""submit_batch: a file of prompts through one app, resumable. Images and results.jsonl in a folder.

What runs once: every prompt has an idempotency key made of the folder's stored random id, its
number, its content and its attempt. Whoever dies, client or server, the next run sends the same
key and gets the same job.
"""

import argparse
import contextlib
import math
import os
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from deploy_scripts.batch_folder import BatchFolder, BatchFolderError, Task
from deploy_scripts.batch_run import BatchRun, Screen, StoppedError
from deploy_scripts.prompt_file import (
    FIELDS,
    BadLinesError,
    FieldError,
    Prompt,
    PromptFileError,
    check_fields,
    read_prompts,
)
from sdserve.client import (
    ClientError,
    InvalidUrlError,
    NotSavedError,
    SdClient,
)
from sdserve.errors import AppNotFoundError
from sdserve.settings import SettingsError, read_settings

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130  # exit codes

_EPILOG = """\
prompt files (UTF-8):
  .txt    one prompt per line; blank lines and lines that start with # are skipped
  .csv    a header row; a column 'prompt', other columns are request fields; empty cell = not given
  .jsonl  one JSON object of request fields per line
request fields: {fields}.
A field of a line wins over the option of the same meaning.

DIR receives 0001.png, 0002.png, ... (0001-1.png, ... when num_images > 1) and results.jsonl.
Run the same command again to resume: finished prompts are skipped, failed ones are tried again,
nothing runs twice. Prompts are known by their place in the file: add new ones at its end.

exit code: 0 all succeeded, 1 some failed or the server went away, 2 bad usage or input,
130 interrupted (Ctrl-C).

example:
  {prog} --app sd-sd-xl-base-1-0 prompts.txt --out pictures --steps 30
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, checked."""

    app: str
    prompts_file: Path
    out: Path
    url: str
    in_flight: int
    timeout: timedelta  # how long a server that is away or refuses is waited for
    defaults: dict[str, Any]  # request fields for prompts that do not set their own


def submit_batch(options: Options, command: str) -> int:
    """Submit what is left of the batch and wait for it.

    Args:
        options: the command line.
        command: what resumes this batch, shown to the user.

    Returns:
        The exit code.

    Raises:
        PromptFileError, BatchFolderError, NotSavedError, InvalidUrlError, AppNotFoundError:
                nothing was submitted.
    """
    prompts = read_prompts(options.prompts_file, options.defaults)
    with contextlib.closing(BatchFolder.open(options.out)) as folder:
        found = [folder.task(options.app, prompt) for prompt in prompts]
        tasks = [task for task in found if task]
        _announce(folder, len(prompts), tasks)
        with contextlib.closing(Screen(len(prompts), len(prompts) - len(tasks))) as screen:
            try:
                if tasks:
                    _work_off(options, folder, prompts, tasks, screen)
            except KeyboardInterrupt:
                code, why = (
                    INTERRUPTED,
                    "Interrupted: jobs that were submitted go on at the server.",
                )
            except (ClientError, BatchFolderError) as error:
                code, why = SOME_FAILED, f"error: {error}"
            else:
                code = SOME_FAILED if screen.failed else OK
                why = f"{_prompts(screen.failed)} failed: see {folder.results}."
    if code == OK:
        print(f"{_prompts(len(prompts))}, all succeeded: images in {folder.path}.")
    else:
        succeeded = f"Succeeded: {screen.done} of {_prompts(len(prompts))}."
        print(f"{why}\n{succeeded} Go on with:\n  {command}", file=sys.stderr)
    return code


def _work_off(
    options: Options,
    folder: BatchFolder,
    prompts: list[Prompt],
    tasks: list[Task],
    screen: Screen,
) -> None:
    stop = threading.Event()

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError

    with SdClient(
        options.url, patience=options.timeout, sleep=sleep, waiting=screen.waiting
    ) as client:
        app = _require_app(client, options.app)
        _check_sizes(options.prompts_file, prompts, app.get("limits"))
        run = BatchRun(client=client, folder=folder, app=options.app, stop=stop, screen=screen)
        run.run(tasks, options.in_flight)


def _announce(folder: BatchFolder, count: int, tasks: list[Task]) -> None:
    """Say what is resumed and what the folder has of another prompt file."""
    done = count - len(tasks)
    if done and tasks:
        print(f"{done} of {_prompts(count)} already done in {folder.path}: skipped.")
    if changed := [task.prompt.line for task in tasks if task.is_changed]:
        shown = ", ".join(str(line) for line in changed[:10]) + (", ..." if changed[10:] else "")
        print(
            f"Changed since the last run, in text or options: {_prompts(len(changed))} "
            f"(line {shown}). They are new work and their images will be replaced."
        )
    if beyond := folder.records_beyond(count):
        print(f"No longer in the file: {_prompts(beyond)} of the last run. Their images stay.")
    sys.stdout.flush()


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _require_app(client: SdClient, app: str) -> dict[str, Any]:
    """The app as the server lists it, so that a wrong name fails before the first prompt.

    Raises:
        AppNotFoundError: no such app.
    """
    known = {str(model.get("id")): model for model in client.models()}
    if app not in known:
        raise AppNotFoundError(app, list(known))
    return known[app]


def _check_sizes(path: Path, prompts: list[Prompt], limits: object) -> None:
    """Check what only the app's checkpoint decides.

    Raises:
        BadLinesError: a width or height that this app cannot draw.
    """
    if not isinstance(limits, dict):
        return  # a server that does not tell; it refuses the prompt itself
    multiple, low = limits.get("size_multiple", 1), limits.get("min_size", 1)
    high = limits.get("max_size", math.inf)
    problems: list[tuple[int, str]] = []
    for prompt in prompts:
        for side in ("width", "height"):
            pixels = prompt.body.get(side)
            if pixels is None:
                continue
            if pixels % multiple:
                problems.append((prompt.line, f"{side}: {pixels} is not a multiple of {multiple}"))
            elif not low <= pixels <= high:
                problems.append((prompt.line, f"{side}: {pixels} is outside {low}..{high} pixels"))
    if problems:
        raise BadLinesError(path, problems)


def parse_options(argv: Sequence[str], prog: str) -> Options:
    """Read the command line; a mistake ends the process with exit code 2."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Submit a file of prompts to one app and collect the images. Resumable.",
        epilog=_EPILOG.format(fields=", ".join(FIELDS), prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "prompts_file", metavar="PROMPTS_FILE", type=Path, help=".txt, .csv, .jsonl"
    )
    parser.add_argument("--app", required=True, help="the app, e.g. sd-sd-xl-base-1-0")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the batch's folder")
    here = f"http://127.0.0.1:{read_settings().http_port}"
    parser.add_argument("--url", default=here, help="the server (default: %(default)s)")
    parser.add_argument(
        "--in-flight",
        metavar="N",
        type=_whole_from_one,
        default=4,
        help="prompts at the server at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=timedelta(minutes=10),
        help="give up when the server has been away, or has refused, for so long (default: 600)",
    )
    fields = parser.add_argument_group("request fields, for prompts that do not set their own")
    for option, (name, what) in _FIELD_OPTIONS.items():
        metavar = option.lstrip("-").upper().replace("-", "_")
        rule = _field_type(name)
        fields.add_argument(option, dest=name, metavar=metavar, type=rule, help=what)
    given = vars(parser.parse_args(argv))
    names = [name for name, _ in _FIELD_OPTIONS.values()]
    return Options(
        app=given["app"],
        prompts_file=given["prompts_file"],
        out=given["out"],
        url=given["url"],
        in_flight=given["in_flight"],
        timeout=given["timeout"],
        defaults={name: given[name] for name in names if given[name] is not None},
    )


_FIELD_OPTIONS = {
    "--steps": ("num_inference_steps", "denoising steps, 1..150"),
    "--guidance": ("guidance_scale", "how strictly to follow the prompt, 0..30"),
    "--width": ("width", "pixels"),
    "--height": ("height", "pixels"),
    "--seed": ("seed", "0..4294967295; without it every prompt gets its own"),
    "--negative-prompt": ("negative_prompt", "what the image must not show"),
    "--scheduler": ("scheduler", "sampler, e.g. euler_a"),
    "--format": ("format", "base64 (a PNG), png, jpeg or webp"),
}


def _field_type(name: str) -> Callable[[str], object]:
    def parse(text: str) -> object:
        try:
            # The prompt only completes the request; the option is what is checked.
            return check_fields({"prompt": "-", name: text})[name]
        except FieldError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _whole_from_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _seconds(text: str) -> timedelta:
    try:
        seconds = timedelta(seconds=float(text))
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from error
    if seconds < timedelta(0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0")
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    prog = os.environ.get("SUBMIT_BATCH_PROG", "python -m deploy_scripts.submit_batch")
    try:
        options = parse_options(arguments, prog)
        return submit_batch(options, f"{prog} {shlex.join(arguments)}")
    except (
        SettingsError,
        PromptFileError,
        BatchFolderError,
        NotSavedError,
        InvalidUrlError,
        AppNotFoundError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED  # before anything was submitted


if __name__ == "__main__":
    sys.exit(main())
