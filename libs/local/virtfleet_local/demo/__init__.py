"""`make demo`: a story told by real guests. Run by `python -m virtfleet_local.demo`.

`sights` is what must be observed, `story` its acts and chapters, `stage` what they act through, `host_side` a look at
the hypervisors past the fleet's own record, `screen` what the spectator sees.
"""
