#!/usr/bin/env python3
"""Pin relays to worker CPUs of a running virtio-forwarder."""

import _bootstrap

_bootstrap.run("vio4wd.cli.core_pinner")
