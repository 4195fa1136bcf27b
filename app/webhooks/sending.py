"""Sending one message: to the address that was looked at, in bounded time, and nowhere else.

No redirects are followed, no proxy of the environment is used, and of the answer nothing is read but its status: what a
receiver says is no way to learn about the network that the service runs in.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import httpx

from app.contracts.webhooks import WebhookPolicy
from app.webhooks.guard import ForbiddenUrlError, LookUp, addresses_of, check_url, host_of, look_up

MAX_ADDRESSES = 4
"""Of one host that are tried."""


class UnsentError(RuntimeError):
    """No answer came; the text says why and may be shown to the tenant."""


@dataclass(frozen=True)
class Sender:
    """Sends messages where the policy lets them go."""

    policy: WebhookPolicy
    find: LookUp = look_up
    seconds: float = 10.0
    """For everything: lookup, connection, request, answer."""

    def check(self, url: str) -> None:
        """Raises ForbiddenUrlError for a URL that messages cannot be sent to."""
        addresses_of(check_url(url, self.policy), self.policy, self.find, self.seconds)

    def send(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Posts a message.

        Returns:
            The status of the answer, whatever it is.

        Raises:
            UnsentError: There is none.
        """
        deadline = time.monotonic() + self.seconds
        try:
            target = check_url(url, self.policy)
            addresses = addresses_of(target, self.policy, self.find, self.seconds)
        except ForbiddenUrlError as error:
            raise UnsentError(str(error)) from error
        try:
            return asyncio.run(self._post(target, addresses[:MAX_ADDRESSES], body, headers, deadline))
        except TimeoutError as error:
            raise UnsentError(f"The receiver did not answer within {self.seconds:g} seconds.") from error
        except httpx.ConnectError as error:
            raise UnsentError(f"No connection to the receiver: {error}") from error
        except httpx.HTTPError as error:
            raise UnsentError(f"The receiver broke off without an answer ({type(error).__name__}).") from error

    async def _post(
        self, target: httpx.URL, addresses: Sequence[str], body: bytes, headers: Mapping[str, str], deadline: float
    ) -> int:
        async with (
            # Around all of it: a client's own timeouts begin anew with every byte that trickles in.
            asyncio.timeout(max(0.0, deadline - time.monotonic())),
            httpx.AsyncClient(
                verify=self._certificates,
                trust_env=False,
                timeout=httpx.Timeout(self.seconds, connect=self.seconds / len(addresses)),
            ) as client,
        ):
            for address in addresses[:-1]:
                try:
                    return await _post_to(client, target, address, body, headers)
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    # Nothing was sent yet.
                    continue
            return await _post_to(client, target, addresses[-1], body, headers)

    @cached_property
    def _certificates(self) -> ssl.SSLContext:
        trusted = httpx.create_ssl_context(trust_env=False)
        # Beside the public ones those that this machine trusts (or SSL_CERT_FILE names).
        trusted.load_default_certs()
        return trusted


async def _post_to(
    client: httpx.AsyncClient, target: httpx.URL, address: str, body: bytes, headers: Mapping[str, str]
) -> int:
    request = client.build_request(
        "POST",
        target.copy_with(host=address),
        content=body,
        headers={**headers, "host": target.netloc.decode("ascii")},
        # Names the host to its TLS server, and is what its certificate must be for.
        extensions={"sni_hostname": host_of(target)},
    )
    response = await client.send(request, stream=True)
    await response.aclose()
    return response.status_code
