"""Detection and tracking metrics with the nuScenes devkit."""
