"""submit_batch: a file of prompts as one batch, resumable. Images and results.jsonl in a folder.

Nothing runs twice: the upload and its idempotency key are on the disk before they are sent, so
whoever dies, client or server, the next run gets the same batch.
"""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from deploy_scripts.batch_folder import BatchFolder, BatchFolderError, Task
from deploy_scripts.batch_run import BatchRun, Screen
from deploy_scripts.prompt_file import (
    FIELDS,
    FieldError,
    PromptFileError,
    check_fields,
    read_prompts,
)
from sdserve.client import (
    ClientError,
    InvalidUrlError,
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

All prompts are handed in as one batch; a file that is larger than a server takes (100,000 prompts,
64 MiB) as several, one after the other. DIR receives 0001.png, 0002.png, ... (0001-1.png, ... when
num_images > 1) and results.jsonl, each as it is drawn.
Without this command, after Ctrl-C too, the batch goes on at the server. Run the same command again
to resume: it follows that batch to its end, then hands in what is left. Finished prompts are
skipped, those that had failed before are tried again, nothing runs twice. The server keeps images
for one hour: what has expired by then is drawn again. Prompts are known by their place in the
file: add new ones at its end.

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
    timeout: timedelta  # how long a server that is away or refuses is waited for
    defaults: dict[str, Any]  # request fields for prompts that do not set their own


def submit_batch(options: Options, command: str) -> int:
    """Follow the batch that is under way, then hand in what is left and follow that.

    Args:
        options: the command line.
        command: what resumes this batch, shown to the user.

    Returns:
        The exit code.

    Raises:
        PromptFileError, BatchFolderError, InvalidUrlError, AppNotFoundError: nothing was submitted.
    """
    prompts = read_prompts(options.prompts_file, options.defaults)
    screen = Screen()
    with (
        contextlib.closing(BatchFolder.open(options.out)) as folder,
        contextlib.closing(screen),
        SdClient(options.url, patience=options.timeout, waiting=screen.waiting) as client,
    ):
        run, pending = BatchRun(client, folder, options.prompts_file, screen), folder.pending()
        try:
            if pending:
                run.run(pending)
            tasks = folder.left(options.app, prompts)
            _announce(folder, len(prompts), tasks)
            # What has failed just now is tried again by the next run.
            tasks = [task for task in tasks if (task.prompt.number, task.digest) not in run.failed]
            if tasks:
                _require_app(client, options.app)
            while tasks:
                upload = folder.begin(tasks)
                run.run(upload)
                tasks = tasks[len(upload.tasks) :]
        except KeyboardInterrupt:
            code, why = INTERRUPTED, f"Interrupted.{_goes_on(client, run.batch_id)}"
        except (ClientError, BatchFolderError, OSError) as error:
            code, why = SOME_FAILED, f"error: {error}{_goes_on(client, run.batch_id)}"
        else:
            code, why = OK, ""
        left = len(folder.left(options.app, prompts))
        screen.close()
    if code == OK and not left:
        print(f"{_prompts(len(prompts))}, all succeeded: images in {folder.path}.")
        return OK
    why = why or f"{_prompts(left)} failed: see {folder.results}."
    succeeded = f"Succeeded: {len(prompts) - left} of {_prompts(len(prompts))}."
    print(f"{why}\n{succeeded} Go on with:\n  {command}", file=sys.stderr)
    return code or SOME_FAILED


def _goes_on(client: SdClient, batch_id: str | None) -> str:
    """What the server does without us."""
    if batch_id is None:
        return ""
    where = f"{client.url}/v1/batches/{batch_id}"
    return f" The batch goes on at the server; curl -X DELETE {where} cancels it."


def _announce(folder: BatchFolder, count: int, tasks: list[Task]) -> None:
    """Say what is resumed and what the folder has of another prompt file."""
    done = count - len(tasks)
    if done and tasks:
        print(f"{done} of {_prompts(count)} already done in {folder.path}: skipped.")
    if changed := [task.prompt.line for task in tasks if folder.is_changed(task)]:
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


def _require_app(client: SdClient, app: str) -> None:
    """Fail before the first prompt, not with every one.

    Raises:
        AppNotFoundError: no such app.
    """
    known = [str(model.get("id")) for model in client.models()]
    if app not in known:
        raise AppNotFoundError(app, known)


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
    "--step-cache": ("step_cache", "faster and approximate: whole steps only every N, 1..5"),
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
        InvalidUrlError,
        AppNotFoundError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED  # before anything was submitted


if __name__ == "__main__":
    sys.exit(main())
