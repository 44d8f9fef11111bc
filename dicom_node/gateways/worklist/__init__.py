"""A worklist of Unified Procedure Steps, aligned with the task performer of IHE's AIW-I profile, by DIMSE and by RS."""
