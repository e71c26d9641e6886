"""Addresses as they may be shown."""
from __future__ import annotations

import re


def masked(text: str) -> str:
    """The same text with the secrets of the address in it replaced by stars, fit for messages and files.

    Secrets are the user's name and password, and all that follows the first "?", "=", ";" or "#" of an
    address: cameras take passwords there as well. A text without "://" is returned as it is.
    """
    head, mark, rest = text.partition("://")
    rest = re.sub(r"(?s)^.*@", "***@", rest)
    return head + mark + re.sub(r"(?s)([?=;#]).+", r"\1***", rest) if mark else text
