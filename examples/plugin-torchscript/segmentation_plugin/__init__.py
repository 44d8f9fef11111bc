"""Two kinds of models for the node: a segmentation network by its card, and a MONAI bundle."""
