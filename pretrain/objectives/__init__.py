"""Pure loss functions: tensors in, a sum and a count out."""
