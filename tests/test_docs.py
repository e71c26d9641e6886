"""The examples of the documents are run: what they print is what is printed."""
import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_the_examples_of_a_page_print_what_they_say(page: str):
    found = doctest.testfile(str(ROOT / page), module_relative=False,
                             optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
