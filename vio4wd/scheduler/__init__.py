"""Placing relays on worker CPUs: the core_sched service (``service.CoreSchedService``) and the load balancer."""
