"""The command line's commands: what people do by hand, each in a module of its own."""
