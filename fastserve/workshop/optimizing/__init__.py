"""`fastserve optimize`: a SavedModel taken apart, rewritten by passes, measured, and put together again.

command.py puts it together: source.py makes flat graphs of signatures (graph.py), the passes
(workshop/passes) change them, package.py writes SavedModels of them, measuring.py opens those beside the
original in a process of their own and says whether answers agree and which is faster. report.py shows it.
"""
