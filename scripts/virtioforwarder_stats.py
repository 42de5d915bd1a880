#!/usr/bin/env python3
"""Show statistics of the relays of a running virtio-forwarder."""

import _bootstrap

_bootstrap.run("vio4wd.cli.stats")
