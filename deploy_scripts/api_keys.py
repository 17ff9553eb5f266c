"""The command `api_keys.sh`: make, list, change, revoke and rotate API keys; webhook secrets.

A token is printed once, alone on stdout, and kept nowhere; all else goes to stderr.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta

from deploy_scripts.command import ensure_store, run_command
from deploy_scripts.deploy import Deployer
from deploy_scripts.revocation import cancel_work
from deploy_scripts.table import print_table
from sdserve.api_keys import ApiKey, Role, Token, is_key_id, new_token
from sdserve.errors import KeyNotFoundError, KeyRevokedError, SdServeError
from sdserve.key_operations import CreateKey, KeyChange, RevokeKey, RotateKey, SetQuotas, ViewKey
from sdserve.limits import Quotas, Rate
from sdserve.settings import Settings
from sdserve.store import RedisJobStore, connect
from sdserve.webhook_signature import parse_secrets, secrets_of, told

MAX_NAME = 100  # characters
QUOTAS = fields(Quotas)


class WebhooksOffError(SdServeError):
    """There is nothing that signs webhooks."""

    code = "webhooks_off"

    def __init__(self) -> None:
        super().__init__(
            "Webhooks are off: set SD_WEBHOOK_SECRETS to what the running stack has, and ask again."
        )


def keys_of(store: RedisJobStore) -> list[ApiKey]:
    """Every key, revoked ones too, the oldest first."""
    views = [store.run(ViewKey(key_id=key_id)) for key_id in store.key_ids()]
    return [view.key for view in views if view.key]


def warn_without_key(deployer: Deployer) -> None:
    """Say on stderr when what is deployed asks for an API key and there is none."""
    if deployer.is_key_required and all(key.revoked_at for key in keys_of(deployer.store)):
        print(
            "warning: requests need an API key and there is none: "
            "`bash deploy_scripts/api_keys.sh create NAME` makes one.",
            file=sys.stderr,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    def work(settings: Settings) -> int:
        store = RedisJobStore(connect(ensure_store(settings), reply_timeout=5))
        match options.command:
            case "create":
                quotas = _quotas(options)
                return _create(store, options.name, is_admin=options.admin, quotas=quotas)
            case "set":
                return _set(store, options.id, _quotas(options), is_anew=options.defaults)
            case "list":
                return _list(store)
            case "revoke":
                return _revoke(store, options.id, settings.job_ttl)
            case "webhook-secret":
                return _webhook_secret(store, options.id, settings)
            case _:
                return _rotate(store, options.id, timedelta(seconds=options.overlap))

    return run_command(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="api_keys.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="a new key; its token is shown this once")
    create.add_argument("name", metavar="NAME", type=_name, help="for people: who has it")
    create.add_argument("--admin", action="store_true", help="sees and cancels all jobs")
    change = commands.add_parser("set", help="change the quotas of a key; those not named stay")
    change.add_argument("id", metavar="ID", help="as `list` shows it")
    change.add_argument("--defaults", action="store_true", help="first forget all of its own")
    for option, name, kind, what in (
        ("--max-jobs", "jobs", _count, "unfinished jobs (else SD_MAX_JOBS_PER_KEY)"),
        ("--max-queued", "queued", _count, "queued jobs (else SD_MAX_QUEUED_PER_KEY)"),
        ("--max-images-per-day", "images_per_day", _count, "images (else SD_MAX_IMAGES_PER_DAY)"),
        (
            "--max-gpu-seconds-per-day", "gpu_seconds_per_day", _count,
            "GPU seconds (else SD_MAX_GPU_SECONDS_PER_DAY)",
        ),
        ("--rate-limit", "rate", _rate, "requests, e.g. 600/minute (else SD_RATE_LIMIT)"),
    ):  # fmt: skip
        for command in (create, change):
            command.add_argument(option, dest=name, metavar="N", type=kind, help=what)
    commands.add_parser("list", help="all keys, revoked ones too; no secrets")
    revoke = commands.add_parser(
        "revoke", help="accept a key no more, and cancel its jobs and batches"
    )
    rotate = commands.add_parser("rotate", help="a new token for a key, whose id and jobs stay")
    secret = commands.add_parser("webhook-secret", help="what signs the webhooks of a key's jobs")
    for command in (revoke, rotate, secret):
        command.add_argument("id", metavar="ID", help="as `list` shows it")
    rotate.add_argument(
        "--overlap", metavar="SECONDS", type=_count, default=0,
        help="how long the old token is accepted besides (default 0)",
    )  # fmt: skip
    return parser


def _create(store: RedisJobStore, name: str, *, is_admin: bool, quotas: Quotas) -> int:
    role = Role.ADMIN if is_admin else Role.USER
    token = new_token()
    while not store.run(
        CreateKey(key_id=token.key_id, name=name, role=role, digest=token.digest, quotas=quotas)
    ):
        token = new_token()  # its id, one of 36^8, was taken
    _tell(token, f"key {token.key_id} of {name} ({role})")
    return 0


def _list(store: RedisJobStore) -> int:
    rows = list[list[str]]()
    for key in keys_of(store):
        state = f"revoked {_time(key.revoked_at)}" if key.revoked_at else "valid"
        rows.append(
            [
                key.id,
                key.name,
                key.role,
                state,
                _time(key.created_at),
                _rotated(key),
                _told(key.quotas),
            ]
        )
    print_table(["ID", "NAME", "ROLE", "STATE", "CREATED", "ROTATED", "QUOTAS"], rows)
    return 0


def _set(store: RedisJobStore, key_id: str, given: Quotas, *, is_anew: bool) -> int:
    key = store.run(ViewKey(key_id=key_id)).key
    before = key.quotas if key and not is_anew else Quotas()
    quotas = given.over(before)
    _check(store.run(SetQuotas(key_id=key_id, quotas=quotas)), key_id)
    print(f"{key_id}: {_told(quotas)}")
    return 0


def _revoke(store: RedisJobStore, key_id: str, job_ttl: timedelta) -> int:
    _check(store.run(RevokeKey(key_id=key_id)), key_id)
    count = cancel_work(store, key_id, job_ttl=job_ttl)
    print(f"{key_id}: revoked; its batches and {count} jobs that waited or ran are cancelled")
    return 0


def _rotate(store: RedisJobStore, key_id: str, overlap: timedelta) -> int:
    token = new_token(key_id)
    change = store.run(RotateKey(key_id=key_id, digest=token.digest, overlap=overlap))
    _check(change, key_id)
    old = f"is accepted for {overlap.total_seconds():.0f} s more" if overlap else "ends now"
    _tell(token, f"key {key_id}: its old token {old}")
    return 0


def _webhook_secret(store: RedisJobStore, key_id: str, settings: Settings) -> int:
    if not is_key_id(key_id) or store.run(ViewKey(key_id=key_id)).key is None:
        raise KeyNotFoundError(key_id)
    configured = parse_secrets(settings.webhook_secrets)
    if not configured:
        raise WebhooksOffError
    for secret in secrets_of(key_id, configured):
        print(told(secret))
    return 0


def _tell(token: Token, what: str) -> None:
    print(what, file=sys.stderr)
    print("Keep this token now, it cannot be shown again:", file=sys.stderr)
    print(token.text)


def _rotated(key: ApiKey) -> str:
    return _time(key.rotated_at) if key.rotated_at else "-"


def _told(quotas: Quotas) -> str:
    """Those of its own."""
    own = ((field.name, getattr(quotas, field.name)) for field in QUOTAS)
    return " ".join(f"{name}={value}" for name, value in own if value is not None) or "-"


def _quotas(options: argparse.Namespace) -> Quotas:
    return Quotas(**{field.name: getattr(options, field.name) for field in QUOTAS})


def _check(change: KeyChange, key_id: str) -> None:
    if change is KeyChange.MISSING:
        raise KeyNotFoundError(key_id)
    if change is KeyChange.REVOKED:
        raise KeyRevokedError(key_id)


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _name(text: str) -> str:
    if not text.isprintable() or not 1 <= len(text.strip()) <= MAX_NAME:
        raise argparse.ArgumentTypeError(f"a name has 1 to {MAX_NAME} printable characters")
    return text.strip()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(text)


def _rate(text: str) -> Rate:
    try:
        return Rate.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
