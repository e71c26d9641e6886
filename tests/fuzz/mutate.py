"""Seeded mutations of bytes and of JSON values: the same seed gives the same mutation anywhere."""
import copy
import json
import random
import re
import struct
import zlib

ODD = (None, True, False, -1, 0, 1, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 2 ** 31, 2 ** 63,
       10 ** 40, "", " ", "0", "-1", "nan", "1e999", "x" * 5000, "../../../etc/passwd", "/etc/passwd", "~",
       "a/b", "a\\b", "\0", "\x1b]0;x\x07", "\u202e", "\udce9", "猫", "image", [], [[]], {}, {"": None},
       [None] * 4, [0, 0, 1e9, 1e9], ["a"], [[1, 2], [3]], [1] * 3000,
       {"counts": "x", "size": [1e9, 1e9]}, {"counts": [1] * 9, "size": [0, 0]})
WORDS = (b"0", b"-1", b"1e999", b"nan", b"inf", b"99999999999999999999", b"\0", b"\xff\xfe", b"\r\n", b"\n\n",
         b" ", b"\t", b"{", b"]", b"<", b"/>", b"<!DOCTYPE a [<!ENTITY b \"c\">]>", b"&b;", b"\xef\xbb\xbf",
         b"%00", b"..", b"%2e%2e/", b"=", b"&", b"?", b":", b"\x80\x81", b"\xff\xd9", b"IEND", b"mdat",
         b"moov", b"\xff" * 8, b"\x7f\xff\xff\xff", b"\0" * 64)


def bytes_of(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four changes: flipped, overwritten, cut, put in, doubled, exchanged, ended."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1) if rng.random() < 0.6 else rng.randrange(min(len(out), 200) + 1)
        length = min(len(out) - at, rng.choice((1, 1, 2, 4, 16, 64, 400)))
        match rng.randrange(9):
            case 0 | 1:
                for place in range(at, at + length):
                    out[place] ^= 1 << rng.randrange(8)
            case 2:
                out[at:at + length] = rng.randbytes(length)
            case 3:
                out[at:at + length] = bytes(length)
            case 4:
                del out[at:at + length]
            case 5:
                out[at:at] = rng.choice(WORDS)
            case 6:
                word = rng.choice(WORDS)
                out[at:at + len(word)] = word
            case 7:
                out[at:at] = out[at:at + length] * rng.choice((1, 2, 50))
            case 8:
                out = out[:at] if rng.random() < 0.5 else out
    return bytes(out)


def value_of(value: object, rng: random.Random) -> object:
    """The same JSON value with one to three of its parts replaced, left out, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders = [(None, None), *_parts(value)]
        holder, key = rng.choice(holders) if rng.random() < 0.95 else holders[0]
        if holder is None:
            value = copy.deepcopy(rng.choice(ODD)) if rng.random() < 0.1 else value
        elif rng.random() < 0.75:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif isinstance(holder, dict):
            old = holder.pop(key)
            if rng.random() < 0.5:
                holder[rng.choice(("", "id", "name", key.upper(), "x" * 300))] = old
        elif rng.random() < 0.5:
            del holder[key]
        else:
            holder.insert(key, holder[key])
    return value


def _parts(value: object) -> list[tuple]:
    """(holder, key) of everything inside a JSON value."""
    found = []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *_parts(value[key])]
    return found


def json_of(data: bytes, rng: random.Random) -> bytes:
    """A JSON text with a changed value, or, one in four, with changed bytes."""
    if rng.random() < 0.25:
        return bytes_of(data, rng)
    return json.dumps(value_of(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def text_of(data: bytes, rng: random.Random) -> bytes:
    """A text with one to three words, numbers, tags or line ends replaced; one in three, changed bytes."""
    if rng.random() < 0.33:
        return bytes_of(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = list(re.finditer(rb"[^\s<>=:,&?\[\]{}\"']+|\n|<[^>]*>", data))
        if not found:
            return data
        one, other = rng.choice(found), rng.choice(found)
        word = other[0] if rng.random() < 0.3 else rng.choice(WORDS) if rng.random() < 0.5 else \
            str(rng.choice(ODD)).encode("utf-8", "surrogatepass")
        data = data[:one.start()] + word + data[one.end():]
    return data


def image_of(data: bytes, rng: random.Random) -> bytes:
    """An image file with changed bytes, the checksums of a PNG often put right again."""
    out = bytes_of(data, rng)
    if not out.startswith(b"\x89PNG\r\n\x1a\n") or rng.random() < 0.3:
        return out
    parts, at = [out[:8]], 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        body = out[at + 4:at + 8 + min(length, len(out) - at - 12)]
        parts.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
        at += len(body) + 8
    return b"".join(parts)
