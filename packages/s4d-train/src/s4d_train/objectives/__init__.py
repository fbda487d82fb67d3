"""What training minimises: assignment, losses and denoising, as functions of tensors."""
