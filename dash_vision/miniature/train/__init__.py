"""How the miniature's networks are trained and measured."""
