"""Authentication by API keys, and how soon new and revoked keys take effect."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sd35.access.authenticate import KEY_CACHE_S, Authenticator, Caller
from sd35.access.keys import Key, Quota, Role, id_of, matches, new_key
from sd35.access.rate_limits import RateLimiter
from sd35.errors import NotAuthenticated, StoreUnavailable
from sd35.storage.memory.keys import MemoryKeyStore
from tests.support.fake_backend import Clock, key_store

LIMITS = RateLimiter(Quota())


class CountingStore(MemoryKeyStore):
    """A key store that counts how often it is read, and fails while `is_broken`."""

    reads = 0
    is_broken = False

    def keys(self) -> Sequence[Key]:
        """Return all keys."""
        self.reads += 1
        if self.is_broken:
            raise StoreUnavailable("the database does not answer")
        return super().keys()


def authenticate(authenticator: Authenticator, secret: str | None = None, address: str = "10.0.0.1") -> Caller:
    """Return the caller with a secret and an address."""
    return asyncio.run(authenticator.authenticate(secret, address))


def test_a_secret_contains_the_id_of_its_key_and_only_its_hash_is_stored():
    key, secret = new_key("mine", Role.USER, 1.0)
    assert secret.startswith(f"sd35_{key.id}_")
    assert id_of(secret) == key.id
    assert matches(key, secret)
    assert secret.rsplit("_", 1)[1] not in repr(key)


def test_a_malformed_secret_is_not_authenticated():
    """Neither a shortened, an extended nor a changed secret."""
    key, secret = new_key("mine", Role.USER, 1.0)
    for changed in (secret[:-1], secret + "x", secret.upper(), secret[:-1] + "é", ""):
        assert id_of(changed) is None
        assert not matches(key, changed)


def test_without_keys_every_caller_is_an_administrator():
    """Whatever secret they send, with or without a store."""
    for authenticator in (Authenticator(None, LIMITS), Authenticator(key_store(), LIMITS)):
        for secret in (None, "sk-whatever"):
            caller = authenticate(authenticator, secret)
            assert (caller.owner, caller.role, caller.visible_to) == ("", Role.ADMIN, None)


def test_a_caller_has_the_id_role_and_quota_of_its_key():
    """A user sees their own jobs and images. An administrator sees all."""
    user, user_secret = new_key("user", Role.USER, 1.0, Quota(concurrency=3))
    admin, admin_secret = new_key("admin", Role.ADMIN, 1.0)
    authenticator = Authenticator(key_store(user, admin), LIMITS)
    caller = authenticate(authenticator, user_secret)
    assert (caller.owner, caller.role, caller.quota) == (user.id, Role.USER, Quota(concurrency=3))
    assert (caller.visible_to, authenticate(authenticator, admin_secret).visible_to) == (user.id, None)


def test_unknown_wrong_and_revoked_keys_give_the_same_error():
    """Nobody learns which key IDs exist."""
    key, secret = new_key("mine", Role.USER, 1.0)
    revoked, revoked_secret = new_key("revoked", Role.USER, 1.0)
    authenticator = Authenticator(key_store(key, replace(revoked, revoked_s=2.0)), LIMITS)
    _, unknown = new_key("unknown", Role.USER, 1.0)
    wrong = secret[:-4] + ("AAAA" if secret[-4:] != "AAAA" else "BBBB")
    messages = set()
    for bad in (unknown, wrong, revoked_secret, "nonsense", "sd35_"):
        with pytest.raises(NotAuthenticated) as refused:
            authenticate(authenticator, bad)
        messages.add(str(refused.value))
    assert messages == {"the API key is not valid: it is incomplete, unknown or revoked; ask the operator for another"}


def test_revoking_the_last_key_does_not_open_the_service():
    key, _ = new_key("mine", Role.USER, 1.0)
    with pytest.raises(NotAuthenticated, match="an API key is required"):
        authenticate(Authenticator(key_store(replace(key, revoked_s=2.0)), LIMITS))


def test_keys_are_cached_for_a_few_seconds():
    """Many requests read the store once. A revoked key is refused after `KEY_CACHE_S`."""
    clock = Clock()
    key, secret = new_key("mine", Role.USER, 1.0)
    store = CountingStore()
    store.add(key)
    authenticator = Authenticator(store, LIMITS, clock)

    async def many() -> None:
        await asyncio.gather(*(authenticator.authenticate(secret, "10.0.0.1") for _ in range(50)))

    asyncio.run(many())
    for _ in range(50):
        with pytest.raises(NotAuthenticated):
            authenticate(authenticator, new_key("made up", Role.USER, 1.0)[1])
    assert store.reads == 1
    store.revoke(key.id, 2.0)
    clock.now_s += KEY_CACHE_S
    with pytest.raises(NotAuthenticated):
        authenticate(authenticator, secret)


def test_a_first_key_closes_an_open_service():
    """After `KEY_CACHE_S`, without a restart."""
    clock, store = Clock(), key_store()
    authenticator = Authenticator(store, LIMITS, clock)
    assert authenticate(authenticator).owner == ""
    store.add(new_key("first", Role.ADMIN, 1.0)[0])
    clock.now_s += KEY_CACHE_S
    with pytest.raises(NotAuthenticated):
        authenticate(authenticator)


def test_an_unavailable_store_lets_nobody_in_and_is_read_once_a_second():
    clock = Clock()
    key, secret = new_key("mine", Role.USER, 1.0)
    store = CountingStore()
    store.add(key)
    store.is_broken = True
    authenticator = Authenticator(store, LIMITS, clock)
    for _ in range(10):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            authenticate(authenticator, secret)
    assert store.reads == 1
    store.is_broken = False
    clock.now_s += 1
    assert authenticate(authenticator, secret).owner == key.id


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
def test_without_keys_limits_count_by_address(address: str, client: str):
    """For IPv6 by network, because one client can use any address of its network."""
    assert authenticate(Authenticator(None, LIMITS), None, address).client == client


def test_with_keys_limits_count_by_key():
    """Whatever the address."""
    key, secret = new_key("mine", Role.USER, 1.0)
    authenticator = Authenticator(key_store(key), LIMITS)
    callers = [authenticate(authenticator, secret, address) for address in ("10.0.0.1", "10.0.0.2")]
    assert [caller.client for caller in callers] == [key.id] * 2
