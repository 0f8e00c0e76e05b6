"""Speed, memory and cost of models: what ``restorevar benchmark`` measures."""
