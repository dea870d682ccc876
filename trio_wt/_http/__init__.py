"""HTTP requests, whatever carried them."""
