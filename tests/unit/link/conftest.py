from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.link.controller import Controller


@pytest.fixture(scope="session")
def _listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    made = Controller(tmp_path_factory.mktemp("controller"))
    with made.agents, made.public:
        yield made


@pytest.fixture
def controller(_listening: Controller) -> Controller:
    """A controller that knows nothing yet, with both listeners up."""
    _listening.reset()
    return _listening
