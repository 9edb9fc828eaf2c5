"""What a bucket costs: measured, fitted, or modelled for the card."""
