"""From maps as they are stored to what a model is trained and measured on; all chance is drawn from one given generator."""
