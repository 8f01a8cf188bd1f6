"""The ways into a running machine, and the stage-1 it boots through."""
