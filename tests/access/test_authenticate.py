"""Who asks: by a key, or anyone where there are none; keys added and revoked are noticed within a stated time."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sd35.access.authenticate import KEPT_S, Authenticator, Caller
from sd35.access.keys import Key, Quota, Role, id_of, matches, new_key
from sd35.access.rate_limits import RateLimiter
from sd35.errors import NotAuthenticated, StoreUnavailable
from sd35.storage.memory.keys import MemoryKeyStore
from tests.support.fake_backend import Clock, key_store

LIMITS = RateLimiter(Quota())


class Counting(MemoryKeyStore):
    """A store that counts how often it is read, and breaks when told to."""

    reads = 0
    is_broken = False

    def keys(self) -> Sequence[Key]:
        """All."""
        self.reads += 1
        if self.is_broken:
            raise StoreUnavailable("the database is away")
        return super().keys()


def ask(ring: Authenticator, secret: str | None = None, address: str = "10.0.0.1") -> Caller:
    """Who that is."""
    return asyncio.run(ring.caller(secret, address))


def test_a_secret_names_its_key_and_only_its_hash_is_kept():
    """The id can be read off the secret; the key holds nothing from which the secret could be had."""
    key, secret = new_key("mine", Role.USER, 1.0)
    assert secret.startswith(f"sd35_{key.id}_")
    assert id_of(secret) == key.id
    assert matches(key, secret)
    assert secret.rsplit("_", 1)[1] not in repr(key)


def test_a_malformed_secret_has_no_key_id():
    """Shortened, lengthened or otherwise changed, it is none."""
    key, secret = new_key("mine", Role.USER, 1.0)
    for changed in (secret[:-1], secret + "x", secret.upper(), secret[:-1] + "é", ""):
        assert id_of(changed) is None
        assert not matches(key, changed)


def test_without_keys_whoever_asks_may_do_anything():
    """No store, or one that never had a key: an administrator of no name, whatever secret it sends."""
    for ring in (Authenticator(None, LIMITS), Authenticator(key_store(), LIMITS)):
        for secret in (None, "sk-whatever"):
            caller = ask(ring, secret)
            assert (caller.owner, caller.role, caller.visible_to) == ("", Role.ADMIN, None)


def test_a_key_is_its_owner_with_its_role_and_allowance():
    """The caller is what the key says; a user sees its own, an administrator all."""
    user, user_secret = new_key("user", Role.USER, 1.0, Quota(concurrency=3))
    admin, admin_secret = new_key("admin", Role.ADMIN, 1.0)
    ring = Authenticator(key_store(user, admin), LIMITS)
    caller = ask(ring, user_secret)
    assert (caller.owner, caller.role, caller.quota) == (user.id, Role.USER, Quota(concurrency=3))
    assert (caller.visible_to, ask(ring, admin_secret).visible_to) == (user.id, None)


def test_unknown_wrong_and_revoked_keys_get_the_same_answer():
    """Nobody learns which ids there are, or were."""
    key, secret = new_key("mine", Role.USER, 1.0)
    gone, gone_secret = new_key("gone", Role.USER, 1.0)
    ring = Authenticator(key_store(key, replace(gone, revoked_s=2.0)), LIMITS)
    _, unknown = new_key("unknown", Role.USER, 1.0)
    wrong = secret[:-4] + ("AAAA" if secret[-4:] != "AAAA" else "BBBB")
    words = set()
    for bad in (unknown, wrong, gone_secret, "nonsense", "sd35_"):
        with pytest.raises(NotAuthenticated) as refused:
            ask(ring, bad)
        words.add(str(refused.value))
    assert words == {"the API key that came is not valid"}


def test_revoking_the_last_key_does_not_open_the_service():
    """Whoever once had keys does not lose the lock with the last of them."""
    key, _ = new_key("mine", Role.USER, 1.0)
    with pytest.raises(NotAuthenticated, match="an API key is needed"):
        ask(Authenticator(key_store(replace(key, revoked_s=2.0)), LIMITS))


def test_the_store_is_read_every_few_seconds_and_a_revocation_noticed_then():
    """Many requests are one reading, made-up keys none; a revoked key ends within `KEPT_S`."""
    clock = Clock()
    key, secret = new_key("mine", Role.USER, 1.0)
    store = Counting()
    store.add(key)
    ring = Authenticator(store, LIMITS, clock)

    async def many() -> None:
        await asyncio.gather(*(ring.caller(secret, "10.0.0.1") for _ in range(50)))

    asyncio.run(many())
    for _ in range(50):
        with pytest.raises(NotAuthenticated):
            ask(ring, new_key("made up", Role.USER, 1.0)[1])
    assert store.reads == 1
    store.revoke(key.id, 2.0)
    clock.now_s += KEPT_S
    with pytest.raises(NotAuthenticated):
        ask(ring, secret)


def test_a_first_key_closes_an_open_service():
    """Without a restart, within `KEPT_S`."""
    clock, store = Clock(), key_store()
    ring = Authenticator(store, LIMITS, clock)
    assert ask(ring).owner == ""
    store.add(new_key("first", Role.ADMIN, 1.0)[0])
    clock.now_s += KEPT_S
    with pytest.raises(NotAuthenticated):
        ask(ring)


def test_a_store_that_does_not_answer_lets_nobody_in_and_is_not_asked_by_all():
    """StoreUnavailable for everyone for a second, then it is asked again, and answers."""
    clock = Clock()
    key, secret = new_key("mine", Role.USER, 1.0)
    store = Counting()
    store.add(key)
    store.is_broken = True
    ring = Authenticator(store, LIMITS, clock)
    for _ in range(10):
        with pytest.raises(StoreUnavailable, match="away"):
            ask(ring, secret)
    assert store.reads == 1
    store.is_broken = False
    clock.now_s += 1
    assert ask(ring, secret).owner == key.id


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("", ""),
        ("somewhere", "somewhere"),
    ],
)
def test_without_keys_limits_are_by_address(address: str, client: str):
    """Of IPv6 a network's, out of which one client can take any address."""
    assert ask(Authenticator(None, LIMITS), None, address).client == client


def test_with_keys_limits_are_by_key():
    """From wherever it is used."""
    key, secret = new_key("mine", Role.USER, 1.0)
    ring = Authenticator(key_store(key), LIMITS)
    assert ask(ring, secret, "10.0.0.1").client == ask(ring, secret, "10.0.0.2").client == key.id
