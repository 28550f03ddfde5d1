"""The optimizer's passes: each a file, each from a graph to a better one.

A pass changes the graph that it is given and says how often. It knows the graph and nothing else: whether
what it did is kept is decided by measuring, outside.
"""
