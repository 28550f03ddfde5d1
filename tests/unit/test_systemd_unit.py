"""deploy/systemd: that systemd has nothing to say against the unit, and that it fits the daemon."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

from fastserve.config import Server

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
UNIT = UNITS / "fastserve.service"


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=True, interpolation=None, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser


def test_systemd_accepts_it(tmp_path: Path) -> None:
    """Where systemd is; the programs that it starts need not be there."""
    verify = shutil.which("systemd-analyze")
    there = tmp_path / "fastserve.service"
    there.write_text(UNIT.read_text().replace("/opt/fastserve/bin/fastserve", sys.executable))
    if verify is not None:
        said = subprocess.run(
            [verify, "verify", "--man=no", str(there)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        ours = [line for line in said.stderr.splitlines() if "fastserve" in line]
        assert ours == []
    assert set(unit().sections()) == {"Unit", "Service", "Install"}


def test_it_fits_the_daemon() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"] == "/opt/fastserve/bin/fastserve serve /etc/fastserve/config.toml"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    # Below XDG_STATE_HOME the daemon has a directory of this name.
    assert (
        f"{service['Environment'].partition('=')[2]}/{service['StateDirectory']}"
        == service["WorkingDirectory"]
    )
    # The defaults' longest drain, of gateway and core.
    assert float(service["TimeoutStopSec"]) >= Server().lame_duck_s + 2 * (Server().drain_timeout_s + 5.0)
    # Version managers die alone, and trials may be killed for their memory: see README, Model lifecycle.
    assert (service["KillMode"], service["OOMPolicy"]) == ("process", "continue")


def test_its_user_is_made() -> None:
    kind, name, *_ = (UNITS / "fastserve.sysusers").read_text().split()
    assert (kind, name) == ("u", unit()["Service"]["User"])
