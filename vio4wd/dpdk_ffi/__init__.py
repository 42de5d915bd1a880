"""ctypes bindings of DPDK. Nothing above this package sees a ctypes type, except plain integers for addresses."""
