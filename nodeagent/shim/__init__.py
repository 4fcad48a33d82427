"""The shim: the small process that owns one attempt and outlives the agent (design.md §3).

Standard library only. It imports nothing of the package but itself, so that a warm zygote stays small and cheap to
fork. Others import only `records` (what is on disk) and `kernel` (what the kernel says about processes).
"""
