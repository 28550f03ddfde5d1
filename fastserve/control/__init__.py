"""The control process: the brain beside the data plane.

It reads the configuration, binds the listening sockets, starts the core and restarts it when it
dies, finds versions, tries each in a child process, and tells the core what to load and publish. It
never sees a request, and it imports neither numpy nor TensorFlow.

  daemon            the composition root: what `fastserve serve` does, from top to bottom
  listeners         the listening sockets
  environment       the environment and command lines of the child processes; allocator: the core's malloc
  core_process      one life of the core and the protocol with it; child_output: what it prints
  supervisor        the core across its lives
  first_core        the core to begin with; adoption, foreign_process: one that was left behind
  shared_memory     what a core counts, where this process can read it; metric_totals: sums that never go down
  core_table        labels and states, as the core is told them
  manager           all models: a source and a stream for each
  source*, remote_* the versions there are, in directories and in remote stores
  complete          whether a version is whole; variables_index, wire: what its files say
  stream            the versions of one model, from found to served to unloaded
  policy            in which order; labels: which versions may have one
  work              what is done to a version; memory, process_memory: whether it fits
  rollout*          whether a new version has proved itself
  trial_runner      a trial of one version, seen from outside; trial and trial_*: from inside
  trial_forks       trials as forks of the fork_server; forked_process: one of them
  xla_cache*        what XLA has compiled
  plugins           sources, loaders, policies and native libraries by name
  reload*           new configurations while it runs
  state             what is remembered from one start to the next
  admin*            the admin socket and its verbs
"""
