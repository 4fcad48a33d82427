"""Boundaries: the kernel objects that contain attempts, job sessions and the start task; they nest in that order.

One adapter per kind of object; `probe.choose` picks the strongest that works on this machine. Killing and proving
emptiness is `shim.kernel`'s work, because a shim does the same.
"""
