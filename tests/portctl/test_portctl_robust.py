"""No message and no client stops a service or holds up another."""

from __future__ import annotations

import socket
import threading
import time

import portctl_wire as wire
import pytest
import zmq
from portctl_wire import ADD, ERROR, OK, REMOVE, request
from zmq_forwarder import SERVICES, Forwarder

from vio4wd.portctl.proto.virtioforwarder_pb2 import StatsRequest

UNREADABLE = {
    "garbage": b"\xff" * 40,
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "truncated": request(ADD, addresses=("0000:05:08.1",), virtio_id=1)[:-3],
    "unknown operation": wire.number(1, 9),
    "address without its function": wire.number(1, 0) + wire.data(2, wire.number(1, 0) + wire.number(2, 5)),
    "name that is not UTF-8": wire.number(1, 1) + wire.number(3, 1) + wire.data(5, b"\xff\xfe"),
}
REFUSALS = {"port_control": b"\x20\x00", "core_sched": b"\x20\x00", "stats": b"\x08\x90\x03", "config": b"\x08\x90\x03"}


@pytest.mark.parametrize("service", SERVICES)
def test_messages_that_cannot_be_read(forwarder: Forwarder, service: str) -> None:
    for garbage in (UNREADABLE["garbage"], b"\x08", b"\x0a\xff\xff\xff\xff\x0f"):
        assert forwarder.ask(service, garbage) == REFUSALS[service]
    forwarder.check_alive()


def test_requests_that_cannot_be_read(forwarder: Forwarder) -> None:
    answers = {what: forwarder.ask("port_control", message) for what, message in UNREADABLE.items()}
    assert answers == dict.fromkeys(UNREADABLE, REFUSALS["port_control"])
    assert forwarder.ask("port_control", b"") == REFUSALS["port_control"]
    assert forwarder.ask("core_sched", b"") == REFUSALS["core_sched"]
    forwarder.check_alive()


@pytest.mark.parametrize("service", SERVICES)
def test_several_frames(forwarder: Forwarder, service: str) -> None:
    for frames in ([b"", b""], [b"a", b"b"], [b"x"] * 1000):
        assert forwarder.exchange(service, frames) == [REFUSALS[service]]
    forwarder.check_alive()


@pytest.mark.parametrize("service", SERVICES)
def test_huge_messages_are_dropped(forwarder: Forwarder, service: str) -> None:
    for size in (64 * 1024, 1 << 20, 16 << 20):
        try:
            assert forwarder.ask(service, b"\xff" * size, timeout_s=0.3) == REFUSALS[service]
        except zmq.Again:
            assert size > 64 * 1024, "answered up to the limit"
    forwarder.check_alive()


def test_sockets_that_are_not_req(forwarder: Forwarder) -> None:
    with zmq.Context() as context:
        for kind in (zmq.DEALER, zmq.PUSH, zmq.PUB, zmq.ROUTER, zmq.SUB, zmq.PAIR):
            with context.socket(kind) as client:
                client.setsockopt(zmq.LINGER, 0)
                client.connect(forwarder.endpoint("port_control"))
                if kind in (zmq.DEALER, zmq.PUSH, zmq.PAIR):
                    client.setsockopt(zmq.SNDTIMEO, 100)
                    for frames in ([b"junk"], [b"a", b"b"], [b""]):
                        try:
                            client.send_multipart(frames)
                        except zmq.Again:
                            break
    forwarder.check_alive()


def test_a_client_that_sends_many_before_it_reads(forwarder: Forwarder) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.RCVTIMEO, 10_000)
        client.setsockopt(zmq.RCVHWM, 0)
        client.connect(forwarder.endpoint("config"))
        for _ in range(2000):
            client.send_multipart([b"", b""])
        answered = 0
        while client.poll(500):
            assert client.recv_multipart() == [b"", b"\x08\x00"]
            answered += 1
    assert answered > 100
    forwarder.check_alive()


MINUTE = StatsRequest(delay=60_000).SerializeToString()


def test_one_client_does_not_take_the_others_places(forwarder: Forwarder) -> None:
    """Of more requests than a service answers at a time all but a few are refused, and other clients are answered."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.setsockopt(zmq.SNDHWM, 0)
        client.setsockopt(zmq.RCVHWM, 0)
        client.connect(forwarder.endpoint("stats"))
        for _ in range(1100):
            client.send_multipart([b"", MINUTE])
        forwarder.check_alive()
        refused = 0
        while client.poll(500):
            assert client.recv_multipart() == [b"", REFUSALS["stats"]]
            refused += 1
        assert 100 < refused <= 1084
    forwarder.check_alive()


def test_many_clients_that_wait_do_not_take_the_others_places(forwarder: Forwarder) -> None:
    clients, each = 80, 15
    with zmq.Context() as context:
        waiting = [context.socket(zmq.DEALER) for _ in range(clients)]
        for client in waiting:
            client.setsockopt(zmq.LINGER, 0)
            client.connect(forwarder.endpoint("stats"))
            for _ in range(each):
                client.send_multipart([b"", MINUTE])
        begun = time.monotonic()
        for _ in range(3):
            forwarder.check_alive()
        assert time.monotonic() - begun < 10
        for client in waiting:
            client.close()


def test_raw_bytes_on_the_socket(forwarder: Forwarder) -> None:
    for junk in (b"", b"\x00" * 100, b"\xff" * 5000, b"GET / HTTP/1.0\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(forwarder.directory / "port_control"))
            client.sendall(junk)
    forwarder.check_alive()


def test_connections_that_say_nothing_are_closed(forwarder: Forwarder) -> None:
    """At once for all, half of them with the beginning of ZeroMQ's greeting."""
    idle = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    for index, client in enumerate(idle):
        client.settimeout(6)
        client.connect(str(forwarder.directory / "port_control"))
        client.sendall(b"\xff\0\0\0\0" * (index % 2))
    forwarder.check_alive()
    for client in idle:
        while client.recv(100):
            pass
        client.close()
    forwarder.check_alive()


def test_200_clients_at_once(forwarder: Forwarder) -> None:
    """Each of 200 clients adds and removes its VF, on relays that others use too; all are answered."""
    clients = 200
    answers: list[tuple[bytes, bytes]] = []
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, clients + 10)

        def client(index: int, sockets: zmq.Socket[bytes]) -> None:
            sockets.connect(forwarder.endpoint("port_control"))
            sockets.setsockopt(zmq.RCVTIMEO, 20_000)
            devices = (f"net_null{index % 60}",)
            sockets.send(request(ADD, devargs=devices, virtio_id=index % 60))
            added = sockets.recv()
            sockets.send(request(REMOVE, devargs=devices, virtio_id=index % 60))
            answers.append((added, sockets.recv()))
            sockets.close(linger=0)

        threads = [threading.Thread(target=client, args=(i, context.socket(zmq.REQ))) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert answers == [(b"\x20\x01", b"\x20\x01")] * clients
    forwarder.check_alive()


def test_a_slow_request_holds_up_nobody(forwarder: Forwarder) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as slow:
        slow.setsockopt(zmq.LINGER, 0)
        slow.setsockopt(zmq.RCVTIMEO, 10_000)
        slow.connect(forwarder.endpoint("port_control"))
        slow.send(request(ADD, devargs=("net_slow0",), virtio_id=1))
        started = time.monotonic()
        forwarder.check_alive()
        quick = forwarder.control(request(ADD, devargs=("net_null2",), virtio_id=2))
        assert wire.only(quick, 4) == OK
        assert time.monotonic() - started < 0.8
        assert not slow.poll(0)
        assert slow.recv() == b"\x20\x01"


def test_clients_that_leave_before_the_answer(forwarder: Forwarder) -> None:
    for index in range(20):
        with zmq.Context() as context, context.socket(zmq.REQ) as client:
            client.connect(forwarder.endpoint("port_control"))
            client.setsockopt(zmq.LINGER, 100)
            client.send(request(ADD, devargs=(f"net_slow{index}",), virtio_id=index))
    forwarder.check_alive()
    assert wire.only(forwarder.control(request(ADD, devargs=("net_null1",), virtio_id=64)), 4) == ERROR
