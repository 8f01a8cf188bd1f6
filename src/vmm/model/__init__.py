"""What things are: frozen values, rules and contracts. Nothing here touches the host."""
