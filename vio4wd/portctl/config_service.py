"""The config service: which worker CPUs serve which relay."""

from __future__ import annotations

from vio4wd.portctl.proto import parse
from vio4wd.portctl.proto.virtioforwarder_pb2 import ConfigRequest, ConfigResponse, RelayCPU
from vio4wd.relay.interface import RelayController


class ConfigService:
    """Answers ConfigRequest with the CPU map of all relays that have one, by relay number."""

    def __init__(self, controller: RelayController) -> None:
        self._controller = controller

    @property
    def refusal(self) -> bytes:
        """The answer to what is not a request: EBADR."""
        return ConfigResponse(status=ConfigResponse.EBADR).SerializeToString()

    async def __call__(self, request: bytes) -> bytes:
        """Answer one serialized ConfigRequest.

        Raises:
            ProtocolError: the bytes are not one.
        """
        parse(ConfigRequest, request)
        relay_cpu_map = [
            RelayCPU(relay_number=relay, vf2virtio_cpu=cpus.vf_to_vm, virtio2vf_cpu=cpus.vm_to_vf)
            for relay, cpus in sorted(self._controller.relay_cpus().items())
        ]
        return ConfigResponse(status=ConfigResponse.OK, relay_cpu_map=relay_cpu_map).SerializeToString()
