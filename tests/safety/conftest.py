"""Files without records of their SHA-256: with them, the parsers would never meet what these tests make."""

from collections.abc import Iterator

import pytest

from coalmine import checksums


@pytest.fixture(scope="module", autouse=True)
def _without_records() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "write", lambda path, record: None)
        yield
