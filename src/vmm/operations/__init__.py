"""What vmm can do: one function a verb. Each returns a frozen result and prints nothing."""
