"""Where the HTTP server listens: reads ``server.listen``, says whether others can reach it, binds the sockets.

Refuses to know what is served there. Errors are told before anything is bound where that is possible.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from pathlib import Path

import msgspec

from headrace.cdc.errors import ConfigError, ServerError

BACKLOG = 1024


class ListenAddress(msgspec.Struct, frozen=True):
    """host: a name or an address without brackets. port: 0 means any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> ListenAddress:
        """Read ``host:port`` or ``[v6 address]:port``. Raises ConfigError that names server.listen."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\s:\[\]/@]+)):(\d{1,5})", text.strip())
        if match is None:
            raise _malformed(f'"{text}" is not host:port, such as 127.0.0.1:8080 or [::1]:8080')
        if match[1] is not None:
            try:
                ipaddress.IPv6Address(match[1])
            except ValueError as error:
                raise _malformed(f'"{match[1]}" is not an IPv6 address') from error
        port = int(match[3])
        if port > 65535:
            raise _malformed(f"{port} is not a port; ports are 0 to 65535")
        return cls(match[1] or match[2], port)


def _malformed(problem: str) -> ConfigError:
    return ConfigError(
        "the address of the HTTP server can't be used",
        problems=(f"server.listen: {problem}",),
        advice='write server.listen as "127.0.0.1:8080"',
    )


def is_loopback(host: str) -> bool:
    """True for a loopback address and for ``localhost`` and names below it, which RFC 6761 binds to loopback."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def reachable_url(address: ListenAddress) -> str:
    """Base URL by which this machine reaches a server that listens there (a wildcard address is no destination)."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)  # noqa: S104 - nothing is bound here
    return f"http://{ListenAddress(host, address.port)}"


def bind(address: ListenAddress) -> list[socket.socket]:
    """Listening sockets, one for each address the host stands for; with port 0 one, on a free port.

    Raises ServerError: unknown host, port taken (naming the process where /proc shows it), no right, not our address.
    """
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except OSError as error:
        raise ServerError(
            f'server.listen names the host "{address.host}", which this machine can\'t resolve',
            advice="write an address of this machine in server.listen, such as 127.0.0.1:8080",
        ) from error
    places = list(dict.fromkeys((family, place) for family, _, _, _, place in found))
    made: list[socket.socket] = []
    try:
        for family, place in places[:1] if address.port == 0 else places:
            try:
                made.append(_listening(family, place))
            except OSError as error:
                # localhost often stands for ::1 too on machines without IPv6: one of its addresses is enough.
                if made and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and (family, place) != places[-1]:
                    continue
                raise _refused(address, error) from error
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def _listening(family: int, place: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        # Listen at once: two processes can bind one port, and only the second listen would fail, after we said "ready".
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _refused(address: ListenAddress, error: OSError) -> ServerError:
    if error.errno == errno.EADDRINUSE:
        holder = _port_holder(address.port)
        by = f" by {holder}" if holder else ""
        return ServerError(
            f"the HTTP server can't listen on {address}: the port is taken{by}",
            advice="stop what listens there, or choose another server.listen (port 0 takes a free one)",
        )
    if error.errno == errno.EACCES:
        return ServerError(
            f"the HTTP server can't listen on {address}: this user may not bind the port",
            advice="choose a server.listen with a port from 1024 up",
        )
    return ServerError(
        f"the HTTP server can't listen on {address}: {(error.strerror or type(error).__name__).lower()}",
        advice="write an address of this machine in server.listen, such as 127.0.0.1:8080",
    )


def _port_holder(port: int) -> str | None:
    """``name (pid 123)`` of the process that listens on a port; None where /proc doesn't tell.

    The name is the kernel's short one: a full command line may hold secrets.
    """
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:  # 0A: TCP_LISTEN
                inodes.add(f"socket:[{words[9]}]")
    if not inodes:
        return None
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(entry) in inodes for entry in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
        except OSError:
            continue
    return None
