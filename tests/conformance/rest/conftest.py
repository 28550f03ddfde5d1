"""Where the REST API of the conformance daemon is."""

from __future__ import annotations

import pytest
from daemon_process import Daemon

pytest.register_assert_rewrite("conformance.rest.rest_case")


@pytest.fixture(scope="session")
def rest(daemon: Daemon) -> tuple[str, int]:
    from conformance.rest.rest_case import address_of

    return address_of(daemon.ready)
