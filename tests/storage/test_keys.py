"""KeyStore: one contract for all stores; and the format of secrets."""

import pytest

from sd35.access.keys import KeyStore, Quota, Role, id_of, matches, new_key
from sd35.storage.database import Database


@pytest.fixture
def store(stores: Database) -> KeyStore:
    """The key store of each kind of database."""
    return stores.keys


def test_a_key_is_returned_as_it_was_stored(store: KeyStore):
    """A limit of None differs from 0. The oldest key comes first."""
    new, _ = new_key("the shop ✂", Role.USER, 2.5, Quota(0, None, 2**40))
    old, _ = new_key("ops", Role.ADMIN, 1.5)
    for key in (new, old):
        store.add(key)
    assert store.keys() == [old, new]


def test_a_key_is_revoked_once(store: KeyStore):
    """It stays in the list, with the time of its first revocation. Other keys do not change."""
    key, other = (new_key(name, Role.USER, 1.0)[0] for name in ("key", "other"))
    for one in (key, other):
        store.add(one)
    for now_s in (5.0, 6.0):
        revoked = store.revoke(key.id, now_s)
        assert revoked is not None
        assert revoked.revoked_s == 5.0
    stored = store.keys()
    assert {each.id: each for each in stored} == {key.id: revoked, other.id: other}
    assert store.revoke("0" * 16, 5.0) is None


def test_a_secret_belongs_to_one_key_and_is_not_stored():
    """The secret contains the ID of its key."""
    (key, secret), (other, _) = (new_key("same", Role.USER, 1.0) for _ in range(2))
    assert id_of(secret) == key.id
    assert matches(key, secret)
    assert not matches(other, secret)
    assert not matches(key, secret[:-1])
    assert secret.partition(f"{key.id}_")[2] not in repr(key)  # the random part may contain a "_"


@pytest.mark.parametrize("text", ["", "sd35_", "sd35_0123456789abcdef", "hf_0123456789abcdef_" + "a" * 43, "ü" * 64])
def test_a_malformed_secret_has_no_id(text: str):
    assert id_of(text) is None
