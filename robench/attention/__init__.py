"""What a network looks at: maps, and how an attack changes them."""
