"""Ports for processes that find each other."""

import random
import socket


def free_port() -> int:
    """One that nothing uses, below those that the system gives to outgoing connections.

    Among these a process that calls before anybody listens may reach itself.
    """
    for port in random.SystemRandom().sample(range(10000, 30000), 100):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no port is free")
