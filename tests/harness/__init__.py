"""What tests start: the daemon itself, dpdk-testpmd as a front end, network namespaces. Each ends what it started."""
