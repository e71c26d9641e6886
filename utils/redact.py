"""Addresses as they may be shown."""
from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

# One slash is a typing error of an address, whose password is no less secret.
ADDRESS = re.compile(r"(?is)^(.*?(?:\b(?:rtsps?|https?):/+|://))(.*)$")


def masked(text: str) -> str:
    """Return the text with the secrets of the address in it replaced by stars.

    Secrets are the login, and all that follows the first "?", "=", ";" or "#": cameras take passwords there.
    """
    if not (found := ADDRESS.match(text)):         # it may be an address whose scheme was forgotten
        return re.sub(r"(?s)^.*:.*@", "***@", text)
    head, rest = found.groups()
    rest = re.sub(r"(?s)^.*@", "***@", rest)
    return head + re.sub(r"(?s)([?=;#]).+", r"\1***", rest)


def masked_values(values: Mapping[str, object]) -> dict[str, object]:
    """Return the same flags, every address in a text or a list of texts masked."""
    def shown(value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [shown(item) for item in value]
        return masked(value) if isinstance(value, str) else value
    return {key: shown(value) for key, value in values.items()}


def without_secrets(text: str, address: str) -> str:
    """Return what a program says about an address, without it and the parts of its password."""
    login, _, place = (address.partition("://")[2] or address).rpartition("@")
    words = [*login.partition(":")[2].split("@"), *re.split("[?=;#&]", place)[1:]]
    text = text.replace(address, masked(address))
    for word in sorted({*words, *map(unquote, words)}, key=len, reverse=True):
        text = text.replace(word, "***") if len(word) > 1 else text
    return text
