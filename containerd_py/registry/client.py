"""HTTP to registries: one request with everything around it (scheme, proxy, login, redirects, patience).

Rule: a request either gives an answer of the wanted kind or raises an ``oci.errors`` error; what may pass by itself
(a cut, a limit, a server's bad moment) has been tried again before that. Authorization never follows a redirect to
another host. aiohttp is imported with the first request: a daemon that never pulls does not pay for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urljoin, urlsplit

from containerd_py.registry import auth, errors
from containerd_py.registry.hosts import Endpoint, RegistryConfig
from containerd_py.registry.proxies import proxy_for
from oci.errors import FailedPrecondition, GantryError, ResourceExhausted, Unauthenticated, Unavailable
from oci.trust import Trust
from oci.version import __version__

if TYPE_CHECKING:
    import aiohttp

USER_AGENT = f"gantry/{__version__}"
MAX_ERROR_BODY = 64 << 10
MAX_REDIRECTS = 10
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Retrying = Callable[[float], None]
"""Told the seconds until the next try."""


class Patience(NamedTuple):
    """How long and how often: seconds to connect, seconds without a byte, tries, and the waits between them."""

    connect: float = 30.0
    silence: float = 60.0
    tries: int = 5
    first_wait: float = 0.5
    longest_wait: float = 30.0

    def wait(self, attempt: int) -> float:
        """Seconds before try ``attempt`` + 1, with jitter so that many clients do not come back together."""
        return float(min(self.first_wait * 2**attempt, self.longest_wait) * random.uniform(0.75, 1.25))  # noqa: S311 - no secret


class Request(NamedTuple):
    """One request. ``url`` is absolute, or a path below the endpoint's base. ``body`` makes the body anew per try."""

    method: str
    url: str
    what: str
    scopes: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}
    query: tuple[tuple[str, str], ...] = ()
    body: Callable[[], Any] | None = None
    wanted: frozenset[int] = frozenset({200})
    tries: int = 0
    on_retry: Retrying | None = None


class Passing(Exception):
    """A failure worth another try: the error to give up with, and the seconds the server asked to wait."""

    def __init__(self, error: GantryError, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


class Http:
    """Connections of a daemon to all registries: one pool per TLS setting, and the scheme each host answered on."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.schemes: dict[str, str] = {}
        self._pools: dict[tuple[Trust, tuple[int, ...]], aiohttp.ClientSession] = {}

    def pool(self, trust: Trust) -> aiohttp.ClientSession:
        """The session for ``trust``, whose files may have been replaced since the last one."""
        import aiohttp

        key = (trust, trust.stamp())
        if key not in self._pools:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=self.patience.connect, sock_read=self.patience.silence
            )
            connector = aiohttp.TCPConnector(ssl=trust.context(), limit=0)
            self._pools[key] = aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                auto_decompress=False,
                headers={"User-Agent": USER_AGENT},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._pools[key]

    async def close(self) -> None:
        """Close every connection."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.close()


class Visitor:
    """A client of one registry host under one name: its credentials, tokens and headers."""

    def __init__(
        self,
        http: Http,
        config: RegistryConfig,
        credentials: auth.CredentialsSource | None = None,
        headers: Mapping[str, str] = {},
        on_retry: Retrying | None = None,
    ) -> None:
        self._http = http
        self._config = config
        self._source = credentials
        self._headers = dict(headers)
        self.on_retry = on_retry
        self._known: dict[str, auth.Credentials | None] = {}
        self._tokens: dict[tuple[str, tuple[str, ...]], auth.Token] = {}
        self._basic: dict[str, str] = {}
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def answer(self, endpoint: Endpoint, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to ``request``, its body not read yet."""
        response = await self._patiently(endpoint, request)
        try:
            yield response
        finally:
            # A body that was not read to its end cannot be skipped cheaply: drop the connection.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _patiently(self, endpoint: Endpoint, request: Request) -> aiohttp.ClientResponse:
        patience = self._http.patience
        tries = request.tries or patience.tries
        for attempt in range(tries):
            try:
                return await self._once(endpoint, request)
            except Passing as passing:
                if attempt + 1 >= tries or passing.after > patience.longest_wait * 4:
                    raise passing.error from passing
                seconds = max(passing.after, patience.wait(attempt))
                if told := request.on_retry or self.on_retry:
                    told(seconds)
                await asyncio.sleep(seconds)
        raise AssertionError("unreachable")

    async def _once(self, endpoint: Endpoint, request: Request) -> aiohttp.ClientResponse:
        """One try, which may be several requests: a login between two, redirects, the other scheme."""
        used = self._proof(endpoint, request.scopes)
        response = await self._sent(endpoint, request)
        if response.status == 401:
            said = response.headers.getall("WWW-Authenticate", [])
            error = await _error(response, request.what)
            if not await self._log_in(endpoint, said, request.scopes, used):
                raise error
            response = await self._sent(endpoint, request)
        if response.status in request.wanted:
            return response
        after = retry_after(response.headers.get("Retry-After", ""))
        error = await _error(response, request.what)
        if response.status in _PASSING:
            raise Passing(error, after)
        raise error

    async def _sent(self, endpoint: Endpoint, request: Request) -> aiohttp.ClientResponse:
        url = request.url
        if "://" not in url:
            return await self._first_scheme(endpoint, request)
        return await self._follow(endpoint, request, url)

    async def _first_scheme(self, endpoint: Endpoint, request: Request) -> aiohttp.ClientResponse:
        known = self._http.schemes.get(endpoint.host, "")
        schemes = (known,) if known in endpoint.schemes else endpoint.schemes
        failure: Passing | None = None
        for scheme in schemes:
            try:
                response = await self._follow(
                    endpoint, request, f"{scheme}://{endpoint.host}{endpoint.path}{request.url}"
                )
            except Passing as passing:
                failure = passing
                continue
            if len(endpoint.schemes) > 1:
                self._http.schemes[endpoint.host] = scheme
            return response
        assert failure is not None
        raise failure

    async def _follow(self, endpoint: Endpoint, request: Request, url: str) -> aiohttp.ClientResponse:
        query = request.query
        if endpoint.namespace:
            query = (*query, ("ns", endpoint.namespace))
        for _ in range(MAX_REDIRECTS):
            response = await self._exchange(endpoint, request, url, query)
            target = response.headers.get("Location", "")
            if response.status not in _REDIRECTS or response.status in request.wanted or not target:
                return response
            response.close()
            following = urljoin(url, target)
            if (
                urlsplit(url).scheme == "https"
                and urlsplit(following).scheme != "https"
                and "http" not in endpoint.schemes
            ):
                raise FailedPrecondition(
                    f"{request.what}: the registry redirects from https to {urlsplit(following).scheme}"
                )
            url, query = following, ()
        raise FailedPrecondition(f"{request.what}: more than {MAX_REDIRECTS} redirects")

    async def _exchange(
        self, endpoint: Endpoint, request: Request, url: str, query: Sequence[tuple[str, str]]
    ) -> aiohttp.ClientResponse:
        import aiohttp
        import yarl

        home = urlsplit(url).netloc == endpoint.host
        headers = {**request.headers}
        trust = endpoint.trust._replace(clients=())
        if home:
            trust = endpoint.trust
            headers = {**dict(endpoint.headers), **self._headers, **headers}
            if proof := self._proof(endpoint, request.scopes):
                headers["Authorization"] = proof
        target = yarl.URL(url, encoded=True)
        try:
            return await self._http.pool(trust).request(
                request.method,
                target.update_query(query) if query else target,
                headers=headers,
                data=request.body() if request.body is not None else None,
                allow_redirects=False,
                proxy=proxy_for(url),
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            told = errors.from_connection(error, url)
            if isinstance(error, aiohttp.ClientConnectorCertificateError) or "certificate" in told.message:
                raise told from error
            raise Passing(told) from error

    # Login

    def _proof(self, endpoint: Endpoint, scopes: tuple[str, ...]) -> str:
        """The ``Authorization`` header for ``scopes``; "" while nothing is known."""
        token = self._tokens.get((endpoint.host, scopes))
        if token is not None and token.good():
            return f"Bearer {token.value}"
        return self._basic.get(endpoint.host, "")

    async def _log_in(self, endpoint: Endpoint, said: list[str], scopes: tuple[str, ...], before: str) -> bool:
        """Answer the challenges ``said`` to ``before``; whether there is something new to try with."""
        async with self._lock:
            if self._proof(endpoint, scopes) not in ("", before):
                return True  # another request logged in while this one was on its way
            who = await self._credentials(endpoint.host, said)
            if who is not None and who.header:
                self._basic[endpoint.host] = who.header
                return before != who.header
            for challenge in auth.challenges(said):
                if challenge.scheme == "bearer":
                    wanted = auth.merged_scopes(scopes, challenge.parameters.get("scope", ""))
                    token = await self._token(endpoint, challenge, wanted, who)
                    self._tokens[endpoint.host, scopes] = token
                    return before != f"Bearer {token.value}"
                if challenge.scheme == "basic" and who is not None and who.username:
                    self._basic[endpoint.host] = who.basic
                    return before != who.basic
        return False

    async def _credentials(self, host: str, said: list[str]) -> auth.Credentials | None:
        if host not in self._known:
            self._known[host] = await self._source(host, said) if self._source is not None else None
        return self._known[host]

    async def _token(
        self, endpoint: Endpoint, challenge: auth.Challenge, scopes: Sequence[str], who: auth.Credentials | None
    ) -> auth.Token:
        import aiohttp

        realm = challenge.parameters.get("realm", "")
        if urlsplit(realm).scheme not in ("http", "https"):
            raise Unauthenticated(f"registry {endpoint.host} names no token service it can be logged into at")
        secret = who is not None and bool(who.username or who.identity_token)
        if secret and urlsplit(realm).scheme == "http" and not self._config.is_insecure(urlsplit(realm).netloc):
            raise Unauthenticated(f"registry {endpoint.host} wants the password sent in clear to {realm}")
        pool, proxy = self._http.pool(endpoint.trust._replace(clients=())), proxy_for(realm)
        try:
            if who is not None and who.identity_token:
                form = auth.refresh_form(challenge, scopes, who.identity_token)
                sent = pool.post(realm, data=form, proxy=proxy, allow_redirects=False)
            else:
                headers = {"Authorization": who.basic} if who is not None and who.username else {}
                query = auth.token_query(challenge, scopes, who.username if who is not None else "")
                sent = pool.get(realm, params=query, headers=headers, proxy=proxy, allow_redirects=False)
            async with sent as response:
                return await _read_token(response, endpoint.host)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Passing(errors.from_connection(error, realm)) from error


async def _read_token(response: aiohttp.ClientResponse, host: str) -> auth.Token:
    import json

    if response.status != 200:
        error = await _error(response, f"log in to {host}")
        if response.status in _PASSING:
            raise Passing(error, retry_after(response.headers.get("Retry-After", "")))
        raise Unauthenticated(error.message, hint=error.hint)
    try:
        answer = json.loads(await response.content.read(1 << 20))
        token = auth.token_of(answer) if isinstance(answer, dict) else None
    except ValueError:
        token = None
    if token is None:
        raise Unauthenticated(f"log in to {host}: the token service's answer has no token")
    return token


async def _error(response: aiohttp.ClientResponse, what: str) -> GantryError:
    """The error an answer means; the answer is used up."""
    import aiohttp

    body = b""
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        body = await response.content.read(MAX_ERROR_BODY)
    response.close()
    error = errors.from_answer(response.status, body, what)
    # A rate limit that was tried again is still a rate limit; anything else a server said twice is a bad moment.
    return error if response.status < 500 or isinstance(error, ResourceExhausted) else Unavailable(error.message)


def retry_after(value: str) -> float:
    """Seconds of a ``Retry-After`` header (a number or a date); 0 when there is none."""
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
