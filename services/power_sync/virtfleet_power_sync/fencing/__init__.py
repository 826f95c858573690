"""Fencing: a guest of a lost host is started elsewhere only when that host surely runs nothing any more.

How that is proven is a plug-in (`virtfleet.fences`), one module each; `fencer` has it done, once, for every lost host.
"""
