"""The core_sched service: moves relays to worker CPUs as the load balancer and operators ask."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from vio4wd.errors import ForwarderError, RequestError
from vio4wd.portctl.proto import parse
from vio4wd.portctl.proto.virtioforwarder_pb2 import CoreSchedRequest, CoreSchedResponse, RelayCPU
from vio4wd.relay.interface import RELAYS, RelayController, RelayCpus

log = logging.getLogger(__name__)

SOURCE = "virtio_set_relay_cpus()"
BAD_RELAY = 1
BAD_CPU = 2
RELAY_TWICE = 3
NOT_MOVED = 4


class CoreSchedService:
    """Answers CoreSchedRequest: GET_EAL_CORES with the worker CPUs, UPDATE by moving relays, all or none.

    Errors carry the source ``virtio_set_relay_cpus()`` and a code: 1 unknown relay, 2 a CPU that is no worker CPU,
    3 a relay given twice, 4 the move failed.
    """

    def __init__(self, controller: RelayController) -> None:
        self._controller = controller

    @property
    def refusal(self) -> bytes:
        """The answer to what is not a request: ERROR without a code."""
        return CoreSchedResponse(status=CoreSchedResponse.ERROR).SerializeToString()

    async def __call__(self, request: bytes) -> bytes:
        """Answer one serialized CoreSchedRequest.

        Raises:
            ProtocolError: the bytes are not one.
        """
        message = parse(CoreSchedRequest, request)
        response = CoreSchedResponse(status=CoreSchedResponse.OK)
        if message.op == CoreSchedRequest.GET_EAL_CORES:
            response.eal_cores.extend(self._controller.worker_cpus())
            return response.SerializeToString()
        try:
            cpus = checked_map(message.relay_cpu_map, self._controller.worker_cpus())
            await self._controller.set_cpus(cpus)
        except ForwarderError as error:
            log.warning("core_sched: UPDATE failed: %s", error)
            code, source = (error.code, error.source) if isinstance(error, RequestError) else (None, None)
            response.status = CoreSchedResponse.ERROR
            response.error_code = NOT_MOVED if code is None else code
            response.error_code_source = SOURCE if source is None else source
            response.error_text = str(error)
        return response.SerializeToString()


def checked_map(entries: Iterable[RelayCPU], workers: Collection[int]) -> dict[int, RelayCpus]:
    """The moves that an UPDATE asks for, by relay number.

    Raises:
        RequestError: a relay that does not exist or is given twice, or a CPU that is not in ``workers``.
    """
    moves: dict[int, RelayCpus] = {}
    for entry in entries:
        relay = entry.relay_number
        if not 0 <= relay < RELAYS:
            raise RequestError(f"relay {relay}: must be 0 to {RELAYS - 1}", code=BAD_RELAY, source=SOURCE)
        if relay in moves:
            raise RequestError(f"relay {relay}: is given twice", code=RELAY_TWICE, source=SOURCE)
        for cpu in (entry.vf2virtio_cpu, entry.virtio2vf_cpu):
            if cpu not in workers:
                allowed = ", ".join(map(str, workers))
                raise RequestError(
                    f"relay {relay}: CPU {cpu} is no worker CPU, must be one of {allowed}", code=BAD_CPU, source=SOURCE
                )
        moves[relay] = RelayCpus(entry.vf2virtio_cpu, entry.virtio2vf_cpu)
    return moves
