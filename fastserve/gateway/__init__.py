"""The gateway: everything that speaks HTTP/1.1, in processes of its own beside the core.

Started by the control process, and a client of the core like any other, over a unix socket in the state
directory: what happens here can delay no gRPC answer. It knows no model's files and loads no TensorFlow.
"""
