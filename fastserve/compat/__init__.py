"""tensorflow_model_server's command line and files, as a configuration of ours.

  flag_table      every flag: its type, its default, and what becomes of it here
  flags           a command line as TensorFlow's flag parser reads it
  draft           a configuration in the making: tables, with comments, what was said on the way
  models, batching, session, platform, tls, tflite, channel     the files and flags, each by what it is about
  model_server    all of them together
  toml_text       a draft as a config.toml

Called by the command line (cli_tfserving) and again by whoever reloads. Knows the configuration and control's
words for HandleReloadConfigRequest; serves nothing itself.
"""
