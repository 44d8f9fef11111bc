"""Lung segmentation: the U-Net, the engines that run it, and the mask made from its output."""
