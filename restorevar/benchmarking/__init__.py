"""Speed, memory and cost of models, which ``restorevar benchmark`` measures, and what their parts give."""
