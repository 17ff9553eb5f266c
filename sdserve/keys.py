"""The names of all Redis keys. Everything of ours begins with `sd:` (RQ's keys: `sd:rq`)."""

import hashlib

PREFIX = "sd:"
JOB = PREFIX + "job:"  # hash, one per job; no TTL until final
QUEUE = PREFIX + "q:"  # zset per app: job id -> start by CLOCK - priority / 100
LEASE = PREFIX + "lease:"  # zset per app: job id -> end of the lease, server milliseconds
REPLICAS = PREFIX + "replicas:"  # hash per app: replica id -> presence JSON
WAKE = PREFIX + "wake:"  # list per app, a BLPOP target: only a hint
APP = PREFIX + "app:"  # hash per app: broken reason, counters, averages
INDEX = PREFIX + "idx"  # zset: job id -> created, server milliseconds
MINE = PREFIX + "mine:"  # zset per client: job id -> created, server milliseconds
UNRUN = PREFIX + "unrun:"  # list per client: jobs that were cancelled before they ran, oldest first
IDEMPOTENCY = PREFIX + "idem:"  # string per app, client and key: job id, digest of the body
RESULT = PREFIX + "res:"  # string `{job}:{fence}:{k}`: the bytes of image k
LOAD = PREFIX + "load"  # hash: unfinished jobs (all, app:A, client:C), a client's queued jobs
# (queued:C) and unfinished images (images:C), and bytes of results
RESULTS = PREFIX + "results"  # zset: "bytes key" of every image kept -> stored, server milliseconds
CLOCK = PREFIX + "clock:"  # hash per app: steps served (fair queueing)
SHARES = PREFIX + "shares:"  # hash per app: where a client's next job of a priority starts
SHA256 = PREFIX + "sha256"  # hash: path, size and mtime of a file -> its SHA-256
KEY = PREFIX + "key:"  # hash per API key: name, role, digest of the secret, times
KEYS = PREFIX + "keys"  # zset: id of an API key -> created, server milliseconds
KEY_REQUIRED = PREFIX + "key-required"  # string "1": Serve was started to ask for API keys
RATE = PREFIX + "rate"  # `:...` strings, two per client: its requests in a window (limits)
APPS = PREFIX + "apps"  # hash: app -> AppSpec JSON, the registry of what is deployed
BATCH = PREFIX + "batch:"  # hash per batch; `:in:{p}`, `:out:{p}`, `:res:{p}`, `:live` beside it
BATCHES = PREFIX + "batches"  # zset: id -> created, of every batch that is kept
OPEN_BATCHES = PREFIX + "batches:open"  # zset: the same of those that need feeding or packing
HOOKS = PREFIX + "hooks"  # zset: client -> when to look at its undelivered webhook events next;
# `:of:{client}`: zset, event -> the same for it; server milliseconds
HOOK = PREFIX + "hook:"  # hash per webhook event that is not delivered (outbox.py)
DEAD_HOOKS = HOOKS + ":dead"  # zset: event that was given up -> when; 7 days; `:{client}`: its own
HOOK_REST = PREFIX + "hook-rest:"  # hash per slow receiver of a client: its failures, rests until;
# `of:{client}`: string, that the client rests until
CHANNEL = PREFIX + "ev:"  # pub/sub per app: what changed (news.py)
PREVIEW = PREFIX + "preview:"  # hash per running job that is watched: its picture so far
USAGE = PREFIX + "use:"  # hash per day (since 1970, UTC): client|app|metric -> integer; 400 days
FEEDING = PREFIX + "feeding"  # string: a task feeds batches, or has been asked for
CHORE = PREFIX + "chore:"  # string per periodic chore: exists until its next turn


def result(job_id: str, fence: int, image: int) -> str:
    return f"{RESULT}{job_id}:{fence}:{image}"


def hashed(*parts: str) -> str:
    """What a key has in place of a client's text, which never becomes part of one."""
    return hashlib.blake2b(":".join(parts).encode(), digest_size=16).hexdigest()
