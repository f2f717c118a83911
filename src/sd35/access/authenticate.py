"""Who asks: from the secret that came to a caller, by all keys, which are read every few seconds at most."""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from sd35.access.keys import Key, KeyStore, Quota, Role, id_of, matches
from sd35.access.rate_limits import Charge, RateLimiter
from sd35.errors import NotAuthenticated, StoreUnavailable
from sd35.request import Request
from sd35.threads import STORES

KEPT_S = 5.0  # so long, at most, a key that was added or revoked is not noticed
_RETRY_S = 1.0  # so often a store that does not answer is asked
_NOBODY = Key("", "", "", Role.USER, 0.0)  # what a secret of no key is compared with: it takes as long
_MISSING = "an API key is needed, as a header: 'Authorization: Bearer sd35_...' or 'X-Api-Key: sd35_...'"
_WRONG = "the API key that came is not valid"


@dataclass(frozen=True)
class Caller:
    """Who asks. `owner` is the key's id, "" where there are no keys; `address` the client's, "" where it has none."""

    owner: str
    role: Role
    quota: Quota
    address: str
    limits: RateLimiter

    @property
    def visible_to(self) -> str | None:
        """Whose jobs and images it may see: its own, or, of an administrator, None: all."""
        return None if self.role is Role.ADMIN else self.owner

    @cached_property
    def client(self) -> str:
        """Whose limits count, and whose turn it is: the key's, or the address's where there are no keys."""
        return self.owner or _network_of(self.address)

    def making(self, requests: Sequence[Request]) -> AbstractContextManager[Charge]:
        """Counts images that are made while the caller waits. Raises TooMany, NotAllowed; see `RateLimiter.making`."""
        pixels = sum(request.width * request.height for request in requests)
        return self.limits.making(self.client, self.quota, pixels, len(requests))

    def ordering(self, request: Request) -> Charge:
        """Counts an image that is made when its time comes. Raises TooMany, NotAllowed; see `RateLimiter.charge`."""
        return self.limits.charge(self.client, self.quota, request.width * request.height)

    def asking(self) -> Charge:
        """Count a request that makes no image but costs time. Raises TooMany; see `RateLimiter.charge`."""
        return self.limits.charge(self.client, self.quota, 0)

    def limit_headers(self) -> Mapping[str, str]:
        """What is left to it, as response headers."""
        return self.limits.headers(self.client, self.quota)


class Authenticator:
    """Tells callers by their keys. Without a store, or with one that never had a key, whoever asks may do anything.

    All keys are read at once: then what comes with a made-up key never reaches the database, and how long an answer
    takes does not tell which ids there are.
    """

    def __init__(
        self, store: KeyStore | None, limits: RateLimiter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._limits, self._clock = store, limits, clock
        self._reading = asyncio.Lock()
        self._found: Mapping[str, Key] | StoreUnavailable = {}
        self._until_s = float("-inf")  # when `_found` is too old

    async def caller(self, secret: str | None, address: str) -> Caller:
        """Who asks from an address, with a secret or none. Raises NotAuthenticated, StoreUnavailable."""
        keys = await self._keys()
        if not keys:
            return Caller("", Role.ADMIN, Quota(), address, self._limits)
        if not secret:
            raise NotAuthenticated(_MISSING)
        key = keys.get(id_of(secret) or "", _NOBODY)
        if not matches(key, secret) or key.revoked_s is not None:
            raise NotAuthenticated(_WRONG)
        return Caller(key.id, key.role, key.quota, address, self._limits)

    async def has_keys(self) -> bool:
        """Whether there are keys, so that callers need one. Raises StoreUnavailable."""
        return bool(await self._keys())

    async def _keys(self) -> Mapping[str, Key]:
        if self._store is None:
            return {}
        if self._clock() >= self._until_s:
            async with self._reading:
                if self._clock() >= self._until_s:  # else another request has read them meanwhile
                    await self._read(self._store)
        if isinstance(self._found, StoreUnavailable):
            raise StoreUnavailable(str(self._found)) from self._found
        return self._found

    async def _read(self, store: KeyStore) -> None:
        asked_s = self._clock()
        try:
            self._found = {key.id: key for key in await STORES.run(store.keys)}
            self._until_s = asked_s + KEPT_S
        except StoreUnavailable as error:
            self._found = error
            self._until_s = self._clock() + _RETRY_S


def _network_of(address: str) -> str:
    """Return the address that limits count by: IPv4 whole, of IPv6 the /64 network, which one client may use freely."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:  # as a proxy on a dual-stack socket names it
        return str(parsed.ipv4_mapped)
    return address if parsed.version == 4 else str(ipaddress.ip_network(f"{parsed}/64", strict=False))
