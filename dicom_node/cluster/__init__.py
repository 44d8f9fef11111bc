"""Workers on a Ray cluster: which there are to be, and bringing them back. No job goes through the cluster."""
