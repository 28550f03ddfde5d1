"""`fastserve profile`: where a model's time and memory go, op by op, on the runtime that the daemon uses.

command.py puts it together: runs.py runs the model, traced and untraced in turn; steps.py reads what
TensorFlow tells of a run; clusters.py finds what XLA compiles; host_ops.py finds what belongs before the
model; report_*.py show it. What is neither a run nor a report is pure, and tested without TensorFlow.
"""
