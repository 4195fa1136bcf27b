"""Which URLs messages may be sent to: tenants choose them, and the service must not be their way into its network.

A URL is looked at when it is given and again at every delivery, since names can change what they lead to. A message
goes to the very address that was looked at (see sending.py), so there is no moment in between.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue

import httpx

from app.contracts.webhooks import WebhookPolicy

MAX_URL_CHARACTERS = 2048
FIRST_FREE_PORT = 1024
LAST_PORT = 65535
HTTPS_PORT = 443

LookUp = Callable[[str], Sequence[str]]
"""All addresses of a host; raises OSError where there are none."""

_NOT_PUBLIC_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT, and a cloud's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's own services, under a public number
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, and a cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays to IPv6
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks of networks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: leads to an IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


class ForbiddenUrlError(ValueError):
    """No message is sent there; the text says why and may be shown to the tenant."""


def check_url(url: str, policy: WebhookPolicy) -> httpx.URL:
    """The URL, if it is one that messages may be sent to as far as can be seen without looking up its host.

    Raises:
        ForbiddenUrlError: It is not.
    """
    if len(url) > MAX_URL_CHARACTERS:
        raise ForbiddenUrlError(f"The URL has more than {MAX_URL_CHARACTERS} characters.")
    if any(character.isspace() or character == "\\" for character in url):
        # Parsers differ about them.
        raise ForbiddenUrlError("This is not a URL: spaces and backslashes must be percent-encoded.")
    try:
        # The same parser as the client's: what is looked at is what is called.
        parsed = httpx.URL(url)
        host = host_of(parsed)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ForbiddenUrlError(f"This is not a URL: {error}") from error
    if parsed.scheme not in {"https", "http"} or not host:
        raise ForbiddenUrlError("Give a URL that begins with https:// and names a host.")
    if parsed.userinfo or parsed.fragment:
        raise ForbiddenUrlError(
            "Leave user, password and fragment out of the URL: messages are signed instead (see signing_secret)."
        )
    if parsed.port is not None and not 0 < parsed.port <= LAST_PORT:
        raise ForbiddenUrlError(f"There is no port {parsed.port}.")
    if host in policy.allowed_hosts:
        return parsed
    if parsed.scheme != "https":
        raise ForbiddenUrlError("Use https: what goes over http can be read and changed on its way.")
    if parsed.port is not None and parsed.port != HTTPS_PORT and parsed.port < FIRST_FREE_PORT:
        raise ForbiddenUrlError(f"Use port {HTTPS_PORT}, or one from {FIRST_FREE_PORT} on.")
    return parsed


def host_of(url: httpx.URL) -> str:
    """The host as certificates name it."""
    return url.raw_host.decode("ascii").lower().rstrip(".")


def look_up(host: str) -> list[str]:
    """All addresses of a host, by this machine's resolver."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def addresses_of(url: httpx.URL, policy: WebhookPolicy, find: LookUp, seconds: float) -> list[str]:
    """The addresses of a checked URL's host, any of which may be connected to.

    Raises:
        ForbiddenUrlError: It has none, the lookup takes longer than `seconds`, or one of them is not public.
    """
    host = host_of(url)
    found = list(dict.fromkeys(_within(seconds, find, host)))
    is_public = bool(found) and all(_is_public(address) for address in found)
    if host in policy.allowed_hosts and found:
        return found
    if not is_public:
        # One message for both: whoever asks must not learn what the provider's own names lead to.
        raise ForbiddenUrlError(f"The host {host} does not lead to public addresses alone: messages are sent to those.")
    return found


def _is_public(text: str) -> bool:
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        inner = _inner(address)
        if inner is None:
            return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
        address = inner
    return not any(address in network for network in _NOT_PUBLIC_V4)


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to this one reach in the end."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped


def _within(seconds: float, find: LookUp, host: str) -> Sequence[str]:
    """A lookup that gives up: the system's own can take minutes, and nothing can interrupt it."""
    answers: SimpleQueue[Sequence[str]] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(find(host))
        except (OSError, UnicodeError):
            answers.put(())

    # A daemon: it must not keep a process from ending.
    threading.Thread(target=ask, name=f"lookup-{host}", daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except Empty:
        return ()
