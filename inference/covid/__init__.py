"""The networks of Zheng et al. 2020: from a CT volume to a probability, and what drove it."""
