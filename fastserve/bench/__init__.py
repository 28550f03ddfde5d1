"""`fastserve bench` and `fastserve tune`: workloads, targets, interleaved runs, statistics, reports.

Measures any server with TensorFlow Serving's API through the native load generator. Imports nothing here:
the command line picks what it needs.
"""
