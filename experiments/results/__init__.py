"""What the experiments came to: tables and plots."""
