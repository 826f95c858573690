"""`make demo`: a story told by real guests. Run by `python -m virtfleet_local.demo`.

`sights` is what must be observed, `chapters` the story, `stage` what the story acts through, `host_side` a look at the
hypervisors past the fleet's own record, `screen` what the spectator sees.
"""
