"""HAProxy as Ray Serve starts it, but for what Ray lets nobody choose.

    python -I -S haproxy_launcher.py BINARY ARGUMENTS...

Ray writes a configuration of its own at every change and runs `RAY_SERVE_HAPROXY_BINARY_PATH` on
it. This program is what that names (deploy_scripts/haproxy.py): it adapts the configuration in
place and becomes HAProxy, so that Ray sees the process id it started. It runs at every change of
the routes: the standard library alone, which starts in 20 ms.

What is changed, and why:

- Metrics and statistics would listen on every address without a password: they are dropped.
- The socket that commands it would be open to every user of the machine.
- Before Ray has told HAProxy the routes it would answer 404, which means "no such job": 503.
- A lost answer would be a 500 in plain text: problems (RFC 9457), 502 and 503 told apart.
- Were Ray killed with all its processes, HAProxy would go on and keep the port.
- A connection left open over a change would be served by the old routes once more: a 404 of an app
  that has just been deployed. It is closed instead, as every server does with an idle one.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path

_DROPPED = {"frontend prometheus", "listen stats"}
_NO_ROUTES = "backend default_backend"

# Status that HAProxy would answer with -> ours. It says 503 when it reached nobody, 502 and 504
# when it has sent the request and got no answer.
_PROBLEMS = {
    502: (
        HTTPStatus.BAD_GATEWAY,
        "answer_lost",
        "The process that this request was sent to ended before it answered: whether it was "
        "accepted is unknown. Send it again with the same Idempotency-Key.",
    ),
    503: (
        HTTPStatus.SERVICE_UNAVAILABLE,
        "server_starting",
        "No process can answer this request just now, and nothing was accepted. Try again.",
    ),
}
_PROBLEMS[504] = _PROBLEMS[502]
_RETRY_AFTER = 1  # seconds
_PR_SET_PDEATHSIG = 1


class UnknownConfigurationError(Exception):
    """It is not what this version of Ray is known to write, so what it opens is unknown."""


def adapt(configuration: str, folder: Path) -> str:
    """The configuration with our changes; `folder` has the answers of `write_problems`.

    Raises:
        UnknownConfigurationError.
    """
    sections = list(_sections(configuration))
    titles = [lines[0] for lines in sections]
    if missing := (_DROPPED | {"global", "defaults", _NO_ROUTES}) - set(titles):
        message = f"it has no {', '.join(sorted(missing))}"
        raise UnknownConfigurationError(message)
    adapted = [
        line
        for lines in sections
        if lines[0] not in _DROPPED
        for line in _adapt_section(lines, folder)
    ]
    binds = [line for line in adapted if line.split()[:1] == ["bind"]]
    if len(binds) != 1:
        message = f"it listens on {len(binds)} addresses: {binds}"
        raise UnknownConfigurationError(message)
    return "\n".join(adapted) + "\n"


def write_problems(folder: Path) -> None:
    """The answers that HAProxy gives by itself."""
    for number, (status, code, detail) in _PROBLEMS.items():
        body = json.dumps(
            {
                "type": f"urn:sdserve:problem:{code}",
                "title": status.phrase,
                "status": status.value,
                "detail": detail,
            }
        )
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            "Content-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"Retry-After: {_RETRY_AFTER}\r\n"
            "Cache-Control: no-store\r\n"
        )
        (folder / f"{number}.http").write_bytes(f"{head}\r\n{body}".encode())


def main(arguments: Sequence[str]) -> None:
    """Become HAProxy. Exit code 1: the configuration is another than it should be."""
    binary, *rest = arguments
    if "-f" in rest:
        file = Path(rest[rest.index("-f") + 1])
        try:
            adapted = adapt(file.read_text(), file.parent)
        except UnknownConfigurationError as error:
            sys.exit(f"{file} is not as Ray 2.60 writes it: {error}")
        write_problems(file.parent)
        file.write_text(adapted)
    _die_with_parent()
    os.execv(binary, [binary, *rest])  # noqa: S606 (no shell: the very arguments of Ray)


def _die_with_parent() -> None:
    """Also after exec: prctl(2), PR_SET_PDEATHSIG."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _sections(configuration: str) -> Iterator[list[str]]:
    """The lines of each section, its title first."""
    section = list[str]()
    for line in configuration.splitlines():
        if line and not line[0].isspace() and section:
            yield section
            section = []
        section.append(line)
    yield section


def _adapt_section(lines: list[str], folder: Path) -> Iterator[str]:
    match lines[0]:
        case "global":
            yield from (
                re.sub(r"^(\s*stats socket .*) mode 666 ", r"\1 mode 600 ", one) for one in lines
            )
        case "defaults":
            changed = ("option idle-close-on-response", "errorfile ")
            yield from (line for line in lines if not line.strip().startswith(changed))
            yield from (f"    errorfile {number} {folder}/{number}.http" for number in _PROBLEMS)
        case title if title == _NO_ROUTES:
            yield from (title, "    http-request return status 503 default-errorfiles")
        case _:
            yield from lines


if __name__ == "__main__":
    main(sys.argv[1:])
