"""The generated pages are up to date."""

import pytest

from docs_generator.pages import PAGES, ROOT


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name: str):
    """The page in docs/ equals what `make docs` would write."""
    path = ROOT / name
    assert path.exists(), "run make docs"
    assert path.read_text(encoding="utf-8") == PAGES[name](), "run make docs"
