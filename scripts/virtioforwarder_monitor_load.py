#!/usr/bin/env python3
"""Show the load of the worker CPUs of a running virtio-forwarder."""

import _bootstrap

_bootstrap.run("vio4wd.cli.monitor_load")
