#!/usr/bin/env python3
"""Move relays between the worker CPUs of a running virtio-forwarder as their load changes."""

import _bootstrap

_bootstrap.run("vio4wd.cli.core_scheduler")
