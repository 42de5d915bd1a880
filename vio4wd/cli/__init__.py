"""The command line: one module per executable in scripts/, each with a ``main()`` that answers the exit status.

``tool`` and ``client`` are what the small tools share; these import neither numba nor DPDK.
"""
