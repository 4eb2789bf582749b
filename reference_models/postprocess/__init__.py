"""Post-processes, one file each: other maps from the features of a localizer's forward pass."""
