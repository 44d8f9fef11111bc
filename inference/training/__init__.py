"""The paper's training method: unsupervised lung masks, augmentation and the two training loops."""
