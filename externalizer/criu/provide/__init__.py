"""Finding a criu that works on this machine, and installing one into a private prefix.

`find` is cheap and used by every command that runs criu. The rest (`install`, `apt`, `debian`, `unpack`)
is used by `make criu` alone and is not imported from here.
"""
