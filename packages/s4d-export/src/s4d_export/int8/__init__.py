"""INT8: ranges, quantised graphs, what each layer costs, fine-tuning."""
