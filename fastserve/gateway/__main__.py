"""The gateway's entry: `python -m fastserve.gateway`, with the control socket's number in the environment."""

import asyncio
import os
import socket
import sys

import uvloop

from fastserve.gateway.control_link import GATEWAY_FD, first_line
from fastserve.gateway.process import serve
from fastserve.gateway.settings import give_way, read_settings


def main() -> int:
    fd = os.environ.pop(GATEWAY_FD, None)
    if fd is None:
        print("fastserve.gateway is started by `fastserve serve`, not by hand", file=sys.stderr)
        return 2
    control = socket.socket(fileno=int(fd))
    line, rest = first_line(control)
    settings = read_settings(line)
    # Route workers, and what their hooks start, are not to hold them open.
    for kept in (control.fileno(), *(listening.fd for listening in settings.listeners)):
        os.set_inheritable(kept, False)
    # Before there is any other thread: each has the priority of the one that starts it.
    give_way(settings.nice)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(control, rest, settings))


if __name__ == "__main__":
    sys.exit(main())
