"""What orchestrators, Prometheus and people ask of a running daemon over HTTP: health, metrics, status, a
page.

Runs in the control process, on its event loop, and never in the way of a request: the control process sees
none.

  server      sockets, connections, their number
  app         paths and answers
  live        the same message to everybody who listens to /events
  scrape      the figures as Prometheus reads them, rendered in a thread
  exposition  the two text formats of that
  clean_names, tensorflow_names   which figures have which names
  values      what all of them are told, as plain values

Knows nothing of the control process that gives it the values, nor of cores and models.
"""
