"""What callers do with media before they hand it over."""
