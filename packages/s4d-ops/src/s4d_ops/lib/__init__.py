"""The native libraries. ``s4d_ops.library_path`` finds them; nothing here is public."""
