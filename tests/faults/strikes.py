"""The faults of the full stack, by name. Each returns once it is over."""

import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sdserve.daemon import Daemon
from tests.faults.full_stack import APPS, FICKLE, LEASE, LIMIT, FullStack
from tests.faults.processes import kill
from tests.faults.second_node import SecondNode
from tests.faults.tcp_proxy import CALM, Weather
from workers.task_queue import QueueName

NODE_PATIENCE = 20.0  # seconds; replicas come there when the first node has no CPU left

Strike = Callable[[FullStack], None]


def kill_replica(stack: FullStack) -> None:
    """kill -9 of the process that draws."""
    if place := stack.busy_replica():
        app, pid = place
        stack.struck("kill replica", app=app, loses_replica=True)
        kill(pid)


def kill_actor(stack: FullStack) -> None:
    """kill -9 of the process that Serve knows as the replica; the one that draws is another."""
    if actors := stack.processes.titled("ServeReplica", "DiffusionReplica"):
        stack.struck("kill Serve's replica", loses_replica=True)
        kill(stack.random.choice(actors).pid)


def freeze_replica(stack: FullStack) -> None:
    """SIGSTOP for longer than the lease: then it goes on as if nothing had been."""
    if place := stack.busy_replica():
        app, pid = place
        stack.struck("freeze replica", app=app, loses_replica=True)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(stack.random.uniform(1.2, 2) * LEASE)
            finally:
                os.kill(pid, signal.SIGCONT)


def terminate_replica(stack: FullStack) -> None:
    """SIGTERM: it hands its jobs back, which is no loss."""
    if place := stack.busy_replica():
        app, pid = place
        stack.struck("terminate replica", app=app)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def kill_standby(stack: FullStack) -> None:
    """kill -9 of the process from which replicas are forked."""
    name = f"sdserve-standby-{os.getuid()}-{stack.processes.raylet()}"
    standby = Daemon.find(Path(tempfile.gettempdir()) / name / "process.json")
    if standby is not None:
        stack.struck("kill standby")
        kill(standby.pid)


def _kill_titled(kind: str, *words: str) -> Strike:
    def strike(stack: FullStack) -> None:
        if victims := stack.processes.titled(*words):
            stack.struck(kind)
            kill(stack.random.choice(victims).pid)

    return strike


def kill_haproxy(stack: FullStack) -> None:
    """kill -9 of the process that takes all requests."""
    if victims := stack.processes.named("haproxy"):
        stack.struck("kill HTTP proxy")
        for victim in victims:
            kill(victim.pid)


def kill_rq_worker(stack: FullStack) -> None:
    """Nobody but `up` starts it again."""
    stack.struck("kill RQ worker")
    kill(stack.processes.rq_worker(stack.random.choice(list(QueueName))))
    stack.up()


def kill_node(stack: FullStack) -> None:
    """kill -9 of a second node's raylet, most often with a replica on it."""
    node = SecondNode(stack.processes.state)
    try:
        if node.wait_for_replica(NODE_PATIENCE):
            time.sleep(stack.random.uniform(1, 5))  # it loads, then draws
        stack.struck("kill node", loses_replica=True)
    finally:
        node.kill()


def kill_redis(stack: FullStack) -> None:
    """kill -9, and up to a second without it."""
    stack.struck("kill Redis", loses_replica=True)
    stack.redis.kill()
    time.sleep(stack.random.uniform(0, 1))
    stack.redis.start()


def fill_redis(stack: FullStack) -> None:
    """No memory left for anything: new jobs are refused, running ones keep their leases."""
    stack.struck("Redis full")
    with stack.redis.client() as redis:
        redis.config_set("maxmemory", 1)
        time.sleep(stack.random.uniform(1, 1.5 * LEASE))
        redis.config_set("maxmemory", 0)


def pause_redis(stack: FullStack) -> None:
    """SCRIPT FLUSH, and CLIENT PAUSE for longer than every time-out."""
    stack.struck("pause Redis", loses_replica=True)
    seconds = stack.random.uniform(1, 1.5 * LEASE)
    with stack.redis.client() as redis:
        redis.script_flush()
        redis.client_pause(int(seconds * 1000))
    time.sleep(seconds)


def _weather(kind: str, weather: Weather) -> Strike:
    def strike(stack: FullStack) -> None:
        stack.struck(kind, loses_replica=True)
        stack.proxy.set(weather)
        time.sleep(stack.random.uniform(1, 1.2 * LEASE))
        stack.proxy.set(CALM)
        # Two leases may have run out over it.
        stack.struck(kind, loses_replica=True, is_over=True)

    return strike


def redeploy(stack: FullStack) -> None:
    """Another version of an app, with jobs waiting and running: its replicas are scaled in."""
    app = stack.random.choice(APPS)
    stack.struck("deploy another version", app=app)
    stack.deploy(app, "--queue-limit", str(stack.random.randrange(100, 10**6)))


def delete_app(stack: FullStack) -> None:
    """Its queued jobs fail, its running jobs end; then it is deployed again."""
    stack.struck("delete app", app=FICKLE, ends_jobs="app_gone")
    stack.delete(FICKLE)
    stack.deploy(FICKLE)


def break_model(stack: FullStack) -> None:
    """The file of an app is cut; once the app is broken it is mended and deployed again."""
    file = stack.file(FICKLE)
    good = file.read_bytes()
    stack.struck("break model file", app=FICKLE, ends_jobs="app_broken")
    file.write_bytes(good[:-1000])
    deadline = time.monotonic() + LIMIT
    while stack.status(FICKLE).broken_reason is None:  # seen by the next start, or the replica
        assert time.monotonic() < deadline, stack.status(FICKLE)
        time.sleep(0.2)
    file.write_bytes(good)
    stack.deploy(FICKLE)


STRIKES: dict[str, Strike] = {
    "kill replica": kill_replica,
    "kill Serve's replica": kill_actor,
    "freeze replica": freeze_replica,
    "terminate replica": terminate_replica,
    "kill standby": kill_standby,
    "kill gateway": _kill_titled("kill gateway", "ServeReplica", "Gateway"),
    "kill HTTP proxy": kill_haproxy,
    "kill HTTP proxy's manager": _kill_titled("kill HTTP proxy's manager", "HAProxyManager"),
    "kill Serve controller": _kill_titled("kill Serve controller", "ServeController"),
    "kill RQ worker": kill_rq_worker,
    "kill node": kill_node,
    "kill Redis": kill_redis,
    "Redis full": fill_redis,
    "pause Redis": pause_redis,
    "black hole to Redis": _weather("black hole to Redis", Weather(hold_requests=True)),
    "black hole from Redis": _weather("black hole from Redis", Weather(hold_replies=True)),
    "lost replies": _weather("lost replies", Weather(cut_replies=True)),
    "latency": _weather("latency", Weather(delay=0.1)),
    "slow drip": _weather("slow drip", Weather(drip=500)),
    "deploy another version": redeploy,
    "delete app": delete_app,
    "break model file": break_model,
}
