#!/usr/bin/env python3
"""Add and remove VFs, bonds and vhost-user sockets of a running virtio-forwarder."""

import _bootstrap

_bootstrap.run("vio4wd.cli.port_control")
