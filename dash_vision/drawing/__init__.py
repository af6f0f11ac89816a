"""Pages and charts made of pictures and numbers."""
