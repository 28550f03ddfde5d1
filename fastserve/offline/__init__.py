"""Models opened and run with no server around them: by trials, and by the workshop's commands.

Settings of sessions, samples and recorded requests to run, and an open model to run them on. May use the
native code and the leaves of the package; knows neither who runs what nor why.
"""
