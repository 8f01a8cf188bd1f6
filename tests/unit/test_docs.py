"""What the documentation names is there: every test that holds a promise, and every file that a page leads to."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
# As the pages name a test: by its path below tests/.
NAMED = re.compile(r"\b((?:unit|system)/[\w/]+\.py)::(\w+)")
PAGES = [*sorted((TOP / "docs").rglob("*.md")), TOP / "README.md", TOP / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_named_tests_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, name in NAMED.findall(text):
        source = (TOP / "tests" / path).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(def|class) {name}\b", source, re.MULTILINE), f"{page}: {path} has no {name}"
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page} leads to {target}"


def test_every_promise_of_the_security_page_names_a_test() -> None:
    text = (TOP / "docs/explanation/security.md").read_text(encoding="utf-8")
    assert len(set(NAMED.findall(text))) >= 20
