"""keep: a process that holds sockets open between a dump and its restore. Same host and boot only."""
