"""`externalize check` foresees what the real criu does, both ways."""

from __future__ import annotations

import bench
import descriptor_rows
import memory_rows
import pytest
import socket_rows
import task_rows
from provoking import Place
from puppets import Puppet

pytestmark = [pytest.mark.criu, pytest.mark.agreement]

ROWS = {**descriptor_rows.ROWS, **socket_rows.ROWS, **task_rows.ROWS, **memory_rows.ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_check_and_criu_agree(name: str, puppet: Puppet, case_place: Place) -> None:
    bench.compare(name, ROWS[name], case_place, puppet)
