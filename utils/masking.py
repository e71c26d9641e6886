"""Addresses as they may be shown."""
from __future__ import annotations

import re

# One slash is a typing error of an address, whose password is no less secret.
ADDRESS = re.compile(r"(?is)^(.*?(?:\b(?:rtsps?|https?):/+|://))(.*)$")


def masked(text: str) -> str:
    """The same text with the secrets of the address in it replaced by stars, fit for messages and files.

    Secrets are the user's name and password, and all that follows the first "?", "=", ";" or "#" of an
    address: cameras take passwords there as well. In a text that is no address, what stands before an "@"
    with a ":" in it may be a login whose scheme was forgotten; all else is returned as it is.
    """
    if not (found := ADDRESS.match(text)):
        return re.sub(r"(?s)^.*:.*@", "***@", text)
    head, rest = found.groups()
    rest = re.sub(r"(?s)^.*@", "***@", rest)
    return head + re.sub(r"(?s)([?=;#]).+", r"\1***", rest)
