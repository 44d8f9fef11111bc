"""Run a third party's model in a process of its own, without network, with limits."""
