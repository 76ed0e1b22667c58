"""The verb ``doctor``: what this machine can do, what stands in the way, and what to do about it.

`dfstream.doctor.examination` runs the probes; a probe looks at one thing, returns plain values and notes
what it finds wrong.
"""
