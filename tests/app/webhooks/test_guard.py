"""What tenants' webhooks must not lead to."""

import threading
import time

import pytest
from pydantic import ValidationError

from app.contracts.webhooks import WebhookPolicy
from app.webhooks.guard import ForbiddenUrlError, addresses_of, check_url, look_up

NOBODY = WebhookPolicy()


def addresses(url: str, *found: str, policy: WebhookPolicy = NOBODY) -> list[str]:
    return addresses_of(check_url(url, policy), policy, lambda _: found, 5.0)


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "https://hooks.example.com",
            "https://hooks.example.com/path?query=1",
            "https://hooks.example.com:443/",
            "https://hooks.example.com:8443/",
            "https://bücher.example/",
            "https://1.1.1.1/",
            "https://[2606:4700:4700::1111]/",
        ],
    )
    def test_that_are_fine(self, url: str) -> None:
        check_url(url, NOBODY)

    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("http://hooks.example.com/", "Use https"),
            ("ftp://hooks.example.com/", "begins with https"),
            ("file:///etc/passwd", "begins with https"),
            ("//hooks.example.com/", "begins with https"),
            ("hooks.example.com", "begins with https"),
            ("https://", "begins with https"),
            ("https:///path", "begins with https"),
            ("https://user:password@hooks.example.com/", "user, password"),
            ("https://user@hooks.example.com/", "user, password"),
            ("https://hooks.example.com@127.0.0.1/", "user, password"),
            ("https://hooks.example.com/#fragment", "fragment"),
            ("https://hooks.example.com:22/", "port"),
            ("https://hooks.example.com:80/", "port"),
            ("https://hooks.example.com:0/", "port"),
            ("https://hooks.example.com:99999/", "no port"),
            ("https://hooks.example.com:port/", "not a URL"),
            ("https://[::1/", "not a URL"),
            ("https://a b.example/", "not a URL"),
            ("https://hooks.example.com\\@127.0.0.1/", "not a URL"),
            ("https://hooks.example.com/\n", "not a URL"),
            ("https://" + "a" * 2048, "characters"),
        ],
    )
    def test_that_are_not(self, url: str, why: str) -> None:
        with pytest.raises(ForbiddenUrlError, match=why):
            check_url(url, NOBODY)


class TestAddresses:
    @pytest.mark.parametrize(
        "address",
        [
            "1.1.1.1",
            "8.8.8.8",
            "172.15.255.255",
            "172.32.0.0",
            "2606:4700:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ],
    )
    def test_that_are_public(self, address: str) -> None:
        assert addresses("https://hooks.example.com", address) == [address]

    @pytest.mark.parametrize(
        "address",
        [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "198.18.0.1",
            "224.0.0.1",
            "239.255.255.250",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:a9fe:a9fe",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001:0:7f00:1::",
            "fe80::1",
            "fe80::1%eth0",
            "fec0::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "100::1",
        ],
    )
    def test_that_are_not(self, address: str) -> None:
        with pytest.raises(ForbiddenUrlError, match="public"):
            addresses("https://hooks.example.com", address)
        # One good address beside it makes it no better.
        with pytest.raises(ForbiddenUrlError, match="public"):
            addresses("https://hooks.example.com", "1.1.1.1", address)

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"]
    )
    def test_all_ways_to_write_this_machine_are_seen_through(self, host: str) -> None:
        url = f"https://{host}/"
        with pytest.raises(ForbiddenUrlError):
            addresses_of(check_url(url, NOBODY), NOBODY, look_up, 5.0)

    def test_what_a_private_name_leads_to_is_not_told_apart_from_nothing(self) -> None:
        said = set()
        for found in ((), ("10.1.2.3",)):
            with pytest.raises(ForbiddenUrlError) as refused:
                addresses("https://db.internal", *found)
            said.add(str(refused.value))
        assert len(said) == 1
        assert "10.1.2.3" not in said.pop()

    def test_a_lookup_that_hangs_is_given_up(self) -> None:
        is_over = threading.Event()

        def hang(_: str) -> list[str]:
            is_over.wait(20.0)
            return ["1.1.1.1"]

        began = time.monotonic()
        with pytest.raises(ForbiddenUrlError):
            addresses_of(check_url("https://hooks.example.com", NOBODY), NOBODY, hang, 0.1)
        assert time.monotonic() - began < 5.0
        is_over.set()


class TestAllowedHosts:
    @pytest.mark.parametrize(
        "url", ["http://hooks.internal/", "https://HOOKS.internal.:22/", "http://hooks.internal:9"]
    )
    def test_may_be_anywhere(self, url: str) -> None:
        policy = WebhookPolicy(allowed_hosts=("Hooks.internal",))
        assert addresses(url, "10.0.0.7", policy=policy) == ["10.0.0.7"]

    @pytest.mark.parametrize("url", ["http://user:password@hooks.internal/", "ftp://hooks.internal/"])
    def test_are_held_to_the_rest(self, url: str) -> None:
        with pytest.raises(ForbiddenUrlError):
            check_url(url, WebhookPolicy(allowed_hosts=("hooks.internal",)))

    def test_are_those_and_no_others(self) -> None:
        policy = WebhookPolicy(allowed_hosts=("hooks.internal",))
        with pytest.raises(ForbiddenUrlError):
            addresses("https://a.hooks.internal/", "10.0.0.7", policy=policy)
        with pytest.raises(ForbiddenUrlError):
            addresses("https://hooks.internal/", policy=policy)

    @pytest.mark.parametrize("host", ["", "http://hooks.internal", "[::1]", "a@b"])
    def test_must_be_hosts(self, host: str) -> None:
        with pytest.raises(ValidationError, match="not a host"):
            WebhookPolicy(allowed_hosts=(host,))
