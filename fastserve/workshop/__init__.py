"""The workshop: what gets models in, finds what is slow in them and makes it fast. `fastserve[workshop]`.

`fastserve export`, `profile` and `optimize` call it, each in a process of its own in which TensorFlow is
imported; no daemon ever is such a process. It may use the leaves of the package and the native code, and
knows nothing of the core, of control and of the gateway.
"""
