"""Authentication of callers by API key. The keys are read from the store at most every few seconds."""

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

KEY_CACHE_S = 5.0  # after this time, a new key works, and a revoked key no longer works
_RETRY_S = 1.0  # pause before an unavailable store is read again
# Compared with a secret if its key is unknown, so that the response takes the same time as for a known key.
_NO_KEY = Key("", "", "", Role.USER, 0.0)
_MISSING = "an API key is required: send the header 'Authorization: Bearer sd35_...' or 'X-Api-Key: sd35_...'"
_INVALID = "the API key is not valid: it is incomplete, unknown or revoked; ask the operator for another"


@dataclass(frozen=True)
class Caller:
    """The authenticated sender of a request.

    Attributes:
        owner: ID of the API key, or "" if the service has no keys.
        role: Role of the key.
        quota: Limits of the key.
        address: IP address of the client, or "" if unknown.
        rate_limiter: Counts the caller's requests, pixels and images.
    """

    owner: str
    role: Role
    quota: Quota
    address: str
    rate_limiter: RateLimiter

    @property
    def visible_to(self) -> str | None:
        """The owner whose jobs and images the caller may see. None means all of them, for an administrator."""
        return None if self.role is Role.ADMIN else self.owner

    @cached_property
    def client(self) -> str:
        """The unit of rate limits and of fair queueing: the key, or the network address if there are no keys."""
        return self.owner or _network_of(self.address)

    def generating(self, requests: Sequence[Request]) -> AbstractContextManager[Charge]:
        """Count the images of a synchronous call. Until the `with` block ends, they also count as concurrent.

        Raises TooMany if a limit is reached for now, NotAllowed if the call alone exceeds a limit.
        """
        pixels = sum(request.width * request.height for request in requests)
        return self.rate_limiter.generating(self.client, self.quota, pixels, len(requests))

    def charge_job(self, request: Request) -> Charge:
        """Count the image of a job.

        Raises TooMany if a limit is reached for now, NotAllowed if the image alone exceeds a limit.
        """
        return self.rate_limiter.charge(self.client, self.quota, request.width * request.height)

    def charge_request(self) -> Charge:
        """Count a request that generates no image but takes time. Raises TooMany if a limit is reached for now."""
        return self.rate_limiter.charge(self.client, self.quota, 0)

    def limit_headers(self) -> Mapping[str, str]:
        """Return the response headers about rate limits."""
        return self.rate_limiter.headers(self.client, self.quota)


class Authenticator:
    """Authenticates callers by their API keys. If there are no keys, every caller is an administrator.

    All keys are read from the store together and cached. Requests with made-up keys therefore never reach the database,
    and the response time does not reveal which key IDs exist.

    Args:
        store: The key store; None for a service without keys.
        rate_limiter: Counts the callers' requests, pixels and images.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self, store: KeyStore | None, rate_limiter: RateLimiter, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._rate_limiter, self._clock = store, rate_limiter, clock
        self._reading = asyncio.Lock()
        self._cached: Mapping[str, Key] | StoreUnavailable = {}
        self._expires_s = float("-inf")  # time at which `_cached` expires

    async def authenticate(self, secret: str | None, address: str) -> Caller:
        """Return the caller with this secret and IP address.

        Raises NotAuthenticated if the secret is missing or not valid, StoreUnavailable if the keys cannot be read.
        """
        keys = await self._keys()
        if not keys:
            return Caller("", Role.ADMIN, Quota(), address, self._rate_limiter)
        if not secret:
            raise NotAuthenticated(_MISSING)
        key = keys.get(id_of(secret) or "", _NO_KEY)
        if not matches(key, secret) or key.revoked_s is not None:
            raise NotAuthenticated(_INVALID)
        return Caller(key.id, key.role, key.quota, address, self._rate_limiter)

    async def has_keys(self) -> bool:
        """Return whether the service has keys, so that callers need one.

        Raises StoreUnavailable if the keys cannot be read.
        """
        return bool(await self._keys())

    async def _keys(self) -> Mapping[str, Key]:
        """Return all keys by ID, at most `KEY_CACHE_S` old. Raises StoreUnavailable if they cannot be read."""
        if self._store is None:
            return {}
        if self._clock() >= self._expires_s:
            async with self._reading:
                if self._clock() >= self._expires_s:  # otherwise, another request has read them meanwhile
                    await self._update_cache(self._store)
        if isinstance(self._cached, StoreUnavailable):
            # A new error, because each `raise` of the same error would make its traceback longer.
            raise StoreUnavailable(str(self._cached)) from self._cached
        return self._cached

    async def _update_cache(self, store: KeyStore) -> None:
        """Cache the keys for `KEY_CACHE_S`. If the store is unavailable, cache the error for `_RETRY_S`."""
        began_s = self._clock()
        try:
            self._cached = {key.id: key for key in await STORES.run(store.keys)}
            self._expires_s = began_s + KEY_CACHE_S
        except StoreUnavailable as error:
            self._cached = error
            self._expires_s = self._clock() + _RETRY_S


def _network_of(address: str) -> str:
    """Return the network that counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # the address is unknown
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:  # an IPv4 client of a dual-stack socket
        return str(parsed.ipv4_mapped)
    return address if parsed.version == 4 else str(ipaddress.ip_network(f"{parsed}/64", strict=False))
