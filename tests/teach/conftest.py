"""A random teacher that answers chats: its template shows who speaks and, where it is told one, the effort."""

from pathlib import Path

import pytest
from teach_world import make_chatty


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chatty(tmp_path_factory.mktemp("chatty"))
