"""Studies: many condensations with one question, such as what networks remember of earlier classes by them."""
