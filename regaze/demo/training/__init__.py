"""How the demo was made: drawing the scenes, writing the questions, training and measuring the model."""
