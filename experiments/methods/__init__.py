"""The rows of a table: what each method does to the model, the losses or the gradients."""
