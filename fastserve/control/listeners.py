"""The listening sockets. They belong to the control process, so that they outlive a core that dies.

They are bound at the start, when an address in use can still be reported at once, and begin to listen
when the models are there: until then a connection is refused, which is what probes look for.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from fastserve.config_address import Address, TcpAddress, UnixAddress, parse_address
from fastserve.control.accept_queue import empty_and_shut
from fastserve.errors import StartError

_BACKLOG = 4096


# Of what is only for the user who runs the daemon.
_OWN_MODE = 0o600


@dataclass(frozen=True)
class Listener:
    """A bound socket and where it is bound: a port 0 has become a real one."""

    socket: socket.socket
    address: Address
    admin: bool = False
    # What requests that come here count as: "grpc", or "rest" and "web" for the gateway's own.
    transport: str = "grpc"
    # The gateway's: the core only keeps it, for the next control process.
    held: bool = False


@dataclass(frozen=True)
class Wanted:
    """An address to be bound, and what for."""

    address: Address
    mode: int
    admin: bool = False
    transport: str = "grpc"
    held: bool = False


class Listeners:
    """All listening sockets of a daemon. A context manager: at its end unix sockets are removed too."""

    def __init__(
        self,
        addresses: Iterable[str],
        given: Iterable[Listener] = (),
        *,
        socket_mode: int = 0o660,
        admin: str = "",
        internal: Mapping[str, str] | None = None,
        gateway: Iterable[str] = (),
    ) -> None:
        """Takes the sockets in `given` for the addresses that they have, and binds the others. StartError
        names the one that cannot be had, and why. Given sockets that no address wants are closed here.

        Unix sockets get `socket_mode`. `admin`: one more address, for the admin calls; "": none. `internal`:
        the transports of unix sockets for our own processes, by path. `gateway`: where that listens."""
        wanted = [
            *(Wanted(parse_address(text), socket_mode) for text in addresses),
            *(Wanted(parse_address(text), _OWN_MODE, admin=True) for text in filter(None, [admin])),
            *(
                Wanted(UnixAddress(path), _OWN_MODE, transport=transport)
                for path, transport in (internal or {}).items()
            ),
            *(Wanted(parse_address(text), socket_mode, held=True) for text in gateway),
        ]
        self._listeners: list[Listener] = []
        self._unix: list[tuple[str, int]] = []
        self._given = list(given)
        self._given_unix = [
            (listener.address.path, os.stat(listener.address.path).st_ino)
            for listener in self._given
            if isinstance(listener.address, UnixAddress) and os.path.exists(listener.address.path)
        ]
        # A port 0 takes any socket of its host: after the addresses that know which one is theirs.
        taken = {
            place: self._take(want.address)
            for place, want in sorted(enumerate(wanted), key=lambda item: str(item[1].address).endswith(":0"))
        }
        # The addresses are exactly those of the sockets that were given.
        self.as_given = None not in taken.values() and not self._given
        try:
            for place, want in enumerate(wanted):
                listener = taken[place]
                if listener is None:
                    listener = self._bind(want.address, want.mode)
                elif isinstance(want.address, UnixAddress):
                    _change_mode(want.address, want.mode)
                self._listeners.append(
                    replace(listener, admin=want.admin, transport=want.transport, held=want.held)
                )
        except BaseException:
            self.close()
            self._close(listener for listener in self._listeners if listener.held)
            self._unlink()
            raise
        for listener in self._given:
            listener.socket.close()

    def __enter__(self) -> Listeners:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.close_gateway()
        self._unlink()

    @property
    def fds(self) -> list[int]:
        return [listener.socket.fileno() for listener in self._listeners]

    @property
    def all(self) -> Sequence[Listener]:
        return self._listeners

    @property
    def addresses(self) -> list[str]:
        """Where clients may call: without the admin address, the gateway's and our own."""
        return [
            str(listener.address)
            for listener in self._listeners
            if not (listener.admin or listener.held or listener.transport != "grpc")
        ]

    @property
    def gateway(self) -> list[Listener]:
        return [listener for listener in self._listeners if listener.held]

    @property
    def admin_address(self) -> str | None:
        return next((str(listener.address) for listener in self._listeners if listener.admin), None)

    def listen(self) -> None:
        """From here on connections are taken, or wait for a core that takes them."""
        for listener in self._listeners:
            try:
                listener.socket.listen(_BACKLOG)
            except OSError as error:
                raise _cannot(listener.address, error) from None
        # Whoever gave us sockets goes on without us until here, and needs their paths.
        self._unix += self._given_unix
        self._given_unix = []

    def close(self) -> None:
        """Closes this process's copies but the gateway's; what the core holds goes on."""
        self._close(listener for listener in [*self._listeners, *self._given] if not listener.held)

    async def shut_gateway(self) -> None:
        """After it connections to the gateway are refused, whoever has copies of its sockets; those that are
        made already are accepted before, by gateways that serve."""
        await empty_and_shut([listener.socket for listener in self.gateway])
        self.close_gateway()

    def close_gateway(self) -> None:
        """Closes this process's copies of the gateway's sockets."""
        self._close(self.gateway)

    def _close(self, listeners: Iterable[Listener]) -> None:
        for listener in listeners:
            listener.socket.close()

    def _take(self, address: Address) -> Listener | None:
        """The given socket that is bound to `address`, if any."""
        for given in self._given:
            if _is_at(given, address):
                self._given.remove(given)
                if isinstance(address, UnixAddress):
                    return given
                return Listener(given.socket, TcpAddress(address.host, given.socket.getsockname()[1]))
        return None

    def _bind(self, address: Address, mode: int) -> Listener:
        if isinstance(address, UnixAddress):
            sock = bind_unix(address.path, mode)
            self._unix.append((address.path, os.stat(address.path).st_ino))
            return Listener(sock, address)
        return _bind_tcp(address)

    def _unlink(self) -> None:
        for path, inode in self._unix:
            # Not the socket of someone else who has taken the path since.
            try:
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
            except OSError:
                continue


def bind_unix(path: str, mode: int) -> socket.socket:
    """A unix socket bound to `path`, not yet listening. A socket file that nobody listens on is replaced."""
    address = UnixAddress(path)
    try:
        _remove_stale(address)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            # The mode must hold from the first moment; chmod would come too late.
            umask = os.umask(0o777 & ~mode)
            try:
                sock.bind(path)
            finally:
                os.umask(umask)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise _cannot(address, error) from None
    return sock


def _change_mode(address: UnixAddress, mode: int) -> None:
    """For a socket that was bound with another."""
    try:
        os.chmod(address.path, mode)
    except FileNotFoundError:
        return  # nobody finds it any more
    except OSError as error:
        raise StartError(f"{address} cannot get the mode {mode:04o}: {error.strerror}") from None


def _remove_stale(address: UnixAddress) -> None:
    try:
        mode = os.stat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot listen on {address}: the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
            return
        except BlockingIOError:
            # Its queue is full: someone listens.
            pass
    raise StartError(f"cannot listen on {address}: another process listens there")


def _is_at(listener: Listener, address: Address) -> bool:
    """Whether a socket is bound to `address`; a port 0 stands for any."""
    if isinstance(address, UnixAddress) or isinstance(listener.address, UnixAddress):
        return listener.address == address
    family, _, _, _, where = _resolve(address)
    bound = listener.socket.getsockname()
    return listener.socket.family == family and bound[0] == where[0] and where[1] in (0, bound[1])


def _resolve(address: TcpAddress) -> Any:
    """As getaddrinfo has it, the first that it finds."""
    try:
        return socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise StartError(f"cannot listen on {address}: {address.host}: {error.strerror}") from None


def _bind_tcp(address: TcpAddress) -> Listener:
    family, kind, protocol, _, where = _resolve(address)
    try:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # [::] takes IPv4 too.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(where)
            port = sock.getsockname()[1]
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise _cannot(address, error) from None
    return Listener(sock, TcpAddress(address.host, port))


def _cannot(address: Address, error: OSError) -> StartError:
    if isinstance(address, TcpAddress):
        denied = "permission denied (ports below 1024 need privileges)"
    else:
        folder = os.path.dirname(address.path) or "."
        denied = (
            f"permission denied: user {os.geteuid()} may not make files in {folder}; give it that directory, "
            "or choose another path"
        )
    reasons = {
        errno.EADDRINUSE: "the address is in use by another process",
        errno.EADDRNOTAVAIL: "no interface of this machine has this address",
        errno.EACCES: denied,
        errno.EPERM: denied,
        errno.ENOTDIR: "a part of the path is a file, not a directory",
        errno.EROFS: "the file system is read-only: choose a path on another",
    }
    return StartError(f"cannot listen on {address}: {reasons.get(error.errno or 0, error.strerror)}")
