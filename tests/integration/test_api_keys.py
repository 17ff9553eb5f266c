"""API keys in the job store: the promises of their scripts, kept by both stores."""

from datetime import timedelta
from typing import Any

import pytest
from redis import Redis

from sdserve.api_keys import ApiKey, Role, Token, new_token
from sdserve.key_operations import CreateKey, KeyChange, RevokeKey, RotateKey, SetQuotas, ViewKey
from sdserve.limits import Quotas, Rate
from sdserve.store import RedisJobStore
from tests.keys import create_key
from tests.store_world import World

pytestmark = pytest.mark.integration

HOUR = timedelta(hours=1)


def view(world: World, key_id: str) -> ApiKey:
    key = world.run(ViewKey(key_id=key_id)).key
    assert isinstance(key, ApiKey)
    return key


def accepts(world: World, token: Token) -> bool:
    seen = world.run(ViewKey(key_id=token.key_id))
    return seen.key is not None and seen.key.accepts(token.secret, seen.now)


def rotate(world: World, token: Token, overlap: timedelta = timedelta(0)) -> KeyChange:
    """Give the key of this token its secret."""
    return world.run(RotateKey(key_id=token.key_id, digest=token.digest, overlap=overlap))


def test_a_new_key_is_seen_as_it_was_made(world: World) -> None:
    token = create_key(world.store, "ann", Role.ADMIN)
    key = view(world, token.key_id)
    assert (key.name, key.role, key.revoked_at) == ("ann", Role.ADMIN, None)
    assert accepts(world, token)
    assert not accepts(world, new_token(token.key_id))


def test_a_key_keeps_the_quotas_that_are_its_own(world: World) -> None:
    own = Quotas(images_per_day=0, rate=Rate(requests=5, seconds=60))
    token = create_key(world.store, "ann", quotas=own)
    assert view(world, token.key_id).quotas == own
    server = Quotas(jobs=7, images_per_day=9)
    assert own.over(server) == Quotas(jobs=7, images_per_day=0, rate=own.rate)


def test_there_is_no_key_that_was_not_made(world: World) -> None:
    assert world.run(ViewKey(key_id="nobody")).key is None


def test_keys_are_listed_the_oldest_first(world: World) -> None:
    made = [create_key(world.store, f"key {number}") for number in range(3)]
    assert sorted(world.store.key_ids()) == sorted(token.key_id for token in made)


def test_an_id_is_given_once(world: World) -> None:
    token = create_key(world.store, "ann")
    other = new_token(token.key_id)
    again = CreateKey(key_id=token.key_id, name="bob", role=Role.ADMIN, digest=other.digest)
    assert world.run(again) is False
    assert view(world, token.key_id).name == "ann"
    assert accepts(world, token)


def test_a_creation_whose_reply_was_lost_is_the_same_again(world: World) -> None:
    token = new_token()
    create = CreateKey(key_id=token.key_id, name="ann", role=Role.USER, digest=token.digest)
    assert world.run(create) is True
    first = view(world, token.key_id)
    assert world.run(create) is True
    assert view(world, token.key_id) == first


def test_a_rotation_replaces_the_secret_at_once(world: World) -> None:
    old = create_key(world.store, "ann")
    new = new_token(old.key_id)
    assert rotate(world, new) is KeyChange.DONE
    assert accepts(world, new)
    assert not accepts(world, old)


def test_a_rotation_with_an_overlap_leaves_the_old_secret_time(world: World) -> None:
    old = create_key(world.store, "ann")
    new = new_token(old.key_id)
    assert rotate(world, new, HOUR) is KeyChange.DONE
    assert accepts(world, new)
    assert accepts(world, old)
    key = view(world, old.key_id)
    assert key.rotated_at is not None
    assert key.old_until == key.rotated_at + HOUR
    # One older secret at most: the next rotation ends this one's time.
    assert rotate(world, new_token(old.key_id), HOUR) is KeyChange.DONE
    assert not accepts(world, old)
    assert accepts(world, new)


def test_a_rotation_whose_reply_was_lost_does_not_forget_the_old_secret(world: World) -> None:
    old = create_key(world.store, "ann")
    new = new_token(old.key_id)
    assert [rotate(world, new, HOUR) for _ in range(2)] == [KeyChange.DONE] * 2
    assert accepts(world, old)


def test_a_revoked_key_is_accepted_no_more_and_stays_so(world: World) -> None:
    token = create_key(world.store, "ann")
    assert world.run(RevokeKey(key_id=token.key_id)) is KeyChange.DONE
    assert not accepts(world, token)
    first = view(world, token.key_id)
    assert first.revoked_at is not None
    new = new_token(token.key_id)
    assert rotate(world, new) is KeyChange.REVOKED
    assert not accepts(world, new)
    while world.run(ViewKey(key_id=token.key_id)).now == first.revoked_at:
        pass  # the next millisecond
    assert world.run(RevokeKey(key_id=token.key_id)) is KeyChange.DONE
    assert view(world, token.key_id) == first


def test_a_keys_quotas_are_replaced_unless_it_is_revoked(world: World) -> None:
    key_id = create_key(world.store, "ann").key_id
    change = SetQuotas(key_id=key_id, quotas=Quotas(jobs=3))
    assert [world.run(change), world.run(change)] == [KeyChange.DONE] * 2
    assert view(world, key_id).quotas == Quotas(jobs=3)
    world.run(RevokeKey(key_id=key_id))
    assert world.run(SetQuotas(key_id=key_id, quotas=Quotas())) is KeyChange.REVOKED
    assert view(world, key_id).quotas == Quotas(jobs=3)


def test_what_is_not_there_cannot_be_changed(world: World) -> None:
    assert world.run(SetQuotas(key_id="nobody", quotas=Quotas())) is KeyChange.MISSING
    assert rotate(world, new_token("nobody")) is KeyChange.MISSING
    assert world.run(RevokeKey(key_id="nobody")) is KeyChange.MISSING
    assert world.store.key_ids() == []


def all_of(redis: Redis) -> str:
    """Every key and every value, as text."""
    values = list[Any]()
    for name in redis.scan_iter():
        match redis.type(name):
            case b"hash":
                values.append((name, redis.hgetall(name)))
            case b"zset":
                values.append((name, redis.zrange(name, 0, -1)))
            case other:
                raise AssertionError(other)
    return str(values)


def test_redis_never_holds_a_secret(redis: Redis) -> None:
    world = World(RedisJobStore(redis), redis)
    old = create_key(world.store, "ann")
    new = new_token(old.key_id)
    rotate(world, new, HOUR)
    held = all_of(redis)
    for token in (old, new):
        assert token.secret not in held
        assert token.text not in held
        assert token.digest in held  # so the search would have found them


def test_the_stores_remember_whether_keys_are_required(redis: Redis) -> None:
    store = RedisJobStore(redis)
    assert store.is_key_required()  # nothing is known
    store.note_key_required(is_required=True)
    assert store.is_key_required()
    store.note_key_required(is_required=False)
    assert not store.is_key_required()
