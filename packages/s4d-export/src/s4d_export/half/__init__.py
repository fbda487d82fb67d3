"""Half precision: the plan as data, the typed graph, and what float16 cannot hold."""
