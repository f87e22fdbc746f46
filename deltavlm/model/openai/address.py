"""Address and name of a model behind a server, `openai:URL#MODEL`, and the key of the server."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from deltavlm.errors import InputError
from deltavlm.messages import preview, redact_address

__all__ = ["BASE_URL", "KEY", "Address", "parse_address", "read_key"]

BASE_URL, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"  # environment variables
EXAMPLE = "openai:URL#MODEL, where URL is such as http://localhost:11434/v1"  # one word would lose its #MODEL
MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Address:
    """Base URL of a server, up to /chat/completions and without a slash at the end; and a model there."""

    url: str
    model: str

    @property
    def host(self) -> str:
        """Host and port, such as `localhost:11434`."""
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """True if the server runs on this machine; a private address is that of another one.

        >>> [Address(f"http://{host}/v1", "m").is_local for host in ("localhost:80", "[::1]", "10.0.0.1")]
        [True, True, False]
        """
        host = urlsplit(self.url).hostname or ""
        if host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified


def parse_address(name: str) -> Address:
    """Address in the name of a model, `openai:URL#MODEL` or `openai:#MODEL`.

    Raises: InputError for an address that HTTP cannot use, or that holds a password or a query.
    """
    text, hash_sign, model = name.partition(":")[2].partition("#")
    model = model.strip()
    shown = redact_address(text)
    if not hash_sign or not model:
        raise InputError(f"openai:{shown} names no model; write it behind a #, as in {EXAMPLE}")
    if not model.isprintable() or len(model) > MAX_NAME_CHARS:
        raise InputError(f"{preview(model)} is not the name of a model")
    url = text or os.environ.get(BASE_URL, "").strip()
    if not url:
        raise InputError(f"openai:#{model} has no address; set {BASE_URL}, or write it as in {EXAMPLE}")
    origin = f"openai:{shown}" if text else BASE_URL
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or not url.isprintable() or " " in url or not url.isascii():
        raise InputError(f"{origin}: is not the address of a server; write it as in {EXAMPLE}")
    if "@" in parts.netloc:
        raise InputError(f"{origin}: the address holds a name or password; set {KEY} instead")
    if parts.query or parts.fragment:
        raise InputError(f"{origin}: the address has a query or a #; leave it out")
    return Address(url.rstrip("/").removesuffix("/chat/completions"), model)


def read_key() -> str | None:
    """Key of the server, from the environment. Raises: InputError where no HTTP header can hold it."""
    key = os.environ.get(KEY, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(f"{KEY} has characters that no HTTP header can have; set it again")
    return key or None
