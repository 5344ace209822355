"""Endpoints without list prices: this machine, private networks."""

from __future__ import annotations

import re
import socket
from functools import lru_cache
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from ..providers import host_and_port


@lru_cache(maxsize=1024)
def is_private_endpoint(url: str) -> bool:
    """Whether a base URL is this machine's, or on a private network: what runs there is on nobody's
    price list.
    """
    host, _ = host_and_port(url)
    if host is None:
        return False
    try:
        return not ip_address(full_address(host)).is_global
    except ValueError:
        local = ("localhost", "local", "localdomain", "internal", "lan", "home.arpa")
        return "." not in host or any(on_domain(url, name) for name in local)


def full_address(host: str) -> str:
    """`127.1` and `0x7f.1` are addresses as well, for whoever connects to them."""
    if re.fullmatch(r"[0-9a-fx.]*\d[0-9a-fx.]*", host) and host.rpartition(".")[2][:1].isdigit():
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            return host
    return host


_PLAN: Final = re.compile(r"https?://[^/]*(?:z\.ai|bigmodel\.cn)(?::\d+)?/api/coding(?:/|$)")


def is_of_a_plan(url: str) -> bool:
    """Whether a provider's endpoint is that of a subscription, which bills no token (docs.z.ai, GLM
    Coding Plan).
    """
    return _PLAN.match(plain_url(url)) is not None


@lru_cache(maxsize=1024)
def plain_url(url: str) -> str:
    """A URL as the price list's patterns expect it: without credentials and query, its host in
    lower case.
    """
    parts = urlsplit(url if "://" in url else f"https://{url}")
    host = parts.netloc.rpartition("@")[2].lower()
    return urlunsplit((parts.scheme.lower(), host, parts.path, "", ""))


def on_domain(url: str, domain: str) -> bool:
    """Whether a URL's host is a domain, or beneath it."""
    host = host_and_port(url)[0] or ""
    return host == domain or host.endswith(f".{domain}")


# Domains of providers that answer at further hosts than the price list knows: regions above all.
_OWN_DOMAINS: dict[str, tuple[str, ...]] = {
    "anthropic": ("anthropic.com",),
    "aws": ("amazonaws.com", "amazonaws.com.cn", "api.aws"),
    "azure": ("azure.com", "azure.us", "azure.cn", "azure-api.net"),
    "fireworks": ("fireworks.ai",),
    "google": ("googleapis.com",),
    "mistral": ("mistral.ai",),
    "moonshotai": ("moonshot.ai", "moonshot.cn"),
    "openai": ("api.openai.com",),
    "openai-decisions": ("api.openai.com",),
    "together": ("together.xyz", "together.ai"),
    "x-ai": ("x.ai",),
    "zai": ("z.ai",),
}
# Pydantic AI's gateway passes on what the provider behind it bills.
_GATEWAY = "pydantic.dev"


def is_own_host(provider: str, url: str) -> bool:
    """Whether a host is a provider's own. To speak a provider's protocol does not make it so."""
    if provider == "litellm":  # a proxy, which anybody may run
        return True
    domains = (*_OWN_DOMAINS.get(provider, ()), _GATEWAY)
    return any(on_domain(url, domain) for domain in domains)
