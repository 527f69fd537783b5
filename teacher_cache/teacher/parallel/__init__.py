"""One teacher over several devices: what fits where, and the processes that hold its parts."""
