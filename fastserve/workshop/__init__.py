"""The workshop: what gets models in, finds what is slow in them and makes it fast. `fastserve[workshop]`.

`fastserve export`, `profile` and `optimize` call it, each in a process of its own, which no daemon ever is;
export and optimize import TensorFlow there. It may use the leaves of the package, the native code, offline,
and of bench what describes the machine and makes reports; it knows nothing of the core, of control and of
the gateway.
"""
