"""What all commands do around their work: settings once, one sentence per mistake, exit codes."""

import sys
from collections.abc import Callable

from sdserve.errors import SdServeError
from sdserve.redis_server import check_redis, ensure_redis
from sdserve.settings import Settings, read_settings


def run_command(work: Callable[[Settings], int]) -> int:
    """Run a command's work. Returns its exit code: 1 after one sentence on stderr."""
    try:
        return work(read_settings())
    except SdServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def ensure_store(settings: Settings) -> str:
    """As `ensure_redis`; what is wrong with a server but no reason to refuse it goes to stderr."""
    url = ensure_redis(settings)
    if settings.redis_url:
        for warning in check_redis(url):
            print(f"warning: {warning}", file=sys.stderr)
    return url
