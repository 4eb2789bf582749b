"""One file per post-process: other maps from the features that a localizer's forward pass has found."""
