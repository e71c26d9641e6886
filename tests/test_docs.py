"""The examples of the documents are run: what they print is what is printed."""
import doctest
import hashlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_the_examples_of_a_page_print_what_they_say(page: str):
    found = doctest.testfile(str(ROOT / page), module_relative=False,
                             optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed


def test_a_shipped_checkpoint_is_the_one_its_card_describes(root: Path):
    page = (root / "weights/README.md").read_text(encoding="utf-8")
    cards = re.findall(r"^\| `([\w.-]+\.pt)` \| ([\d,]+) \| `(\w{16})` \|", page, re.M)
    found = {path.name: path.read_bytes() for path in (root / "weights").glob("*.pt")}
    assert {name for name, *_ in cards} == set(found)
    for name, size, digest in cards:
        assert hashlib.sha256(found[name]).hexdigest().startswith(digest), name
        assert len(found[name]) == int(size.replace(",", "")) < 12e6
